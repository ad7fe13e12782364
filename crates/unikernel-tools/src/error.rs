//! What can go wrong, each with a stable id.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of a tool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// A file cannot be read, written or made.
    #[error("cannot {action} '{path}'", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A new project's name is not a package's.
    #[error(
        "'{name}' cannot be a project's name: use letters, digits, '-' and '_', a letter first"
    )]
    ProjectName {
        /// What was given.
        name: String,
    },
    /// A new project's folder is there already.
    #[error("'{path}' is there already; choose another name or remove it", path = path.display())]
    ProjectExists {
        /// The folder.
        path: PathBuf,
    },
    /// The library's source is not found.
    #[error(
        "the unikernel library's source is not found from '{from}': give the checkout of Shoal \
         with --shoal DIR or in SHOAL_SOURCE", from = from.display()
    )]
    NoCheckout {
        /// Where the search began.
        from: PathBuf,
    },
    /// Cargo cannot be started or fails.
    #[error("cargo did not {action}")]
    Cargo {
        /// What it was asked for.
        action: &'static str,
        /// Why, if it did not say so itself.
        #[source]
        source: Option<io::Error>,
    },
    /// A project makes no program, or several.
    #[error("'{path}' makes {count} programs; name one with --bin", path = path.display())]
    NoSingleProgram {
        /// The project.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A file is no ELF file that can be read.
    #[error("the file is not readable as ELF64: {what}")]
    Elf {
        /// What is wrong.
        what: &'static str,
    },
    /// An image breaks a rule of the tender.
    #[error("the image is refused by the tender's rules")]
    Rules(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An image holds what it need not.
    #[error("the image must not hold {what}: {}", found.join(", "))]
    Superfluous {
        /// What kind of thing.
        what: &'static str,
        /// Which.
        found: Vec<String>,
    },
    /// An image cannot be wrapped.
    #[error("cannot wrap the image as '{name}'", name = name)]
    Wrap {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<shoal_image::error::ImageError>,
    },
    /// An archive holds no unikernel.
    #[error("'{name}' holds no unikernel: {reason}")]
    NotAUnikernel {
        /// What was looked at.
        name: String,
        /// What is missing.
        reason: String,
    },
    /// There is no such file, project or image.
    #[error(
        "'{name}' is no file, no project, and no image of a daemon that answers on {socket}",
        socket = socket.display()
    )]
    NoSource {
        /// What was given.
        name: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// The daemon's answer, or why there is none.
        #[source]
        source: Option<io::Error>,
    },
    /// An option contradicts another, or the image.
    #[error("{0}")]
    Usage(String),
    /// The network cannot be made.
    #[error("the user-mode network does not start")]
    Network(#[source] shoal_usernet::error::Error),
    /// The tender cannot be started or watched.
    #[error("cannot {action} the tender")]
    Tender {
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A boot of a benchmark went wrong.
    #[error("boot {number} on backend {backend} failed: {reason}")]
    Boot {
        /// Which, from 1.
        number: usize,
        /// The backend.
        backend: String,
        /// What happened instead.
        reason: String,
    },
}

impl ToolError {
    /// The stable id; each has a page in `docs/errors`.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::File { .. } => "SH-UKT-001",
            Self::ProjectName { .. } | Self::ProjectExists { .. } => "SH-UKT-002",
            Self::NoCheckout { .. } => "SH-UKT-003",
            Self::Cargo { .. } | Self::NoSingleProgram { .. } => "SH-UKT-004",
            Self::Elf { .. } => "SH-UKT-005",
            Self::Rules(_) | Self::Superfluous { .. } => "SH-UKT-006",
            Self::Wrap { .. } => "SH-UKT-007",
            Self::NotAUnikernel { .. } | Self::NoSource { .. } => "SH-UKT-008",
            Self::Usage(_) => "SH-UKT-009",
            Self::Network(_) => "SH-UKT-010",
            Self::Tender { .. } => "SH-UKT-011",
            Self::Boot { .. } => "SH-UKT-012",
        }
    }

    /// For `map_err` on something done with a file.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// The id and the whole chain of causes, as it is printed.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = format!("[{}] {self}", self.id());
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
