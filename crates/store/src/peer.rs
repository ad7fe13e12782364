//! Other managers, as the store sees them: who they are, how they are asked, and why they did not
//! answer. What carries the questions is not known here.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shoal_model::id::NodeId;

/// A manager in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// Its node's id; empty in groups that a store of the first format described.
    #[serde(default)]
    pub node: String,
    /// Its number in the group, never used twice.
    pub raft_id: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.node.is_empty() {
            return write!(f, "manager number {}", self.raft_id);
        }
        f.write_str(&self.node)
    }
}

/// What the consensus library keeps of a member beside its number: which node it is. Addresses
/// are looked up by the node's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberNode {
    pub(crate) node: String,
}

/// What a question is about. Lanes do not wait for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Entries of the log, and signs of life of the leader.
    Log,
    /// Elections, a leader's beats, and whether a member is there.
    Vote,
    /// Snapshots, in pieces.
    Bulk,
}

/// The way to other managers.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Sends `body` to `to` and returns its answer, within `limit`.
    async fn call(
        &self,
        to: &NodeId,
        lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, PeerError>;

    /// Keeps a connection to `to` for `lane` and returns once there is none: when it has ended, or
    /// at once if none can be made. Says why. Costs nothing while it stands.
    async fn lost(&self, to: &NodeId, lane: Lane) -> PeerError;
}

/// Why a manager did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// The connection ended before the answer.
    #[error("the connection was closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {} ms", after.as_millis())]
    Late {
        /// How long we waited.
        after: Duration,
    },
    /// Another node answers there.
    #[error("another node answers there: '{found}'")]
    NotThatNode {
        /// Who.
        found: String,
    },
    /// It takes this member for none of its group: it was removed, or the other one goes back to
    /// another beginning of the cluster.
    #[error("{text}")]
    Stranger {
        /// What it says.
        text: String,
    },
    /// Something else, as text.
    #[error("{0}")]
    Other(String),
}

/// No way to anybody: for a manager that is alone, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

fn no_way(to: &NodeId) -> PeerError {
    PeerError::Other(format!("there is no way to manager '{to}'"))
}

#[async_trait]
impl Peers for NoPeers {
    async fn call(
        &self,
        to: &NodeId,
        _lane: Lane,
        _body: Box<RawValue>,
        _limit: Duration,
    ) -> Result<Box<RawValue>, PeerError> {
        Err(no_way(to))
    }

    async fn lost(&self, to: &NodeId, _lane: Lane) -> PeerError {
        no_way(to)
    }
}
