//! The namespace of a guest on several networks: a router between its TAP device and one interface
//! for each network.
//!
//! The guest has one interface and one address, that of its home network. What comes for its
//! address on another network is translated, and what it sends there leaves with that address;
//! answers go back by the interface that the first packet came from. So every network sees what it
//! would see of a container.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use shoal_model::id::InstanceId;
use shoal_netlink::route::Route;
use shoal_netlink::rule::Rule;

use super::{TABLE_PORTS, fnv1a, host_net, v4};
use crate::desired::{DesiredNetwork, SandboxId, SandboxSpec};

/// The guest's device inside its namespace.
pub const TAP: &str = "tap0";
/// Before the rules by source address.
const RULE_PRIORITY: u32 = 50;

/// What the namespace of a guest must have beside its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLayout {
    /// Who may attach to the device.
    pub owner: u32,
    /// MTU of the device: the smallest of its networks.
    pub mtu: u32,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Its other networks.
    pub others: Vec<OtherNetwork>,
    /// Of the device; set when everything is complete.
    pub alias: String,
}

/// A network that knows the guest by another address than its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherNetwork {
    /// The interface that leads there.
    pub interface: String,
    /// The guest's address there.
    pub address: Ipv4Addr,
    /// Mark of connections that came from there, and the table of what is sent back.
    pub table: u32,
}

impl GuestLayout {
    /// The plan for `id`; nothing for workloads that are no guests or need no router.
    #[must_use]
    pub fn of(
        id: &SandboxId,
        spec: &SandboxSpec,
        want: &DesiredNetwork,
        instance: &InstanceId,
    ) -> Option<Self> {
        let guest = spec.guest.as_ref().filter(|guest| !guest.direct)?;
        let first = |addresses: &[IpNet]| addresses.iter().find_map(|a| v4(a.addr()));
        let address = first(&want.port(id, &guest.home)?.1.address)?;
        let ports = want.networks.keys().filter_map(|network| {
            let (net, port) = want.port(id, network)?;
            Some((network, net, port))
        });
        let mut plan = Self {
            owner: guest.owner,
            mtu: u32::MAX,
            address,
            others: Vec::new(),
            alias: String::new(),
        };
        for (network, net, port) in ports {
            plan.mtu = plan.mtu.min(net.info.mtu);
            if *network != guest.home {
                plan.others.push(OtherNetwork {
                    interface: format!("eth{}", port.order),
                    address: first(&port.address)?,
                    table: TABLE_PORTS + u32::from(port.order),
                });
            }
        }
        let print = fnv1a(format!("{plan:?}").as_bytes());
        plan.alias = format!("shoal:{instance}:guest:{id}:{print:016x}");
        Some(plan)
    }

    /// The way to the guest.
    #[must_use]
    pub fn route(&self) -> Route {
        Route::dev(host_net(self.address, 32), TAP)
    }

    /// Answers go back where the first packet came from.
    pub fn rules(&self) -> impl Iterator<Item = Rule> {
        self.others.iter().map(|other| Rule {
            ipv6: false,
            priority: RULE_PRIORITY,
            mark: Some((other.table, u32::MAX)),
            from: None,
            iif: None,
            table: other.table,
        })
    }

    /// The guest's address as translation wants it.
    #[must_use]
    pub fn target(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }
}
