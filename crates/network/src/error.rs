//! What can go wrong between a desired network and the kernel.

use std::path::PathBuf;

use shoal_model::fault::{Fault, FaultId, FaultKind};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a network, port or sandbox is not as desired.
///
/// The text begins with the missing thing: Docker's client cuts a task's error at 30 characters.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A directory or file of the network's run-time state.
    #[error("network files unusable: '{}'", path.display())]
    Files {
        /// Which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// A network namespace could not be made, entered or removed.
    #[error("network namespace refused: '{}'", path.display())]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// The VXLAN device could not be made.
    #[error(
        "vxlan device refused: network '{network}', VNI {vni}, UDP port {port}, address {underlay}"
    )]
    Vxlan {
        /// The network's name.
        network: String,
        /// VXLAN number.
        vni: u32,
        /// UDP port.
        port: u16,
        /// The pinned local address.
        underlay: std::net::IpAddr,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// Another interface could not be made or changed.
    #[error("link refused: {what} of network '{network}'")]
    Link {
        /// Which link and what was tried.
        what: String,
        /// The network's name.
        network: String,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// The namespace of a guest on several networks could not be made or changed.
    #[error("guest not connected: sandbox '{sandbox}'")]
    Guest {
        /// The guest's sandbox.
        sandbox: String,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// The kernel refused a ruleset.
    #[error("nftables refused: {what}")]
    Nft {
        /// Which table, of which network.
        what: String,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// A kernel setting could not be read or written.
    #[error("sysctl refused: '{key}' = '{value}'")]
    Sysctl {
        /// Its key, with dots.
        key: String,
        /// The value that was to be written.
        value: String,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// What is there could not be read.
    #[error("kernel state unreadable: {what}")]
    Observe {
        /// What was to be read.
        what: String,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// No free pair of link addresses is left.
    #[error("host link range is full: no free /31 in 169.254.128.0/17 for network '{network}'")]
    LinkRangeFull {
        /// The network's name.
        network: String,
    },
    /// An overlay was asked for on a node that is in no swarm.
    #[error("overlay needs a swarm: network '{network}' spans nodes, and this node is in no swarm")]
    NoSwarm {
        /// The network's name.
        network: String,
    },
    /// The desired state contradicts itself.
    #[error("network spec is invalid: {what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// A published port could not be opened on the host.
    #[error("port {port} is taken: cannot publish it for {holder}")]
    PortTaken {
        /// The port with its protocol.
        port: shoal_model::net::Port,
        /// For whom.
        holder: String,
        /// Who has it, as far as known.
        #[source]
        source: Cause,
    },
    /// A published port could not be opened for another reason than that somebody has it.
    #[error(
        "port {port} cannot be opened{} for {holder}",
        host_ip.map_or_else(String::new, |ip| format!(" on address '{ip}'"))
    )]
    PortRefused {
        /// The port with its protocol.
        port: shoal_model::net::Port,
        /// Only on this address.
        host_ip: Option<std::net::IpAddr>,
        /// For whom.
        holder: String,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// The resolver helper could not be started or told.
    #[error("resolver failed: {what}")]
    Resolver {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// A workload does not accept a connection.
    #[error("no connection to {to}")]
    Connect {
        /// Its address and port.
        to: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The handle was shut down.
    #[error("node network is shut down")]
    Closed,
}

impl Fault for NetworkError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::PortTaken { .. } => FaultKind::Conflict,
            Self::Invalid { .. } => FaultKind::Invalid,
            Self::NoSwarm { .. } | Self::Connect { .. } | Self::Closed => FaultKind::Unavailable,
            _ => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        let id = match self {
            Self::Files { .. } => "SH-NET-001",
            Self::Namespace { .. } => "SH-NET-002",
            Self::Vxlan { .. } => "SH-NET-003",
            Self::Link { .. } => "SH-NET-004",
            Self::Nft { .. } => "SH-NET-005",
            Self::Sysctl { .. } => "SH-NET-006",
            Self::Observe { .. } => "SH-NET-007",
            Self::LinkRangeFull { .. } => "SH-NET-008",
            Self::NoSwarm { .. } => "SH-NET-009",
            Self::PortTaken { .. } => "SH-NET-010",
            Self::PortRefused { .. } => "SH-NET-081",
            Self::Resolver { .. } => "SH-NET-011",
            Self::Invalid { .. } => "SH-NET-012",
            Self::Guest { .. } => "SH-NET-013",
            Self::Connect { .. } | Self::Closed => return None,
        };
        Some(FaultId(id))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Vxlan { .. } => {
                "run 'shoal doctor'; if another program uses the VNI on that UDP port, \
                 use another '--data-path-port' or '--data-path-addr'"
            }
            Self::Nft { .. }
            | Self::Namespace { .. }
            | Self::Sysctl { .. }
            | Self::Guest { .. } => "run 'shoal doctor'",
            Self::PortTaken { .. } => "stop the program that holds the port, or publish another",
            Self::PortRefused { .. } => "publish it on an address that this host has, or on all",
            Self::NoSwarm { .. } => "run 'docker swarm init' or 'docker swarm join' first",
            _ => return None,
        };
        Some(text.to_owned())
    }
}
