//! Whether a spec can be right, with Docker's texts where clients match them.

mod bounds;
mod cluster;
mod container;
mod effective;
mod payload;
mod service;

use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::name::NameError;

pub use bounds::{PORTS_MAX, SERVICE_BYTES_MAX, SPEC_BYTES_MAX};
pub use cluster::{
    CERT_EXPIRY_MIN, cert_expiry, changed_cluster, changed_node, new_network, removable_manager,
    removable_network, too_many_managers,
};
pub use payload::{
    CONFIG_BYTES_MAX, SECRET_BYTES_MAX, changed_payload, check_existence, new_config, new_secret,
    removable_config, removable_secret,
};
pub use service::{REPLICAS_MAX, changed_service, new_service, outdates_tasks};

/// Why a spec is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It can never be right.
    #[error("{message}")]
    Invalid {
        /// What is wrong, in Docker's words where clients match them.
        message: String,
    },
    /// It names something that does not exist.
    #[error("{message}")]
    NotFound {
        /// What is missing.
        message: String,
    },
    /// It clashes with what is there.
    #[error("{message}")]
    Conflict {
        /// With what.
        message: String,
    },
    /// Services still refer to it.
    #[error("{message}")]
    InUse {
        /// `secret` or `config`.
        kind: &'static str,
        /// Which services, in Docker's words.
        message: String,
    },
    /// The caller may not do this.
    #[error("{message}")]
    Forbidden {
        /// What, and why not.
        message: String,
    },
    /// Shoal does not have this yet.
    #[error("not implemented: {what}")]
    NotImplemented {
        /// What is missing.
        what: String,
    },
}

impl SpecError {
    /// A spec that can never be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    /// A name that nothing has.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound { message: message.into() }
    }

    /// A clash.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }

    /// Something that Shoal does not have yet.
    pub fn not_implemented(what: impl Into<String>) -> Self {
        Self::NotImplemented { what: what.into() }
    }
}

impl Fault for SpecError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Invalid { .. } | Self::InUse { .. } => FaultKind::Invalid,
            Self::NotFound { .. } => FaultKind::NotFound,
            Self::Conflict { .. } => FaultKind::Conflict,
            Self::Forbidden { .. } => FaultKind::Forbidden,
            Self::NotImplemented { .. } => FaultKind::NotImplemented,
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::NotImplemented { .. } => Some(FaultId("SH-MGR-001")),
            Self::InUse { .. } => Some(FaultId("SH-MGR-006")),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::InUse { kind, .. } => {
                Some(format!("take it out with `docker service update --{kind}-rm` first"))
            }
            _ => None,
        }
    }
}

fn check_name(name: &str) -> Result<(), SpecError> {
    shoal_model::name::check_name(name).map_err(|why| match why {
        NameError::Empty => SpecError::invalid("meta: name must be provided"),
        other => SpecError::invalid(other.to_string()),
    })
}
