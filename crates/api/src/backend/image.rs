//! This node's images, and what registries say.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;
use shoal_model::filter::Filters;

use crate::backend::container::ByteStream;
use crate::error::ApiResult;

/// This node's images.
#[async_trait]
pub trait ImageBackend: Send + Sync {
    /// The list, in the API's shape.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn list(&self, all: bool, filters: &Filters) -> ApiResult<Value>;
    /// One image in full.
    ///
    /// # Errors
    /// 404 `No such image: x`.
    async fn inspect(&self, word: &str) -> ApiResult<Value>;
    /// Its layers, newest first.
    ///
    /// # Errors
    /// 404.
    async fn history(&self, word: &str) -> ApiResult<Value>;
    /// Pulls `name` (with tag or digest); lines of progress, a failure as the last item.
    ///
    /// # Errors
    /// 400 for a broken reference; 404, 401… if the registry refused before any progress.
    async fn pull(&self, pull: PullRequest) -> ApiResult<Progress>;
    /// Makes an image from a root file system.
    ///
    /// # Errors
    /// 400 for a broken archive or reference.
    async fn import(&self, import: ImportRequest, body: ByteStream) -> ApiResult<Progress>;
    /// Unpacks images from an archive.
    ///
    /// # Errors
    /// 400 for a broken archive; nothing is changed then.
    async fn load(&self, quiet: bool, body: ByteStream) -> ApiResult<Progress>;
    /// Images as an archive.
    ///
    /// # Errors
    /// 404.
    async fn save(&self, names: &[String]) -> ApiResult<ByteStream>;
    /// Gives an image another name.
    ///
    /// # Errors
    /// 404, or 400 for a broken reference.
    async fn tag(&self, word: &str, target: &str) -> ApiResult<()>;
    /// Removes a name, and the image with its last one; `[{"Untagged"}, {"Deleted"}]`.
    ///
    /// # Errors
    /// 404, 409 if a container uses it.
    async fn remove(&self, word: &str, force: bool, noprune: bool) -> ApiResult<Value>;
    /// Removes unused images; the API's answer.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn prune(&self, filters: &Filters) -> ApiResult<Value>;
    /// Puts an image into its registry; lines of progress.
    ///
    /// # Errors
    /// 404, 400 for a broken reference.
    async fn push(&self, reference: &str, auth: Option<String>) -> ApiResult<Progress>;
    /// Asks a registry for a name's digest and platforms; must fail fast offline.
    ///
    /// # Errors
    /// What the registry said.
    async fn distribution(&self, reference: &str, auth: Option<&str>) -> ApiResult<Value>;
    /// Tries credentials; `{"Status", "IdentityToken"}`.
    ///
    /// # Errors
    /// 401 if the registry refuses them.
    async fn login(&self, credentials: Value) -> ApiResult<Value>;
    /// How many there are.
    async fn count(&self) -> usize;
}

/// Lines of progress, in the API's shape; a failure ends them.
pub type Progress = BoxStream<'static, ApiResult<Value>>;

/// What to pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullRequest {
    /// The reference, with tag or digest where the client gave one.
    pub reference: String,
    /// The client's `X-Registry-Auth`.
    pub auth: Option<String>,
    /// `os/arch[/variant]`; this machine's if absent.
    pub platform: Option<String>,
}

/// What to import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportRequest {
    /// The new name; none if absent.
    pub reference: Option<String>,
    /// Dockerfile lines applied to its settings.
    pub changes: Vec<String>,
    /// The message in its history.
    pub message: String,
    /// `os/arch[/variant]`.
    pub platform: Option<String>,
}
