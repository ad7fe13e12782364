//! What the engine asks of the network side. `agent` implements [`Attacher`].
//!
//! The engine decides *when* a container is attached (before its process starts) and released
//! (after it ended); addresses, names and published ports are the implementer's decisions.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use shoal_model::id::{ContainerId, NetworkId, TaskId};
use shoal_model::net::{Mac, Port};
use shoal_model::object::TaskNetwork;
use shoal_model::spec::StringMap;
use shoal_model::spec::container::{EndpointIpam, EndpointSettings};
use tokio::net::TcpStream;

pub use crate::error::AttachError;

/// Gives containers their networks.
#[async_trait]
pub trait Attacher: Send + Sync {
    /// Makes the container's network namespace with everything in it. Called before every start,
    /// also before a restart (after [`Self::detach`]).
    ///
    /// # Errors
    /// A network that does not exist, an address or port in use, a kernel that refuses.
    async fn attach(&self, request: ContainerNetworking) -> Result<Attachment, AttachError>;

    /// Takes the container's network away and frees addresses and ports. Releasing what is not
    /// attached is fine.
    ///
    /// # Errors
    /// The kernel refuses; the engine records it and goes on.
    async fn detach(&self, container: &ContainerId) -> Result<(), AttachError>;

    /// After a restart of the daemon: the container still runs with this attachment. The
    /// implementer takes addresses and ports as used and returns the attachment as it is now.
    ///
    /// # Errors
    /// The attachment cannot be kept; the engine stops the container with that reason.
    async fn readopt(
        &self,
        request: ContainerNetworking,
        attachment: Attachment,
    ) -> Result<Attachment, AttachError>;

    /// Finds the network that a container wants to join, at its creation.
    ///
    /// # Errors
    /// `network x not found` ([`shoal_model::fault::FaultKind::NotFound`]), or the network may not
    /// be joined by hand.
    async fn check_network(&self, word: &str) -> Result<NetworkName, AttachError>;

    /// Adds a network to a running container.
    ///
    /// # Errors
    /// As [`Self::attach`].
    async fn connect(
        &self,
        container: &ContainerId,
        network: &str,
        settings: EndpointSettings,
    ) -> Result<Attachment, AttachError>;

    /// Takes one network from a running container.
    ///
    /// # Errors
    /// The container is not on that network, or the kernel refuses.
    async fn disconnect(
        &self,
        container: &ContainerId,
        network: &str,
    ) -> Result<Attachment, AttachError>;

    /// Connects to a port of a running unikernel, from its network's side: for its health probe.
    ///
    /// # Errors
    /// It is not attached, or does not accept within `limit`.
    async fn connect_to(
        &self,
        container: &ContainerId,
        port: u16,
        limit: Duration,
    ) -> Result<TcpStream, AttachError>;
}

/// A network as [`Attacher::check_network`] found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkName {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
}

/// Everything that the network side must know about a container that is about to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerNetworking {
    /// Its id.
    pub container_id: ContainerId,
    /// Its name, without a slash; resolves on every network that has names.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Its labels.
    pub labels: StringMap,
    /// `bridge` (also for `default` and empty), `host`, `none`, or a network's name or id.
    /// `container:<id>` never comes here: the engine shares that container's namespace.
    pub network_mode: String,
    /// What the client asked for on each network, by the word it used. Empty: just the network of
    /// `network_mode`.
    pub endpoints: BTreeMap<String, EndpointSettings>,
    /// Ports to open on the host.
    pub published: Vec<PublishRequest>,
    /// What the client wants in `resolv.conf`.
    pub dns: DnsRequest,
    /// Set for tasks of the swarm.
    pub task: Option<TaskAttachment>,
    /// Set for unikernels, which get a TAP device and no namespace: the user that attaches to it.
    #[serde(default)]
    pub tap_owner: Option<u32>,
}

/// What a task's container brings from its assignment. Kept in the container's record, so that it
/// survives a restart of the daemon without a manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskAttachment {
    /// The task.
    pub task_id: TaskId,
    /// Its addresses, as the manager gave them.
    pub networks: Vec<TaskNetwork>,
}

/// One port that a container wants on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// The port inside.
    pub container: Port,
    /// The address to listen on; `None`: all.
    pub host_ip: Option<IpAddr>,
    /// The lowest port on the host that will do; `None`: any free one.
    pub host_port: Option<u16>,
    /// The highest one that will do; equal to `host_port` unless the client gave a range.
    pub host_port_last: Option<u16>,
}

/// What a client wants in `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRequest {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// A container's network, made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The namespace to join; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// The sandbox's id, for `NetworkSettings.SandboxID`.
    pub sandbox_id: String,
    /// The container's networks.
    pub endpoints: Vec<EndpointInfo>,
    /// The ports that are open on the host.
    pub published: Vec<PublishedPort>,
    /// The whole text of `resolv.conf`.
    pub resolv_conf: String,
    /// A unikernel's device.
    #[serde(default)]
    pub tap: Option<TapPlace>,
}

/// Where a unikernel's TAP device is, and what the unikernel is told about its network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapPlace {
    /// The network namespace that the device is in.
    pub netns: PathBuf,
    /// The device's name there.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The unikernel's address and prefix length.
    pub address: (Ipv4Addr, u8),
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its gateway, which is also its name server.
    pub gateway: Option<Ipv4Addr>,
}

/// One network of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// The network.
    pub network_id: NetworkId,
    /// Its name.
    pub network_name: String,
    /// Its driver: `bridge`, `overlay`, `host`, `null`.
    #[serde(default)]
    pub driver: String,
    /// The endpoint's id, 64 hex digits.
    pub endpoint_id: String,
    /// Its IPv4 address and prefix length.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Its IPv6 address and prefix length.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// The IPv4 gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The IPv6 gateway.
    pub gateway6: Option<Ipv6Addr>,
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// The further names that the client asked for.
    pub aliases: Vec<String>,
    /// Every name that resolves to it on this network.
    pub dns_names: Vec<String>,
    /// The addresses that the client asked for.
    pub ipam: Option<EndpointIpam>,
}

/// One open port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The port inside.
    pub container: Port,
    /// The address on the host.
    pub host_ip: IpAddr,
    /// The port on the host.
    pub host_port: u16,
}
