//! Settings of a whole cluster.

use serde::{Deserialize, Serialize};

use super::{Extra, StringMap};
use crate::spec::service::null_as_default;
use crate::time::Nanos;

/// `SwarmSpec` of the Engine API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClusterSpec {
    /// Always `default`.
    pub name: String,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: StringMap,
    /// Task history.
    pub orchestration: Orchestration,
    /// Consensus settings.
    pub raft: RaftSettings,
    /// Heartbeats.
    pub dispatcher: Dispatcher,
    /// Certificates.
    #[serde(rename = "CAConfig")]
    pub ca_config: CaConfig,
    /// Defaults for tasks.
    pub task_defaults: Extra,
    /// Whether managers are locked after a restart.
    pub encryption_config: EncryptionConfig,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Task history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Orchestration {
    /// Ended tasks kept for each slot; 5 if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_history_retention_limit: Option<i64>,
}

/// Consensus settings. Shoal accepts and shows them; its own timing is fixed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RaftSettings {
    /// Log entries between snapshots.
    pub snapshot_interval: u64,
    /// Old snapshots kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_old_snapshots: Option<u64>,
    /// Log entries kept for slow followers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_entries_for_slow_followers: Option<u64>,
    /// Ticks without a heartbeat before an election.
    pub election_tick: i64,
    /// Ticks between heartbeats.
    pub heartbeat_tick: i64,
}

/// Heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Dispatcher {
    /// Time between an agent's heartbeats; 1 s if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_period: Option<Nanos>,
}

/// Certificates.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaConfig {
    /// How long a node's certificate is valid; 90 days if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cert_expiry: Option<Nanos>,
    /// Who issues certificates instead of the managers.
    #[serde(
        rename = "ExternalCAs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub external_cas: Vec<ExternalCa>,
    /// The root certificate to rotate to; never kept here.
    #[serde(
        rename = "SigningCACert",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub signing_ca_cert: String,
    /// Its private key; never kept here.
    #[serde(
        rename = "SigningCAKey",
        skip_serializing_if = "String::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub signing_ca_key: String,
    /// Counts up for each rotation to a root that the managers make.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "null_as_default")]
    pub force_rotate: u64,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

impl std::fmt::Debug for CaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is a secret.
        f.debug_struct("CaConfig")
            .field("node_cert_expiry", &self.node_cert_expiry)
            .field("external_cas", &self.external_cas)
            .field("force_rotate", &self.force_rotate)
            .finish_non_exhaustive()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An authority that issues nodes' certificates on request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExternalCa {
    /// How it is asked: `cfssl`.
    pub protocol: String,
    /// Where.
    #[serde(rename = "URL")]
    pub url: String,
    /// For the protocol.
    #[serde(skip_serializing_if = "StringMap::is_empty", deserialize_with = "null_as_default")]
    pub options: StringMap,
    /// The root that it issues by, PEM; empty: the cluster's.
    #[serde(rename = "CACert", skip_serializing_if = "String::is_empty")]
    pub ca_cert: String,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Whether managers are locked after a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EncryptionConfig {
    /// Ask for the unlock key after a restart.
    pub auto_lock_managers: bool,
}
