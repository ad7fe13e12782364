//! Which addresses of which network are taken, and which one comes next.
//!
//! **A freed address is not given out again at once**: the search begins behind the address that
//! was given out last and wraps around (so a whole subnet passes before one comes back), and skips
//! the addresses of tasks that ended less than [`QUARANTINE`] ago while there is any other. Both
//! are read off the stored objects, so a new leader behaves the same.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use shoal_model::cluster_state::Table;
use shoal_model::id::{NetworkId, Revision, ServiceId, TaskId};
use shoal_model::object::{Network, Service, Subnet, Task};
use shoal_model::time::Timestamp;

/// How long the address of an ended task rests: longer than a name stays in a client's cache, and
/// than nodes need to forget the endpoint.
pub const QUARANTINE: Duration = Duration::from_secs(30);

/// The addresses of every network.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    pools: BTreeMap<NetworkId, Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    used: HashSet<IpAddr>,
    resting: HashSet<IpAddr>,
    /// The address given out last, and to an object of which revision.
    last: Option<(Revision, IpAddr)>,
}

impl Pool {
    fn saw(&mut self, at: Revision, address: IpAddr) {
        if self.last.is_none_or(|known| known < (at, address)) {
            self.last = Some((at, address));
        }
    }
}

/// Nothing is left on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted {
    /// `10.0.1.0/24: 253 of 253 in use`.
    pub detail: String,
}

impl Addresses {
    /// Reads off what is taken.
    pub fn gather(
        networks: &Table<NetworkId, Network>,
        services: &Table<ServiceId, Service>,
        tasks: &Table<TaskId, Task>,
        now: Timestamp,
    ) -> Self {
        let mut pools: BTreeMap<NetworkId, Pool> =
            networks.keys().map(|id| (id.clone(), Pool::default())).collect();
        for service in services.values() {
            for vip in &service.endpoint.vips {
                if let Some(pool) = pools.get_mut(&vip.network_id) {
                    pool.used.insert(vip.addr.addr());
                    pool.saw(service.meta.created, vip.addr.addr());
                }
            }
        }
        for task in tasks.values() {
            let ended = task.status.state.is_terminal();
            let resting = ended && now.since(task.status.timestamp) < QUARANTINE;
            for place in &task.networks {
                let Some(pool) = pools.get_mut(&place.network_id) else { continue };
                for address in place.addresses.iter().map(IpNet::addr) {
                    pool.saw(task.meta.created, address);
                    if !ended {
                        pool.used.insert(address);
                    } else if resting {
                        pool.resting.insert(address);
                    }
                }
            }
        }
        Self { pools }
    }

    /// Takes the next free address of `network`, with its subnet's prefix length.
    pub fn take(&mut self, network: &Network) -> Result<IpNet, Exhausted> {
        let pool = self.pools.entry(network.id.clone()).or_default();
        for use_resting in [false, true] {
            for subnet in &network.subnets {
                if let Some(address) = next_free(subnet, pool, use_resting) {
                    pool.used.insert(address);
                    pool.last = Some((Revision::UNWRITTEN, address));
                    return Ok(with_prefix(address, subnet));
                }
            }
        }
        let parts: Vec<String> = network.subnets.iter().map(|s| usage(s, pool)).collect();
        Err(Exhausted { detail: parts.join(", ") })
    }

    /// Takes exactly `wanted`, if it is free and belongs to the network.
    pub fn take_this(&mut self, network: &Network, wanted: IpAddr) -> Option<IpNet> {
        let pool = self.pools.entry(network.id.clone()).or_default();
        let subnet = network.subnets.iter().find(|s| s.subnet.contains(&wanted))?;
        let (first, last) = bounds(&subnet.subnet);
        let inside = (first..=last).contains(&number(wanted));
        let free = inside && !is_set_aside(subnet, wanted) && pool.used.insert(wanted);
        free.then(|| with_prefix(wanted, subnet))
    }

    /// Gives an address back.
    pub fn release(&mut self, network: &NetworkId, address: IpAddr) {
        if let Some(pool) = self.pools.get_mut(network) {
            pool.used.remove(&address);
            pool.resting.insert(address);
        }
    }
}

fn next_free(subnet: &Subnet, pool: &Pool, use_resting: bool) -> Option<IpAddr> {
    let (first, last) = usable(subnet);
    let start = pool
        .last
        .map(|(_, address)| address)
        .filter(|a| subnet.subnet.contains(a))
        .map_or(first, |a| number(a).saturating_add(1).clamp(first, last));
    (start..=last).chain(first..start).map(|n| address(n, &subnet.subnet)).find(|candidate| {
        !pool.used.contains(candidate)
            && !is_set_aside(subnet, *candidate)
            && (use_resting || !pool.resting.contains(candidate))
    })
}

fn usage(subnet: &Subnet, pool: &Pool) -> String {
    let range = subnet.range.unwrap_or(subnet.subnet);
    let (first, last) = usable(subnet);
    let set_aside = subnet.reserved.iter().chain([&subnet.gateway]);
    let lost = set_aside.filter(|a| (first..=last).contains(&number(**a))).count() as u128;
    let room = (last + 1).saturating_sub(first).saturating_sub(lost);
    let used = pool.used.iter().filter(|a| (first..=last).contains(&number(**a))).count();
    format!("{range}: {used} of {room} in use")
}

/// First and last address that may be given out: the range's, within what the subnet can use.
fn usable(subnet: &Subnet) -> (u128, u128) {
    let (low, high) = bounds(&subnet.subnet);
    let Some(range) = subnet.range else { return (low, high) };
    (number(range.network()).max(low), number(range.broadcast()).min(high))
}

fn is_set_aside(subnet: &Subnet, address: IpAddr) -> bool {
    subnet.gateway == address || subnet.reserved.contains(&address)
}

/// First and last usable address: not the network's own, not the broadcast address.
fn bounds(net: &IpNet) -> (u128, u128) {
    let (first, last) = (number(net.network()), number(net.broadcast()));
    if last - first < 2 { (first, last) } else { (first + 1, last - 1) }
}

/// The first usable address of `net`.
pub(crate) fn first_usable(net: &IpNet) -> IpAddr {
    address(bounds(net).0, net)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address with that number, of the family of `like`.
fn address(number: u128, like: &IpNet) -> IpAddr {
    match like {
        // Cannot truncate: the number lies inside an IPv4 subnet.
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn with_prefix(address: IpAddr, subnet: &Subnet) -> IpNet {
    // The prefix length is a valid one: it comes from a subnet of the same family.
    IpNet::new(address, subnet.subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use shoal_model::net::Vni;
    use shoal_model::object::Meta;
    use shoal_model::spec::network::NetworkSpec;

    fn network(subnet: &str) -> Network {
        let subnet: IpNet = subnet.parse().unwrap();
        Network {
            id: NetworkId::new("n"),
            meta: Meta::default(),
            spec: NetworkSpec::default(),
            vni: Vni::FIRST,
            subnets: vec![Subnet {
                subnet,
                gateway: first_usable(&subnet),
                range: None,
                reserved: Vec::new(),
            }],
            mtu: 1370,
            extra: Default::default(),
        }
    }

    #[test]
    fn a_freed_address_comes_back_only_after_a_round() {
        let network = network("10.0.1.0/29");
        let mut addresses = Addresses::default();
        let take = |a: &mut Addresses| a.take(&network).map(|n| n.to_string());
        assert_eq!(take(&mut addresses).as_deref(), Ok("10.0.1.2/29"));
        addresses.release(&network.id, "10.0.1.2".parse().unwrap());
        assert_eq!(take(&mut addresses).as_deref(), Ok("10.0.1.3/29"));
        for expected in ["10.0.1.4/29", "10.0.1.5/29", "10.0.1.6/29", "10.0.1.2/29"] {
            assert_eq!(take(&mut addresses).as_deref(), Ok(expected));
        }
        let full = addresses.take(&network).unwrap_err();
        assert_eq!(full.detail, "10.0.1.0/29: 5 of 5 in use");
    }

    #[test]
    fn a_wanted_address_must_be_free_and_inside() {
        let network = network("10.0.1.0/24");
        let mut addresses = Addresses::default();
        let mut try_take = |text: &str| addresses.take_this(&network, text.parse().unwrap());
        assert!(try_take("10.0.1.9").is_some());
        for taken in ["10.0.1.9", "10.0.1.1", "10.0.1.0", "10.0.1.255", "10.0.2.4"] {
            assert_eq!(try_take(taken), None, "{taken}");
        }
    }
}
