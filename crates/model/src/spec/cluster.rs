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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaConfig {
    /// How long a node's certificate is valid; 90 days if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cert_expiry: Option<Nanos>,
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
