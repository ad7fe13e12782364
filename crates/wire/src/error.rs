//! Why talking to a peer failed, naming the step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_identity::error::IdentityError;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::NodeId;

use crate::fault::RemoteFault;
use crate::message::{ManagerAddr, OLDEST_VERSION, PROTOCOL_VERSION};

/// Why talking to a peer failed.
///
/// Clones: who waits for one connection together fails together.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WireError {
    /// The address is not `host:port`.
    #[error("read the address '{addr}': expected 'host:port'")]
    Address {
        /// As given.
        addr: String,
    },
    /// The name has no address.
    #[error("resolve the name in '{addr}'")]
    Resolve {
        /// As given.
        addr: String,
        /// What the resolver said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Nobody listens there, or there is no way.
    #[error("connect to {addr} (TCP)")]
    Connect {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A step got no answer in time.
    #[error("{step} with '{addr}': no answer within {} ms", after.as_millis())]
    Timeout {
        /// Which step: `TCP connection`, `TLS handshake`…
        step: &'static str,
        /// With whom.
        addr: String,
        /// How long we waited.
        after: Duration,
    },
    /// The peer answered, but not in TLS.
    #[error("TLS handshake with '{addr}'")]
    Tls {
        /// With whom.
        addr: String,
        /// What went wrong.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// We do not accept the peer's certificate.
    #[error("refuse the certificate of '{addr}'")]
    PeerCertificate {
        /// With whom.
        addr: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The peer does not accept our certificate.
    #[error("'{addr}' refused this node's certificate: {reason}")]
    OwnCertificate {
        /// With whom.
        addr: String,
        /// The TLS alert in words.
        reason: String,
    },
    /// Our own certificate or key cannot be used.
    #[error("use this node's identity for TLS")]
    Identity(#[source] IdentityError),
    /// The peer speaks an older version than we still speak with.
    #[error(
        "'{addr}' speaks version {theirs} of the cluster protocol, this node speaks with \
         {OLDEST_VERSION} to {PROTOCOL_VERSION}"
    )]
    Version {
        /// With whom.
        addr: String,
        /// Its version.
        theirs: u32,
    },
    /// The peer does not speak with versions as old as ours.
    #[error(
        "'{addr}' speaks with version {oldest} of the cluster protocol and later ones, this node \
         speaks {PROTOCOL_VERSION}"
    )]
    TooNew {
        /// With whom.
        addr: String,
        /// The oldest version that it speaks with.
        oldest: u32,
    },
    /// The peer has not said anything for three heartbeats.
    #[error("'{addr}' has been silent for {} ms", silent.as_millis())]
    Silent {
        /// Who.
        addr: String,
        /// How long.
        silent: Duration,
    },
    /// The connection or stream ended.
    #[error("connection with '{addr}' ended")]
    Closed {
        /// With whom.
        addr: String,
        /// Why, if anything is known.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// The peer takes no more messages.
    #[error("send to '{addr}': it has not taken any message for {} ms", after.as_millis())]
    Stuck {
        /// Who.
        addr: String,
        /// How long we waited.
        after: Duration,
    },
    /// A message is over the bound.
    #[error("exchange a message with '{addr}': over the limit of {limit} bytes")]
    TooLarge {
        /// With whom.
        addr: String,
        /// The bound.
        limit: usize,
    },
    /// A message made no sense.
    #[error("read a message of '{addr}': {detail}")]
    Malformed {
        /// Who sent it.
        addr: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The first message named another node than the certificate.
    #[error("'{addr}' says that it is node '{said}', its certificate is of '{proven}'")]
    OtherId {
        /// With whom.
        addr: String,
        /// In the message.
        said: NodeId,
        /// In the certificate.
        proven: NodeId,
    },
    /// At the address of a manager answers another one.
    #[error("connect to manager '{expected}' at '{addr}': manager '{found}' answers there")]
    NotThatNode {
        /// Where.
        addr: String,
        /// Who should be there.
        expected: NodeId,
        /// Whom the certificate names.
        found: NodeId,
    },
    /// Nobody has said where that manager is.
    #[error("connect to manager '{node}': no address of it is known")]
    NoAddress {
        /// Who.
        node: NodeId,
    },
    /// A call that is for managers, made by another node.
    #[error("node '{node}' asks what only managers may ask; its certificate is a {role}'s")]
    NotAManager {
        /// Who.
        node: NodeId,
        /// What it is.
        role: &'static str,
    },
    /// The manager does not lead, so it takes no session.
    #[error("'{addr}' does not lead the cluster: {message}")]
    NotLeader {
        /// With whom.
        addr: String,
        /// Who does, if it knows.
        leader: Option<ManagerAddr>,
        /// Its words.
        message: String,
    },
    /// The peer refused, in its own words.
    #[error(transparent)]
    Remote(#[from] RemoteFault),
    /// The listening address cannot be had.
    #[error("listen on {addr} (TCP)")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// What a failed call says about the process at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The kernel there answers, and nobody listens: at none of its addresses.
    Refused,
    /// The kernel there ended the connection; the process stopped, or was stopped.
    Closed,
    /// No answer in time. The process may be busy, stand still, or be out of reach.
    Late {
        /// How long was waited.
        after: Duration,
    },
    /// Another manager answers at its address.
    NotThatNode {
        /// Which.
        found: NodeId,
    },
    /// The process is alive: it answered, with a refusal.
    Answered,
    /// Nothing.
    Nothing,
}

/// The steps of a connection that come before anything is asked.
const BEFORE_ASKING: [&str; 5] =
    ["connection", "name resolution", "TCP connection", "TLS handshake", "HTTP/2 handshake"];

impl WireError {
    /// Whether what was asked may have arrived before this.
    #[must_use]
    pub fn may_have_been_heard(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::PeerCertificate { .. }
            | Self::OwnCertificate { .. }
            | Self::Identity(_)
            | Self::NoAddress { .. }
            | Self::NotThatNode { .. } => false,
            Self::Timeout { step, .. } => !BEFORE_ASKING.contains(step),
            _ => true,
        }
    }

    /// What this says about the process at the other end.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        match self {
            Self::Connect { source, .. }
                if source.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                Evidence::Refused
            }
            Self::Closed { .. } => Evidence::Closed,
            Self::Timeout { after, .. } | Self::Stuck { after, .. } => {
                Evidence::Late { after: *after }
            }
            Self::Silent { silent, .. } => Evidence::Late { after: *silent },
            Self::NotThatNode { found, .. } => Evidence::NotThatNode { found: found.clone() },
            Self::Remote(_)
            | Self::Version { .. }
            | Self::TooNew { .. }
            | Self::NotLeader { .. }
            | Self::OwnCertificate { .. } => Evidence::Answered,
            _ => Evidence::Nothing,
        }
    }
}

impl Fault for WireError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Address { .. } | Self::Malformed { .. } | Self::TooLarge { .. } => {
                FaultKind::Invalid
            }
            Self::OtherId { .. }
            | Self::NotThatNode { .. }
            | Self::NotAManager { .. }
            | Self::OwnCertificate { .. } => FaultKind::Forbidden,
            Self::PeerCertificate { source, .. } | Self::Identity(source) => source.kind(),
            Self::Version { .. } | Self::TooNew { .. } => FaultKind::Conflict,
            Self::Remote(fault) => fault.kind(),
            Self::Listen { .. } => FaultKind::Conflict,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::Silent { .. }
            | Self::Closed { .. }
            | Self::NoAddress { .. }
            | Self::NotLeader { .. }
            | Self::Stuck { .. } => FaultKind::Unavailable,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::Address { .. } => "SH-WIR-001",
            Self::Resolve { .. } => "SH-WIR-002",
            Self::Connect { .. } => "SH-WIR-003",
            Self::Timeout { .. } => "SH-WIR-004",
            Self::Tls { .. } => "SH-WIR-005",
            Self::PeerCertificate { source, .. } | Self::Identity(source) => return source.id(),
            Self::OwnCertificate { .. } => "SH-WIR-006",
            Self::Version { .. } | Self::TooNew { .. } => "SH-WIR-007",
            Self::Silent { .. } => "SH-WIR-008",
            Self::Closed { .. } => "SH-WIR-009",
            Self::Stuck { .. } => "SH-WIR-010",
            Self::TooLarge { .. } => "SH-WIR-011",
            Self::Malformed { .. } => "SH-WIR-012",
            Self::OtherId { .. } => "SH-WIR-013",
            Self::Remote(fault) => return fault.id(),
            Self::Listen { .. } => "SH-WIR-014",
            Self::NotThatNode { .. } => "SH-WIR-016",
            Self::NotAManager { .. } => "SH-WIR-017",
            Self::NoAddress { .. } => "SH-WIR-018",
            Self::NotLeader { .. } => "SH-WIR-019",
        }))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Address { .. } => "give it as 'address:2377'",
            Self::Resolve { .. } => "give the manager's IP address, or repair name resolution",
            Self::Connect { .. } => {
                "check that a manager runs there and that no firewall closes TCP port 2377"
            }
            Self::Timeout { .. } => {
                "check the address and that no firewall drops TCP port 2377 between the nodes"
            }
            Self::Tls { .. } => "check that the port is a manager's (2377), not another service's",
            Self::PeerCertificate { source, .. } | Self::Identity(source) => {
                return source.remedy();
            }
            Self::OwnCertificate { .. } => {
                "compare the clocks of both nodes; if they agree, leave and join again"
            }
            Self::Version { .. } => "upgrade the node that speaks the older version",
            Self::TooNew { .. } => "upgrade this node",
            Self::OtherId { .. } => "leave and join again: the node's files are mixed up",
            Self::NotThatNode { .. } => {
                "check --advertise-addr of both managers: two of them have the same address, or \
                 one has moved"
            }
            Self::NotAManager { .. } => "promote the node first: 'docker node promote'",
            Self::NoAddress { .. } => {
                "the managers learn each other's addresses from the cluster's state; check that \
                 the node is still a manager with 'docker node ls'"
            }
            Self::NotLeader { .. } => "the node tries the leader by itself",
            Self::Remote(fault) => return fault.remedy(),
            Self::Listen { .. } => "stop what holds the address, or give another --listen-addr",
            Self::Silent { .. } | Self::Closed { .. } | Self::Stuck { .. } => {
                "the node tries again by itself; check the network between the nodes if it lasts"
            }
            Self::TooLarge { .. } | Self::Malformed { .. } => return None,
        };
        Some(text.to_owned())
    }
}
