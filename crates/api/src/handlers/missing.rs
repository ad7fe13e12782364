//! What Docker has and Shoal does not, yet: 501 with the thing's name, never an empty success.

use serde_json::json;

use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};

macro_rules! missing {
    ($($(#[$doc:meta])* $name:ident: $what:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// Always 501.
            pub async fn $name(_call: Call) -> ApiResult<Answer> {
                Err(ApiError::missing($what))
            }
        )*
    };
}

missing! {
    /// Building images.
    build: "building images";
    /// Making an image of a container.
    commit: "making an image of a container (commit)";
    /// Checkpoints.
    checkpoint: "checkpoints";
    /// Searching registries.
    search: "searching for images";
    /// Attaching through a web socket.
    websocket: "attaching through a web socket";
    /// Volumes of the cluster.
    cluster_volume: "cluster volumes";
    /// Creating secrets.
    secret: "secrets";
    /// Creating configs.
    config: "configs";
    /// Engine plugins.
    plugin: "plugins";
    /// Unlocking managers.
    unlock: "swarm unlock";
}

/// Lists of what nobody can create: truthfully empty, on managers.
///
/// # Errors
/// 503 if this node is no manager.
pub async fn empty_swarm_list(call: Call) -> ApiResult<Answer> {
    call.state.control()?;
    answer::json(&json!([]))
}

/// A secret that cannot exist.
///
/// # Errors
/// 404 on managers, 503 elsewhere.
pub async fn no_secret(call: Call) -> ApiResult<Answer> {
    call.state.control()?;
    Err(ApiError::not_found(format!("secret {} not found", call.param("id"))))
}

/// A config that cannot exist.
///
/// # Errors
/// 404 on managers, 503 elsewhere.
pub async fn no_config(call: Call) -> ApiResult<Answer> {
    call.state.control()?;
    Err(ApiError::not_found(format!("config {} not found", call.param("id"))))
}

/// A plugin that cannot exist.
///
/// # Errors
/// Always 404.
pub async fn no_plugin(call: Call) -> ApiResult<Answer> {
    Err(ApiError::not_found(format!("plugin \"{}\" not found", call.param("name"))))
}
