//! Keeps the cluster's events in the node's ring, so that `docker events --since` finds them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::backend::ApiState;

/// Pause between looks whether this node became a manager. An event within it is missed, which only
/// concerns the first moment of a swarm.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Copies events as long as this node manages a cluster; runs until it is dropped.
pub async fn forward(state: Arc<ApiState>) {
    loop {
        let events = state.swarm.control().map(|control| control.events());
        if let Some(mut events) = events {
            while let Some(event) = events.next().await {
                state.events.publish(event);
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
