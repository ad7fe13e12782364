//! What can go wrong with images.

use std::io;
use std::path::PathBuf;

use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::filter::FilterError;

use crate::digest::Digest;

/// A failure of this crate. Texts that Docker's clients match are Docker's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A name cannot be right.
    #[error("{reason}")]
    InvalidReference {
        /// Docker's words for it.
        reason: String,
    },
    /// There is no such image here.
    #[error("No such image: {reference}")]
    NoSuchImage {
        /// What was asked for, with `latest` added.
        reference: String,
    },
    /// An untagging would leave a container's image without a name.
    #[error(
        "conflict: unable to remove repository reference \"{reference}\" (must force) - container \
         {container} is using its referenced image {image}"
    )]
    ReferenceInUse {
        /// The reference as given.
        reference: String,
        /// Twelve digits of a container's id.
        container: String,
        /// Twelve digits of the image's id.
        image: String,
    },
    /// An image cannot be deleted now.
    #[error("conflict: unable to delete {image} ({force}) - {reason}")]
    DeleteConflict {
        /// Twelve digits of the image's id.
        image: String,
        /// `must be forced` or `cannot be forced`.
        force: &'static str,
        /// What stands against it.
        reason: String,
    },
    /// A tag was given where only a name with a tag can be.
    #[error("refusing to create a tag with a digest reference")]
    TagWithDigest,
    /// A filter of a list is unknown or malformed.
    #[error(transparent)]
    InvalidFilter(#[from] FilterError),
    /// A change given to an import cannot be applied.
    #[error("invalid change '{change}': {reason}")]
    InvalidChange {
        /// The line as given.
        change: String,
        /// What is wrong.
        reason: String,
    },
    /// Bytes are not what their digest promised.
    #[error("verify {what}: expected {expected}, found {found}")]
    DigestMismatch {
        /// Which bytes.
        what: String,
        /// The promised digest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A number of bytes is not what was promised.
    #[error("verify {what}: expected {expected} bytes, found {found}")]
    SizeMismatch {
        /// Which bytes.
        what: String,
        /// The promised number.
        expected: u64,
        /// How many came.
        found: u64,
    },
    /// An archive of images is not one.
    #[error("read the image archive: {reason}")]
    InvalidArchive {
        /// What is missing or wrong.
        reason: String,
    },
    /// An archive of images ends too early or is damaged.
    #[error("read the image archive")]
    ReadArchive(#[source] io::Error),
    /// A layer's archive ends too early, is damaged, or cannot be written.
    #[error("unpack the entry '{entry}' of the layer {layer}")]
    Unpack {
        /// The layer, as named where it came from.
        layer: String,
        /// The entry's path; empty before the first one.
        entry: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A layer tries to reach out of its root.
    #[error("refuse the entry '{entry}' of the layer {layer}: {reason}")]
    EntryRefused {
        /// The layer, as named where it came from.
        layer: String,
        /// The entry's path.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// A manifest, index or configuration is not one.
    #[error("read {what}: {reason}")]
    InvalidDocument {
        /// Which document.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// No variant of an image suits the platform.
    #[error(
        "no matching manifest for {wanted} in the manifest list entries: '{reference}' has \
         {offered}"
    )]
    NoPlatform {
        /// The image.
        reference: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// An image has more layers than can be mounted.
    #[error("the image has {count} layers, at most {most} can be mounted")]
    TooManyLayers {
        /// How many it has.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// A registry cannot be reached.
    #[error("connect to the registry '{host}'")]
    Connect {
        /// Its host, with port.
        host: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A registry was reached, but the exchange broke off.
    #[error("{action} from the registry '{host}'")]
    Exchange {
        /// Its host, with port.
        host: String,
        /// What was under way.
        action: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A registry refuses, or wants other credentials.
    #[error(
        "pull access denied for {reference}, repository does not exist or may require 'docker \
         login': {reason}"
    )]
    Denied {
        /// The repository.
        reference: String,
        /// The registry's words.
        reason: String,
    },
    /// A registry refuses the credentials themselves.
    #[error("log in to '{host}': {reason}")]
    LoginRefused {
        /// Its host.
        host: String,
        /// Its words.
        reason: String,
    },
    /// A registry has no such manifest.
    #[error("manifest for {reference} not found: {reason}")]
    ManifestUnknown {
        /// The image.
        reference: String,
        /// The registry's words.
        reason: String,
    },
    /// A registry answers with a failure.
    #[error("the registry '{host}' answered {status} to {action}: {reason}")]
    RegistryAnswer {
        /// Its host.
        host: String,
        /// The status.
        status: u16,
        /// What was asked.
        action: String,
        /// Its words.
        reason: String,
    },
    /// Credentials sent by a client cannot be read.
    #[error("read the registry credentials: {reason}")]
    InvalidAuth {
        /// What is wrong.
        reason: String,
    },
    /// Files of the store cannot be read or written.
    #[error("{action} '{}'", path.display())]
    Files {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A part of the store is not what it was.
    #[error("use '{}' of the image store: {reason}", path.display())]
    Damaged {
        /// Which file or directory.
        path: PathBuf,
        /// What is wrong, and what it means.
        reason: String,
    },
    /// An image misses a part. The cause comes first: lists cut long texts.
    #[error("image damaged: {reason}, '{reference}'")]
    DamagedImage {
        /// The image, as a user calls it.
        reference: String,
        /// What is missing.
        reason: String,
    },
    /// A worker thread ended before its work.
    #[error("the work was stopped")]
    Stopped,
}

impl ImageError {
    /// For `map_err` on file operations.
    pub(crate) fn files(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Files { action, path, source }
    }

    fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::Files { source, .. } | Self::Unpack { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl Fault for ImageError {
    fn kind(&self) -> FaultKind {
        match self {
            // A client that creates a container then gets the image, which mends it.
            Self::NoSuchImage { .. }
            | Self::DamagedImage { .. }
            | Self::ManifestUnknown { .. }
            | Self::Denied { .. } => FaultKind::NotFound,
            Self::ReferenceInUse { .. } | Self::DeleteConflict { .. } => FaultKind::Conflict,
            Self::InvalidReference { .. }
            | Self::TagWithDigest
            | Self::InvalidFilter(_)
            | Self::InvalidChange { .. }
            | Self::InvalidArchive { .. }
            | Self::ReadArchive(_)
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::EntryRefused { .. }
            | Self::InvalidDocument { .. }
            | Self::InvalidAuth { .. }
            | Self::TooManyLayers { .. } => FaultKind::Invalid,
            Self::NoPlatform { .. } => FaultKind::NotFound,
            Self::LoginRefused { .. } => FaultKind::Unauthorized,
            Self::Unpack { .. }
            | Self::Connect { .. }
            | Self::Exchange { .. }
            | Self::RegistryAnswer { .. }
            | Self::Files { .. }
            | Self::Damaged { .. }
            | Self::Stopped => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::InvalidReference { .. } | Self::TagWithDigest => "SH-IMG-001",
            Self::NoSuchImage { .. } => "SH-IMG-002",
            Self::ReferenceInUse { .. } | Self::DeleteConflict { .. } => "SH-IMG-003",
            Self::InvalidChange { .. } => "SH-IMG-005",
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => "SH-IMG-006",
            Self::InvalidArchive { .. } | Self::ReadArchive(_) => "SH-IMG-007",
            Self::Unpack { .. } => "SH-IMG-008",
            Self::EntryRefused { .. } => "SH-IMG-009",
            Self::InvalidDocument { .. } => "SH-IMG-010",
            Self::NoPlatform { .. } => "SH-IMG-011",
            Self::TooManyLayers { .. } => "SH-IMG-012",
            Self::Connect { .. } | Self::Exchange { .. } => "SH-IMG-013",
            Self::Denied { .. } | Self::LoginRefused { .. } | Self::InvalidAuth { .. } => {
                "SH-IMG-014"
            }
            Self::ManifestUnknown { .. } => "SH-IMG-015",
            Self::RegistryAnswer { .. } => "SH-IMG-016",
            Self::Files { .. } => "SH-IMG-017",
            Self::Damaged { .. } => "SH-IMG-018",
            Self::DamagedImage { .. } => "SH-IMG-019",
            Self::InvalidFilter(_) | Self::Stopped => return None,
        }))
    }

    fn remedy(&self) -> Option<String> {
        if self.cause().is_some_and(|c| c.kind() == io::ErrorKind::StorageFull) {
            return Some("free space below the data root and try again".into());
        }
        match self {
            Self::InvalidFilter(source) => source.remedy(),
            Self::DigestMismatch { .. } | Self::ReadArchive(_) => {
                Some("get the image again from its source".into())
            }
            Self::Connect { .. } => {
                Some("check the name and the network, or bring the image with 'docker load'".into())
            }
            Self::NoPlatform { .. } => Some("choose another image or '--platform'".into()),
            Self::DamagedImage { reference, .. } => {
                Some(format!("get it again: 'docker pull {reference}', or 'docker load'"))
            }
            _ => None,
        }
    }
}
