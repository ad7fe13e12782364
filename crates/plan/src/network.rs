//! What a new network gets: VXLAN number, subnets, MTU.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::cluster_state::ClusterState;
use shoal_model::ipam::{self, overlaps};
use shoal_model::net::Vni;
use shoal_model::object::Subnet;
use shoal_model::spec::network::{IpamConfig, NetworkSpec, OPTION_MTU, OPTION_VNI_LIST};

use crate::addresses::first_usable;
use crate::validate::SpecError;

/// MTU of a network that does not say: what the slowest rung (an encrypted tunnel over a 1500-byte
/// underlay) can carry, so that switching transports never changes it.
pub const MTU_DEFAULT: u32 = 1370;

/// Smallest and largest MTU that can be asked for: the least that IPv4 guarantees to reassemble in
/// practice, and the largest IP packet.
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 576..=65_535;

/// Prefix length of the ingress network, if the pool is large enough: one address for each task of
/// each service that publishes a port.
pub const INGRESS_PREFIX: u8 = 16;

/// Candidates tried at most when a subnet is cut from a pool: as many /24 as a /8 has.
const CUTS_MAX: usize = 65_536;

/// Numbers and addresses of a new network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its VXLAN number.
    pub vni: Vni,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// The MTU of every port.
    pub mtu: u32,
}

/// Chooses numbers and addresses for a network that `spec` asks for. The spec has been validated.
///
/// # Errors
/// [`SpecError`] when the wanted ones are taken or nothing is left.
pub fn allocate(state: &ClusterState, spec: &NetworkSpec) -> Result<NetworkPlan, SpecError> {
    let wanted = spec.ipam.as_ref().and_then(|i| i.config.as_deref()).unwrap_or(&[]);
    let subnets = if wanted.iter().any(|c| c.subnet.is_some()) {
        wanted.iter().map(|c| user_subnet(state, c)).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![cut(state, spec.ingress.unwrap_or(false))?]
    };
    Ok(NetworkPlan { vni: choose_vni(state, spec)?, subnets, mtu: mtu(spec)? })
}

fn mtu(spec: &NetworkSpec) -> Result<u32, SpecError> {
    let Some(text) = spec.options.get(OPTION_MTU) else { return Ok(MTU_DEFAULT) };
    let mtu = text.parse::<u32>().ok().filter(|mtu| MTU_RANGE.contains(mtu));
    mtu.ok_or_else(|| {
        let (low, high) = (MTU_RANGE.start(), MTU_RANGE.end());
        SpecError::invalid(format!(
            "invalid MTU '{text}' in option '{OPTION_MTU}': it must be from {low} to {high}"
        ))
    })
}

fn choose_vni(state: &ClusterState, spec: &NetworkSpec) -> Result<Vni, SpecError> {
    let used: BTreeSet<Vni> = state.networks.values().map(|n| n.vni).collect();
    if let Some(list) = spec.options.get(OPTION_VNI_LIST) {
        let parse = |word: &str| word.trim().parse().map(Vni);
        let wanted: Vec<Vni> = list
            .split(',')
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(|_| SpecError::invalid(format!("invalid VXLAN number in '{list}'")))?;
        let legal = |vni: &&Vni| (1..=Vni::LAST.0).contains(&vni.0);
        let free = wanted.iter().filter(legal).find(|vni| !used.contains(vni));
        return free.copied().ok_or_else(|| {
            SpecError::conflict(format!("every VXLAN number of '{list}' is in use or invalid"))
        });
    }
    // The revision moves on with every change, so a number that was just freed is not found again
    // while nodes still take the old network down. Each cluster begins somewhere else, so that
    // daemons of two clusters on one host seldom want the same number on the same UDP port.
    let count = Vni::LAST.0 - Vni::FIRST.0 + 1;
    let begin = state.cluster.as_ref().map_or(0, |cluster| spread(cluster.id.as_str()));
    let turn = state.revision.0.wrapping_add(begin) % u64::from(count);
    let turn = u32::try_from(turn).unwrap_or(0);
    let candidates = (0..count).map(|i| Vni(Vni::FIRST.0 + (turn + i) % count));
    let mut free = candidates.filter(|vni| !used.contains(vni));
    free.next().ok_or_else(|| SpecError::conflict("no VXLAN number left: every one is in use"))
}

/// A number that depends on every byte of `text` and is the same in every version (FNV-1a).
fn spread(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn taken(state: &ClusterState) -> impl Iterator<Item = (&IpNet, &str)> {
    let networks = state.networks.values();
    networks.flat_map(|n| n.subnets.iter().map(|s| (&s.subnet, n.spec.name.as_str())))
}

fn user_subnet(state: &ClusterState, config: &IpamConfig) -> Result<Subnet, SpecError> {
    let found = ipam::subnet_of(config).map_err(|error| SpecError::invalid(error.to_string()))?;
    let found = found.ok_or_else(|| SpecError::invalid("invalid CIDR address: "))?;
    let subnet = found.subnet;
    if let Some((other, name)) = taken(state).find(|(other, _)| overlaps(other, &subnet)) {
        return Err(SpecError::Forbidden {
            message: format!(
                "invalid pool request: Pool overlaps with other one on this address space: subnet \
                 {subnet} overlaps {other} of network '{name}'"
            ),
        });
    }
    Ok(found)
}

/// Cuts the next subnet from the cluster's pools. Users get them from the front; the ingress
/// network gets a large one from the very end, so that it is out of their way.
fn cut(state: &ClusterState, ingress: bool) -> Result<Subnet, SpecError> {
    let cluster = state.cluster.as_ref();
    let pools = cluster.map(|c| c.default_address_pools.as_slice()).unwrap_or(&[]);
    let user_prefix = cluster.map_or(24, |c| c.subnet_prefix_len);
    // Tasks could not reach the nodes themselves through a subnet that holds their addresses.
    let node_addrs: Vec<IpAddr> = state
        .nodes
        .values()
        .flat_map(|n| n.data_path_addr.into_iter().chain(n.status.addr.parse().ok()))
        .collect();
    let free = |candidate: &IpNet| {
        !taken(state).any(|(other, _)| overlaps(other, candidate))
            && !node_addrs.iter().any(|addr| candidate.contains(addr))
    };
    for pool in pools {
        let prefix = if ingress {
            INGRESS_PREFIX.max(pool.prefix_len().saturating_add(2)).min(user_prefix)
        } else {
            user_prefix
        };
        let Ok(cuts) = pool.subnets(prefix.max(pool.prefix_len())) else { continue };
        let found = if ingress {
            let all: Vec<IpNet> = cuts.take(CUTS_MAX).collect();
            all.into_iter().rev().find(free)
        } else {
            cuts.take(CUTS_MAX).find(free)
        };
        if let Some(subnet) = found {
            let gateway = first_usable(&subnet);
            return Ok(Subnet { subnet, gateway, range: None, reserved: Vec::new() });
        }
    }
    let pools: Vec<String> = pools.iter().map(ToString::to_string).collect();
    Err(SpecError::conflict(format!(
        "no subnet left: every /{user_prefix} of the address pools ({}) is in use by a network or \
         holds a node's address; name a subnet with --subnet",
        pools.join(", ")
    )))
}
