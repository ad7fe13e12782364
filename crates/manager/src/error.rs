//! Why the cluster refused a request, and why a manager did not start.

use shoal_identity::error::IdentityError;
use shoal_model::change::ApplyError;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::NodeId;
use shoal_plan::validate::SpecError;
use shoal_store::StoreError;
use shoal_wire::error::WireError;

/// Why the cluster refused a request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The named object does not exist.
    #[error("{kind} {word} not found")]
    NotFound {
        /// `service`, `network`, `node`…
        kind: &'static str,
        /// As the caller named it.
        word: String,
    },
    /// The node was removed: its certificate is worth nothing any more.
    #[error("node {node} is not a member of the cluster: it was removed")]
    Removed {
        /// Which.
        node: NodeId,
    },
    /// The caller's version is not the object's.
    #[error("update out of sequence")]
    OutOfSequence,
    /// The spec is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The object is still needed.
    #[error("{message}")]
    InUse {
        /// By what.
        message: String,
    },
    /// The state does not allow it.
    #[error("{message}")]
    Precondition {
        /// Why.
        message: String,
    },
    /// Keys, certificates or tokens.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store did not take the change.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This manager is stopping.
    #[error("the manager is stopping")]
    Stopping,
}

impl Fault for ControlError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NotFound { .. } => FaultKind::NotFound,
            Self::Removed { .. } => FaultKind::Forbidden,
            // Docker's status for it; tools match the text.
            Self::OutOfSequence => FaultKind::Internal,
            Self::Spec(spec) => spec.kind(),
            Self::InUse { .. } | Self::Precondition { .. } => FaultKind::Invalid,
            Self::Identity(identity) => identity.kind(),
            Self::Store(StoreError::Refused(ApplyError::NameTaken { .. })) => FaultKind::Conflict,
            Self::Store(store) => store.kind(),
            Self::Stopping => FaultKind::Unavailable,
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::Spec(spec) => spec.id(),
            Self::Identity(identity) => identity.id(),
            Self::Store(store) => store.id(),
            Self::OutOfSequence => Some(FaultId("SH-MGR-002")),
            Self::Removed { .. } => Some(FaultId("SH-MGR-007")),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Identity(identity) => identity.remedy(),
            Self::Store(store) => store.remedy(),
            Self::Spec(spec) => spec.remedy(),
            Self::Removed { .. } => {
                Some("leave with 'docker swarm leave' and join again with a token".to_owned())
            }
            _ => None,
        }
    }
}

/// Why a manager did not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The store holds no cluster.
    #[error("read the cluster from the store: there is none")]
    NoCluster,
    /// This node's certificate cannot be used.
    #[error("use this node's certificate")]
    Identity(#[source] IdentityError),
    /// The listening address cannot be had.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The store did not take the manager's own entry.
    #[error("write this manager's own entry")]
    Own(#[source] ControlError),
}

impl Fault for ManagerError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NoCluster => FaultKind::Internal,
            Self::Identity(identity) => identity.kind(),
            Self::Wire(wire) => wire.kind(),
            Self::Own(control) => control.kind(),
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::NoCluster => None,
            Self::Identity(identity) => identity.id(),
            Self::Wire(wire) => wire.id(),
            Self::Own(control) => control.id(),
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NoCluster => None,
            Self::Identity(identity) => identity.remedy(),
            Self::Wire(wire) => wire.remedy(),
            Self::Own(control) => control.remedy(),
        }
    }
}
