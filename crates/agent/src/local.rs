//! Networks of this node alone: the default `bridge` and what users make with
//! `docker network create`. One JSON file holds them; addresses are leased in memory and leased
//! again from the containers that run when the daemon restarts. So are networks that a damaged file
//! has lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use shoal_engine::attacher::EndpointInfo;
use shoal_model::id::NetworkId;
use shoal_model::ipam::{self, overlaps};
use shoal_model::name::{Lookup, check_name, resolve};
use shoal_model::object::Subnet;
use shoal_model::spec::network::{NetworkSpec, OPTION_MTU};
use shoal_model::time::Timestamp;
use tokio::sync::Notify;

use crate::damage::Damage;
use crate::error::AgentError;

/// The network of containers that name none.
pub const DEFAULT_NETWORK: &str = "bridge";
/// The format of the file. Another number is refused, never guessed at.
const FORMAT: u32 = 1;
/// MTU of a port, bytes, if the user asks for none.
pub(crate) const MTU_DEFAULT: u32 = 1500;
/// Smallest MTU that IPv6 allows (RFC 8200); fewer make no sense for IPv4 either.
const MTU_MIN: u32 = 1280;
/// Longest file that is read: far above what anybody makes by hand.
const LEN_MAX: u64 = 64 * 1024 * 1024;

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
    leases: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    /// Why the file does not have what is here; empty if it has.
    problem: String,
}

/// The networks of this node.
#[derive(Debug)]
pub struct LocalNetworks {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Told when something is owed to the disk.
    owing: Notify,
}

impl LocalNetworks {
    /// Reads them from `dir`; makes the default one if there is none. A file that cannot be used is
    /// kept aside, and a disk that takes none is tried again by [`Self::settle`].
    pub(crate) fn open(dir: &Path, now: Timestamp, damage: &Damage) -> Self {
        let path = dir.join("networks.json");
        let known = |stored: &Stored| {
            let (found, known) = (stored.format, FORMAT);
            if found == known {
                return Ok(());
            }
            let path = path.clone();
            Err(shoal_model::fault::report(&AgentError::Format { path, found, known }))
        };
        let stored: Option<Stored> = damage.read(&path, LEN_MAX, known);
        let networks = stored.into_iter().flat_map(|stored| stored.networks);
        let mut inner =
            Inner { networks: networks.map(|n| (n.id.clone(), n)).collect(), ..Inner::default() };
        let has_default = inner.networks.values().any(|n| n.name() == DEFAULT_NETWORK);
        if !has_default {
            let spec = NetworkSpec {
                name: DEFAULT_NETWORK.to_owned(),
                driver: Some("bridge".to_owned()),
                ..NetworkSpec::default()
            };
            match make(&inner.networks, spec, &[], now) {
                Ok(network) => {
                    inner.networks.insert(network.id.clone(), network);
                    inner.problem = "not written yet".to_owned();
                }
                Err(error) => damage.note(shoal_model::fault::report(&error)),
            }
        }
        let this = Self { path, inner: Mutex::new(inner), owing: Notify::new() };
        this.settle();
        this
    }

    /// Why the file does not have what is here; empty if it has.
    pub(crate) fn problem(&self) -> String {
        self.lock().problem.clone()
    }

    /// Waits until something is owed to the disk.
    pub(crate) async fn owes(&self) {
        while self.problem().is_empty() {
            self.owing.notified().await;
        }
    }

    /// Writes what could not be written before, if there is something.
    pub(crate) fn settle(&self) {
        let mut inner = self.lock();
        if inner.problem.is_empty() {
            return;
        }
        let problem = match self.save(&inner.networks) {
            Ok(()) => String::new(),
            Err(error) => shoal_model::fault::chain(&error),
        };
        if inner.problem != problem && !problem.is_empty() {
            tracing::error!(problem, "local networks could not be written");
        }
        inner.problem = problem;
    }

    /// A running container is on a network that is not here: its file was lost, and this is what
    /// the container's record knows of it.
    pub(crate) fn restore(&self, endpoint: &EndpointInfo, now: Timestamp) {
        let mut inner = self.lock();
        let id = &endpoint.network_id;
        let (Some((address, len)), Some(gateway)) = (endpoint.ipv4, endpoint.gateway) else {
            return;
        };
        if endpoint.driver != "bridge" || inner.networks.contains_key(id) {
            return;
        }
        let Ok(subnet) = Ipv4Net::new(address, len) else { return };
        // One that was made anew meanwhile under this name has no container yet: it gives way.
        let namesake = inner.networks.values().find(|n| n.name() == endpoint.network_name);
        if let Some(namesake) = namesake.map(|n| n.id.clone()) {
            if inner.leases.get(&namesake).is_some_and(|leases| !leases.is_empty()) {
                tracing::error!(
                    network = %id, name = endpoint.network_name,
                    "a running container's network was lost, and its name is another's; make the \
                     container anew"
                );
                return;
            }
            inner.networks.remove(&namesake);
        }
        let network = LocalNetwork {
            id: id.clone(),
            spec: NetworkSpec {
                name: endpoint.network_name.clone(),
                driver: Some("bridge".to_owned()),
                ..NetworkSpec::default()
            },
            created_at: now,
            subnets: vec![Subnet {
                subnet: IpNet::V4(subnet.trunc()),
                gateway: IpAddr::V4(gateway),
                range: None,
                reserved: Vec::new(),
            }],
            mtu: MTU_DEFAULT,
        };
        tracing::warn!(network = network.name(), "a network was taken from a container's record");
        inner.networks.insert(id.clone(), network);
        inner.problem = "not written yet".to_owned();
        self.owing.notify_one();
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
        let mut inner = self.lock();
        let network = make(&inner.networks, spec, taken, now)?;
        let mut networks = inner.networks.clone();
        networks.insert(network.id.clone(), network.clone());
        self.save(&networks)?;
        inner.networks = networks;
        inner.problem.clear();
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
        if inner.leases.get(id).is_some_and(|leases| !leases.is_empty()) {
            return Err(AgentError::NetworkInUse { name });
        }
        let mut networks = inner.networks.clone();
        networks.remove(id);
        self.save(&networks)?;
        inner.networks = networks;
        inner.problem.clear();
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
        let leases = inner.leases.get(id);
        let taken = |subnet: &Subnet, address: IpAddr| {
            subnet.gateway == address
                || subnet.reserved.contains(&address)
                || leases.is_some_and(|leases| leases.contains(&address))
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
        inner.leases.entry(id.clone()).or_default().insert(address);
        IpNet::new(address, prefix).map_err(|_| AgentError::NoNetwork { word: id.to_string() })
    }

    /// Gives an address back.
    pub fn release(&self, id: &NetworkId, address: IpAddr) {
        if let Some(leases) = self.lock().leases.get_mut(id) {
            leases.remove(&address);
        }
    }

    fn save(&self, networks: &BTreeMap<NetworkId, LocalNetwork>) -> Result<(), AgentError> {
        let stored = Stored { format: FORMAT, networks: networks.values().cloned().collect() };
        shoal_durable::replace_json(&self.path, &stored)
            .map_err(|source| AgentError::WriteFile { path: self.path.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new network beside those that there are; its subnet overlaps neither theirs nor `taken`.
fn make(
    networks: &BTreeMap<NetworkId, LocalNetwork>,
    spec: NetworkSpec,
    taken: &[IpNet],
    now: Timestamp,
) -> Result<LocalNetwork, AgentError> {
    check_name(&spec.name).map_err(AgentError::NetworkName)?;
    if networks.values().any(|n| n.name() == spec.name) {
        return Err(AgentError::NetworkExists { name: spec.name });
    }
    let used: Vec<IpNet> = networks
        .values()
        .flat_map(|n| n.subnets.iter().map(|s| s.subnet))
        .chain(taken.iter().copied())
        .collect();
    Ok(LocalNetwork {
        id: NetworkId::new(hex_id()),
        subnets: subnets_of(&spec, &used)?,
        mtu: mtu_of(&spec)?,
        created_at: now,
        spec,
    })
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

fn subnets_of(spec: &NetworkSpec, used: &[IpNet]) -> Result<Vec<Subnet>, AgentError> {
    let wanted = spec.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let mut subnets = Vec::new();
    for config in wanted {
        let Some(subnet) = ipam::subnet_of(config).map_err(AgentError::Ipam)? else { continue };
        if let Some(other) = used.iter().find(|other| overlaps(&subnet.subnet, other)) {
            return Err(AgentError::Overlap { subnet: subnet.subnet, other: *other });
        }
        subnets.push(subnet);
    }
    if subnets.is_empty() {
        let free = pools().map(IpNet::V4).find(|p| !used.iter().any(|u| overlaps(p, u)));
        let subnet = free.ok_or(AgentError::NoSubnet)?;
        let gateway = ipam::first_usable(&subnet);
        subnets.push(Subnet { subnet, gateway, range: None, reserved: Vec::new() });
    }
    Ok(subnets)
}

fn mtu_of(spec: &NetworkSpec) -> Result<u32, AgentError> {
    let Some(text) = spec.options.get(OPTION_MTU) else { return Ok(MTU_DEFAULT) };
    let mtu = text.parse().ok().filter(|mtu| (MTU_MIN..=65535).contains(mtu));
    mtu.ok_or_else(|| AgentError::Option { what: "mtu", text: text.clone() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn open(dir: &tempfile::TempDir) -> LocalNetworks {
        LocalNetworks::open(dir.path(), Timestamp(1), &Damage::default())
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_running_containers_bring_their_networks_back() {
        for text in ["", "{\"format\":1,\"networks\":[", "{\"format\":9,\"networks\":[]}", "x"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("networks.json");
            std::fs::write(&path, text).unwrap();
            let damage = Damage::default();
            let networks = LocalNetworks::open(dir.path(), Timestamp(1), &damage);
            assert!(damage.list()[0].contains("networks.json"), "{:?}", damage.list());
            let kept = std::fs::read_to_string(dir.path().join("networks.json.damaged")).unwrap();
            assert_eq!(kept, text);
            for (id, name, address, gateway) in [
                ("old", DEFAULT_NETWORK, [172, 17, 0, 9], [172, 17, 0, 1]),
                ("mine", "mine", [10, 9, 0, 2], [10, 9, 0, 1]),
            ] {
                let endpoint = EndpointInfo {
                    network_id: NetworkId::new(id),
                    network_name: name.to_owned(),
                    driver: "bridge".to_owned(),
                    endpoint_id: String::new(),
                    ipv4: Some((address.into(), 16)),
                    ipv6: None,
                    gateway: Some(gateway.into()),
                    gateway6: None,
                    mac: None,
                    aliases: Vec::new(),
                    dns_names: Vec::new(),
                    ipam: None,
                };
                networks.restore(&endpoint, Timestamp(2));
                assert_eq!(networks.find(name).unwrap().id, NetworkId::new(id));
                networks.lease(&NetworkId::new(id), Some(IpAddr::from(address))).unwrap();
            }
            networks.settle();
            assert_eq!(open(&dir).list(), networks.list());
        }
    }

    #[test]
    fn a_disk_that_takes_no_file_does_not_keep_the_networks_away() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let networks = LocalNetworks::open(&missing, Timestamp(1), &Damage::default());
        let id = networks.find(DEFAULT_NETWORK).unwrap().id;
        assert!(networks.problem().contains("networks.json"), "{}", networks.problem());
        std::fs::create_dir(&missing).unwrap();
        networks.settle();
        assert_eq!(networks.problem(), "");
        let again = LocalNetworks::open(&missing, Timestamp(1), &Damage::default());
        assert_eq!(again.find(DEFAULT_NETWORK).unwrap().id, id);
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

    #[test]
    fn an_mtu_has_bounds() {
        let of = |mtu: &str| {
            let mut spec = named("a");
            spec.options.insert(OPTION_MTU.to_owned(), mtu.to_owned());
            mtu_of(&spec)
        };
        assert_eq!(of("1280").unwrap(), MTU_MIN);
        assert_eq!(of("65535").unwrap(), 65535);
        for bad in ["1279", "65536", "-1", "x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
