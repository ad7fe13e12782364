//! A node that is no member any more has no connection either, on any manager.

use std::sync::Arc;
use std::time::Duration;

use shoal_wire::server::Connections;
use tokio::time::timeout;

use crate::shared::Shared;

/// How long a removed node's session may take to tell it so.
const GOODBYE: Duration = Duration::from_millis(250);

/// Ends the connections of nodes that are removed, for as long as the store lives. What they ask
/// anew is refused, call by call.
pub(crate) async fn run(shared: Arc<Shared>, connections: Connections) {
    let mut revision = shared.store.watch();
    let mut known = Arc::clone(&shared.state().nodes);
    loop {
        if revision.changed().await.is_err() {
            return;
        }
        let nodes = Arc::clone(&shared.state().nodes);
        if Arc::ptr_eq(&nodes, &known) {
            continue;
        }
        for gone in known.keys().filter(|id| !nodes.contains_key(*id)) {
            let (node, connections) = (gone.clone(), connections.clone());
            shared.help(async move {
                // Ignored because: what is still open then is ended here.
                let _ = timeout(GOODBYE, connections.none_left(&node)).await;
                let count = connections.end(&node);
                tracing::info!(%node, count, "a removed node's connections are ended");
            });
        }
        known = nodes;
    }
}
