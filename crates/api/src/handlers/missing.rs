//! What Docker has and Shoal does not, yet: 501 with the thing's name, never an empty success.

use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::Answer;

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
    /// Engine plugins.
    plugin: "plugins";
}

/// A plugin that cannot exist.
///
/// # Errors
/// Always 404.
pub async fn no_plugin(call: Call) -> ApiResult<Answer> {
    Err(ApiError::not_found(format!("plugin \"{}\" not found", call.param("name"))))
}
