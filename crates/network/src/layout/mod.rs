//! What each namespace must have, and the difference to what it has. Pure.
//!
//! [`NsLayout`] is everything of a network's namespace but its nft tables; those are
//! [`rules::NetRules`] and [`rules::HostRules`], and [`doors`] for the underlay. [`diff`] compares
//! with the observed state, [`flows`] says which tracked connections must go when backends do.

pub mod diff;
pub mod doors;
pub mod flows;
pub mod guest;
pub mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use shoal_model::assignment::Peer;
use shoal_model::id::{InstanceId, NodeId};
use shoal_model::net::{Mac, Vni};
use shoal_netlink::neighbour::FdbEntry;
use shoal_netlink::route::Route;
use shoal_netlink::rule::Rule;

use crate::desired::{DesiredNet, LocalPort, NetKind, PortKind, SandboxId, SelfNode};

/// The VXLAN device inside a network's namespace.
pub const VXLAN: &str = "vx";
/// The end of the host link inside a network's namespace.
pub const UPLINK: &str = "up";
/// First bytes of the names of workloads' ports inside a network's namespace.
pub const PORT_PREFIX: &str = "p";
/// Replies that go back to another node take this table.
pub const TABLE_PEER: u32 = 7;
/// Replies that go back by the host link take this table.
pub const TABLE_HOST: u32 = 8;
/// A neighbour on every VXLAN device that stands for "the node in the packet's mark". It lies
/// between the transit addresses of nodes and those of host links.
pub const ANY_PEER: Ipv4Addr = Ipv4Addr::new(169, 254, 127, 254);
/// Its MAC: begins like every node's transit MAC, so that only the last two bytes are rewritten.
pub const ANY_PEER_MAC: Mac = Mac([0x02, 0xfe, 0xa9, 0xfe, 0xff, 0xff]);
/// Connection marks are four bytes in memory: the last two of a transit MAC, then how replies go.
pub const MARK_PEER: [u8; 4] = [0, 0, 1, 0];
/// Replies of connections with this mark leave by the host link.
pub const MARK_HOST: [u8; 4] = [0, 0, 2, 0];
/// The part of a mark that says how replies go.
pub const MARK_MASK: [u8; 4] = [0, 0, 3, 0];
/// First of the tables inside a workload's namespace, one for each port.
const TABLE_PORTS: u32 = 100;
/// Before the main table's 32766.
const RULE_PRIORITY: u32 = 100;

/// The addresses of a host link: neighbours in a /31, the even one on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkPair {
    /// The host's end.
    pub host: Ipv4Addr,
    /// The namespace's end.
    pub inner: Ipv4Addr,
}

/// First and last address of host links: the part of the upper half of 169.254/16 below the
/// addresses where clouds keep their metadata services (169.254.169.254 and its kin).
pub const LINK_RANGE: (u32, u32) = (0xa9fe_8000, 0xa9fe_9fff);

impl LinkPair {
    /// The pair that `inner` or `host` belongs to.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        let even = u32::from(address) & !1;
        Self { host: Ipv4Addr::from(even), inner: Ipv4Addr::from(even | 1) }
    }

    /// The lowest pair that touches none of `used`.
    #[must_use]
    pub fn free(used: &[IpNet]) -> Option<Self> {
        (LINK_RANGE.0..LINK_RANGE.1).step_by(2).map(|n| Self::of(Ipv4Addr::from(n))).find(|pair| {
            !used.iter().any(|net| {
                net.contains(&IpAddr::V4(pair.host)) || net.contains(&IpAddr::V4(pair.inner))
            })
        })
    }

    /// `address` with the link's prefix length.
    #[must_use]
    pub fn net(address: Ipv4Addr) -> IpNet {
        host_net(address, 31)
    }
}

/// What planning needs beyond the desired network.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Whose kernel objects they will be.
    pub instance: &'a InstanceId,
    /// This node's place in the cluster.
    pub self_node: Option<&'a SelfNode>,
    /// The host link's addresses; absent for internal networks.
    pub link: Option<LinkPair>,
}

/// The VXLAN device that a namespace must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanLayout {
    /// VXLAN number.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Pinned outer source address.
    pub local: IpAddr,
    /// This node's transit MAC.
    pub mac: Mac,
}

/// A workload's port that a namespace must have, with the interface inside the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLayout {
    /// Whose.
    pub sandbox: SandboxId,
    /// The interface's name inside.
    pub interface: String,
    /// Its MAC inside.
    pub mac: Mac,
    /// Its addresses inside.
    pub addresses: Vec<IpNet>,
    /// The gateway of its first subnet: the way to every other workload of the network.
    pub gateway: Ipv4Addr,
    /// Whether the network leads outside.
    pub leads_out: bool,
    /// Whether the default route goes this way.
    pub default_route: bool,
    /// Routing table inside for replies from this port's addresses.
    pub table: u32,
    /// What is at the workload's end.
    pub kind: PortKind,
    /// Set when the port is complete; a port with another alias is made anew.
    pub alias: String,
}

/// Everything that a network's namespace must have beside its nft tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NsLayout {
    /// MTU of every link.
    pub mtu: u32,
    /// Overlay only.
    pub vxlan: Option<VxlanLayout>,
    /// The host link, unless internal.
    pub link: Option<LinkPair>,
    /// Workloads' ports by link name.
    pub ports: BTreeMap<String, PortLayout>,
    /// Addresses by link.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Policy rules.
    pub rules: BTreeSet<Rule>,
    /// Permanent neighbours of the VXLAN device.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    /// Forwarding entries of the VXLAN device.
    pub fdb: BTreeSet<FdbEntry>,
}

/// `address/prefix` as a network; a prefix above 32 does not occur.
fn host_net(address: Ipv4Addr, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(address, prefix).unwrap_or(Ipv4Net::from(address)))
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(v4),
        // IPv6 has its place in the types; the kernel side carries IPv4 only so far.
        IpAddr::V6(_) => None,
    }
}

/// The link name of a workload's port: stable, at most 15 bytes.
#[must_use]
pub fn port_name(sandbox: &SandboxId) -> String {
    format!("{PORT_PREFIX}{:012x}", fnv1a(sandbox.as_str().as_bytes()) & 0xffff_ffff_ffff)
}

/// FNV-1a, 64 bits: a hash that is the same in every version of the program.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl PortLayout {
    /// MAC of the namespace's end of a veth pair: the gateway's, so that nobody has to ask for it.
    #[must_use]
    pub fn gateway_mac(&self) -> Mac {
        Mac::of_port(IpAddr::V4(self.gateway))
    }

    /// A route inside, by the gateway.
    #[must_use]
    pub fn by_gateway(&self, to: IpNet) -> Route {
        Route::via(to, IpAddr::V4(self.gateway), &self.interface).onlink()
    }
}

impl NsLayout {
    /// What the namespace of `net` must have on this node.
    #[must_use]
    pub fn of(net: &DesiredNet, context: &Context<'_>) -> Self {
        let mut plan = Self { mtu: net.info.mtu, link: context.link, ..Self::default() };
        for subnet in &net.info.subnets {
            let (Some(gateway), IpNet::V4(range)) = (v4(subnet.gateway), subnet.subnet) else {
                continue;
            };
            plan.addresses.insert(("lo".to_owned(), host_net(gateway, 32)));
            // Proxy ARP answers only for what is routed elsewhere than to the asking port.
            plan.routes.insert(Route::dev(IpNet::V4(range.trunc()), "lo"));
        }
        plan.add_link();
        plan.add_ports(net, context);
        if let (NetKind::Overlay, Some(me)) = (net.info.kind, context.self_node) {
            plan.add_overlay(net, me);
        }
        plan
    }

    fn add_link(&mut self) {
        let Some(link) = self.link else { return };
        let host = IpAddr::V4(link.host);
        let default = Route::default_of(host);
        self.addresses.insert((UPLINK.to_owned(), LinkPair::net(link.inner)));
        self.routes.insert(Route::via(default, host, UPLINK));
        self.routes.insert(Route::via(default, host, UPLINK).in_table(TABLE_HOST));
        self.rules.insert(mark_rule(MARK_HOST, TABLE_HOST));
    }

    fn add_ports(&mut self, net: &DesiredNet, context: &Context<'_>) {
        for port in &net.local_ports {
            let Some(plan) = port_plan(net, port, context) else { continue };
            let name = port_name(&port.sandbox);
            for address in &plan.addresses {
                if let Some(address) = v4(address.addr()) {
                    self.routes.insert(Route::dev(host_net(address, 32), &name));
                }
            }
            self.ports.insert(name, plan);
        }
    }

    fn add_overlay(&mut self, net: &DesiredNet, me: &SelfNode) {
        self.vxlan = Some(VxlanLayout {
            vni: net.info.vni,
            port: net.info.data_path_port,
            local: me.underlay,
            mac: me.index.transit_mac(),
        });
        let transit = host_net(me.index.transit_address(), 32);
        self.addresses.insert((VXLAN.to_owned(), transit));
        self.neighbours.insert((IpAddr::V4(ANY_PEER), ANY_PEER_MAC));
        let any = IpAddr::V4(ANY_PEER);
        let back = Route::via(Route::default_of(any), any, VXLAN).onlink().in_table(TABLE_PEER);
        self.routes.insert(back);
        self.rules.insert(mark_rule(MARK_PEER, TABLE_PEER));

        let others = || net.peers.iter().filter(|peer| peer.node_id != me.node_id);
        for peer in others() {
            let mac = peer.index.transit_mac();
            self.neighbours.insert((IpAddr::V4(peer.index.transit_address()), mac));
            self.fdb.insert(FdbEntry { mac, destination: peer.underlay });
        }
        let by_id: BTreeMap<&NodeId, &Peer> = others().map(|peer| (&peer.node_id, peer)).collect();
        let here: BTreeSet<IpNet> = self.routes.iter().map(|route| route.destination).collect();
        for endpoint in &net.endpoints {
            let Some(address) = v4(endpoint.address) else { continue };
            let local = here.contains(&host_net(address, 32));
            let Some(peer) = by_id.get(&endpoint.node_id).filter(|_| !local) else { continue };
            let via = IpAddr::V4(peer.index.transit_address());
            self.routes.insert(Route::via(host_net(address, 32), via, VXLAN).onlink());
        }
    }
}

fn mark_rule(mark: [u8; 4], table: u32) -> Rule {
    Rule {
        ipv6: false,
        priority: RULE_PRIORITY + table,
        mark: Some((u32::from_ne_bytes(mark), u32::from_ne_bytes(MARK_MASK))),
        from: None,
        iif: None,
        table,
    }
}

fn port_plan(net: &DesiredNet, port: &LocalPort, context: &Context<'_>) -> Option<PortLayout> {
    let first = port.address.iter().find(|a| a.addr().is_ipv4())?;
    let subnet = net.info.subnets.iter().find(|s| s.subnet.contains(&first.addr()))?;
    let leads_out = !net.info.internal;
    let mut plan = PortLayout {
        sandbox: port.sandbox.clone(),
        interface: format!("eth{}", port.order),
        mac: Mac::of_port(first.addr()),
        addresses: port.address.iter().copied().filter(|a| a.addr().is_ipv4()).collect(),
        gateway: v4(subnet.gateway)?,
        leads_out,
        default_route: port.default_route && leads_out,
        table: TABLE_PORTS + u32::from(port.order),
        kind: port.kind,
        alias: String::new(),
    };
    let print = fnv1a(format!("{plan:?} {}", net.info.mtu).as_bytes());
    plan.alias = format!("shoal:{}:port:{}:{print:016x}", context.instance, port.sandbox);
    Some(plan)
}

#[cfg(test)]
mod tests;
