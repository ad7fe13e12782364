//! Computes what every connected node should have, whenever the state changes.

use std::sync::Arc;
use std::time::Duration;

use shoal_plan::assignment::View;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::shared::Shared;

/// Changes are gathered this long before assignments are computed: well below what a user notices,
/// long enough for the plan that follows a status to be part of the same message.
const COALESCE: Duration = Duration::from_millis(15);

/// Computes assignments until the store stops. `wanted` asks for a round without a change: a new
/// session, a confirmation.
pub(crate) async fn run(shared: Arc<Shared>, wanted: Arc<Notify>) {
    let mut revision = shared.store.watch();
    loop {
        revision.mark_unchanged();
        let state = shared.state();
        shared.sessions.end_strangers(&state);
        let nodes = shared.sessions.nodes();
        let of = Arc::clone(&state);
        let compute = tokio::task::spawn_blocking(move || {
            let view = View::new(&of);
            let assign = |id| {
                let assignment = Arc::new(view.for_node(&id));
                (id, assignment)
            };
            nodes.into_iter().map(assign).collect::<Vec<_>>()
        });
        let Ok(assignments) = compute.await else { return };
        for (node, assignment) in assignments {
            shared.sessions.assign(&node, assignment);
        }
        shared.sessions.update_converged(&state);
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            () = wanted.notified() => {}
        }
        sleep(COALESCE).await;
    }
}
