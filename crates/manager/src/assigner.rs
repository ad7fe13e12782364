//! Computes what every connected node should have, whenever the state changes.

use std::sync::Arc;
use std::time::Duration;

use shoal_plan::assignment::View;
use tokio::time::sleep;

use crate::tenure::Tenure;

/// Changes are gathered this long before assignments are computed: well below what a user notices,
/// long enough for the plan that follows a status to be part of the same message.
const COALESCE: Duration = Duration::from_millis(15);

/// Computes assignments until the store stops. [`Tenure::wanted`] asks for a round without a
/// change: a new session, a confirmation.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    let shared = &tenure.shared;
    let mut revision = shared.store.watch();
    loop {
        revision.mark_unchanged();
        let state = shared.state();
        tenure.sessions.end_strangers(&state);
        tenure.sessions.tell_roles(&state);
        let nodes = tenure.sessions.nodes();
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
            tenure.sessions.assign(&node, assignment);
        }
        tenure.sessions.update_converged(&state);
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            () = tenure.wanted.notified() => {}
        }
        sleep(COALESCE).await;
    }
}
