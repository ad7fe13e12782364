//! Computes what every connected node should have, whenever the state changes.

use std::sync::Arc;
use std::time::Duration;

use shoal_plan::assignment::Feed;
use tokio::time::sleep;

use crate::sessions::Given;
use crate::tenure::Tenure;

/// Changes are gathered this long before assignments are computed: well below what a user notices,
/// long enough for the plan that follows a status to be part of the same message.
const COALESCE: Duration = Duration::from_millis(15);

/// Computes assignments until the store stops. [`Tenure::wanted`] asks for a round without a
/// change: a new session, a confirmation.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    let shared = &tenure.shared;
    let mut revision = shared.store.watch();
    let mut feed = Feed::default();
    loop {
        revision.mark_unchanged();
        let state = shared.state();
        tenure.sessions.end_strangers(&state);
        tenure.sessions.end_too_old(&state);
        tenure.sessions.tell_wishes(&state);
        let nodes = tenure.sessions.nodes();
        let of = Arc::clone(&state);
        let mut before = std::mem::take(&mut feed);
        let compute = tokio::task::spawn_blocking(move || {
            let view = before.next(&of);
            let all = nodes.into_iter().map(|id| (view.for_node(&id), id)).collect::<Vec<_>>();
            let changes = view.changes();
            (before, all, changes)
        });
        let Ok((after, assignments, changes)) = compute.await else { return };
        feed = after;
        for (assignment, node) in assignments {
            let given = Given { assignment, changes: Arc::clone(&changes) };
            tenure.sessions.assign(&node, Arc::new(given));
        }
        tenure.sessions.update_converged(&state);
        tokio::select! {
            biased;
            changed = revision.changed() => if changed.is_err() { return },
            () = tenure.wanted.notified() => {}
        }
        sleep(COALESCE).await;
    }
}
