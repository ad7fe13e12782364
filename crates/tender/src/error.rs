//! Why an instance was not started. Each error has an id with a page in `docs/errors`.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use crate::elf::ElfError;
use crate::manifest::ManifestError;

/// Exit status of a tender that refused to start the guest.
pub const STATUS_REFUSED: u8 = 125;
/// Exit status of an instance that crashed.
pub const STATUS_CRASHED: u8 = 134;

/// Why an instance was not started.
#[derive(Debug, thiserror::Error)]
pub enum TenderError {
    /// No configuration was named on the command line.
    #[error("no configuration is named; give the path of a JSON file")]
    NoConfig,
    /// The configuration cannot be read.
    #[error("cannot read the configuration '{path}'")]
    ReadConfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration is not what `format` 1 says.
    #[error("cannot understand the configuration; see the fields in crates/tender/src/config.rs")]
    ParseConfig {
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration asks for something that cannot be.
    #[error("the configuration is refused: {reason}")]
    CheckConfig {
        /// What.
        reason: String,
    },
    /// The image cannot be read.
    #[error("cannot read the image '{path}'")]
    ReadImage {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is not a sealed, relocatable ELF file.
    #[error("the image '{path}' is refused; build it with 'shoal unikernel build'")]
    CheckImage {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// The image's manifest is missing, malformed, or does not fit.
    #[error("the manifest of the image '{path}' is refused")]
    CheckManifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A network device cannot be attached.
    #[error("cannot attach the network device '{device}': {action} failed")]
    AttachNet {
        /// Which, by its name in the manifest.
        device: String,
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A block device cannot be attached.
    #[error("cannot attach the block device '{device}' to '{path}'")]
    AttachBlock {
        /// Which, by its name in the manifest.
        device: String,
        /// The host's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount cannot be packed.
    #[error("cannot pack '{path}' for the guest")]
    PackMount {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's memory cannot be laid out or mapped.
    #[error("cannot set up the guest's memory: {action} failed")]
    Memory {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// KVM was asked for, and a step of making the virtual machine failed.
    #[error("cannot set up the virtual machine: {action} failed; try the backend 'process'")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tender could not lock itself in.
    #[error("cannot lock the tender in: {action} failed")]
    Jail {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file for counters or the crash record cannot be made.
    #[error("cannot make the file '{path}'")]
    MakeFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TenderError {
    /// The stable id, see `docs/errors`.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::NoConfig
            | Self::ReadConfig { .. }
            | Self::ParseConfig { .. }
            | Self::CheckConfig { .. } => "SH-TEN-001",
            Self::ReadImage { .. } | Self::CheckImage { .. } => "SH-TEN-002",
            Self::CheckManifest { source, .. } => match source {
                ManifestError::Undeclared { .. } | ManifestError::Unattached { .. } => "SH-TEN-004",
                _ => "SH-TEN-003",
            },
            Self::AttachNet { .. } => "SH-TEN-005",
            Self::AttachBlock { .. } => "SH-TEN-006",
            Self::PackMount { .. } => "SH-TEN-007",
            Self::Memory { .. } => "SH-TEN-008",
            Self::Kvm { .. } => "SH-TEN-009",
            Self::Jail { .. } => "SH-TEN-010",
            Self::MakeFile { .. } => "SH-TEN-011",
        }
    }

    /// Whether it says no more than that there is no KVM here, or none for this user.
    #[must_use]
    pub fn is_absence_of_kvm(&self) -> bool {
        let Self::Kvm { action: crate::kvm::OPENING, source } = self else { return false };
        matches!(
            source.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EACCES | libc::EPERM)
        )
    }

    /// Id, message and all causes, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = format!("{}: {self}", self.id());
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            // Ignored because: writing to a string cannot fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_without_kvm_has_none() {
        let kvm = |action, error| TenderError::Kvm {
            action,
            source: io::Error::from_raw_os_error(error),
        };
        for error in [libc::ENOENT, libc::ENODEV, libc::EACCES, libc::EPERM] {
            assert!(kvm(crate::kvm::OPENING, error).is_absence_of_kvm());
            assert!(!kvm("making a virtual machine", error).is_absence_of_kvm());
        }
        for error in [libc::EMFILE, libc::EBUSY, libc::ENOMEM] {
            assert!(!kvm(crate::kvm::OPENING, error).is_absence_of_kvm());
        }
    }
}
