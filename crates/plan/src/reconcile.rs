//! One pass of every control loop over one snapshot.

use shoal_model::change::Change;
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::IdSource;
use shoal_model::time::Timestamp;

use crate::work::Work;
use crate::{allocation, level, nodes, orchestrate, reap, rebalance, schedule};

/// What to do now, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// One transaction's changes, in order; empty: nothing to do.
    pub changes: Vec<Change>,
    /// When time alone makes the next change (restart delays, update delays, monitors).
    pub wake_at: Option<Timestamp>,
}

/// Compares `state` with what its services ask for and plans the next step.
///
/// The parts run in order on one working copy, each seeing what those before it did; a part that
/// runs out of room leaves the rest to the next pass.
#[must_use]
pub fn reconcile(state: &ClusterState, now: Timestamp, ids: &mut dyn IdSource) -> Plan {
    let mut work = Work::new(state, now, ids);
    nodes::lost(&mut work);
    reap::disowned(&mut work);
    allocation::services(&mut work);
    orchestrate::services(&mut work);
    rebalance::services(&mut work);
    allocation::tasks(&mut work);
    schedule::tasks(&mut work);
    reap::finished(&mut work);
    #[cfg(feature = "next-level")]
    crate::next_level::archive(&mut work);
    let mut plan = work.finish();
    // By itself, when all else is done: what is written beside it is of the level before.
    if plan.changes.is_empty() {
        plan.changes.extend(level::raise(state));
    }
    #[cfg(feature = "next-level")]
    if plan.changes.is_empty() {
        plan.changes.extend(crate::next_level::changes(state));
    }
    plan
}
