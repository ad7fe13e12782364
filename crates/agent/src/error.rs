//! What can go wrong in the agent.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::name::NameError;

/// A failure of the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file of the agent cannot be written.
    #[error("write '{}'", path.display())]
    WriteFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file was written by another version.
    #[error("'{}' has format {found}, this version knows {known}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// No such network.
    #[error("network {word} not found")]
    NoNetwork {
        /// What was asked for.
        word: String,
    },
    /// Several networks fit.
    #[error("network {word} is ambiguous ({matches} matches found)")]
    AmbiguousNetwork {
        /// What was asked for.
        word: String,
        /// How many.
        matches: usize,
    },
    /// The name cannot be one.
    #[error("network name")]
    NetworkName(#[source] NameError),
    /// The name is taken.
    #[error("network with name {name} already exists")]
    NetworkExists {
        /// The name.
        name: String,
    },
    /// `bridge`, `host` and `none` cannot be removed.
    #[error("{name} is a pre-defined network and cannot be removed")]
    Predefined {
        /// Its name.
        name: String,
    },
    /// Containers are on it.
    #[error("network {name} has active endpoints")]
    NetworkInUse {
        /// Its name.
        name: String,
    },
    /// The address settings make no sense.
    #[error(transparent)]
    Ipam(#[from] shoal_model::ipam::IpamError),
    /// An option makes no sense.
    #[error("{what} '{text}' is not valid")]
    Option {
        /// Which part.
        what: &'static str,
        /// What was given.
        text: String,
    },
    /// The wanted subnet overlaps another one.
    #[error("subnet {subnet} overlaps {other}, which is in use")]
    Overlap {
        /// The wanted one.
        subnet: IpNet,
        /// The other.
        other: IpNet,
    },
    /// Every pool is used up.
    #[error("no free subnet is left for a bridge network")]
    NoSubnet,
    /// The network has no free address.
    #[error("no free address on network '{name}'")]
    NoAddress {
        /// Its name.
        name: String,
    },
    /// The wanted address is in use.
    #[error("address {address} on network '{name}' is in use")]
    AddressInUse {
        /// The network.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// The wanted address is not on the network.
    #[error("address {address} is not on network '{name}'")]
    AddressOutside {
        /// The network.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// This node is in no swarm, or sees no manager.
    #[error("no manager to ask about network '{word}'")]
    NoManager {
        /// What was asked for.
        word: String,
    },
    /// A manager did not answer in time.
    #[error("no answer from the manager about network '{word}' within {seconds} s")]
    ManagerSilent {
        /// What was asked for.
        word: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The manager said no.
    #[error("join network '{word}'")]
    Refused {
        /// What was asked for.
        word: String,
        /// Its reason.
        #[source]
        source: shoal_wire::fault::RemoteFault,
    },
    /// The kernel's side of the network failed; the network's own words, id and remedy included.
    #[error("{what}")]
    Kernel {
        /// The whole chain of causes.
        what: String,
    },
    /// The network was not ready in time.
    #[error("network not ready after {seconds} s")]
    NotReady {
        /// How long was waited.
        seconds: u64,
    },
    /// Tasks did not end in time.
    #[error("tasks still run after {seconds} s")]
    NotDrained {
        /// How long was waited.
        seconds: u64,
    },
    /// Shoal itself has given the port to somebody else.
    #[error("port {port} is taken: {holder} publishes it")]
    PortTaken {
        /// Which port.
        port: shoal_model::net::Port,
        /// Who has it.
        holder: String,
    },
    /// No port is free.
    #[error("no free port from {first} to {last} for {protocol}")]
    NoPort {
        /// The first that was tried.
        first: u16,
        /// The last.
        last: u16,
        /// `tcp` or `udp`.
        protocol: &'static str,
    },
    /// Something in a task's spec that Shoal does not have.
    #[error("not implemented: {what}")]
    NotImplemented {
        /// What.
        what: String,
    },
}

impl Fault for AgentError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NoNetwork { .. } => FaultKind::NotFound,
            Self::AmbiguousNetwork { .. }
            | Self::NetworkName(_)
            | Self::Ipam(_)
            | Self::Option { .. }
            | Self::AddressOutside { .. } => FaultKind::Invalid,
            Self::NetworkExists { .. } | Self::AddressInUse { .. } | Self::PortTaken { .. } => {
                FaultKind::Conflict
            }
            Self::Predefined { .. } | Self::NetworkInUse { .. } | Self::Overlap { .. } => {
                FaultKind::Forbidden
            }
            Self::NoManager { .. } | Self::ManagerSilent { .. } => FaultKind::Unavailable,
            Self::Refused { source, .. } => source.kind(),
            Self::NotImplemented { .. } => FaultKind::NotImplemented,
            Self::WriteFile { .. }
            | Self::Format { .. }
            | Self::NoSubnet
            | Self::Kernel { .. }
            | Self::NoAddress { .. }
            | Self::NotReady { .. }
            | Self::NotDrained { .. }
            | Self::NoPort { .. } => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::Format { .. } => Some(FaultId("SH-AGT-001")),
            Self::NoManager { .. } | Self::ManagerSilent { .. } => Some(FaultId("SH-AGT-002")),
            Self::NotReady { .. } => Some(FaultId("SH-AGT-003")),
            Self::Overlap { .. } | Self::NoSubnet => Some(FaultId("SH-AGT-004")),
            Self::NoAddress { .. } => Some(FaultId("SH-AGT-005")),
            Self::NoPort { .. } | Self::PortTaken { .. } => Some(FaultId("SH-AGT-006")),
            Self::Refused { source, .. } => source.id(),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NoManager { .. } => {
                Some("see `docker info` whether this node is in a swarm and its manager up".into())
            }
            Self::ManagerSilent { .. } => Some("see `docker node ls` on a manager".into()),
            Self::Overlap { .. } => Some("choose another --subnet".into()),
            Self::NoSubnet => Some("name one with --subnet, or remove unused networks".into()),
            Self::NoAddress { .. } => Some("use a network with a larger subnet".into()),
            Self::PortTaken { .. } => Some("publish another port, or remove its holder".into()),
            Self::NoPort { .. } => Some("name a port with --publish HOST:CONTAINER".into()),
            Self::Format { .. } => Some("start the version that wrote it".into()),
            Self::NotReady { .. } => Some("see `shoal doctor` and the daemon's log".into()),
            Self::Refused { source, .. } => source.remedy(),
            _ => None,
        }
    }
}
