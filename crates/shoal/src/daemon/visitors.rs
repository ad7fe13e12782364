//! Managers that reach the containers of this node's tasks.

use std::sync::Arc;

use futures::future::BoxFuture;
use shoal_agent::streams::StreamService;
use shoal_api::backend::ApiState;
use shoal_wire::stream::Tunnel;

/// Answers them by this node's API.
pub struct Visitors(pub Arc<ApiState>);

impl StreamService for Visitors {
    fn serve(&self, stream: Tunnel) -> BoxFuture<'static, ()> {
        Box::pin(shoal_api::anywhere::serve(self.0.clone(), stream))
    }
}
