//! The swarm as the routes see it: this node's membership, and the cluster's control on managers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use shoal_model::cluster_state::ClusterState;
use shoal_model::event::Event;
use shoal_model::id::{ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId};
use shoal_model::log::{LogSelection, LogsOf, TaskLog};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{Availability, NodeSpec};
use shoal_model::spec::payload::PayloadSpec;
use shoal_model::spec::service::ServiceSpec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::error::ApiResult;

/// This node's part in a swarm. Implemented by the node's life.
#[async_trait]
pub trait SwarmMembership: Send + Sync {
    /// Where this node stands right now. Must not block.
    fn status(&self) -> SwarmStatus;

    /// Counts what may have changed [`Self::status`] or [`Self::control`].
    fn changes(&self) -> watch::Receiver<u64>;

    /// The cluster's control, if this node is a manager that can answer.
    fn control(&self) -> Option<Arc<dyn SwarmControl>>;

    /// Makes a new swarm with this node as its first manager.
    ///
    /// # Errors
    /// 503 if the node is part of one already, 400 for addresses that make no sense.
    async fn init(&self, request: InitRequest) -> ApiResult<NodeId>;

    /// Joins a swarm.
    ///
    /// # Errors
    /// 503 if the node is part of one already, 400 for a broken token; else names the step that
    /// failed.
    async fn join(&self, request: JoinRequest) -> ApiResult<()>;

    /// The whole state of the cluster, with all its secrets, as a file in clear.
    ///
    /// # Errors
    /// 503 if the node is no manager.
    async fn backup(&self) -> ApiResult<Bytes>;

    /// Begins a swarm from such a file.
    ///
    /// # Errors
    /// 503 if the node is part of one already, 400 if the file cannot be used.
    async fn restore(&self, request: RestoreRequest) -> ApiResult<NodeId>;

    /// Unlocks a manager whose files are wrapped by the unlock key `text`.
    ///
    /// # Errors
    /// 401 if it is another one, 400 if it is none.
    async fn unlock(&self, text: &str) -> ApiResult<()>;

    /// Leaves the swarm and forgets it.
    ///
    /// # Errors
    /// 503 if the node is not part of one, or is a manager and `force` is not set.
    async fn leave(&self, force: bool) -> ApiResult<()>;
}

/// The body of `POST /swarm/init`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct InitRequest {
    /// Where the manager listens, `address:port`; `0.0.0.0:2377` if empty.
    pub listen_addr: String,
    /// What other nodes are told; found out if empty.
    pub advertise_addr: String,
    /// Where VXLAN frames go; as the advertised address if empty.
    pub data_path_addr: String,
    /// UDP port of VXLAN; 0 means 4789.
    pub data_path_port: u32,
    /// Overlay subnets are cut from these; 10.0.0.0/8 if empty.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub default_addr_pool: Vec<String>,
    /// Prefix length of each cut; 0 means 24.
    pub subnet_size: u32,
    /// Start over from this manager's own state.
    pub force_new_cluster: bool,
    /// Settings.
    pub spec: ClusterSpec,
    /// Lock managers after a restart.
    pub auto_lock_managers: bool,
    /// Whether this node gets tasks.
    #[serde(deserialize_with = "empty_as_default")]
    pub availability: Availability,
}

/// What `POST /shoal/restore` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreRequest {
    /// Where the manager listens, `address:port`; `0.0.0.0:2377` if empty.
    pub listen_addr: String,
    /// What other nodes are told; found out if empty.
    pub advertise_addr: String,
    /// Where VXLAN frames go; as the advertised address if empty.
    pub data_path_addr: String,
    /// The file.
    pub file: Bytes,
}

/// The body of `POST /swarm/join`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JoinRequest {
    /// Where this node would listen as a manager.
    pub listen_addr: String,
    /// What other nodes are told; found out if empty.
    pub advertise_addr: String,
    /// Where VXLAN frames go; as the advertised address if empty.
    pub data_path_addr: String,
    /// Managers to try, `address[:2377]`.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub remote_addrs: Vec<String>,
    /// `SWMTKN-1-…`.
    pub join_token: String,
    /// Whether this node gets tasks.
    #[serde(deserialize_with = "empty_as_default")]
    pub availability: Availability,
}

/// The body of `POST /swarm/unlock`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UnlockRequest {
    /// `SWMKEY-1-…`.
    pub unlock_key: String,
}

/// Go clients send an empty text for an availability that was not given.
fn empty_as_default<'de, D: serde::Deserializer<'de>>(source: D) -> Result<Availability, D::Error> {
    let value = serde_json::Value::deserialize(source)?;
    if value.is_null() || value == "" {
        return Ok(Availability::default());
    }
    Availability::deserialize(value).map_err(serde::de::Error::custom)
}

/// Where a node stands with a swarm: `info.Swarm`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwarmStatus {
    /// The state in one word.
    pub state: LocalState,
    /// This node's id, if it has one.
    pub node_id: Option<NodeId>,
    /// The address that this node advertises, without a port.
    pub node_addr: String,
    /// Whether it is a manager that can answer.
    pub control_available: bool,
    /// Why it cannot work; empty when all is well.
    pub error: String,
    /// The managers that it knows: id and `address:port`.
    pub remote_managers: Vec<(NodeId, String)>,
}

impl SwarmStatus {
    /// Why this node cannot answer for the cluster, in Docker's words.
    #[must_use]
    pub fn not_a_manager(&self) -> String {
        match self.state {
            LocalState::Locked => "Swarm is encrypted and needs to be unlocked before it can be \
                                   used. Please use \"docker swarm unlock\" to unlock it."
                .into(),
            LocalState::Error => format!("the swarm on this node is not usable: {}", self.error),
            LocalState::Inactive => "This node is not a swarm manager. Use \"docker swarm init\" \
                                     or \"docker swarm join\" to connect this node to swarm and \
                                     try again."
                .into(),
            LocalState::Pending | LocalState::Active => {
                "This node is not a swarm manager. Worker nodes can't be used to view or modify \
                 cluster state. Please run this command on a manager node or promote the current \
                 node to a manager."
                    .into()
            }
        }
    }

    /// The value of the `Swarm` header on `/_ping`.
    #[must_use]
    pub fn header(&self) -> &'static str {
        match (self.state, self.control_available) {
            (LocalState::Active, true) => "active/manager",
            (LocalState::Active, false) => "active/worker",
            (state, _) => state.as_str(),
        }
    }
}

/// A node's state with a swarm, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalState {
    /// Not part of one.
    #[default]
    Inactive,
    /// Joining, or waiting for a manager.
    Pending,
    /// A member.
    Active,
    /// A member that cannot work.
    Error,
    /// Waits for the unlock key.
    Locked,
}

impl LocalState {
    /// The name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Error => "error",
            Self::Locked => "locked",
        }
    }
}

/// The cluster's control, on a manager.
#[async_trait]
pub trait SwarmControl: Send + Sync {
    /// The cluster's state as last applied. Must not block.
    fn state(&self) -> Arc<ClusterState>;

    /// The cluster's events from now on; ends with the manager.
    fn events(&self) -> BoxStream<'static, Event>;

    /// Stores a new service. `auth` is the client's `X-Registry-Auth`.
    ///
    /// # Errors
    /// 400 for specs that make no sense, 409 for a name in use.
    async fn create_service(
        &self,
        spec: ServiceSpec,
        auth: Option<String>,
    ) -> ApiResult<ServiceWritten>;

    /// Replaces the spec of a service.
    ///
    /// # Errors
    /// `update out of sequence` if the version moved on; else as at creation.
    async fn update_service(
        &self,
        id: &ServiceId,
        version: Revision,
        update: ServiceUpdate,
    ) -> ApiResult<ServiceWritten>;

    /// Removes a service and its tasks.
    ///
    /// # Errors
    /// 404 if it is gone.
    async fn remove_service(&self, id: &ServiceId) -> ApiResult<()>;

    /// Stores a new network with its subnets.
    ///
    /// # Errors
    /// 400 for settings that make no sense, 409 for a name in use.
    async fn create_network(&self, spec: NetworkSpec) -> ApiResult<NetworkId>;

    /// Removes a network.
    ///
    /// # Errors
    /// 400 if it is in use, naming who uses it; 404 if it is gone.
    async fn remove_network(&self, id: &NetworkId) -> ApiResult<()>;

    /// Stores a new secret.
    ///
    /// # Errors
    /// 400 for names and sizes that cannot be, 409 for a name in use, 501 for drivers.
    async fn create_secret(&self, spec: PayloadSpec) -> ApiResult<SecretId>;

    /// Replaces the labels of a secret.
    ///
    /// # Errors
    /// `update out of sequence` if the version moved on, 400 if anything else differs.
    async fn update_secret(
        &self,
        id: &SecretId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()>;

    /// Removes a secret.
    ///
    /// # Errors
    /// 400 if services use it, naming them; 404 if it is gone.
    async fn remove_secret(&self, id: &SecretId) -> ApiResult<()>;

    /// Stores a new config.
    ///
    /// # Errors
    /// As [`Self::create_secret`].
    async fn create_config(&self, spec: PayloadSpec) -> ApiResult<ConfigId>;

    /// Replaces the labels of a config.
    ///
    /// # Errors
    /// As [`Self::update_secret`].
    async fn update_config(
        &self,
        id: &ConfigId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()>;

    /// Removes a config.
    ///
    /// # Errors
    /// As [`Self::remove_secret`].
    async fn remove_config(&self, id: &ConfigId) -> ApiResult<()>;

    /// Replaces what operators say of a node.
    ///
    /// # Errors
    /// `update out of sequence` if the version moved on.
    async fn update_node(&self, id: &NodeId, version: Revision, spec: NodeSpec) -> ApiResult<()>;

    /// Forgets a node.
    ///
    /// # Errors
    /// 400 if it is not down and `force` is not set.
    async fn remove_node(&self, id: &NodeId, force: bool) -> ApiResult<()>;

    /// Replaces the cluster's settings, and makes new tokens.
    ///
    /// # Errors
    /// `update out of sequence` if the version moved on.
    async fn update_cluster(
        &self,
        version: Revision,
        spec: ClusterSpec,
        rotate: Rotations,
    ) -> ApiResult<()>;

    /// A stream to a node, on which [`crate::anywhere::serve`] answers.
    ///
    /// # Errors
    /// 503 with the node's name if it does not answer within seconds, 404 if it is no member.
    async fn open_stream(&self, node: &NodeId) -> ApiResult<NodeStream>;

    /// Output of the tasks of a service, or of one task, from every node.
    ///
    /// # Errors
    /// 400 if the tasks cannot have logs.
    async fn logs(
        &self,
        of: LogsOf,
        options: LogSelection,
    ) -> ApiResult<BoxStream<'static, TaskLog>>;
}

/// Bytes to a node and back.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A stream to a node.
pub type NodeStream = Box<dyn Duplex>;

/// What a service route wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceWritten {
    /// The service.
    pub id: ServiceId,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// How a service changes.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceUpdate {
    /// The whole new spec; ignored when `rollback` is set.
    pub spec: ServiceSpec,
    /// The client's `X-Registry-Auth`, if it sent one.
    pub auth: Option<String>,
    /// Which credentials to keep if it did not.
    pub auth_from: AuthFrom,
    /// Go back to the spec before the last change.
    pub rollback: bool,
}

/// Which registry credentials an update keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthFrom {
    /// Those of the current spec.
    #[default]
    Spec,
    /// Those of the spec before.
    PreviousSpec,
}

/// Which secrets of the cluster are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotations {
    /// The token that joins workers.
    pub worker_token: bool,
    /// The token that joins managers.
    pub manager_token: bool,
    /// The key that unlocks managers.
    pub unlock_key: bool,
}
