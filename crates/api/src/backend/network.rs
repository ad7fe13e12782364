//! This node's own networks: bridges, `host`, `none`.

use async_trait::async_trait;
use serde_json::Value;
use shoal_model::id::NetworkId;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::time::Timestamp;

use crate::error::ApiResult;

/// This node's own networks.
#[async_trait]
pub trait NetworkBackend: Send + Sync {
    /// All of them, `bridge`, `host` and `none` among them.
    fn list(&self) -> Vec<LocalNetwork>;
    /// Makes a bridge; its id, 64 hex digits.
    ///
    /// # Errors
    /// 409 for a name in use, 400 for settings that make no sense.
    async fn create(&self, spec: NetworkSpec) -> ApiResult<NetworkId>;
    /// Removes one.
    ///
    /// # Errors
    /// 403 if it is predefined or in use.
    async fn remove(&self, id: &NetworkId) -> ApiResult<()>;
    /// The local containers on any network, swarm ones too: members of `Containers` in the API's
    /// shape, by container id.
    fn members(&self, id: &NetworkId) -> serde_json::Map<String, Value>;
}

/// A network of this node alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalNetwork {
    /// 64 hex digits.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// `bridge`, `host`, `null`.
    pub driver: String,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// Subnet and gateway, CIDR and address.
    pub subnets: Vec<(String, String)>,
    /// Whether it may not be removed.
    pub predefined: bool,
}
