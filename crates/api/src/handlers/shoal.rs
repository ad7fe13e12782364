//! Shoal's own routes.

use serde_json::json;

use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};

/// `GET /shoal/doctor`: runs this node's checks.
///
/// # Errors
/// 500 if they cannot be run.
pub async fn doctor(call: Call) -> ApiResult<Answer> {
    let checks = call.state.diagnostics.checks().await?;
    answer::json(&json!({ "Node": call.state.facts.name, "Checks": checks }))
}

/// `GET /shoal/network`: the state of this node's data plane.
///
/// # Errors
/// 503 if there is none.
pub async fn network(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.diagnostics.network().await?)
}
