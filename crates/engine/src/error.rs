//! What can go wrong with this node's containers, volumes and execs.
//!
//! Texts follow Docker's wording wherever its clients match them.

use std::io::ErrorKind;
use std::path::PathBuf;

use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::filter::FilterError;

/// A boxed cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an engine call failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing has this id or name.
    #[error("No such container: {word}")]
    NoSuchContainer {
        /// What the caller gave.
        word: String,
    },
    /// Several ids begin with the word.
    #[error("multiple IDs found with provided prefix: {word}")]
    Ambiguous {
        /// What the caller gave.
        word: String,
    },
    /// The image is not on this node.
    #[error("No such image: {reference}")]
    NoSuchImage {
        /// The reference, with its tag.
        reference: String,
    },
    /// No exec has this id, or its record was dropped.
    #[error("No such exec instance: {id}")]
    NoSuchExec {
        /// What the caller gave.
        id: String,
    },
    /// No volume has this name.
    #[error("get {name}: no such volume")]
    NoSuchVolume {
        /// What the caller gave.
        name: String,
    },
    /// The path does not exist inside the container.
    #[error("Could not find the file {path} in container {container}")]
    NoSuchPath {
        /// The path inside.
        path: String,
        /// The container as the caller named it.
        container: String,
    },
    /// The name is in use.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You \
         have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The name has characters that are not allowed.
    #[error("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    BadName {
        /// What was given.
        name: String,
    },
    /// The request cannot be right.
    #[error("{message}")]
    Invalid {
        /// Which member is wrong and why.
        message: String,
    },
    /// A filter is unknown or malformed.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The request clashes with the container's state.
    #[error("{message}")]
    Conflict {
        /// What clashes, in Docker's words.
        message: String,
    },
    /// It is already so.
    #[error("{message}")]
    NotModified {
        /// What is already so.
        message: String,
    },
    /// Shoal does not have this yet.
    #[error("not implemented: {what}")]
    NotImplemented {
        /// The member or the operation.
        what: String,
    },
    /// It makes no sense for a unikernel.
    #[error("cannot {what} a unikernel: {why}; use {instead}")]
    Unikernel {
        /// What was asked for, as a verb.
        what: String,
        /// Why not.
        why: String,
        /// What serves instead.
        instead: String,
    },
    /// What the image of a unikernel needs, and what it is given, do not fit.
    #[error("{problem}")]
    UnikernelNeeds {
        /// What does not fit, cause first.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The image of a unikernel is not one.
    #[error("bad unikernel image '{reference}'")]
    UnikernelImage {
        /// The image.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// The container's first process could not be started. The text decides the exit status of
    /// `docker run`, so the kernel's reason is part of it.
    #[error("failed to start container: {reason}")]
    Start {
        /// What the runtime said, in Docker's words.
        reason: String,
        /// Exit status recorded in the container: 127, 126 or 128.
        exit_code: i64,
    },
    /// A network could not be attached or released.
    #[error("{action} of container '{container}'")]
    Network {
        /// What was tried: `attach the networks`.
        action: &'static str,
        /// The container's name.
        container: String,
        /// Why not.
        #[source]
        source: Box<AttachError>,
    },
    /// The runtime or the container's shim refused or failed.
    #[error("{action} container '{container}'")]
    Runtime {
        /// What was tried: `stop`, `start`…
        action: &'static str,
        /// The container's name.
        container: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The image store failed.
    #[error("{action} image '{reference}'")]
    Image {
        /// What was tried.
        action: &'static str,
        /// Which image.
        reference: String,
        /// Why not.
        #[source]
        source: Box<shoal_image::error::ImageError>,
    },
    /// A file of the engine could not be read or written.
    #[error("{action} '{}'", path.display())]
    Io {
        /// What was tried: `write`, `create the directory`…
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file of the engine holds something else than expected.
    #[error("read the record '{}'", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A helper thread ended without an answer.
    #[error("{action}: the worker ended early")]
    Worker {
        /// What was tried.
        action: &'static str,
    },
    /// The engine is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// Why the network side refused to attach a container. Made by the [`crate::attacher::Attacher`].
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct AttachError {
    /// How the caller should react.
    pub kind: FaultKind,
    /// What failed, in Docker's words where clients match them (`network x not found`,
    /// `Bind for 0.0.0.0:80 failed: port is already allocated`).
    pub message: String,
    /// The page that explains it, if there is one.
    pub id: Option<FaultId>,
    /// What to do next.
    pub remedy: Option<String>,
    /// Why.
    #[source]
    pub source: Option<Cause>,
}

impl AttachError {
    /// An error without a cause and without a page.
    #[must_use]
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), id: None, remedy: None, source: None }
    }

    /// Wraps a fault of another crate.
    #[must_use]
    pub fn from_fault(message: impl Into<String>, fault: impl Fault) -> Self {
        Self {
            kind: fault.kind(),
            message: message.into(),
            id: fault.id(),
            remedy: shoal_model::fault::remedy(&fault),
            source: Some(Box::new(fault)),
        }
    }
}

impl Fault for EngineError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NoSuchContainer { .. }
            | Self::NoSuchImage { .. }
            | Self::NoSuchExec { .. }
            | Self::NoSuchVolume { .. }
            | Self::NoSuchPath { .. } => FaultKind::NotFound,
            Self::Ambiguous { .. } | Self::BadName { .. } | Self::Invalid { .. } => {
                FaultKind::Invalid
            }
            Self::Start { .. }
            | Self::Unikernel { .. }
            | Self::UnikernelNeeds { .. }
            | Self::UnikernelImage { .. } => FaultKind::Invalid,
            Self::NameTaken { .. } | Self::Conflict { .. } => FaultKind::Conflict,
            Self::NotModified { .. } => FaultKind::NotModified,
            Self::NotImplemented { .. } => FaultKind::NotImplemented,
            Self::Network { source, .. } => source.kind,
            Self::Image { source, .. } => source.kind(),
            Self::Filter(source) => source.kind(),
            Self::ShuttingDown => FaultKind::Unavailable,
            Self::Runtime { .. } | Self::Io { .. } | Self::Record { .. } | Self::Worker { .. } => {
                FaultKind::Internal
            }
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::NotImplemented { .. } => Some(FaultId("SH-ENG-001")),
            Self::Start { .. } => Some(FaultId("SH-ENG-002")),
            Self::Unikernel { .. } => Some(FaultId("SH-ENG-007")),
            Self::UnikernelImage { .. } => Some(FaultId("SH-ENG-008")),
            Self::UnikernelNeeds { .. } => Some(FaultId("SH-ENG-009")),
            Self::Runtime { .. } => Some(FaultId("SH-ENG-003")),
            Self::Io { .. } => Some(FaultId("SH-ENG-004")),
            Self::Record { .. } => Some(FaultId("SH-ENG-005")),
            Self::Network { source, .. } => source.id.or(Some(FaultId("SH-ENG-006"))),
            Self::Image { source, .. } => source.id(),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Filter(source) => source.remedy(),
            Self::Network { source, .. } => source.remedy.clone(),
            Self::Image { source, .. } => source.remedy(),
            Self::UnikernelNeeds { remedy, .. } => Some(remedy.clone()),
            Self::Io { action: "create the directory", path, source }
                if matches!(source.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) =>
            {
                Some(format!("move away what stands at '{}': it is no directory", path.display()))
            }
            Self::Record { path, .. } => Some(format!(
                "put '{}' back as it was, or remove what it describes by its id",
                path.display()
            )),
            _ => None,
        }
    }
}

impl EngineError {
    /// A request that cannot be right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    /// A request that clashes with what is there.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }

    /// Something that Shoal does not have yet.
    pub(crate) fn missing(what: impl Into<String>) -> Self {
        Self::NotImplemented { what: what.into() }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
