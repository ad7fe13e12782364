//! What the cluster's store holds.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::check::CheckResult;
use crate::id::{
    ClusterId, ConfigId, ContainerId, NetworkId, NodeId, Revision, SecretId, ServiceId, TaskId,
};
use crate::net::{NodeIndex, Port, Vni};
use crate::spec::{Extra, StringMap};

use crate::spec::cluster::ClusterSpec;
use crate::spec::generic::GenericResource;
use crate::spec::network::NetworkSpec;
use crate::spec::node::NodeSpec;
use crate::spec::payload::PayloadSpec;
use crate::spec::service::{PortConfig, ServiceSpec};
use crate::spec::task::{Platform, Resources, TaskSpec};
use crate::task_state::TaskState;
use crate::time::Timestamp;
use crate::trust::{NodeTls, Trust};
use crate::word::{Word, words};

/// When and at which revision an object was written. Set by
/// [`ClusterState::apply`](crate::cluster_state::ClusterState::apply), never by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Revision of the last write: the version that clients compare and set.
    pub version: Revision,
    /// Revision of the first write: what tells older from newer objects, whatever the managers'
    /// clocks said. Zero for objects of versions before it was noted.
    #[serde(default)]
    pub created: Revision,
    /// First write.
    pub created_at: Timestamp,
    /// Last write.
    pub updated_at: Timestamp,
}

/// The cluster itself; there is exactly one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id; also the O of every certificate.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// Settings.
    pub spec: ClusterSpec,
    /// The certificate authority.
    pub root_ca: RootCa,
    /// What is trusted beside it.
    #[serde(default, skip_serializing_if = "Trust::is_empty")]
    pub trust: Trust,
    /// What lets a node join.
    pub join_tokens: JoinTokens,
    /// What unlocks managers after a restart; nothing if they are not locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlock: Option<UnlockSecret>,
    /// Overlay subnets are cut from these.
    pub default_address_pools: Vec<IpNet>,
    /// Prefix length of each cut.
    pub subnet_prefix_len: u8,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// What may be written: see [`crate::level`]. Never falls.
    #[serde(default = "crate::level::first")]
    pub level: u32,
    /// The next version's, for tests.
    #[cfg(feature = "next-level")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The certificate authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// Its certificate.
    pub cert_pem: String,
    /// Its private key. The store seals every value on disk. Empty if an external authority has it.
    pub key_pem: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// What lets a node join, `SWMTKN-1-…`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokens {
    /// As a worker.
    pub worker: String,
    /// As a manager.
    pub manager: String,
}

impl std::fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinTokens { .. }")
    }
}

/// What unlocks managers after a restart, `SWMKEY-1-…`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnlockSecret(pub String);

impl std::fmt::Debug for UnlockSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnlockSecret { .. }")
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id; also the CN of its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What an operator says about it.
    pub spec: NodeSpec,
    /// What it says about itself.
    pub description: NodeDescription,
    /// What managers know of it.
    pub status: NodeStatus,
    /// Its unique number, which fixes its transit address.
    pub index: NodeIndex,
    /// Where its VXLAN frames come from and go to.
    pub data_path_addr: Option<IpAddr>,
    /// Set on managers.
    pub manager: Option<ManagerStatus>,
    /// What is known of its certificate.
    #[serde(default, skip_serializing_if = "NodeTls::is_empty")]
    pub tls: NodeTls,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDescription {
    /// Host name, or `--node-name`.
    pub hostname: String,
    /// Operating system and architecture.
    pub platform: Platform,
    /// What there is in all.
    pub resources: Resources,
    /// The engine's version.
    pub engine_version: String,
    /// The engine's labels.
    pub engine_labels: StringMap,
    /// What the node tried and found (`shoal doctor`).
    pub checks: Vec<CheckResult>,
    /// The highest level that it can read, see [`crate::level`]; zero if it does not say: the first.
    #[serde(skip_serializing_if = "is_zero")]
    pub reads: u32,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

impl NodeDescription {
    /// The highest level that the node can read.
    #[must_use]
    pub fn reads(&self) -> u32 {
        self.reads.max(crate::level::FIRST)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What managers know of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Up or down.
    pub state: NodeState,
    /// Why; empty when all is well.
    pub message: String,
    /// The address that its agent connects from, or that it advertises.
    pub addr: String,
    /// When the state last changed.
    pub since: Timestamp,
    /// When its daemon is back, by its own word: until then its tasks stay, whoever leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_by: Option<Timestamp>,
}

/// Whether a node can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// No session since the leader began.
    #[default]
    Unknown,
    /// Missed its heartbeats.
    Down,
    /// Has a session.
    Ready,
    /// Left on purpose.
    Disconnected,
    /// A later version's word.
    Other(Word),
}

words!(NodeState {
    Unknown => "unknown",
    Down => "down",
    Ready => "ready",
    Disconnected => "disconnected",
});

/// A manager's part in consensus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Its number in the consensus group; never used twice.
    pub raft_id: u64,
    /// Where other nodes reach it, `address:2377`.
    pub addr: String,
    /// Whether it answers.
    pub reachable: bool,
    /// Whether it leads.
    pub leader: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What it should be.
    pub spec: Arc<ServiceSpec>,
    /// Counts changes that concern tasks (the template, or a forced update). A task whose
    /// `spec_version` equals this is up to date; labels and scale do not outdate it.
    pub spec_version: u64,
    /// The spec before the last change, for rollback.
    pub previous_spec: Option<Arc<ServiceSpec>>,
    /// Ports and virtual addresses given to it.
    pub endpoint: Endpoint,
    /// How the last update went.
    pub update_status: Option<UpdateStatus>,
    /// Why it cannot be carried out right now (no address left, port taken…); shown on its tasks.
    pub allocation_error: Option<String>,
    /// Of jobs: which iteration runs, or was the last to run. Written by the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_status: Option<JobStatus>,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Service {
    /// The `spec_version` of a service that was never updated.
    pub const FIRST_SPEC_VERSION: u64 = 1;

    /// Which iteration a job is in; each change of its tasks begins the next. `None` for services
    /// that are no jobs.
    #[must_use]
    pub fn job_status(&self) -> Option<JobStatus> {
        if !self.spec.is_job() {
            return None;
        }
        let iteration = self.spec_version.saturating_sub(Self::FIRST_SPEC_VERSION);
        // Until the plan has noted it, the iteration is as old as the change that began it.
        let fresh = JobStatus { iteration, last_execution: self.meta.updated_at };
        Some(self.job_status.filter(|known| known.iteration == iteration).unwrap_or(fresh))
    }
}

/// How often a job was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Counts from 0.
    pub iteration: u64,
    /// When this iteration began.
    pub last_execution: Timestamp,
}

/// Ports and virtual addresses of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Published ports with every number chosen.
    pub ports: Vec<PortConfig>,
    /// One for each network, in the order of the spec; the ingress network's first if it publishes.
    pub vips: Vec<VirtualIp>,
}

/// A virtual address of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    /// On this network.
    pub network_id: NetworkId,
    /// The address, with the subnet's prefix length.
    pub addr: IpNet,
}

/// How a service's last update goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Where it stands.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// In words.
    pub message: String,
}

/// Where an update stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateState {
    /// Tasks are being replaced.
    Updating,
    /// Stopped after failures.
    Paused,
    /// Every task runs the new spec.
    Completed,
    /// The old spec is coming back.
    RollbackStarted,
    /// That failed too.
    RollbackPaused,
    /// The old spec is back.
    RollbackCompleted,
    /// A later version's word.
    Other(Word),
}

words!(UpdateState {
    Updating => "updating",
    Paused => "paused",
    Completed => "completed",
    RollbackStarted => "rollback_started",
    RollbackPaused => "rollback_paused",
    RollbackCompleted => "rollback_completed",
});

/// One attempt at running one instance of a service (or a hand-made container's place on a
/// network).
///
/// Everything but `status`, `desired_state`, `node_id` and what comes with the node is fixed when
/// the task is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// The service; `None` for network attachments.
    pub service_id: Option<ServiceId>,
    /// The service's name when the task was made; the first part of the task's name.
    pub service_name: String,
    /// From 1; 0 for tasks of global services and attachments. Clients see
    /// [`Task::shown_slot`].
    pub slot: u32,
    /// Chosen once; global tasks and attachments have it from birth.
    pub node_id: Option<NodeId>,
    /// What it should be.
    pub spec: Arc<TaskSpec>,
    /// The service's `spec_version` that it was made for.
    pub spec_version: u64,
    /// How its name resolves and what it publishes, from the service when the task was made.
    pub endpoint_ports: Vec<PortConfig>,
    /// Addresses on each network.
    pub networks: Vec<TaskNetwork>,
    /// What its node last reported. Written only on behalf of the agent, or by managers for tasks
    /// that no agent knows.
    pub status: TaskStatus,
    /// What managers want. Only grows.
    pub desired_state: TaskState,
    /// A replacement must not start before this time (restart delay).
    pub not_before: Option<Timestamp>,
    /// Of jobs: the iteration that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<u64>,
    /// What it has of its node's generic resources; chosen with the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assigned_generic_resources: Vec<GenericResource>,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Task {
    /// The slot as clients see it: those of jobs count from 0, as in Docker.
    #[must_use]
    pub fn shown_slot(&self) -> u32 {
        match self.job_iteration {
            Some(_) => self.slot.saturating_sub(1),
            None => self.slot,
        }
    }

    /// Whether it is a job's and has ended well: its place is done, for this iteration.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.job_iteration.is_some() && self.status.state == TaskState::Complete
    }

    /// `service.slot.id` or `service.node.id`, as `docker ps` shows it.
    #[must_use]
    pub fn name(&self) -> String {
        if self.service_id.is_none() {
            return self.id.to_string();
        }
        match (&self.node_id, self.shown_slot()) {
            (Some(node), 0) => format!("{}.{}.{}", self.service_name, node, self.id),
            (_, slot) => format!("{}.{}.{}", self.service_name, slot, self.id),
        }
    }

    /// Whether managers want it to run and it has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.desired_state <= TaskState::Running && !self.status.state.is_terminal()
    }
}

/// A task's place on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskNetwork {
    /// Which network.
    pub network_id: NetworkId,
    /// Its addresses, with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// Further DNS names there.
    pub aliases: Vec<String>,
}

/// What a node last reported of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// When.
    pub timestamp: Timestamp,
    /// Where it is in its life.
    pub state: TaskState,
    /// The step, for the reader.
    pub message: String,
    /// What went wrong: cause within the first 29 characters, then the whole chain. Empty if fine.
    pub err: String,
    /// Its container, once there is one.
    pub container: Option<ContainerStatus>,
    /// Host-mode ports that it got.
    pub ports: Vec<PortConfig>,
}

impl TaskStatus {
    /// A status without error and container.
    #[must_use]
    pub fn new(timestamp: Timestamp, state: TaskState, message: &str) -> Self {
        Self {
            timestamp,
            state,
            message: message.to_owned(),
            err: String::new(),
            container: None,
            ports: Vec::new(),
        }
    }
}

/// A task's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub container_id: ContainerId,
    /// Its first process, on its node; 0 when ended.
    pub pid: u32,
    /// Exit status once ended.
    pub exit_code: i64,
}

/// A swarm-scoped network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What it should be.
    pub spec: NetworkSpec,
    /// Its VXLAN number; unique.
    pub vni: Vni,
    /// Its subnets; none overlaps another network's.
    pub subnets: Vec<Subnet>,
    /// The MTU of every port, fixed at creation.
    pub mtu: u32,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Network {
    /// Whether it carries the routing mesh.
    #[must_use]
    pub fn is_ingress(&self) -> bool {
        self.spec.ingress.unwrap_or(false)
    }

    /// Whether it has no way to the outside.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.spec.internal.unwrap_or(false)
    }
}

/// A subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The whole subnet.
    pub subnet: IpNet,
    /// The gateway, the same address on every node.
    pub gateway: IpAddr,
    /// The part that addresses are given from; absent: all of it.
    pub range: Option<IpNet>,
    /// Addresses that users set aside.
    pub reserved: Vec<IpAddr>,
}

/// Data that only the tasks that refer to it may read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Secret {
    /// Its id.
    pub id: SecretId,
    /// Version and times.
    pub meta: Meta,
    /// Name, labels and data.
    pub spec: PayloadSpec,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Data for tasks that everybody may read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Its id.
    pub id: ConfigId,
    /// Version and times.
    pub meta: Meta,
    /// Name, labels and data.
    pub spec: PayloadSpec,
    /// What a later version has written, kept as it is.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Who holds a published port, cluster-wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHolder {
    /// The port.
    pub port: Port,
    /// The service.
    pub service_id: ServiceId,
}
