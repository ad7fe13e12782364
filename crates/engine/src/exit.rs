//! What happens when a container's process ends: its record, its network, its restart policy.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::fault::{self, Fault};
use shoal_model::spec::container::HostRestartPolicy;
use shoal_model::time::Timestamp;
use shoal_runtime::protocol::ExitStatus;
use shoal_runtime::{RuntimeError, Shim};
use tokio_util::sync::CancellationToken;

use crate::change::Phase;
use crate::container::Container;
use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::record::{Record, RunRecord};
use crate::request::WaitCondition;
use crate::unikernel;

/// The pause before the first restart.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// The longest pause: a container that cannot live costs one start a minute.
const PAUSE_LAST: Duration = Duration::from_secs(60);

/// A run of at least this long was a good one: the next pause is the first one again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// The exit status of a container whose shim died: what a killed process has.
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
        Self {
            code: i64::from(status.code),
            oom_killed: status.oom_killed,
            at: status.finished_at,
            error: String::new(),
        }
    }

    pub fn lost(error: &RuntimeError, at: Timestamp) -> Self {
        Self { code: KILLED, oom_killed: false, at, error: fault::report(error) }
    }
}

impl Engine {
    /// Follows a run to its end, and checks its health meanwhile.
    pub(crate) fn watch(&self, container: &Arc<Container>, shim: Shim, run: CancellationToken) {
        crate::health::spawn(self, container, shim.clone(), run.clone());
        let engine = self.clone();
        let container = Arc::clone(container);
        self.spawn(async move {
            let end = engine.await_end(&shim).await;
            run.cancel();
            let gate = Arc::clone(&container.gate);
            let _turn = gate.lock().await;
            if let Err(error) = engine.end(&container, Some(shim), end).await {
                // The end itself is recorded in memory; what failed is shown beside it.
                container.change(|record| record.run.error = fault::report(&error));
                engine.publish(&container, false);
                container.answer(|condition| condition != WaitCondition::Removed);
                container.ended();
            }
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

    /// Records an end and cleans up after it. The caller holds the gate.
    pub(crate) async fn end(
        &self,
        container: &Arc<Container>,
        shim: Option<Shim>,
        end: End,
    ) -> Result<(), EngineError> {
        let end = explained(container, end).await?;
        let verdict = self.record_end(container, &end);
        self.inner.images.set_running(&container.id, false);
        self.save(container).await?;
        self.inner.execs.container_ended(&container.id);
        self.publish(container, false);
        self.note_end(container, &end);
        if let Some(shim) = shim {
            let deleted = shim.delete().await;
            deleted.map_err(|e| crate::start::runtime_error("clean up after", container, e))?;
        }
        self.drop_memory_files(container).await?;
        self.release_networks(container).await?;
        self.note_volume_use(container, "unmount");
        self.save(container).await?;
        match verdict {
            Verdict::Restart(pause) => {
                container.answer(|condition| condition == WaitCondition::NextExit);
                self.plan_restart(container, pause);
            }
            Verdict::Stay => {
                container.answer(|condition| condition != WaitCondition::Removed);
                let (auto_remove, bouncing) =
                    (container.read(Record::auto_remove), container.live(|live| live.bouncing));
                if auto_remove && !bouncing {
                    self.spawn_removal(container);
                }
            }
        }
        container.ended();
        Ok(())
    }

    fn record_end(&self, container: &Container, end: &End) -> Verdict {
        container.live(|live| {
            live.shim = None;
            live.run.cancel();
        });
        container.change(|record| {
            let lasted = end.at.since(record.run.started_at);
            let policy = record.host.restart_policy.clone().unwrap_or_default();
            let run = &mut record.run;
            run.pid = 0;
            run.exit_code = end.code;
            run.oom_killed = end.oom_killed;
            run.error.clone_from(&end.error);
            run.finished_at = end.at;
            run.quick_ends = if lasted >= GOOD_RUN { 0 } else { run.quick_ends.saturating_add(1) };
            let verdict = decide(&policy, run);
            run.phase = match verdict {
                Verdict::Restart(_) => Phase::Restarting,
                Verdict::Stay => Phase::Exited,
            };
            verdict
        })
    }

    fn note_end(&self, container: &Container, end: &End) {
        if end.oom_killed {
            self.note(container, "oom", &[]);
        }
        let started = container.read(|record| record.run.started_at);
        let lasted = end.at.since(started).as_secs();
        let attributes = [("exitCode", end.code.to_string()), ("execDuration", lasted.to_string())];
        self.note(container, "die", &attributes);
    }

    /// Starts the container again after `pause`, unless somebody decides otherwise.
    pub(crate) fn plan_restart(&self, container: &Arc<Container>, pause: Duration) {
        let cancel = CancellationToken::new();
        container.live(|live| live.restart = Some(cancel.clone()));
        let engine = self.clone();
        let container = Arc::clone(container);
        self.spawn(async move {
            let mut resumed = engine.inner.resumed.subscribe();
            let due = async {
                tokio::time::sleep(pause).await;
                // Ignored because: the sender lives as long as the engine.
                let _ = resumed.wait_for(|on| *on).await;
            };
            if cancel.run_until_cancelled(due).await.is_none() {
                return;
            }
            let gate = Arc::clone(&container.gate);
            let _turn = gate.lock().await;
            if cancel.is_cancelled() || container.phase() != Phase::Restarting {
                return;
            }
            container.change(|record| record.run.restarts += 1);
            if let Err(error) = engine.start_here(&container).await {
                engine.restart_failed(&container, &error);
            }
        });
    }

    /// A restart that fails counts as a quick end: the policy decides again. [`Self::start_here`]
    /// has recorded the reason.
    fn restart_failed(&self, container: &Arc<Container>, error: &EngineError) {
        let verdict = container.change(|record| {
            let policy = record.host.restart_policy.clone().unwrap_or_default();
            record.run.quick_ends = record.run.quick_ends.saturating_add(1);
            // What is missing for good does not come back by trying.
            let hopeless = error.kind() == fault::FaultKind::NotFound;
            let verdict = if hopeless { Verdict::Stay } else { decide(&policy, &record.run) };
            if matches!(verdict, Verdict::Restart(_)) {
                record.run.phase = Phase::Restarting;
            }
            verdict
        });
        self.publish(container, false);
        match verdict {
            Verdict::Restart(pause) => self.plan_restart(container, pause),
            Verdict::Stay => container.answer(|condition| condition != WaitCondition::Removed),
        }
    }
}

/// The end with what a unikernel's tender has left to say about it.
async fn explained(container: &Arc<Container>, mut end: End) -> Result<End, EngineError> {
    if end.error.is_empty() && end.code != 0 && container.is_unikernel() {
        let (container, code) = (Arc::clone(container), end.code);
        let read = move || Ok(unikernel::end::explain(&container.files(), &container.id, code));
        end.error = blocking("read why a unikernel ended", read).await?;
    }
    Ok(end)
}

/// What a restart policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again after this pause.
    Restart(Duration),
    /// It stays as it is.
    Stay,
}

/// Decides after an end that is already counted in `run`.
pub(crate) fn decide(policy: &HostRestartPolicy, run: &RunRecord) -> Verdict {
    let again = match policy.name.as_str() {
        "always" | "unless-stopped" => !run.stopped_by_user,
        "on-failure" => {
            let most = policy.maximum_retry_count;
            run.exit_code != 0 && !run.stopped_by_user && (most == 0 || run.restarts < most)
        }
        _ => false,
    };
    if again { Verdict::Restart(pause(run.quick_ends)) } else { Verdict::Stay }
}

/// The pause before a restart: doubled with each end that came too soon.
fn pause(quick_ends: u32) -> Duration {
    // Sixteen doublings are more than an hour, far over the longest pause.
    let doublings = quick_ends.saturating_sub(1).min(16);
    PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, most: i64, run: RunRecord, want: Option<u64>) {
        let policy = HostRestartPolicy { name: name.into(), maximum_retry_count: most };
        let want = want.map_or(Verdict::Stay, |ms| Verdict::Restart(Duration::from_millis(ms)));
        assert_eq!(decide(&policy, &run), want, "{name} {run:?}");
    }

    #[test]
    fn policies_decide_by_status_count_and_user() {
        let ended = |exit_code, restarts, stopped_by_user| RunRecord {
            exit_code,
            restarts,
            stopped_by_user,
            quick_ends: 1,
            ..RunRecord::default()
        };
        check("no", 0, ended(1, 0, false), None);
        check("", 0, ended(1, 0, false), None);
        check("always", 0, ended(0, 9, false), Some(100));
        check("always", 0, ended(0, 9, true), None);
        check("unless-stopped", 0, ended(137, 0, true), None);
        check("on-failure", 0, ended(0, 0, false), None);
        check("on-failure", 0, ended(3, 99, false), Some(100));
        check("on-failure", 2, ended(3, 1, false), Some(100));
        check("on-failure", 2, ended(3, 2, false), None);
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<u128> = [0, 1, 2, 3, 10, 11, 1000].map(|n| pause(n).as_millis()).into();
        assert_eq!(pauses, [100, 100, 200, 400, 51_200, 60_000, 60_000]);
    }
}
