//! Stopping, killing, restarting, freezing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::change::Phase;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::request::{Grace, StopOptions, WaitCondition};
use crate::signal;
use crate::start::runtime_error;
use crate::unikernel::refuse;

/// How long a container may take to stop if nobody says, as Docker's.
const GRACE: Duration = Duration::from_secs(10);

/// How long the kernel may take to end killed processes: one of them may sit in a device's driver.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

impl Engine {
    /// Asks a container to stop, and kills it after its grace.
    ///
    /// # Errors
    /// It does not run ([`EngineError::NotModified`]), or its processes do not end.
    pub async fn stop(&self, word: &str, options: StopOptions) -> Result<(), EngineError> {
        let container = self.find(word)?;
        if self.cancel_restart(&container).await? {
            self.note(&container, "stop", &[]);
            return Ok(());
        }
        if !container.phase().is_alive() {
            return Err(EngineError::NotModified { message: "Container already stopped".into() });
        }
        self.stop_running(&container, &options).await?;
        self.note(&container, "stop", &[]);
        Ok(())
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Self::stop`] and [`Self::start`].
    pub async fn restart(&self, word: &str, options: StopOptions) -> Result<(), EngineError> {
        let container = self.find(word)?;
        container.live(|live| live.bouncing = true);
        let bounced = self.bounce(&container, &options).await;
        container.live(|live| live.bouncing = false);
        bounced?;
        self.note(&container, "restart", &[]);
        Ok(())
    }

    async fn bounce(
        &self,
        container: &Arc<Container>,
        options: &StopOptions,
    ) -> Result<(), EngineError> {
        if !self.cancel_restart(container).await? && container.phase().is_alive() {
            self.stop_running(container, options).await?;
            self.note(container, "stop", &[]);
        }
        match self.start(container.id.as_str()).await {
            // Somebody else was faster.
            Err(EngineError::NotModified { .. }) => Ok(()),
            other => other,
        }
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
        if self.cancel_restart(&container).await? {
            return Ok(());
        }
        if !container.phase().is_alive() {
            let text = format!("cannot kill container: {word}: {}", container.not_running());
            return Err(EngineError::conflict(text));
        }
        let ends = container.ends();
        // A user who kills does not want it back; other signals are messages to the program.
        if number == signal::KILL || number == stop_signal(&container, None)? {
            self.stopped_by_user(&container).await?;
        }
        self.send(&container, number).await?;
        if number == signal::KILL {
            self.await_end_of(&container, ends, Some(KILL_DEADLINE)).await;
        }
        Ok(())
    }

    /// Stops a container that lives, without a `stop` event. Returns when the end is cleaned up.
    pub(crate) async fn stop_running(
        &self,
        container: &Arc<Container>,
        options: &StopOptions,
    ) -> Result<(), EngineError> {
        let number = stop_signal(container, options.signal.as_deref())?;
        check_signal(container, number)?;
        let grace = options.grace.or_else(|| {
            let secs = container.read(|record| record.config.stop_timeout)?;
            Some(Grace::from_secs(secs))
        });
        let limit = match grace {
            None => Some(GRACE),
            Some(Grace::Limit(limit)) => Some(limit),
            Some(Grace::Forever) => None,
        };
        let ends = container.ends();
        self.stopped_by_user(container).await?;
        self.send(container, number).await?;
        if self.await_end_of(container, ends.clone(), limit).await {
            return Ok(());
        }
        self.kill_running(container, ends).await
    }

    /// Kills a container that lives, and waits for the end.
    pub(crate) async fn kill_running(
        &self,
        container: &Arc<Container>,
        ends: watch::Receiver<u64>,
    ) -> Result<(), EngineError> {
        self.send(container, signal::KILL).await?;
        if self.await_end_of(container, ends.clone(), Some(KILL_DEADLINE)).await {
            return Ok(());
        }
        // The shim may be stuck: taking the whole cgroup down ends it and everything below.
        if let Some(shim) = container.live(|live| live.shim.clone()) {
            shim.delete().await.map_err(|e| runtime_error("kill", container, e))?;
        }
        if self.await_end_of(container, ends, Some(KILL_DEADLINE)).await {
            return Ok(());
        }
        Err(EngineError::conflict(format!(
            "container {} did not end within {} s after it was killed",
            container.id,
            KILL_DEADLINE.as_secs()
        )))
    }

    /// Sends a signal, thaws the container if it is frozen, and says so.
    async fn send(&self, container: &Arc<Container>, number: i32) -> Result<(), EngineError> {
        let Ok(shim) = container.running_shim() else { return Ok(()) };
        let sent = shim.signal(number).await;
        if let Err(error) = sent {
            // It may just have ended by itself, which is what a signal to stop wants anyway.
            if container.phase().is_alive() && shim.is_alive() && !ending(&shim).await {
                return Err(runtime_error("signal", container, error));
            }
        }
        self.note(container, "kill", &[("signal", number.to_string())]);
        if container.phase() == Phase::Paused {
            // What is killed is thawed by its shim: frozen, it could not even die.
            if number != signal::KILL {
                shim.resume().await.map_err(|e| runtime_error("unpause", container, e))?;
            }
            container.change(|record| {
                if record.run.phase == Phase::Paused {
                    record.run.phase = Phase::Running;
                }
            });
        }
        Ok(())
    }

    /// Waits until an end is complete; says whether it was within `limit`.
    async fn await_end_of(
        &self,
        container: &Container,
        mut ends: watch::Receiver<u64>,
        limit: Option<Duration>,
    ) -> bool {
        let end = async {
            // Ignored because: the sender lives as long as the container.
            let _ = ends.changed().await;
        };
        if !container.phase().is_alive() && container.live(|live| live.shim.is_none()) {
            // The end is under way or over; its clean-up holds the gate.
            let gate = Arc::clone(&container.gate);
            let _turn = gate.lock().await;
            return true;
        }
        match limit {
            Some(limit) => tokio::time::timeout(limit, end).await.is_ok(),
            None => {
                end.await;
                true
            }
        }
    }

    async fn stopped_by_user(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        container.change(|record| record.run.stopped_by_user = true);
        self.save(container).await
    }

    /// Takes a planned restart back; says whether there was one.
    pub(crate) async fn cancel_restart(
        &self,
        container: &Arc<Container>,
    ) -> Result<bool, EngineError> {
        let gate = Arc::clone(&container.gate);
        let _turn = gate.lock().await;
        if container.phase() != Phase::Restarting {
            return Ok(false);
        }
        if let Some(restart) = container.live(|live| live.restart.take()) {
            restart.cancel();
        }
        container.change(|record| {
            record.run.phase = Phase::Exited;
            record.run.stopped_by_user = true;
        });
        self.save(container).await?;
        self.publish(container, false);
        container.answer(|condition| condition != WaitCondition::Removed);
        Ok(true)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// It does not run or is frozen already.
    pub async fn pause(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let gate = Arc::clone(&container.gate);
        let _turn = gate.lock().await;
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
        self.set_phase(&container, Phase::Paused).await?;
        self.note(&container, "pause", &[]);
        Ok(())
    }

    /// Lets a frozen container run on.
    ///
    /// # Errors
    /// It is not frozen.
    pub async fn unpause(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let gate = Arc::clone(&container.gate);
        let _turn = gate.lock().await;
        if container.phase() != Phase::Paused {
            let text = format!("Container {} is not paused", container.id);
            return Err(EngineError::conflict(text));
        }
        let shim = container.running_shim()?;
        shim.resume().await.map_err(|e| runtime_error("unpause", &container, e))?;
        self.set_phase(&container, Phase::Running).await?;
        self.note(&container, "unpause", &[]);
        Ok(())
    }

    async fn set_phase(&self, container: &Arc<Container>, phase: Phase) -> Result<(), EngineError> {
        container.change(|record| record.run.phase = phase);
        self.save(container).await?;
        self.publish(container, false);
        Ok(())
    }
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
