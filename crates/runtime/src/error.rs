//! What can fail on the daemon's side of the runtime.

use std::io;
use std::path::PathBuf;

use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::ContainerId;

use crate::protocol::{Failure, FailureKind};

/// A container could not be made, started, reached or removed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file of the shim could not be written, read or removed.
    #[error("{action} '{}' of container '{container}'", path.display())]
    File {
        /// `write`, `read`, `remove`…
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Whose.
        container: ContainerId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is already a shim with that id.
    #[error("a shim of container '{container}' exists already")]
    Exists {
        /// Whose.
        container: ContainerId,
    },
    /// There is no shim with that id.
    #[error("no shim of container '{container}'")]
    NotFound {
        /// Whose.
        container: ContainerId,
    },
    /// The helper process could not be run or ended before it served.
    #[error("run the shim of container '{container}'")]
    Launch {
        /// Whose.
        container: ContainerId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim could not be reached, or the connection broke.
    #[error("talk to the shim of container '{container}' ({action})")]
    Talk {
        /// Whose.
        container: ContainerId,
        /// What was asked of it.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The shim speaks another version of the protocol.
    #[error(
        "the shim of container '{container}' speaks protocol version {theirs}, \
         this daemon speaks {ours}"
    )]
    Version {
        /// Whose.
        container: ContainerId,
        /// The shim's version.
        theirs: u32,
        /// This program's version.
        ours: u32,
    },
    /// The shim refused or failed.
    #[error("{action} container '{container}'")]
    Refused {
        /// Whose.
        container: ContainerId,
        /// What was asked of it: `start`, `exec in`, `pause`…
        action: &'static str,
        /// The shim's whole chain of causes.
        #[source]
        source: Failure,
    },
    /// The shim is gone without having recorded an exit status; its workload was killed.
    #[error("the shim of container '{container}' died; its processes were killed")]
    ShimDied {
        /// Whose.
        container: ContainerId,
    },
    /// A cgroup could not be read or changed.
    #[error("{action} the cgroup of container '{container}'")]
    Cgroup {
        /// `read`, `kill`, `remove`…
        action: &'static str,
        /// Whose.
        container: ContainerId,
        /// Why.
        #[source]
        source: crate::cgroup::CgroupError,
    },
}

impl RuntimeError {
    /// The class of a refusal by the shim.
    #[must_use]
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::Refused { source, .. } => Some(source.kind),
            _ => None,
        }
    }
}

impl Fault for RuntimeError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NotFound { .. } => FaultKind::NotFound,
            Self::Exists { .. } => FaultKind::Conflict,
            Self::Refused { source, .. } => match source.kind {
                FailureKind::ProgramNotFound
                | FailureKind::ProgramNotExecutable
                | FailureKind::Invalid => FaultKind::Invalid,
                FailureKind::NotFound => FaultKind::NotFound,
                FailureKind::Conflict => FaultKind::Conflict,
                FailureKind::Internal => FaultKind::Internal,
            },
            _ => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::File { .. } => "SH-RUN-001",
            Self::Exists { .. } | Self::NotFound { .. } => return None,
            Self::Launch { .. } => "SH-RUN-002",
            Self::Talk { .. } => "SH-RUN-003",
            Self::Version { .. } => "SH-RUN-004",
            Self::ShimDied { .. } => "SH-RUN-005",
            Self::Cgroup { .. } => "SH-RUN-006",
            Self::Refused { source, .. } => match source.kind {
                FailureKind::ProgramNotFound => "SH-RUN-011",
                FailureKind::ProgramNotExecutable => "SH-RUN-012",
                FailureKind::Invalid => "SH-RUN-013",
                FailureKind::Internal => "SH-RUN-010",
                FailureKind::NotFound | FailureKind::Conflict => return None,
            },
        }))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Version { .. } => "restart the container to get a shim of this version",
            Self::ShimDied { .. } => "look for an out-of-memory kill in the kernel's log",
            Self::Refused { source, .. } => match source.kind {
                FailureKind::ProgramNotFound => "give a program that the image contains",
                FailureKind::ProgramNotExecutable => "make it an executable file in the image",
                _ => return None,
            },
            _ => return None,
        };
        Some(text.to_owned())
    }
}
