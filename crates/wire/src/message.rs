//! What is said between nodes: plain data, JSON on the wire.
//!
//! **Evolution rule.** Receivers ignore fields they do not know and read absent ones as their
//! default; a message kind they do not know arrives as `Unknown` and is skipped. So fields and
//! kinds may be added at any time; nothing is ever renamed, retyped or reused. A change that breaks
//! this raises [`PROTOCOL_VERSION`], and a program goes on speaking with older ones down to
//! [`OLDEST_VERSION`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shoal_model::assignment::AssignmentUpdate;
use shoal_model::id::{ClusterId, ContainerId, NetworkId, NodeId, Revision, SessionId, TaskId};
use shoal_model::log::LogSelection;
use shoal_model::object::{NodeDescription, Task, TaskStatus};
use shoal_model::spec::StringMap;
use shoal_model::spec::node::{Availability, NodeRole};
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;

use crate::envelope::read_envelope;
use crate::fault::RemoteFault;
use shoal_model::bytes_text;

/// The version of everything in this file. Both sides say theirs first; within one version the
/// evolution rule holds.
#[cfg(not(feature = "next-level"))]
pub const PROTOCOL_VERSION: u32 = 1;
/// The same, of the program that stands for the next version in tests.
#[cfg(feature = "next-level")]
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest version that this program still speaks with. Each side looks at the other's version;
/// so what both of them speak is the older one's.
pub const OLDEST_VERSION: u32 = 1;

/// Asks for the cluster's root certificate. Needs no client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GetRootCa {
    /// The caller's [`PROTOCOL_VERSION`].
    pub version: u32,
}

/// The cluster's root certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootCaReply {
    /// The answerer's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// PEM of the root certificate; its digest is in every join token.
    pub root_pem: String,
}

/// Asks for a certificate, with a join token as proof. Needs no client certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueCertificate {
    /// The caller's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// PEM of the signing request; only its public key counts.
    pub csr_pem: String,
    /// The join token, `SWMTKN-1-…`; it decides the role.
    pub token: String,
    /// What the node says about itself.
    pub facts: NodeFacts,
}

impl std::fmt::Debug for IssueCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret.
        f.debug_struct("IssueCertificate").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What a node says about itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Host name, platform, resources, checks.
    pub description: NodeDescription,
    /// Where other nodes reach it (`--advertise-addr`), without port; absent: the address that the
    /// manager sees.
    pub advertise_addr: Option<IpAddr>,
    /// Where other nodes reach it as a manager, if it becomes one.
    pub manager_addr: Option<SocketAddr>,
    /// Where its VXLAN frames come from and go to; absent: as `advertise_addr`.
    pub data_path_addr: Option<IpAddr>,
    /// Whether it gets tasks from the start.
    pub availability: Availability,
    /// The node's own labels of its spec; usually empty.
    pub labels: StringMap,
}

impl Eq for NodeFacts {}

/// A certificate, and what the new member needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReply {
    /// The answerer's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The member's id; also the certificate's CN.
    pub node_id: NodeId,
    /// The member's role; also the certificate's OU.
    pub role: NodeRole,
    /// The cluster; also the certificate's O.
    pub cluster_id: ClusterId,
    /// PEM of the certificate chain, leaf first, root last.
    pub cert_pem: String,
    /// Every manager that this node may connect to.
    #[serde(default)]
    pub managers: Vec<ManagerAddr>,
    /// The member's number in consensus, if it is a manager. Managers of the first version say
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
}

/// Asks for a fresh certificate for the caller's own id and the role that it has. Needs the current
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewCertificate {
    /// The caller's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// PEM of the signing request; only its public key counts.
    pub csr_pem: String,
    /// Where other nodes reach the caller as a manager: it was told to become one, and is ready to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager_addr: Option<SocketAddr>,
}

/// A manager that a node may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerAddr {
    /// Which node.
    pub node_id: NodeId,
    /// `address:port`.
    pub addr: String,
}

/// What a message between managers is about. Each has a connection of its own, so that a large
/// snapshot is in nobody's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Entries of the log, and the leader's heartbeats.
    Log,
    /// Elections, and a leader's beats.
    Vote,
    /// Snapshots.
    Bulk,
}

/// From a manager to another: a message of consensus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaftCall {
    /// The caller's [`PROTOCOL_VERSION`].
    pub v: u32,
    /// What it is about.
    pub lane: Lane,
    /// The message, which only the store reads.
    pub body: Box<RawValue>,
}

/// From a manager to another: a request for the one that leads, say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlCall {
    /// The caller's [`PROTOCOL_VERSION`].
    pub v: u32,
    /// The request, which only the manager reads.
    pub body: Box<RawValue>,
}

/// The answer to [`RaftCall`] and [`ControlCall`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerReply {
    /// The answerer's [`PROTOCOL_VERSION`].
    pub v: u32,
    /// The answer.
    pub body: Box<RawValue>,
}

/// From a node to its manager, on the session stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum NodeMessage {
    /// The first message of a session.
    Hello(Box<Hello>),
    /// The node is alive. Sent and counted by this crate; handlers never see it.
    Heartbeat(Heartbeat),
    /// New states of tasks.
    TaskStatuses(TaskStatuses),
    /// The kernel of this node has the assignment of that revision.
    AckRevision(AckRevision),
    /// A delta did not fit: send a full assignment.
    NeedFull(NeedFull),
    /// A hand-made container wants onto a swarm network.
    Attach(AttachRequest),
    /// It has left.
    Detach(Detach),
    /// Every place of a hand-made container that this node still holds.
    AttachmentSet(AttachmentSet),
    /// Lines of a log that the manager opened.
    LogChunk(LogChunk),
    /// The log has no more lines.
    LogEnd(LogEnd),
    /// The node describes itself anew (labels, resources, checks).
    Description(Box<NodeDescription>),
    /// What the node's certificate is by, and whom it trusts.
    Tls(Box<NodeTls>),
    /// The node leaves the cluster on purpose.
    Leave(Leave),
    /// The node's daemon stops for a moment; its tasks run on.
    BackSoon(BackSoon),
    /// A kind that this version does not know; skip it.
    Unknown,
}

/// From a manager to a node, on the session stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum ManagerMessage {
    /// The answer to [`Hello`]; always the first message.
    Welcome(Welcome),
    /// The manager is alive. Sent and counted by this crate; handlers never see it.
    Heartbeat(Heartbeat),
    /// What the node must run and know.
    Assignment(Box<AssignmentUpdate>),
    /// The answer to [`AttachRequest`].
    AttachReply(Box<AttachReply>),
    /// Send a task's log.
    OpenLogs(OpenLogs),
    /// Nobody reads that log any more.
    CloseLogs(CloseLogs),
    /// Open a stream to a manager.
    OpenStream(OpenStream),
    /// The managers have changed.
    Managers(Managers),
    /// What this node is to be.
    Role(RoleWish),
    /// Which root certificates the node is to trust, and which is to have issued its own.
    Trust(Box<TrustWish>),
    /// The kernels of all ready nodes have the assignments of that revision: whoever waits with
    /// stopping a task until nobody balances to it may go on.
    Converged(AckRevision),
    /// The session ends now, and why.
    Bye(Bye),
    /// A kind that this version does not know; skip it.
    Unknown,
}

read_envelope!(NodeMessage {
    "hello" => Hello,
    "heartbeat" => Heartbeat,
    "task_statuses" => TaskStatuses,
    "ack_revision" => AckRevision,
    "need_full" => NeedFull,
    "attach" => Attach,
    "detach" => Detach,
    "attachment_set" => AttachmentSet,
    "log_chunk" => LogChunk,
    "log_end" => LogEnd,
    "description" => Description,
    "tls" => Tls,
    "leave" => Leave,
    "back_soon" => BackSoon,
});

read_envelope!(ManagerMessage {
    "welcome" => Welcome,
    "heartbeat" => Heartbeat,
    "assignment" => Assignment,
    "attach_reply" => AttachReply,
    "open_logs" => OpenLogs,
    "close_logs" => CloseLogs,
    "open_stream" => OpenStream,
    "managers" => Managers,
    "role" => Role,
    "trust" => Trust,
    "converged" => Converged,
    "bye" => Bye,
});

/// The first message of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The node's [`OLDEST_VERSION`]; absent: it speaks with its own version only.
    #[serde(default)]
    pub oldest: Option<u32>,
    /// Who it is; must equal its certificate's CN.
    pub node_id: NodeId,
    /// What it says about itself.
    #[serde(default)]
    pub description: NodeDescription,
    /// Where other nodes reach it, without port.
    #[serde(default)]
    pub advertise_addr: Option<IpAddr>,
    /// Where its VXLAN frames come from and go to.
    #[serde(default)]
    pub data_path_addr: Option<IpAddr>,
    /// The revision that its kernel has, if it kept running without a manager.
    #[serde(default)]
    pub revision: Option<Revision>,
    /// The session that it had before.
    #[serde(default)]
    pub previous_session: Option<SessionId>,
}

/// The sender is alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Counts up from 1 for each session and side.
    pub number: u64,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The manager's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// This session.
    pub session: SessionId,
    /// Time between heartbeats, milliseconds, both ways. After three without a message the peer
    /// counts as gone.
    pub heartbeat_period_ms: u64,
    /// Every manager that this node may connect to.
    #[serde(default)]
    pub managers: Vec<ManagerAddr>,
    /// The manager's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// New states of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatuses {
    /// Latest state for each; several tasks at once.
    pub statuses: Vec<TaskReport>,
}

/// The latest state of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Which task.
    pub task_id: TaskId,
    /// Its state.
    pub status: TaskStatus,
}

/// The node's kernel has the assignment of that revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AckRevision {
    /// Which.
    pub revision: Revision,
}

/// A delta did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NeedFull {
    /// The revision that the node has.
    pub have: Revision,
}

/// The node leaves the cluster on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Leave {}

/// The node's daemon stops for a moment: it is upgraded, say. Its tasks run on meanwhile, and are
/// not to be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackSoon {
    /// Within how many seconds the next session begins.
    pub within_s: u32,
}

/// A hand-made container wants onto a swarm network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Chosen by the node; the reply repeats it.
    pub request: u64,
    /// The container.
    pub container_id: ContainerId,
    /// Its name, which resolves on the network.
    pub container_name: String,
    /// The network's id or name, as the user said it.
    pub network: String,
    /// Further DNS names there.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Wanted addresses; usually none.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The answer to [`AttachRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachReply {
    /// The request's number.
    pub request: u64,
    /// What came of it.
    pub outcome: AttachOutcome,
}

/// What came of an [`AttachRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub enum AttachOutcome {
    /// The container has a place on the network: a task without a service, which the next
    /// assignment of this node also holds, together with the network's table.
    Attached {
        /// The network, resolved.
        network_id: NetworkId,
        /// The place: id, addresses, aliases.
        task: Box<Task>,
    },
    /// It has not.
    Refused(RemoteFault),
}

/// A hand-made container has left its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {
    /// The place.
    pub task_id: TaskId,
}

/// Every place of a hand-made container that the node still holds: what it does not name, the
/// manager takes back. A node states it at the beginning of each session, and again whenever it
/// likes.
///
/// Two things make that safe against what is under way. The manager handles the messages of a
/// session in order. And it never takes back what an [`AttachRequest`] *of the same session* got:
/// its answer may not have been read when the set was stated. Such a place goes by [`Detach`], or
/// by the set of the next session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachmentSet {
    /// The places.
    pub tasks: Vec<TaskId>,
}

/// Send a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLogs {
    /// Chosen by the manager; chunks repeat it.
    pub stream: u64,
    /// Whose log.
    pub task_id: TaskId,
    /// Which lines.
    #[serde(default)]
    pub options: LogSelection,
}

/// Nobody reads that log any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseLogs {
    /// Which stream.
    pub stream: u64,
}

/// Open a stream ([`crate::stream`]) to a manager, which waits for it. Only the manager that leads
/// says so, and only for one that has asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStream {
    /// Says which of the manager's requests the stream is for.
    pub number: u64,
    /// The manager, and where it is.
    pub manager: ManagerAddr,
}

/// Lines of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Which stream.
    pub stream: u64,
    /// In order.
    pub lines: Vec<LogLine>,
}

/// One line of a log, or a piece of a very long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written.
    pub time: Timestamp,
    /// Where it was written.
    pub source: LogSource,
    /// The bytes, with the line feed if there is one. Base64 in JSON: logs need not be UTF-8.
    #[serde(with = "bytes_text")]
    pub line: Vec<u8>,
}

/// Where a line was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The log has no more lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// Which stream.
    pub stream: u64,
    /// Why it ended early; absent: it was complete.
    #[serde(default)]
    pub error: Option<RemoteFault>,
}

/// The managers have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Managers {
    /// All of them.
    pub managers: Vec<ManagerAddr>,
}

/// What a node is to be. It asks for a certificate, which decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoleWish {
    /// Its role.
    pub role: NodeRole,
    /// As a manager: its number in consensus, if it has been given one.
    pub raft_id: Option<u64>,
}

/// Which root certificates a node is to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustWish {
    /// All of them, PEM.
    pub roots_pem: String,
    /// Their digest.
    pub trusts: String,
    /// The digest of the root that its certificate is to be of: a node with another asks for one.
    pub issuer: String,
    /// Within how many milliseconds: so that nodes do not all come at once.
    pub spread_ms: u64,
}

/// The session ends now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// What a node should do about it.
    pub reason: ByeReason,
    /// In words.
    #[serde(default)]
    pub message: String,
    /// With [`ByeReason::NotLeader`]: who leads, if the manager knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<ManagerAddr>,
}

/// Why a manager ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// The manager stops: try again, another one first.
    Stopping,
    /// The manager does not lead, or not any more: try the one that does.
    NotLeader,
    /// Another session of the same node took over.
    Replaced,
    /// The node is not a member any more: do not come back.
    Removed,
    /// The request made no sense: do not come back with the same.
    Refused,
    /// A reason that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests;
