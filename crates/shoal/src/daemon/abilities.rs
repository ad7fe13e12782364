//! What this node can do: tried before it takes its first task, and again for as long as something
//! fails. A disk that was full, a module that was missing, an address that was not there yet: once
//! the cause is gone the node takes tasks, without a restart.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_model::check::{CheckResult, Verdict};

use crate::doctor::Checkup;

/// Pause before what fails is tried again; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the checks of this node found, each when it was last tried.
#[derive(Clone)]
pub struct Abilities {
    checkup: Checkup,
    found: Arc<RwLock<Vec<CheckResult>>>,
}

impl Abilities {
    /// Tries everything.
    pub async fn find(checkup: Checkup) -> Result<Self> {
        let first = checkup.clone();
        let found = tokio::task::spawn_blocking(move || first.run_at_start());
        let found = found.await.context("run the checks")?;
        Ok(Self { checkup, found: Arc::new(RwLock::new(found)) })
    }

    /// What was found.
    pub fn found(&self) -> Vec<CheckResult> {
        self.found.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tries what fails again and again until nothing does; `changed` is called whenever the
    /// verdicts are other ones.
    pub async fn keep(self, changed: impl Fn()) {
        let mut pause = PAUSE_FIRST;
        while self.found().iter().any(|check| check.verdict == Verdict::Fail) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            let again = self.clone();
            let found =
                tokio::task::spawn_blocking(move || again.checkup.run_failed(&again.found()));
            match found.await {
                Ok(found) => {
                    if self.note(found) {
                        changed();
                    }
                }
                Err(error) => tracing::error!(cause = %error, "what failed was not tried again"),
            }
        }
    }

    /// Keeps what was found; whether a verdict is another one.
    fn note(&self, found: Vec<CheckResult>) -> bool {
        let mut known = self.found.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for (old, new) in known.iter().zip(&found).filter(|(old, new)| old.verdict != new.verdict) {
            tracing::info!(check = new.name, was = %old.verdict, now = %new.verdict, "tried again");
            changed = true;
        }
        *known = found;
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use shoal_model::check::{Check, Need};

    use super::*;

    /// A disk that is full until it was looked at so often.
    struct Full(Arc<AtomicU32>);

    impl Check for Full {
        fn run(&self) -> CheckResult {
            let tried = self.0.fetch_add(1, Ordering::SeqCst);
            CheckResult {
                id: "SH-DOC-999".into(),
                name: "disk".into(),
                verdict: if tried < 4 { Verdict::Fail } else { Verdict::Ok },
                detail: String::new(),
                remedy: String::new(),
                needed_for: Need::Containers,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_gets_well_says_so_once_and_rests() {
        let tried = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&tried);
        let checks = move || vec![Box::new(Full(Arc::clone(&count))) as Box<dyn Check>];
        let abilities = Abilities::find(Checkup::of(checks)).await.unwrap();
        assert_eq!(abilities.found()[0].verdict, Verdict::Fail);
        let changes = AtomicU32::new(0);
        let keep = abilities.clone().keep(|| {
            changes.fetch_add(1, Ordering::SeqCst);
        });
        keep.await;
        assert_eq!(abilities.found()[0].verdict, Verdict::Ok);
        assert_eq!((changes.into_inner(), tried.load(Ordering::SeqCst)), (1, 5));
    }
}
