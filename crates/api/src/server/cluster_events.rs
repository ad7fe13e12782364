//! Keeps the cluster's events in the node's ring, so that `docker events --since` finds them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::backend::ApiState;

/// How long a change of this node's part is waited for after a manager's events have ended: it is
/// about to stop then.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Copies events as long as this node manages a cluster; runs until it is dropped.
pub async fn forward(state: Arc<ApiState>) {
    let mut changes = state.swarm.changes();
    loop {
        changes.borrow_and_update();
        let events = state.swarm.control().map(|control| control.events());
        if let Some(mut events) = events {
            while let Some(event) = events.next().await {
                state.events.publish(event);
            }
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await {
                return;
            }
        } else if changes.changed().await.is_err() {
            // Nobody changes this node's part in a swarm any more: it is stopping.
            return;
        }
    }
}
