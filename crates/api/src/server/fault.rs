//! Why the server cannot listen.

use std::io;
use std::path::PathBuf;

use shoal_model::fault::{Fault, FaultId, FaultKind};

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No host was given.
    #[error("no address to listen on was given")]
    NoListener,
    /// The text of `--host` makes no sense.
    #[error("invalid host '{host}': {reason}")]
    BadHost {
        /// What was given.
        host: String,
        /// Which part is wrong.
        reason: &'static str,
    },
    /// Somebody answers on the socket.
    #[error("socket '{}' is in use by a running daemon", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A step of making a unix socket failed.
    #[error("{action} socket '{}'", path.display())]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The TCP address cannot be listened on.
    #[error("listen on '{address}'")]
    Tcp {
        /// The address.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// TCP beyond loopback without client certificates would give root to the network.
    #[error("refusing to listen on '{address}' without TLS: whoever reaches it would be root here")]
    NeedsTls {
        /// The address.
        address: String,
    },
    /// A file of keys or certificates cannot be read or used.
    #[error("{action} '{}'", path.display())]
    TlsFile {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Keys and certificates do not fit together.
    #[error("set up TLS from the given certificates")]
    Tls {
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Fault for ServeError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::SocketInUse { .. } => FaultKind::Conflict,
            Self::NoListener | Self::BadHost { .. } | Self::NeedsTls { .. } => FaultKind::Invalid,
            _ => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::NoListener | Self::BadHost { .. } => "SH-API-010",
            Self::SocketInUse { .. } => "SH-API-011",
            Self::Socket { .. } | Self::Tcp { .. } => "SH-API-012",
            Self::NeedsTls { .. } => "SH-API-013",
            Self::TlsFile { .. } | Self::Tls { .. } => "SH-API-014",
        }))
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NoListener | Self::BadHost { .. } => {
                Some("give --host unix:///path or --host tcp://address:port".into())
            }
            Self::SocketInUse { .. } => Some("stop that daemon or choose another --host".into()),
            Self::NeedsTls { .. } => Some(
                "give --tlsverify --tlscacert --tlscert --tlskey, or listen on 127.0.0.1".into(),
            ),
            _ => None,
        }
    }
}
