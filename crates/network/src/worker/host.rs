//! The host's side: one link per network, found by its alias.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use shoal_model::id::{InstanceId, NetworkId};
use shoal_netlink::error::NetlinkError;
use shoal_netlink::link::{Link, LinkOptions};
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::route::Route;

use crate::desired::DesiredNet;
use crate::error::NetworkError;
use crate::layout::{LinkPair, UPLINK};

/// The one switch of all links.
const FORWARDING: &str = "net/ipv4/ip_forward";

/// The host's end of a link into a network's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostLink {
    /// Its name on the host.
    pub(crate) name: String,
    /// Its addresses; absent if the host's end has lost its own.
    pub(crate) pair: Option<LinkPair>,
    /// Whether it is up.
    pub(crate) up: bool,
}

/// The host's network namespace.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) handle: NetnsHandle,
    instance: InstanceId,
}

impl Host {
    pub(crate) fn new(handle: NetnsHandle, instance: InstanceId) -> Self {
        Self { handle, instance }
    }

    fn alias(&self, network: &NetworkId) -> String {
        format!("shoal:{}:link:{network}", self.instance)
    }

    fn prefix(&self) -> String {
        format!("sh{}h", self.instance.short())
    }

    fn links(&self) -> Result<Vec<Link>, NetworkError> {
        self.handle.links().map_err(|source| NetworkError::Observe {
            what: "links of the host".to_owned(),
            source: source.into(),
        })
    }

    /// Every host link of this instance, by network.
    pub(crate) fn host_links(&self) -> Result<BTreeMap<NetworkId, HostLink>, NetworkError> {
        let prefix = format!("shoal:{}:link:", self.instance);
        let parse = |link: Link| {
            let network = NetworkId::from(link.alias.strip_prefix(&prefix)?);
            Some((network, HostLink { pair: pair_of(&link), name: link.name, up: link.up }))
        };
        Ok(self.links()?.into_iter().filter_map(parse).collect())
    }

    /// Whether `address` is on a link of the host.
    pub(crate) fn has_address(&self, address: IpAddr) -> Result<bool, NetworkError> {
        let all = self.handle.all_addresses().map_err(|source| NetworkError::Observe {
            what: "addresses of the host".to_owned(),
            source: source.into(),
        })?;
        Ok(all.iter().any(|(_, net)| net.addr() == address) || address.is_loopback())
    }

    /// Chooses addresses for a new link.
    pub(crate) fn free_pair(
        &self,
        network: &str,
        also_used: &BTreeSet<LinkPair>,
    ) -> Result<LinkPair, NetworkError> {
        let links = self.links()?;
        let mut used: Vec<_> = links.iter().flat_map(|l| l.addresses.iter().copied()).collect();
        used.extend(also_used.iter().map(|pair| LinkPair::net(pair.host)));
        LinkPair::free(&used)
            .ok_or_else(|| NetworkError::LinkRangeFull { network: network.to_owned() })
    }

    /// Makes the link into the namespace `inner`, both ends up, the host's end with its address.
    pub(crate) fn create_link(
        &self,
        network: &NetworkId,
        pair: LinkPair,
        mtu: u32,
        inner: &NetnsHandle,
    ) -> Result<(), NetlinkError> {
        let taken: BTreeSet<String> = self.handle.links()?.into_iter().map(|l| l.name).collect();
        let prefix = self.prefix();
        let free = (0u16..).map(|n| format!("{prefix}{n}")).find(|name| !taken.contains(name));
        let name = free.unwrap_or(prefix);
        let mine =
            LinkOptions { mtu: Some(mtu), mac: None, alias: Some(self.alias(network)), up: true };
        let theirs = LinkOptions { mtu: Some(mtu), up: true, ..LinkOptions::default() };
        self.handle.create_veth(&name, &mine, inner, UPLINK, &theirs)?;
        self.handle.add_address(&name, LinkPair::net(pair.host))
    }

    /// Lets the host itself reach the workloads of a network of this node alone, as Docker users
    /// are used to. Where the host knows the subnet otherwise, that stays.
    pub(crate) fn route_to(
        &self,
        id: &NetworkId,
        net: &DesiredNet,
        pair: LinkPair,
    ) -> Result<(), NetworkError> {
        let refused = |source: NetlinkError| NetworkError::Link {
            what: "add the host's route".to_owned(),
            network: net.info.name.clone(),
            source: source.into(),
        };
        let Some(link) = self.host_links()?.remove(id) else { return Ok(()) };
        let known = self.handle.routes().map_err(refused)?;
        let addresses = self.handle.all_addresses().map_err(refused)?;
        for subnet in net.info.subnets.iter().map(|s| s.subnet.trunc()) {
            let taken = known.iter().any(|route| route.destination == subnet)
                || addresses.iter().any(|(_, own)| own.trunc() == subnet);
            if subnet.addr().is_ipv4() && !taken {
                let route = Route::via(subnet, IpAddr::V4(pair.inner), &link.name);
                self.handle.replace_route(&route).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Lets the host pass packets on between its links.
    pub(crate) fn enable_forwarding(&self) -> Result<(), NetworkError> {
        self.set_forwarding(true)
    }

    /// One switch for all links.
    pub(crate) fn set_forwarding(&self, on: bool) -> Result<(), NetworkError> {
        let value = if on { "1" } else { "0" };
        self.handle.set_sysctls(&[(FORWARDING, value)]).map_err(|source| NetworkError::Sysctl {
            key: FORWARDING.replace('/', "."),
            value: value.to_owned(),
            source: source.into(),
        })
    }

    /// Whether the host passes packets on.
    pub(crate) fn forwards(&self) -> Result<bool, NetworkError> {
        let value = self.handle.sysctl(FORWARDING).map_err(|source| NetworkError::Observe {
            what: "setting 'net.ipv4.ip_forward'".to_owned(),
            source: source.into(),
        })?;
        Ok(value == "1")
    }

    /// Links that no daemon of ours has made.
    pub(crate) fn foreign_links(&self) -> Result<BTreeSet<String>, NetworkError> {
        let foreign = |link: &Link| link.name != "lo" && !link.alias.starts_with("shoal:");
        Ok(self.links()?.into_iter().filter(foreign).map(|link| link.name).collect())
    }

    /// What the names of all host links of this instance begin with, as a rule has it.
    pub(crate) fn all_links(&self) -> String {
        format!("{}*", self.prefix())
    }
}

/// The pair of a link's first address in the link range.
fn pair_of(link: &Link) -> Option<LinkPair> {
    let in_range = |v4: &Ipv4Addr| {
        let number = u32::from(*v4);
        (crate::layout::LINK_RANGE.0..=crate::layout::LINK_RANGE.1).contains(&number)
    };
    link.addresses.iter().find_map(|net| match net.addr() {
        IpAddr::V4(v4) if in_range(&v4) => Some(LinkPair::of(v4)),
        _ => None,
    })
}
