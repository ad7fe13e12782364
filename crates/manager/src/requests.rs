//! What can be asked of the manager that leads, and what it answers: one variant for each thing
//! that a client can change, and one function that says what each changes.
//!
//! Both are JSON `{"type": …, "body": …}`. A kind from a later version is read as `Unknown`, with
//! its name; so are bodies with fields from a later version.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use shoal_model::change::Change;
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId};
use shoal_model::log::{LogSelection, LogsOf};
use shoal_model::object::Node;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::spec::payload::PayloadSpec;
use shoal_model::spec::service::ServiceSpec;
use shoal_model::time::Timestamp;
use shoal_plan::roles::GroupView;
use shoal_wire::message::{CertificateReply, IssueCertificate, RenewCertificate};

use crate::control::{Rotation, ServiceUpdate};
use crate::error::ControlError;
use crate::relay::LogBatch;
use crate::{payloads, services, settings};

/// Which secret or config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadId {
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
}

/// What is asked of the manager that leads. Ids of new objects are drawn by the manager that the
/// client speaks to: who asks again after a lost answer finds what it has made.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "type", content = "body", rename_all = "snake_case")]
pub enum ControlRequest {
    /// A new service.
    CreateService {
        /// Its id.
        id: ServiceId,
        /// What it should be.
        spec: Box<ServiceSpec>,
        /// The client's `X-Registry-Auth`, for the nodes' pulls.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry_auth: Option<String>,
    },
    /// Another spec for a service.
    UpdateService {
        /// Which.
        id: ServiceId,
        /// The version that the client saw.
        version: Revision,
        /// What it should be.
        update: ServiceUpdate,
        /// The client's `X-Registry-Auth`; absent: the known one stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry_auth: Option<String>,
    },
    /// A service ends.
    RemoveService {
        /// Which.
        id: ServiceId,
    },
    /// A new swarm-scoped network.
    CreateNetwork {
        /// Its id.
        id: NetworkId,
        /// What it should be.
        spec: Box<NetworkSpec>,
    },
    /// A network that nothing uses goes.
    RemoveNetwork {
        /// Which.
        id: NetworkId,
    },
    /// A new secret or config.
    CreatePayload {
        /// Its id.
        id: PayloadId,
        /// What it holds.
        spec: PayloadSpec,
    },
    /// Other labels for a secret or config.
    UpdatePayload {
        /// Which.
        id: PayloadId,
        /// The version that the client saw.
        version: Revision,
        /// The spec with its new labels.
        spec: PayloadSpec,
    },
    /// A secret or config that no service refers to goes.
    RemovePayload {
        /// Which.
        id: PayloadId,
    },
    /// What the operator says about a node.
    UpdateNode {
        /// Which.
        id: NodeId,
        /// The version that the client saw.
        version: Revision,
        /// What it should be.
        spec: NodeSpec,
    },
    /// A node is forgotten.
    RemoveNode {
        /// Which.
        id: NodeId,
        /// Although it is up.
        #[serde(default)]
        force: bool,
    },
    /// Settings and secrets of the cluster.
    UpdateCluster {
        /// The version that the client saw.
        version: Revision,
        /// What it should be.
        spec: Box<ClusterSpec>,
        /// Which secrets to replace.
        #[serde(default)]
        rotation: Rotation,
    },
    /// A node joins.
    Join {
        /// Its id.
        id: NodeId,
        /// What it sent.
        request: Box<IssueCertificate>,
        /// From where.
        remote: SocketAddr,
    },
    /// A node that has proven itself wants its next certificate.
    Renew {
        /// Which.
        id: NodeId,
        /// What it sent.
        request: RenewCertificate,
    },
    /// Begins to gather a log.
    OpenLog {
        /// Of what.
        selector: LogsOf,
        /// Which part of it.
        query: LogSelection,
    },
    /// What has come of a log.
    ReadLog {
        /// Its number.
        number: u64,
    },
    /// Nobody reads a log any more.
    CloseLog {
        /// Its number.
        number: u64,
    },
    /// A node is to open a stream to the manager that asks.
    OpenStream {
        /// Which.
        node: NodeId,
        /// What the stream is known by there.
        number: u64,
    },
    /// A kind that this version does not know.
    #[serde(skip)]
    Unknown {
        /// Its name.
        name: String,
    },
}

/// The names of all requests.
const REQUESTS: [&str; 17] = [
    "create_service",
    "update_service",
    "remove_service",
    "create_network",
    "remove_network",
    "create_payload",
    "update_payload",
    "remove_payload",
    "update_node",
    "remove_node",
    "update_cluster",
    "join",
    "renew",
    "open_log",
    "read_log",
    "close_log",
    "open_stream",
];

/// What a request changes, and its answer.
pub(crate) type Outcome = Result<(Vec<Change>, ControlReply), ControlError>;

/// Some changes that are answered by that they are done.
#[expect(clippy::unnecessary_wraps, reason = "it ends functions that can fail")]
pub(crate) fn done(changes: Vec<Change>) -> Outcome {
    Ok((changes, ControlReply::Done {}))
}

impl ControlRequest {
    /// Its name, as it is on the wire.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::CreateService { .. } => "create_service",
            Self::UpdateService { .. } => "update_service",
            Self::RemoveService { .. } => "remove_service",
            Self::CreateNetwork { .. } => "create_network",
            Self::RemoveNetwork { .. } => "remove_network",
            Self::CreatePayload { .. } => "create_payload",
            Self::UpdatePayload { .. } => "update_payload",
            Self::RemovePayload { .. } => "remove_payload",
            Self::UpdateNode { .. } => "update_node",
            Self::RemoveNode { .. } => "remove_node",
            Self::UpdateCluster { .. } => "update_cluster",
            Self::Join { .. } => "join",
            Self::Renew { .. } => "renew",
            Self::OpenLog { .. } => "open_log",
            Self::ReadLog { .. } => "read_log",
            Self::CloseLog { .. } => "close_log",
            Self::OpenStream { .. } => "open_stream",
            Self::Unknown { name } => name,
        }
    }

    /// Whether something is gone afterwards, whoever has removed it.
    pub(crate) fn removes(&self) -> bool {
        matches!(
            self,
            Self::RemoveService { .. }
                | Self::RemoveNetwork { .. }
                | Self::RemovePayload { .. }
                | Self::RemoveNode { .. }
        )
    }

    /// Whether asking twice does the same as asking once. An update that was carried out moves the
    /// object's version on, and so refuses its own repetition.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.removes()
            || matches!(
                self,
                Self::CreateService { .. }
                    | Self::CreateNetwork { .. }
                    | Self::CreatePayload { .. }
                    | Self::Join { .. }
                    | Self::Renew { .. }
                    | Self::OpenLog { .. }
                    | Self::CloseLog { .. }
                    | Self::OpenStream { .. }
            )
    }

    /// Whether it changes anything.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::OpenLog { .. }
                | Self::ReadLog { .. }
                | Self::CloseLog { .. }
                | Self::OpenStream { .. }
        )
    }

    /// Whether it takes a manager out of the group.
    pub(crate) fn demotes(&self, state: &ClusterState) -> bool {
        let Self::UpdateNode { id, spec, .. } = self else { return false };
        let manages = |node: &std::sync::Arc<Node>| node.spec.role == NodeRole::Manager;
        spec.role == NodeRole::Worker && state.nodes.get(id).is_some_and(manages)
    }

    /// What it changes in `state`, with the group of managers as it is now. Joins and renewals are
    /// more than a change, logs and streams are none: they are not here.
    pub(crate) fn changes(
        &self,
        state: &ClusterState,
        now: Timestamp,
        group: &GroupView,
    ) -> Outcome {
        match self {
            Self::CreateService { id, spec, registry_auth } => {
                services::create(state, id, spec, registry_auth.as_ref())
            }
            Self::UpdateService { id, version, update, registry_auth } => {
                services::update(state, now, (id, *version), update, registry_auth.as_ref())
            }
            Self::RemoveService { id } => services::remove(state, id),
            Self::CreateNetwork { id, spec } => settings::create_network(state, id, spec),
            Self::RemoveNetwork { id } => settings::remove_network(state, id),
            Self::CreatePayload { id, spec } => payloads::create(state, id, spec),
            Self::UpdatePayload { id, version, spec } => {
                payloads::update(state, id, *version, spec)
            }
            Self::RemovePayload { id } => payloads::remove(state, id),
            Self::UpdateNode { id, version, spec } => {
                settings::update_node(state, group, (id, *version), spec)
            }
            Self::RemoveNode { id, force } => settings::remove_node(state, group, id, *force),
            Self::UpdateCluster { version, spec, rotation } => {
                settings::update_cluster(state, now, *version, (spec, *rotation))
            }
            Self::Join { .. }
            | Self::Renew { .. }
            | Self::OpenLog { .. }
            | Self::ReadLog { .. }
            | Self::CloseLog { .. }
            | Self::OpenStream { .. }
            | Self::Unknown { .. } => {
                Err(ControlError::UnknownRequest { name: self.name().to_owned() })
            }
        }
    }
}

impl std::fmt::Debug for ControlRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Specs, tokens and credentials are nobody's business.
        f.write_str(self.name())
    }
}

impl Serialize for ControlRequest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for ControlRequest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match known(from, &REQUESTS)? {
            Ok(value) => Self::deserialize(value).map_err(serde::de::Error::custom),
            Err(name) => Ok(Self::Unknown { name }),
        }
    }
}

/// What the leader answers when it has done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "type", content = "body", rename_all = "snake_case")]
pub enum ControlReply {
    /// It is done, and there is nothing to say.
    Done {},
    /// It is done, and the user should know this.
    Warnings {
        /// A line each; may be empty.
        warnings: Vec<String>,
    },
    /// A certificate, and what a node needs to know with it.
    Certificate {
        /// All of it.
        reply: CertificateReply,
    },
    /// A log is being gathered.
    Log {
        /// Its number.
        number: u64,
    },
    /// What has come of a log.
    LogBatch {
        /// All of it.
        batch: LogBatch,
    },
    /// It is done; what is said of it this version does not know.
    #[serde(skip)]
    Unknown {
        /// The answer's name.
        name: String,
    },
}

/// The names of all replies.
const REPLIES: [&str; 5] = ["done", "warnings", "certificate", "log", "log_batch"];

impl ControlReply {
    /// What the user should know.
    pub(crate) fn warnings(self) -> Vec<String> {
        match self {
            Self::Warnings { warnings } => warnings,
            Self::Unknown { name } => vec![format!(
                "it is done; the leader's answer '{name}' is of a later version than this manager"
            )],
            Self::Done {} | Self::Certificate { .. } | Self::Log { .. } | Self::LogBatch { .. } => {
                Vec::new()
            }
        }
    }

    /// The certificate.
    pub(crate) fn certificate(self) -> Result<CertificateReply, ControlError> {
        match self {
            Self::Certificate { reply } => Ok(reply),
            other => Err(other.unexpected()),
        }
    }

    /// The error when it is not what was asked for.
    pub(crate) fn unexpected(self) -> ControlError {
        let name = match self {
            Self::Done {} => "done".to_owned(),
            Self::Warnings { .. } => "warnings".to_owned(),
            Self::Certificate { .. } => "certificate".to_owned(),
            Self::Log { .. } => "log".to_owned(),
            Self::LogBatch { .. } => "log_batch".to_owned(),
            Self::Unknown { name } => name,
        };
        ControlError::UnknownReply { name }
    }
}

impl Serialize for ControlReply {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for ControlReply {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match known(from, &REPLIES)? {
            Ok(value) => Self::deserialize(value).map_err(serde::de::Error::custom),
            Err(name) => Ok(Self::Unknown { name }),
        }
    }
}

/// The whole envelope; or the name of a kind that is none of `names`.
fn known<'de, D>(from: D, names: &[&str]) -> Result<Result<Value, String>, D::Error>
where
    D: Deserializer<'de>,
{
    let value = Value::deserialize(from)?;
    let missing = || serde::de::Error::missing_field("type");
    let name = value.get("type").and_then(Value::as_str).ok_or_else(missing)?;
    let unknown = (!names.contains(&name)).then(|| name.to_owned());
    Ok(unknown.map_or(Ok(value), Err))
}
