//! Following a run to its end.

use std::sync::Arc;
use std::time::Duration;

use shoal_life::container::policy::{Outcome, RunResult};
use shoal_model::fault;
use shoal_model::time::Timestamp;
use shoal_runtime::protocol::ExitStatus;
use shoal_runtime::{RuntimeError, Shim};

use crate::container::Container;
use crate::engine::{Engine, blocking};
use crate::owner::Message;
use crate::unikernel;

/// The exit status of a process that was killed; also of a container whose shim died.
const KILLED: i64 = 137;

/// How often a shim that lives but does not answer is asked again, once a second. Past that the
/// container is ended: nothing runs unobserved.
const ASK_AGAIN_MAX: u32 = 30;

/// How a run ended, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub code: i64,
    pub oom_killed: bool,
    pub at: Timestamp,
    /// Why nothing better is known.
    pub error: String,
}

impl End {
    pub fn of(status: &ExitStatus) -> Self {
        let code = i64::from(status.code);
        Self {
            code,
            // A child that the kernel killed, which its program survived, is no such end.
            oom_killed: status.oom_killed && code == KILLED,
            at: status.finished_at,
            error: String::new(),
        }
    }

    pub fn lost(error: &RuntimeError, at: Timestamp) -> Self {
        Self { code: KILLED, oom_killed: false, at, error: fault::report(error) }
    }

    /// What its policy is told.
    pub fn outcome(&self, started: Timestamp) -> Outcome {
        let result = if self.code == 0 { RunResult::Success } else { RunResult::Failure };
        Outcome { result, lasted: self.at.since(started) }
    }
}

impl Engine {
    /// Follows a run to its end, and checks its health meanwhile.
    pub(crate) fn watch(&self, container: &Arc<Container>) {
        let (shim, run) = container.live(|live| (live.shim.clone(), live.run.clone()));
        let Some(shim) = shim else { return };
        crate::health::spawn(self, container, shim.clone(), run);
        let (engine, container) = (self.clone(), Arc::clone(container));
        self.spawn(async move {
            let end = engine.await_end(&shim).await;
            let end = explained(&container, end).await;
            container.send(Message::Ended(end)).await;
        });
    }

    async fn await_end(&self, shim: &Shim) -> End {
        for _ in 0..ASK_AGAIN_MAX {
            match shim.wait().await {
                Ok(status) => return End::of(&status),
                Err(error @ (RuntimeError::ShimDied { .. } | RuntimeError::NotFound { .. })) => {
                    return End::lost(&error, self.now());
                }
                Err(error) => {
                    tracing::warn!(container = %shim.id(), error = fault::report(&error),
                        "a shim does not answer; asking again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        let error = RuntimeError::ShimDied { container: shim.id().clone() };
        End::lost(&error, self.now())
    }

    pub(crate) fn note_end(&self, container: &Container, end: &End) {
        if end.oom_killed {
            self.note(container, "oom", &[]);
        }
        let started = container.read(|record| record.run.started_at);
        let lasted = end.at.since(started).as_secs();
        let attributes = [("exitCode", end.code.to_string()), ("execDuration", lasted.to_string())];
        self.note(container, "die", &attributes);
    }
}

/// The end with what a unikernel's tender has left to say about it.
pub(crate) async fn explained(container: &Arc<Container>, mut end: End) -> End {
    if end.error.is_empty() && end.code != 0 && container.is_unikernel() {
        let (container, code) = (Arc::clone(container), end.code);
        let read = move || Ok(unikernel::end::explain(&container.files(), &container.id, code));
        let read = blocking("read why a unikernel ended", read).await;
        end.error = read.unwrap_or_else(|error| fault::report(&error));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_by_the_kernel_for_want_of_memory_is_one() {
        let end = |code, oom_killed| {
            let finished_at = Timestamp::from_secs(1);
            End::of(&ExitStatus { code, signal: None, oom_killed, finished_at }).oom_killed
        };
        assert!(end(137, true));
        assert!(!end(0, true), "a child was killed, the program ended well");
        assert!(!end(137, false));
    }
}
