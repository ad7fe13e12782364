//! What can go wrong before the network runs, and what ends it.

use std::net::SocketAddr;

use crate::publish::Protocol;

/// A failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A port cannot be published.
    #[error("cannot publish {address}/{protocol}: choose a free port above 1023, or run as root")]
    Publish {
        /// Where it should have listened.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// A port's description cannot be read.
    #[error("'{text}' is not a published port: write [ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]")]
    InvalidPublish {
        /// What was given.
        text: String,
    },
    /// The configuration contradicts itself.
    #[error("the user-mode network cannot be used: {reason}")]
    InvalidConfig {
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel refuses something that the network needs to run.
    #[error("cannot {action} for the user-mode network")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The stable id; each has a page in `docs/errors`.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "SH-USN-001",
            Self::InvalidPublish { .. } => "SH-USN-002",
            Self::InvalidConfig { .. } => "SH-USN-003",
            Self::Host { .. } => "SH-USN-004",
        }
    }

    /// For `map_err` on a call to the kernel.
    pub(crate) fn host<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { action, source: source.into() }
    }
}
