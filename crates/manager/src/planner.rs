//! Runs the plan while this manager leads.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::CHANGES_MAX;
use shoal_model::fault::report;
use shoal_model::time::Timestamp;
use shoal_store::{Lead, StoreError};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::ControlError;
use crate::shared::{RandomIds, Shared};

/// Changes are gathered this long before a plan is made.
const COALESCE: Duration = Duration::from_millis(5);
/// Pause after the store did not take a plan.
const RETRY: Duration = Duration::from_millis(200);
/// Longest time between two plans: whatever was missed is found then.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Passes in a row before others get their turn.
const PASSES_MAX: usize = 100;

/// Plans after every change of the state and whenever time alone asks for it.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut revision = shared.store.watch();
    let mut leads = shared.store.lead();
    loop {
        if leads
            .wait_for(|lead| matches!(lead, Lead::Leading { .. } | Lead::Closed))
            .await
            .is_ok_and(|lead| *lead == Lead::Closed)
        {
            return;
        }
        revision.mark_unchanged();
        let again = match passes(&shared).await {
            Ok(wake_at) => pause_until(wake_at, shared.now()),
            Err(ControlError::Stopping) => return,
            Err(error) => {
                tracing::warn!(cause = report(&error), "the plan was not written");
                RETRY
            }
        };
        let wake = Instant::now() + again;
        tokio::select! {
            biased;
            changed = revision.changed() => if changed.is_err() { return },
            () = sleep_until(wake) => {}
        }
        sleep(COALESCE).await;
    }
}

fn pause_until(wake_at: Option<Timestamp>, now: Timestamp) -> Duration {
    wake_at.map_or(LOOK_AGAIN, |at| at.since(now).min(LOOK_AGAIN))
}

/// Plans until there is nothing left to do. Returns when time alone makes the next change.
async fn passes(shared: &Shared) -> Result<Option<Timestamp>, ControlError> {
    let mut most = CHANGES_MAX;
    for _ in 0..PASSES_MAX {
        let write = shared
            .writer
            .write(move |state, now| {
                let mut plan = shoal_plan::reconcile(state, now, &mut RandomIds);
                let changed = !plan.changes.is_empty();
                // Any beginning of a plan is a plan.
                plan.changes.truncate(most);
                Ok((plan.changes, (changed, plan.wake_at)))
            })
            .await;
        match write {
            Ok((true, _)) => {}
            Ok((false, wake_at)) => return Ok(wake_at),
            // Unusually large specs: fewer at a time.
            Err(ControlError::Store(StoreError::TooLarge { .. })) if most > 1 => most /= 2,
            Err(error) => return Err(error),
        }
    }
    // The next turn comes at once.
    Ok(Some(Timestamp::ZERO))
}
