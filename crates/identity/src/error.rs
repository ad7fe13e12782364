//! Why an identity was not accepted or could not be made.

use std::path::PathBuf;
use std::time::Duration;

use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::time::Timestamp;

/// Why an identity was not accepted or could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is not a join token at all.
    #[error("read the join token: {problem}")]
    TokenMalformed {
        /// What is wrong with it; never the token itself.
        problem: String,
    },
    /// The token is well formed but not one of this cluster's.
    #[error("invalid join token: it is not a current token of this cluster")]
    TokenRefused,
    /// The peer's certificates do not contain the root that the token names.
    #[error(
        "the peer's root certificate has digest '{presented}', the join token expects '{expected}'"
    )]
    WrongRoot {
        /// From the token.
        expected: String,
        /// Of the last certificate that the peer sent.
        presented: String,
    },
    /// The certificate was not made by this cluster's root.
    #[error("the certificate of '{subject}' was not issued by this cluster's root: {detail}")]
    OtherCluster {
        /// Subject of the certificate.
        subject: String,
        /// What the chain check said.
        detail: String,
    },
    /// The certificate has expired by our clock.
    #[error(
        "the certificate of '{subject}' expired at {not_after}, {} s before this node's clock \
         ({now})", late.as_secs()
    )]
    Expired {
        /// Subject of the certificate.
        subject: String,
        /// End of its validity.
        not_after: Timestamp,
        /// This node's clock.
        now: Timestamp,
        /// The difference.
        late: Duration,
    },
    /// The certificate is not valid yet by our clock.
    #[error(
        "the certificate of '{subject}' is valid from {not_before}, {} s after this node's clock \
         ({now})", early.as_secs()
    )]
    NotYetValid {
        /// Subject of the certificate.
        subject: String,
        /// Begin of its validity.
        not_before: Timestamp,
        /// This node's clock.
        now: Timestamp,
        /// The difference.
        early: Duration,
    },
    /// The certificate is of a worker where a manager's is needed.
    #[error("the certificate of node '{node}' is of a {role}, a manager's is needed")]
    NotAManager {
        /// Whose.
        node: String,
        /// Its role.
        role: &'static str,
    },
    /// The certificate lacks what every certificate of a cluster has.
    #[error("read the certificate: {problem}")]
    CertificateMalformed {
        /// What is missing or broken.
        problem: String,
    },
    /// The signing request cannot be read.
    #[error("read the certificate signing request: {problem}")]
    CsrMalformed {
        /// What is wrong with it.
        problem: String,
    },
    /// Making keys or certificates failed.
    #[error("{action}: {problem}")]
    Crypto {
        /// What was tried.
        action: &'static str,
        /// What the library said.
        problem: String,
    },
    /// A root certificate that an operator gave cannot be the cluster's.
    #[error("invalid CA certificate or key: {problem}")]
    RootUnusable {
        /// What is wrong with it.
        problem: String,
    },
    /// The certificate is of a root that was replaced.
    #[error(
        "the certificate of node '{node}' is of a root certificate that was replaced: it is good \
         for asking for another one only"
    )]
    FormerRoot {
        /// Whose.
        node: String,
    },
    /// The certificate is of a root that was replaced, for a key that is not known to be the
    /// node's.
    #[error(
        "the certificate of node '{node}' is of a root certificate that was replaced, and its key \
         is not the one that is known of the node"
    )]
    UnknownKey {
        /// Whose.
        node: String,
    },
    /// Nobody can issue certificates.
    #[error(
        "issue the certificate: the root certificate's key is not in the cluster, and no external \
         CA is set for it"
    )]
    NoSigner,
    /// The external authority did not issue a certificate.
    #[error("have the external CA at '{url}' issue a certificate: {problem}")]
    External {
        /// Where.
        url: String,
        /// What went wrong.
        problem: String,
    },
    /// The identity's file cannot be read or written.
    #[error("{action} the node identity '{}': {problem}", path.display())]
    File {
        /// `read`, `write`…
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The identity's file is of another version.
    #[error("the node identity '{}' has format version {found}, this program knows {known}",
        path.display())]
    FileVersion {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl Fault for IdentityError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::TokenMalformed { .. }
            | Self::CsrMalformed { .. }
            | Self::RootUnusable { .. }
            | Self::CertificateMalformed { .. } => FaultKind::Invalid,
            Self::NoSigner | Self::External { .. } => FaultKind::Unavailable,
            Self::TokenRefused => FaultKind::Unauthorized,
            Self::WrongRoot { .. }
            | Self::OtherCluster { .. }
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::FormerRoot { .. }
            | Self::UnknownKey { .. }
            | Self::NotAManager { .. } => FaultKind::Forbidden,
            Self::Crypto { .. } | Self::File { .. } | Self::FileVersion { .. } => {
                FaultKind::Internal
            }
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::TokenMalformed { .. } => "SH-IDN-001",
            Self::TokenRefused => "SH-IDN-002",
            Self::WrongRoot { .. } => "SH-IDN-003",
            Self::OtherCluster { .. } => "SH-IDN-004",
            Self::Expired { .. } => "SH-IDN-005",
            Self::NotYetValid { .. } => "SH-IDN-006",
            Self::NotAManager { .. } => "SH-IDN-007",
            Self::CertificateMalformed { .. } => "SH-IDN-008",
            Self::CsrMalformed { .. } => "SH-IDN-009",
            Self::Crypto { .. } => "SH-IDN-010",
            Self::File { .. } => "SH-IDN-011",
            Self::FileVersion { .. } => "SH-IDN-012",
            Self::RootUnusable { .. } => "SH-IDN-013",
            Self::FormerRoot { .. } => "SH-IDN-014",
            Self::UnknownKey { .. } => "SH-IDN-015",
            Self::NoSigner => "SH-IDN-016",
            Self::External { .. } => "SH-IDN-017",
        }))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::TokenMalformed { .. } => {
                "copy the whole token from 'docker swarm join-token worker' on a manager"
            }
            Self::TokenRefused => {
                "tokens may have been rotated: take the current one from 'docker swarm join-token \
                 worker' on a manager"
            }
            Self::WrongRoot { .. } => {
                "check that the address and the token are of the same cluster; if the root \
                 certificate was rotated since ('docker swarm ca'), take the current token from \
                 'docker swarm join-token worker' on a manager; otherwise somebody else answers at \
                 that address"
            }
            Self::OtherCluster { .. } => {
                "check that the address is a manager of this node's cluster; otherwise leave and \
                 join again"
            }
            Self::Expired { .. } | Self::NotYetValid { .. } => {
                "set the clocks of both nodes (NTP); if they agree, leave and join again"
            }
            Self::NotAManager { .. } => "give the address of a manager",
            Self::FormerRoot { .. } => {
                "nothing: the node asks for a certificate of the present root by itself"
            }
            Self::UnknownKey { .. } => "let the node leave and join again",
            Self::NoSigner => {
                "name the external CA with 'docker swarm update --external-ca', or rotate to \
                 another root certificate with 'docker swarm ca --rotate'"
            }
            Self::External { .. } => {
                "see that the external CA runs, is reached from every manager, and issues by the \
                 swarm's root certificate"
            }
            Self::FileVersion { .. } => "run the version of shoal that wrote it, or leave and join",
            Self::CertificateMalformed { .. }
            | Self::CsrMalformed { .. }
            | Self::RootUnusable { .. }
            | Self::Crypto { .. }
            | Self::File { .. } => return None,
        };
        Some(text.to_owned())
    }
}
