//! Networks of this node alone: the default `bridge` and what users make with
//! `docker network create`. One JSON file holds them; addresses are leased in memory and leased
//! again from the containers that run when the daemon restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use shoal_model::id::NetworkId;
use shoal_model::name::{Lookup, check_name, resolve};
use shoal_model::object::Subnet;
use shoal_model::spec::network::{NetworkSpec, OPTION_MTU};
use shoal_model::time::Timestamp;

use crate::error::AgentError;
use crate::file;

/// The network of containers that name none.
pub const DEFAULT_NETWORK: &str = "bridge";
/// The format of the file. Another number is refused, never guessed at.
const FORMAT: u32 = 1;
/// MTU of a port, bytes, if the user asks for none.
pub(crate) const MTU_DEFAULT: u32 = 1500;
/// Smallest MTU that IPv6 allows (RFC 8200); fewer make no sense for IPv4 either.
const MTU_MIN: u32 = 1280;

/// A network of this node alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalNetwork {
    /// 64 hex digits.
    pub id: NetworkId,
    /// What the user asked for.
    pub spec: NetworkSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// MTU of its ports, bytes.
    pub mtu: u32,
}

impl LocalNetwork {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether it has no way to the outside.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.spec.internal.unwrap_or(false)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    networks: Vec<LocalNetwork>,
}

#[derive(Debug, Default)]
struct Inner {
    networks: BTreeMap<NetworkId, LocalNetwork>,
    leases: BTreeSet<(NetworkId, IpAddr)>,
}

/// The networks of this node.
#[derive(Debug)]
pub struct LocalNetworks {
    path: PathBuf,
    inner: Mutex<Inner>,
}

impl LocalNetworks {
    /// Reads them from `dir`; makes the default one if there is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or has another format.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, AgentError> {
        let path = dir.join("networks.json");
        let mut inner = Inner::default();
        if let Some(stored) = file::read_json::<Stored>(&path)? {
            if stored.format != FORMAT {
                return Err(AgentError::Format { path, found: stored.format, known: FORMAT });
            }
            inner.networks = stored.networks.into_iter().map(|n| (n.id.clone(), n)).collect();
        }
        let this = Self { path, inner: Mutex::new(inner) };
        if this.find(DEFAULT_NETWORK).is_err() {
            let spec = NetworkSpec {
                name: DEFAULT_NETWORK.to_owned(),
                driver: Some("bridge".to_owned()),
                ..NetworkSpec::default()
            };
            this.create(spec, &[], now)?;
        }
        Ok(this)
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<LocalNetwork> {
        self.lock().networks.values().cloned().collect()
    }

    /// The one that `word` means: id, name or prefix of an id.
    ///
    /// # Errors
    /// None or several.
    pub fn find(&self, word: &str) -> Result<LocalNetwork, AgentError> {
        let inner = self.lock();
        let all = inner.networks.values();
        match resolve(word, all.map(|n| (n.id.as_str(), n.name(), n))) {
            Lookup::Found(network) => Ok(network.clone()),
            Lookup::Missing => Err(AgentError::NoNetwork { word: word.to_owned() }),
            Lookup::Ambiguous { matches } => {
                Err(AgentError::AmbiguousNetwork { word: word.to_owned(), matches })
            }
        }
    }

    /// Makes a network; a subnet is chosen that overlaps neither another local one nor `taken`.
    ///
    /// # Errors
    /// A bad name, a name or subnet in use, no subnet left, or a full disk.
    pub fn create(
        &self,
        spec: NetworkSpec,
        taken: &[IpNet],
        now: Timestamp,
    ) -> Result<LocalNetwork, AgentError> {
        check_name(&spec.name).map_err(AgentError::NetworkName)?;
        let mut inner = self.lock();
        if inner.networks.values().any(|n| n.name() == spec.name) {
            return Err(AgentError::NetworkExists { name: spec.name });
        }
        let used: Vec<IpNet> = inner
            .networks
            .values()
            .flat_map(|n| n.subnets.iter().map(|s| s.subnet))
            .chain(taken.iter().copied())
            .collect();
        let network = LocalNetwork {
            id: NetworkId::new(hex_id()),
            subnets: subnets_of(&spec, &used)?,
            mtu: mtu_of(&spec)?,
            created_at: now,
            spec,
        };
        let mut networks = inner.networks.clone();
        networks.insert(network.id.clone(), network.clone());
        self.save(&networks)?;
        inner.networks = networks;
        Ok(network)
    }

    /// Removes a network that no container is on.
    ///
    /// # Errors
    /// It is the default one, or in use.
    pub fn remove(&self, id: &NetworkId) -> Result<(), AgentError> {
        let mut inner = self.lock();
        let Some(network) = inner.networks.get(id) else {
            return Err(AgentError::NoNetwork { word: id.to_string() });
        };
        let name = network.name().to_owned();
        if name == DEFAULT_NETWORK {
            return Err(AgentError::Predefined { name });
        }
        if inner.leases.iter().any(|(network, _)| network == id) {
            return Err(AgentError::NetworkInUse { name });
        }
        let mut networks = inner.networks.clone();
        networks.remove(id);
        self.save(&networks)?;
        inner.networks = networks;
        Ok(())
    }

    /// Leases an address on `network`: `wanted`, or the first free one.
    ///
    /// # Errors
    /// The wanted one is in use or outside; none is left.
    pub fn lease(&self, id: &NetworkId, wanted: Option<IpAddr>) -> Result<IpNet, AgentError> {
        let mut inner = self.lock();
        let Some(network) = inner.networks.get(id) else {
            return Err(AgentError::NoNetwork { word: id.to_string() });
        };
        let name = network.name().to_owned();
        let taken = |subnet: &Subnet, address: IpAddr| {
            subnet.gateway == address
                || subnet.reserved.contains(&address)
                || inner.leases.contains(&(id.clone(), address))
        };
        let found = match wanted {
            Some(address) => network
                .subnets
                .iter()
                .find(|s| s.subnet.contains(&address))
                .ok_or_else(|| AgentError::AddressOutside { name: name.clone(), address })
                .and_then(|s| {
                    if taken(s, address) {
                        return Err(AgentError::AddressInUse { name: name.clone(), address });
                    }
                    Ok((address, s.subnet.prefix_len()))
                })?,
            None => network
                .subnets
                .iter()
                .find_map(|s| {
                    let range = s.range.unwrap_or(s.subnet);
                    let free = range.hosts().find(|a| !taken(s, *a))?;
                    Some((free, s.subnet.prefix_len()))
                })
                .ok_or(AgentError::NoAddress { name })?,
        };
        let (address, prefix) = found;
        inner.leases.insert((id.clone(), address));
        IpNet::new(address, prefix).map_err(|_| AgentError::NoNetwork { word: id.to_string() })
    }

    /// Gives an address back.
    pub fn release(&self, id: &NetworkId, address: IpAddr) {
        self.lock().leases.remove(&(id.clone(), address));
    }

    fn save(&self, networks: &BTreeMap<NetworkId, LocalNetwork>) -> Result<(), AgentError> {
        let stored = Stored { format: FORMAT, networks: networks.values().cloned().collect() };
        file::write_json(&self.path, &stored)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 32 random bytes in hex.
#[must_use]
pub fn hex_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Subnets that Docker's users expect: 172.17/16 to 172.31/16, then /20s of 192.168/16.
fn pools() -> impl Iterator<Item = Ipv4Net> {
    let wide = (17..32).map(|b| (Ipv4Addr::new(172, b, 0, 0), 16));
    let narrow = (0..16).map(|c| (Ipv4Addr::new(192, 168, c * 16, 0), 20));
    wide.chain(narrow).filter_map(|(address, len)| Ipv4Net::new(address, len).ok())
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn subnets_of(spec: &NetworkSpec, used: &[IpNet]) -> Result<Vec<Subnet>, AgentError> {
    let wanted = spec.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let mut subnets = Vec::new();
    for config in wanted {
        let Some(text) = config.subnet.as_deref().filter(|t| !t.is_empty()) else { continue };
        let subnet: IpNet = parse(text, "subnet")?;
        let subnet = subnet.trunc();
        if let Some(other) = used.iter().find(|other| overlaps(&subnet, other)) {
            return Err(AgentError::Overlap { subnet, other: *other });
        }
        let gateway = match config.gateway.as_deref().filter(|t| !t.is_empty()) {
            Some(text) => parse(text, "gateway")?,
            None => first_host(subnet)?,
        };
        let range = match config.ip_range.as_deref().filter(|t| !t.is_empty()) {
            Some(text) => Some(parse::<IpNet>(text, "ip-range")?.trunc()),
            None => None,
        };
        let mut reserved = Vec::new();
        for text in config.auxiliary_addresses.iter().flat_map(|map| map.values()) {
            reserved.push(parse(text, "aux-address")?);
        }
        if !subnet.contains(&gateway) || range.is_some_and(|r| !subnet.contains(&r)) {
            return Err(AgentError::Ipam { what: "gateway or range", text: text.to_owned() });
        }
        subnets.push(Subnet { subnet, gateway, range, reserved });
    }
    if subnets.is_empty() {
        let free = pools().map(IpNet::V4).find(|p| !used.iter().any(|u| overlaps(p, u)));
        let subnet = free.ok_or(AgentError::NoSubnet)?;
        let gateway = first_host(subnet)?;
        subnets.push(Subnet { subnet, gateway, range: None, reserved: Vec::new() });
    }
    Ok(subnets)
}

fn parse<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T, AgentError> {
    text.parse().map_err(|_| AgentError::Ipam { what, text: text.to_owned() })
}

fn first_host(subnet: IpNet) -> Result<IpAddr, AgentError> {
    let text = || subnet.to_string();
    subnet.hosts().next().ok_or_else(|| AgentError::Ipam { what: "subnet", text: text() })
}

fn mtu_of(spec: &NetworkSpec) -> Result<u32, AgentError> {
    let Some(text) = spec.options.get(OPTION_MTU) else { return Ok(MTU_DEFAULT) };
    let mtu: u32 = parse(text, "mtu")?;
    if (MTU_MIN..=65535).contains(&mtu) {
        Ok(mtu)
    } else {
        Err(AgentError::Ipam { what: "mtu", text: text.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn open(dir: &tempfile::TempDir) -> LocalNetworks {
        LocalNetworks::open(dir.path(), Timestamp(1)).unwrap()
    }

    fn named(name: &str) -> NetworkSpec {
        NetworkSpec { name: name.into(), ..NetworkSpec::default() }
    }

    #[test]
    fn the_default_network_is_there_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let id = open(&dir).find("bridge").unwrap().id;
        let again = open(&dir);
        assert_eq!(again.find("bridge").unwrap().id, id);
        assert!(matches!(again.remove(&id), Err(AgentError::Predefined { .. })));
    }

    #[test]
    fn subnets_do_not_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let networks = open(&dir);
        let taken = ["172.18.0.0/16".parse().unwrap()];
        let made = networks.create(named("a"), &taken, Timestamp(2)).unwrap();
        assert_eq!(made.subnets[0].subnet, "172.19.0.0/16".parse::<IpNet>().unwrap());
        assert!(networks.create(named("a"), &[], Timestamp(2)).is_err());
    }

    #[test]
    fn addresses_are_leased_once() {
        let dir = tempfile::tempdir().unwrap();
        let networks = open(&dir);
        let id = networks.find("bridge").unwrap().id;
        let first = networks.lease(&id, None).unwrap();
        assert_eq!(first.to_string(), "172.17.0.2/16");
        assert!(networks.lease(&id, Some(first.addr())).is_err());
        assert!(networks.lease(&id, Some("10.0.0.1".parse().unwrap())).is_err());
        networks.release(&id, first.addr());
        assert_eq!(networks.lease(&id, Some(first.addr())).unwrap(), first);
        assert!(matches!(networks.remove(&id), Err(AgentError::Predefined { .. })));
    }

    #[test]
    fn a_network_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let networks = open(&dir);
        let made = networks.create(named("a"), &[], Timestamp(2)).unwrap();
        let lease = networks.lease(&made.id, None).unwrap();
        assert!(matches!(networks.remove(&made.id), Err(AgentError::NetworkInUse { .. })));
        networks.release(&made.id, lease.addr());
        networks.remove(&made.id).unwrap();
        assert!(open(&dir).find(made.id.as_str()).is_err());
    }
}
