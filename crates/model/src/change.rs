//! Changes to the cluster's state: what goes through consensus.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId, TaskId};
use crate::object::{Cluster, Config, Network, Node, Secret, Service, Task};
use crate::time::Timestamp;

/// Most changes in one transaction: bounds the log entry and the time that applying it takes.
pub const CHANGES_MAX: usize = 1000;

/// Changes that happen together or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// In order.
    pub changes: Vec<Change>,
    /// The proposer's clock; becomes `created_at` and `updated_at`.
    pub at: Timestamp,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Write an object.
    Put {
        /// The object; its `meta` is set when the change is applied.
        object: Object,
        /// What must be there now.
        expect: Expect,
    },
    /// Remove an object.
    Delete {
        /// Which.
        key: ObjectKey,
        /// What must be there now.
        expect: Expect,
    },
}

/// What must be there for a change to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// No such object.
    Absent,
    /// The object at exactly this version.
    Version(Revision),
}

/// Any object of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// See [`Cluster`].
    Cluster(Box<Cluster>),
    /// See [`Node`].
    Node(Box<Node>),
    /// See [`Service`].
    Service(Box<Service>),
    /// See [`Task`].
    Task(Box<Task>),
    /// See [`Network`].
    Network(Box<Network>),
    /// See [`Secret`].
    Secret(Box<Secret>),
    /// See [`Config`].
    Config(Box<Config>),
}

/// Names any object of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKey {
    /// See [`Cluster`].
    Cluster(ClusterId),
    /// See [`Node`].
    Node(NodeId),
    /// See [`Service`].
    Service(ServiceId),
    /// See [`Task`].
    Task(TaskId),
    /// See [`Network`].
    Network(NetworkId),
    /// See [`Secret`].
    Secret(SecretId),
    /// See [`Config`].
    Config(ConfigId),
}

impl Object {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(o) => ObjectKey::Cluster(o.id.clone()),
            Self::Node(o) => ObjectKey::Node(o.id.clone()),
            Self::Service(o) => ObjectKey::Service(o.id.clone()),
            Self::Task(o) => ObjectKey::Task(o.id.clone()),
            Self::Network(o) => ObjectKey::Network(o.id.clone()),
            Self::Secret(o) => ObjectKey::Secret(o.id.clone()),
            Self::Config(o) => ObjectKey::Config(o.id.clone()),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(id) => write!(f, "cluster '{id}'"),
            Self::Node(id) => write!(f, "node '{id}'"),
            Self::Service(id) => write!(f, "service '{id}'"),
            Self::Task(id) => write!(f, "task '{id}'"),
            Self::Network(id) => write!(f, "network '{id}'"),
            Self::Secret(id) => write!(f, "secret '{id}'"),
            Self::Config(id) => write!(f, "config '{id}'"),
        }
    }
}

/// What a transaction did to one object, for watchers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Which.
    pub key: ObjectKey,
    /// Before; `None` if it was made.
    pub before: Option<Object>,
    /// After; `None` if it was removed.
    pub after: Option<Object>,
}

/// Why a transaction was refused. It then changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ApplyError {
    /// Someone else wrote in between.
    #[error("update out of sequence: {key} is at version {actual:?}, expected {expected:?}")]
    OutOfSequence {
        /// Which object.
        key: ObjectKey,
        /// What the proposer had seen.
        expected: Expect,
        /// What is there.
        actual: Option<Revision>,
    },
    /// A name is taken.
    #[error("name '{name}' is in use by {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: ObjectKey,
    },
    /// A number or address that must be unique is taken.
    #[error("{what} is in use by {holder}")]
    NotUnique {
        /// What, in words: `address 10.0.1.4 on network 'x'`.
        what: String,
        /// Who has it.
        holder: ObjectKey,
    },
    /// Too many changes at once.
    #[error("transaction has {count} changes, more than {CHANGES_MAX}")]
    TooLarge {
        /// How many.
        count: usize,
    },
}
