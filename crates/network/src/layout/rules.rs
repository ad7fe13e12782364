//! What the nft tables must hold: the balancer of a network, and the host's port table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use shoal_model::assignment::BackendState;
use shoal_model::id::NetworkId;
use shoal_model::net::Port;

use super::{LinkPair, v4};
use crate::balancer;
use crate::claims::HostPort;
use crate::desired::{DesiredNet, NetKind, Published};

/// First port on a host link for publications whose own number is taken there: two publications of
/// one number on different host addresses into one network.
const SPARE_PORTS_FROM: u16 = 61_000;

/// What decides the chains and rules of a network's tables; a change rebuilds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Buckets of every service.
    pub buckets: u32,
    /// The host link, unless internal.
    pub link: Option<LinkPair>,
    /// Whether there is a VXLAN device.
    pub overlay: bool,
}

/// A published port inside the network's namespace: protocol number, port on the host link.
pub type MeshPort = (u8, u16);

/// What the tables of a network's namespace hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRules {
    /// Chains and rules.
    pub shape: Shape,
    /// Every virtual address.
    pub vips: BTreeSet<Ipv4Addr>,
    /// Buckets of each virtual address.
    pub vip: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>,
    /// Buckets of each published port.
    pub mesh: BTreeMap<MeshPort, Vec<(Ipv4Addr, u16)>>,
    /// Local addresses that may reach themselves through a balancer, with the gateway that their
    /// calls are masqueraded to.
    pub hairpin: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

/// What the host's table of this daemon holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRules {
    /// The namespaces' ends of all host links.
    pub links: BTreeSet<Ipv4Addr>,
    /// Ports open on every address of the host.
    pub ports: BTreeMap<(u8, u16), (Ipv4Addr, u16)>,
    /// Ports open on one address.
    pub address_ports: BTreeMap<(Ipv4Addr, u8, u16), (Ipv4Addr, u16)>,
}

impl NetRules {
    /// What the tables of `net` must hold. `previous` keeps buckets where they are.
    #[must_use]
    pub fn of(
        net: &DesiredNet,
        published: &[Published],
        link: Option<LinkPair>,
        previous: Option<&Self>,
    ) -> Self {
        let services = vip_backends(net);
        let ports = mesh_backends(net, published);
        let largest =
            services.values().map(BTreeSet::len).chain(ports.values().map(BTreeSet::len)).max();
        let buckets = balancer::bucket_count(largest.unwrap_or(0));
        let before = |vip: &Ipv4Addr| previous.and_then(|p| p.vip.get(vip)).map_or(&[][..], |b| b);
        let before_port =
            |port: &MeshPort| previous.and_then(|p| p.mesh.get(port)).map_or(&[][..], |b| b);
        Self {
            shape: Shape { buckets, link, overlay: net.info.kind == NetKind::Overlay },
            vips: services.keys().copied().collect(),
            vip: services
                .iter()
                .filter(|(_, backends)| !backends.is_empty())
                .map(|(vip, backends)| (*vip, balancer::fill(before(vip), backends, buckets)))
                .collect(),
            mesh: ports
                .iter()
                .filter(|(_, backends)| link.is_some() && !backends.is_empty())
                .map(|(port, list)| (*port, balancer::fill(before_port(port), list, buckets)))
                .collect(),
            hairpin: hairpin(net),
        }
    }

    /// Every address that new connections may go to.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<Ipv4Addr> {
        let mesh = self.mesh.values().flatten().map(|(address, _)| *address);
        self.vip.values().flatten().copied().chain(mesh).collect()
    }
}

fn vip_backends(net: &DesiredNet) -> BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> {
    let mut out: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for service in &net.services {
        let Some(vip) = service.vip.and_then(v4) else { continue };
        let serving = service.backends.iter().filter(|b| b.state == BackendState::Serving);
        out.entry(vip).or_default().extend(serving.filter_map(|b| v4(b.address)));
    }
    out
}

fn mesh_backends(
    net: &DesiredNet,
    published: &[Published],
) -> BTreeMap<MeshPort, BTreeSet<(Ipv4Addr, u16)>> {
    let mut out: BTreeMap<MeshPort, BTreeSet<(Ipv4Addr, u16)>> = BTreeMap::new();
    for (index, link_port) in link_ports(&net.info.id, published) {
        let Some(publication) = published.get(index) else { continue };
        let backends = publication.backends.iter();
        let backends = backends.filter_map(|(address, port)| Some((v4(*address)?, *port)));
        let key = (publication.port.protocol.number(), link_port);
        out.entry(key).or_default().extend(backends);
    }
    out
}

/// The port on the host link of every publication into `network`, by its place in the list.
#[must_use]
pub fn link_ports(network: &NetworkId, published: &[Published]) -> BTreeMap<usize, u16> {
    let mut taken: BTreeMap<Port, Option<IpAddr>> = BTreeMap::new();
    let mut out = BTreeMap::new();
    let mut spare = SPARE_PORTS_FROM;
    for (index, publication) in published.iter().enumerate() {
        if publication.network != *network {
            continue;
        }
        let mut port = publication.port;
        // The same port on the same address twice is one publication with two lists of backends.
        while taken.get(&port).is_some_and(|address| *address != publication.host_ip) {
            port.number = spare;
            spare = spare.checked_add(1).unwrap_or(SPARE_PORTS_FROM);
        }
        taken.insert(port, publication.host_ip);
        out.insert(index, port.number);
    }
    out
}

fn hairpin(net: &DesiredNet) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let mut out = BTreeMap::new();
    for address in net.local_ports.iter().flat_map(|port| &port.address) {
        let subnet = net.info.subnets.iter().find(|s| s.subnet.contains(&address.addr()));
        let gateway = subnet.and_then(|s| v4(s.gateway));
        if let (Some(address), Some(gateway)) = (v4(address.addr()), gateway) {
            out.insert(address, gateway);
        }
    }
    out
}

impl HostRules {
    /// What the host's table must hold, given the host link of every network that has one. Ports
    /// that the system has given to somebody else are left to them.
    #[must_use]
    pub fn of(
        published: &[Published],
        links: &BTreeMap<NetworkId, LinkPair>,
        refused: &BTreeSet<HostPort>,
    ) -> Self {
        let mut out =
            Self { links: links.values().map(|pair| pair.inner).collect(), ..Self::default() };
        for (network, pair) in links {
            for (index, link_port) in link_ports(network, published) {
                let Some(publication) = published.get(index) else { continue };
                if refused.contains(&publication.place()) {
                    continue;
                }
                let (protocol, port) =
                    (publication.port.protocol.number(), publication.port.number);
                let target = (pair.inner, link_port);
                match publication.host_ip.map(v4) {
                    None => {
                        out.ports.insert((protocol, port), target);
                    }
                    Some(Some(address)) if address.is_unspecified() => {
                        out.ports.insert((protocol, port), target);
                    }
                    // Loopback is carried by the daemon's own socket.
                    Some(Some(address)) if address.is_loopback() => {}
                    Some(Some(address)) => {
                        out.address_ports.insert((address, protocol, port), target);
                    }
                    Some(None) => {}
                }
            }
        }
        out
    }
}
