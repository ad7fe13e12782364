//! One task brings the kernel to the desired state, again and again; everybody else only says that
//! something changed, and may wait until that change is in the kernel.

use std::sync::Arc;
use std::time::Duration;

use shoal_network::status::Applied;
use tokio::sync::watch;

use crate::agent::Inner;
use crate::error::AgentError;

/// How often the kernel is compared with the desired state when nothing happens.
const VERIFY_EVERY: Duration = Duration::from_secs(10);
/// How long a caller waits for its change to reach the kernel. A change takes milliseconds; this is
/// for a kernel under memory pressure.
const APPLY_DEADLINE: Duration = Duration::from_secs(15);

/// Counts changes of the desired state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// The last apply and what it covered.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Every change up to this one is in.
    pub generation: Generation,
    /// What became of it; an error means that nothing could be tried.
    pub applied: Result<Applied, Arc<str>>,
}

/// Where changes are announced and outcomes are read.
#[derive(Debug)]
pub struct Applier {
    wanted: watch::Sender<Generation>,
    done: watch::Sender<Outcome>,
}

impl Default for Applier {
    fn default() -> Self {
        let outcome = Outcome { generation: Generation(0), applied: Ok(Applied::default()) };
        Self { wanted: watch::Sender::new(Generation(0)), done: watch::Sender::new(outcome) }
    }
}

impl Applier {
    /// Says that the desired state has changed.
    pub fn changed(&self) -> Generation {
        let mut now = Generation(0);
        self.wanted.send_modify(|generation| {
            generation.0 += 1;
            now = *generation;
        });
        now
    }

    /// Waits until the change `generation` is in the kernel.
    ///
    /// # Errors
    /// It was not within `APPLY_DEADLINE`.
    pub async fn applied(&self, generation: Generation) -> Result<Outcome, AgentError> {
        let mut done = self.done.subscribe();
        let wait = done.wait_for(|outcome| outcome.generation >= generation);
        match tokio::time::timeout(APPLY_DEADLINE, wait).await {
            Ok(Ok(outcome)) => Ok(outcome.clone()),
            Ok(Err(_)) | Err(_) => Err(AgentError::NotReady { seconds: APPLY_DEADLINE.as_secs() }),
        }
    }

    /// Follows the outcomes.
    pub fn outcomes(&self) -> watch::Receiver<Outcome> {
        self.done.subscribe()
    }

    /// Applies changes for ever.
    pub(crate) async fn run(&self, inner: &Inner) {
        let mut wanted = self.wanted.subscribe();
        let mut verify = tokio::time::interval(VERIFY_EVERY);
        verify.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = wanted.changed() => if changed.is_err() { return },
                _ = verify.tick() => {
                    self.verify(inner).await;
                    continue;
                }
            }
            let generation = *wanted.borrow_and_update();
            let applied = inner.network.apply(inner.desired()).await;
            let applied: Result<Applied, Arc<str>> =
                applied.map_err(|error| shoal_model::fault::report(&error).into());
            match &applied {
                Ok(applied) => trace_incomplete(applied),
                Err(cause) => tracing::error!(%cause, "the network could not be changed"),
            }
            self.done.send_replace(Outcome { generation, applied });
        }
    }

    async fn verify(&self, inner: &Inner) {
        match inner.network.verify().await {
            Ok(drift) => {
                for found in drift {
                    tracing::warn!(place = found.place, found = ?found.found,
                        repaired = found.repaired, "kernel state had drifted");
                    inner.note_drift(&found);
                }
            }
            Err(error) => {
                let cause: Arc<str> = shoal_model::fault::report(&error).into();
                let last = self.done.borrow().clone();
                // It comes back with every verification; once is enough.
                if last.applied.err().as_ref() != Some(&cause) {
                    tracing::error!(%cause, "the network could not be verified");
                }
                let generation = last.generation;
                self.done.send_replace(Outcome { generation, applied: Err(cause) });
            }
        }
    }
}

fn trace_incomplete(applied: &Applied) {
    for (network, cause) in &applied.networks {
        tracing::warn!(%network, cause, "network is not as desired");
    }
    for (sandbox, cause) in &applied.sandboxes {
        tracing::warn!(%sandbox, cause, "sandbox is not as desired");
    }
    for conflict in &applied.ports {
        let (port, cause) = (conflict.place.port, &conflict.cause);
        tracing::warn!(%port, cause, "published port is not as desired");
    }
    if let Some(cause) = &applied.resolver {
        tracing::warn!(cause, "resolver may answer with old data");
    }
    if let Some(cause) = &applied.host {
        tracing::warn!(cause, "host part of the network is not as desired");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_waited_for_without_end() {
        let applier = Applier::default();
        let generation = applier.changed();
        let begin = tokio::time::Instant::now();
        let error = applier.applied(generation).await.unwrap_err();
        assert!(matches!(error, AgentError::NotReady { seconds: 15 }), "{error}");
        let waited = begin.elapsed();
        assert!(waited >= APPLY_DEADLINE && waited < APPLY_DEADLINE * 2, "{waited:?}");
        applier.done.send_replace(Outcome { generation, applied: Ok(Applied::default()) });
        assert_eq!(applier.applied(generation).await.unwrap().generation, generation);
    }
}
