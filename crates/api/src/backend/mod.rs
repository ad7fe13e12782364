//! What the routes need from the rest of the house, as narrow traits.
//!
//! [`swarm`] is implemented by `node` (membership) and for the manager's control (by
//! [`crate::adapter`]); [`container`], [`image`] for engine and image store (by
//! [`crate::adapter`]); [`network`] and [`system`] by the composition root. Every method answers
//! with an [`crate::error::ApiError`] or a value that is already in the API's shape.

pub mod container;
pub mod image;
pub mod network;
pub mod swarm;
pub mod system;

use std::sync::Arc;

pub use shoal_model::time::Clock;

use crate::backend::container::{ContainerBackend, VolumeBackend};
use crate::backend::image::ImageBackend;
use crate::backend::network::NetworkBackend;
use crate::backend::swarm::{SwarmControl, SwarmMembership};
use crate::backend::system::{Diagnostics, EventBackend, Facts};
use crate::error::{ApiError, ApiResult};
use crate::server::changes::Changes;
use crate::server::sessions::Sessions;

/// Everything that handlers may use.
pub struct ApiState {
    /// What this daemon is and runs on.
    pub facts: Facts,
    /// This node's part in a swarm.
    pub swarm: Arc<dyn SwarmMembership>,
    /// This node's containers and execs.
    pub containers: Arc<dyn ContainerBackend>,
    /// This node's volumes.
    pub volumes: Arc<dyn VolumeBackend>,
    /// This node's images.
    pub images: Arc<dyn ImageBackend>,
    /// This node's own networks.
    pub networks: Arc<dyn NetworkBackend>,
    /// What happened on this node.
    pub events: Arc<dyn EventBackend>,
    /// Checks and the state of the data plane.
    pub diagnostics: Arc<dyn Diagnostics>,
    /// Reads the wall clock.
    pub clock: Clock,
    /// Owner of hijacked connections and other work that outlives its answer.
    pub sessions: Sessions,
    /// Owner of the changes that requests began.
    pub changes: Changes,
}

impl ApiState {
    /// The cluster's control, if this node is a manager.
    ///
    /// # Errors
    /// 503 in Docker's words: no swarm, or only a worker.
    pub fn control(&self) -> ApiResult<Arc<dyn SwarmControl>> {
        if let Some(control) = self.swarm.control() {
            return Ok(control);
        }
        let status = self.swarm.status();
        Err(ApiError::unavailable(status.not_a_manager()))
    }
}
