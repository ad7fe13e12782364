//! `/distribution`: what a registry has under a name.

use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};

/// `GET /distribution/{name}/json`.
///
/// # Errors
/// What the registry said.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let auth = call.header("x-registry-auth");
    answer::json(&call.state.images.distribution(call.param("name"), auth).await?)
}
