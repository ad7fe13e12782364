//! Stopping, killing, restarting, freezing.

use std::sync::Arc;
use std::time::Duration;

use shoal_life::container::{Ask, Command, Event, Stopper};

use crate::change::Phase;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::request::{Grace, StopOptions};
use crate::signal;
use crate::start::runtime_error;
use crate::unikernel::refuse;

/// How long a container may take to stop if nobody says, as Docker's.
const GRACE: Duration = Duration::from_secs(10);

impl Engine {
    /// Asks a container to stop, and kills it after its grace.
    ///
    /// # Errors
    /// It does not run ([`EngineError::NotModified`]), or its processes do not end.
    pub async fn stop(&self, word: &str, options: StopOptions) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let ask = ask(&container, &options)?;
        let engine = self.clone();
        self.owned(async move {
            engine.command(&container, Command::Stop(ask, Stopper::User)).await?;
            engine.note(&container, "stop", &[]);
            Ok(())
        })
        .await
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Self::stop`] and [`Self::start`].
    pub async fn restart(&self, word: &str, options: StopOptions) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let ask = ask(&container, &options)?;
        let engine = self.clone();
        self.owned(async move {
            engine.command(&container, Command::Restart(ask)).await?;
            engine.note(&container, "restart", &[]);
            Ok(())
        })
        .await
    }

    /// Sends a signal, by name or number; `None` kills.
    ///
    /// # Errors
    /// It does not run, or there is no such signal.
    pub async fn kill(&self, word: &str, signal: Option<&str>) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let number = match signal.filter(|word| !word.is_empty()) {
            Some(word) => signal::parse(word)?,
            None => signal::KILL,
        };
        check_signal(&container, number)?;
        let (engine, word) = (self.clone(), word.to_owned());
        self.owned(async move {
            let not_running = || {
                let text = format!("cannot kill container: {word}: {}", container.not_running());
                EngineError::conflict(text)
            };
            // A user who kills does not want it back; other signals are messages to the program.
            let planned = container.phase() == Phase::Restarting;
            let command = if number == signal::KILL || planned {
                Some(Command::Stop(Ask::KILL, Stopper::User))
            } else if Some(number) == stop_signal(&container, None).ok() {
                Some(Command::Disown)
            } else {
                None
            };
            if let Some(command) = command {
                match engine.command(&container, command).await {
                    Err(EngineError::NotModified { .. } | EngineError::Conflict { .. })
                        if !container.phase().is_alive() =>
                    {
                        return Err(not_running());
                    }
                    other => other?,
                }
            }
            if matches!(command, Some(Command::Stop(..))) {
                return Ok(());
            }
            container.running_shim().map_err(|_| not_running())?;
            engine.send_signal(&container, number).await?;
            container.report(Event::Signalled).await;
            Ok(())
        })
        .await
    }

    /// Sends a signal, thaws the container if it is frozen, and says so.
    pub(crate) async fn send_signal(
        &self,
        container: &Arc<Container>,
        number: i32,
    ) -> Result<(), EngineError> {
        let Ok(shim) = container.running_shim() else { return Ok(()) };
        let sent = shim.signal(number).await;
        if let Err(error) = sent {
            // It may just have ended by itself, which is what a signal to stop wants anyway.
            if container.phase().is_alive() && shim.is_alive() && !ending(&shim).await {
                return Err(runtime_error("signal", container, error));
            }
        }
        self.note(container, "kill", &[("signal", number.to_string())]);
        // What is killed is thawed by its shim: frozen, it could not even die.
        if container.phase() == Phase::Paused && number != signal::KILL {
            shim.resume().await.map_err(|e| runtime_error("unpause", container, e))?;
        }
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// It does not run or is frozen already.
    pub async fn pause(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let engine = self.clone();
        self.owned(async move {
            let _turn = container.turn().await?;
            match container.phase() {
                Phase::Paused => {
                    let text = format!("container {} is already paused", container.id);
                    return Err(EngineError::conflict(text));
                }
                Phase::Running => {}
                _ => return Err(container.not_running()),
            }
            let shim = container.running_shim()?;
            shim.pause().await.map_err(|e| runtime_error("pause", &container, e))?;
            container.report(Event::Frozen).await;
            engine.note(&container, "pause", &[]);
            Ok(())
        })
        .await
    }

    /// Lets a frozen container run on.
    ///
    /// # Errors
    /// It is not frozen.
    pub async fn unpause(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let engine = self.clone();
        self.owned(async move {
            let _turn = container.turn().await?;
            if container.phase() != Phase::Paused {
                let text = format!("Container {} is not paused", container.id);
                return Err(EngineError::conflict(text));
            }
            let shim = container.running_shim()?;
            shim.resume().await.map_err(|e| runtime_error("unpause", &container, e))?;
            container.report(Event::Thawed).await;
            engine.note(&container, "unpause", &[]);
            Ok(())
        })
        .await
    }
}

/// How a container is asked to end.
pub(crate) fn ask(container: &Container, options: &StopOptions) -> Result<Ask, EngineError> {
    let signal = stop_signal(container, options.signal.as_deref())?;
    check_signal(container, signal)?;
    let grace = options.grace.or_else(|| {
        let secs = container.read(|record| record.config.stop_timeout)?;
        Some(Grace::from_secs(secs))
    });
    let grace = match grace {
        None => Some(GRACE),
        Some(Grace::Limit(limit)) => Some(limit),
        Some(Grace::Forever) => None,
    };
    Ok(Ask { signal, grace })
}

/// A unikernel's tender knows two signals; another one would end it without a word to the guest.
fn check_signal(container: &Container, number: i32) -> Result<(), EngineError> {
    if container.is_unikernel() && ![signal::KILL, signal::TERM].contains(&number) {
        let why = "it has no signals; its tender tells it to stop on SIGTERM";
        return Err(refuse(&format!("send signal {number} to"), why, "SIGTERM or SIGKILL"));
    }
    Ok(())
}

/// Whether the shim has already seen the end that the engine has not recorded yet.
async fn ending(shim: &shoal_runtime::Shim) -> bool {
    shim.state().await.is_ok_and(|state| state.exit.is_some())
}

/// The signal that asks the container to stop.
fn stop_signal(container: &Container, wish: Option<&str>) -> Result<i32, EngineError> {
    let own = container.read(|record: &Record| record.config.stop_signal.clone());
    match wish.filter(|w| !w.is_empty()).or(own.as_deref().filter(|w| !w.is_empty())) {
        Some(word) => signal::parse(word),
        None => Ok(signal::TERM),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_grace_is_the_clients_the_containers_or_dockers() {
        let container = crate::container::tests::container();
        let grace = |options: &StopOptions| ask(&container, options).unwrap().grace;
        let unsaid = StopOptions::default();
        assert_eq!(grace(&unsaid), Some(GRACE));
        container.change(|record| record.config.stop_timeout = Some(3));
        assert_eq!(grace(&unsaid), Some(Duration::from_secs(3)));
        let said = StopOptions { grace: Some(Grace::Forever), ..StopOptions::default() };
        assert_eq!(grace(&said), None);
    }
}
