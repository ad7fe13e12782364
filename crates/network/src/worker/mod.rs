//! Everything that touches the kernel, one call at a time, blocking.
//!
//! [`Worker::apply`] goes through the desired state part by part; what fails is noted and does not
//! keep the rest from being done. Nothing is remembered that could not be read again: after a
//! restart the first apply observes what is there and changes only the difference.

mod flows;
mod guests;
mod host;
mod namespace;
mod ports;
mod tables;
mod teardown;
mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;

use shoal_model::fault::report;
use shoal_model::id::{NetworkId, Revision};
use shoal_netlink::netns::NetnsHandle;

use self::host::{Host, HostLink};
use self::namespace::{Namespace, Surroundings};
use crate::desired::{DesiredNet, DesiredNetwork, NetKind, SandboxId, SandboxSpec, SelfNode};
use crate::error::NetworkError;
use crate::hostport::{HostListen, HostPorts};
use crate::node_network::NetworkConfig;
use crate::plan::diff::Diff;
use crate::plan::flows::Members;
use crate::plan::guest::GuestPlan;
use crate::plan::rules::{HostRules, NetRules, link_ports};
use crate::plan::{Context, LinkPair, NsPlan};
use crate::resolver::Resolver;
use crate::status::{Applied, Drift, NetStatus, NetworkStatus};

/// Drift reports that are kept: enough for a day of hourly trouble, never a leak.
const DRIFT_KEPT: usize = 32;

/// A network as it is in the kernel.
#[derive(Debug)]
struct NetState {
    namespace: Namespace,
    /// The plan that the kernel has; absent until an apply went through.
    plan: Option<NsPlan>,
    /// What the tables hold; absent if unknown.
    rules: Option<NetRules>,
    /// The ruleset's generation after our last change: another one means somebody else's hand.
    generation: Option<u32>,
    /// Who was on it when connections were last sorted out.
    members: Option<Members>,
    status: NetStatus,
}

/// An address that this node takes out on its own evidence.
#[derive(Clone, Copy, Debug)]
struct Lost {
    /// The newest tables at that time.
    revision: Revision,
    /// The workload's port was seen to be gone since: if one comes back, it is a new one.
    gone: bool,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Worker {
    config: NetworkConfig,
    host: Host,
    networks: BTreeMap<NetworkId, NetState>,
    sandboxes: BTreeMap<SandboxId, NetnsHandle>,
    /// The plan that each guest's namespace has.
    guests: BTreeMap<SandboxId, GuestPlan>,
    lost: BTreeMap<(NetworkId, IpAddr), Lost>,
    desired: Option<DesiredNetwork>,
    host_rules: Option<HostRules>,
    forwarding: bool,
    resolver: Resolver,
    host_ports: HostPorts,
    applied: Applied,
    drift: VecDeque<Drift>,
    cleaned: bool,
    closed: bool,
}

impl Worker {
    /// Opens the host's namespace and the run-time directory. Changes nothing.
    pub(crate) fn open(
        config: NetworkConfig,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, NetworkError> {
        let dir = config.exec_root.join("netns");
        std::fs::create_dir_all(&dir)
            .map_err(|source| NetworkError::Files { path: dir, source: source.into() })?;
        let handle = match &config.host_netns {
            Some(path) => NetnsHandle::open(path),
            None => NetnsHandle::current(),
        };
        let handle = handle.map_err(|source| NetworkError::Namespace {
            path: config.host_netns.clone().unwrap_or_else(|| PathBuf::from("/proc/self/ns/net")),
            source: source.into(),
        })?;
        Ok(Self {
            host: Host::new(handle, config.instance.clone()),
            resolver: Resolver::open(config.program.clone(), &config.exec_root)?,
            host_ports: HostPorts::new(config.host_netns.clone(), runtime),
            config,
            networks: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            guests: BTreeMap::new(),
            lost: BTreeMap::new(),
            desired: None,
            host_rules: None,
            forwarding: false,
            applied: Applied::default(),
            drift: VecDeque::new(),
            cleaned: false,
            closed: false,
        })
    }

    fn path(&self, kind: char, id: &str) -> PathBuf {
        self.config.exec_root.join("netns").join(format!("{kind}-{id}"))
    }

    /// See [`crate::NodeNetwork::apply`].
    pub(crate) fn apply(&mut self, desired: DesiredNetwork) -> Result<Applied, NetworkError> {
        if self.closed {
            return Err(NetworkError::Closed);
        }
        self.settle_lost(&desired);
        let effective = self.without_lost(&desired);
        self.desired = Some(desired);
        self.run(&effective, false)
    }

    /// Takes an address out before the tables say so.
    pub(crate) fn backend_lost(
        &mut self,
        network: &NetworkId,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let Some(desired) = self.desired.clone().filter(|_| !self.closed) else { return Ok(()) };
        let lost = Lost { revision: desired.revision, gone: false };
        self.lost.insert((network.clone(), address), lost);
        let effective = self.without_lost(&desired);
        let Some(net) = effective.networks.get(network) else { return Ok(()) };
        let links = self.host.host_links()?;
        self.apply_network(network, net, &effective, &links, false).map(|_| ())
    }

    /// Forgets losses that the new tables or a new workload have overtaken.
    fn settle_lost(&mut self, desired: &DesiredNetwork) {
        self.lost.retain(|(network, address), lost| {
            let net = desired.networks.get(network);
            let port = net.is_some_and(|net| {
                net.local_ports.iter().flat_map(|p| &p.address).any(|a| a.addr() == *address)
            });
            let reborn = port && lost.gone;
            lost.gone |= !port;
            // Of a network of its own the agent knows everything: its word is newer.
            let own = net.is_none_or(|net| net.info.kind == NetKind::Bridge);
            desired.revision <= lost.revision && !reborn && !own
        });
    }

    fn without_lost(&self, desired: &DesiredNetwork) -> DesiredNetwork {
        let mut out = desired.clone();
        for (network, address) in self.lost.keys() {
            let Some(net) = out.networks.get_mut(network) else { continue };
            net.endpoints.retain(|endpoint| endpoint.address != *address);
            for service in &mut net.services {
                service.backends.retain(|backend| backend.address != *address);
            }
            for port in out.published.iter_mut().filter(|port| port.network == *network) {
                port.backends.retain(|(backend, _)| backend != address);
            }
        }
        out
    }

    /// One pass over everything. `thorough` looks also at what should be right already.
    fn run(&mut self, want: &DesiredNetwork, thorough: bool) -> Result<Applied, NetworkError> {
        let mut done = Applied { revision: want.revision, ..Applied::default() };
        if !self.cleaned {
            self.remove_leftovers(want)?;
            self.cleaned = true;
        }
        self.open_sandboxes(want, &mut done);
        self.drop_networks(want, &mut done)?;
        self.apply_networks(want, thorough, &mut done)?;
        self.apply_guests(want, thorough, &mut done);
        if let Err(error) = self.apply_host(want) {
            done.host = Some(report(&error));
        }
        self.apply_host_ports(want, &mut done);
        self.drop_sandboxes(want, &mut done);
        let questions = |(id, spec): (&SandboxId, &SandboxSpec)| match &spec.guest {
            Some(guest) => (id.clone(), self.path('n', guest.home.as_str())),
            None => (id.clone(), self.path('c', id.as_str())),
        };
        let paths = want.sandboxes.iter().map(questions).collect();
        if let Err(error) = self.resolver.publish(want, &paths) {
            done.resolver = Some(report(&error));
        }
        self.applied = done.clone();
        Ok(done)
    }

    fn open_sandboxes(&mut self, want: &DesiredNetwork, done: &mut Applied) {
        for id in want.namespaces() {
            if self.sandboxes.contains_key(id) {
                continue;
            }
            match namespace::open_sandbox(&self.path('c', id.as_str())) {
                Ok(handle) => {
                    self.sandboxes.insert(id.clone(), handle);
                }
                Err(error) => {
                    done.sandboxes.insert(id.clone(), report(&error));
                }
            }
        }
    }

    fn drop_sandboxes(&mut self, want: &DesiredNetwork, done: &mut Applied) {
        let gone: Vec<SandboxId> =
            self.sandboxes.keys().filter(|id| !want.sandboxes.contains_key(id)).cloned().collect();
        for id in gone {
            self.sandboxes.remove(&id);
            if let Err(error) = namespace::delete(&self.path('c', id.as_str())) {
                done.sandboxes.insert(id, report(&error));
            }
        }
    }

    fn drop_networks(
        &mut self,
        want: &DesiredNetwork,
        done: &mut Applied,
    ) -> Result<(), NetworkError> {
        let gone: Vec<NetworkId> =
            self.networks.keys().filter(|id| !want.networks.contains_key(id)).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let links = self.host.host_links()?;
        for id in gone {
            let Some(state) = self.networks.remove(&id) else { continue };
            if let Err(error) = state.namespace.remove(&self.host, links.get(&id)) {
                done.networks.insert(id, report(&error));
            }
        }
        Ok(())
    }

    fn apply_networks(
        &mut self,
        want: &DesiredNetwork,
        thorough: bool,
        done: &mut Applied,
    ) -> Result<(), NetworkError> {
        let mut links = self.host.host_links()?;
        for (id, net) in &want.networks {
            let failed = match self.apply_network(id, net, want, &links, thorough) {
                Ok(failed) => failed,
                Err(error) => {
                    let text = report(&error);
                    if let Some(state) = self.networks.get_mut(id) {
                        state.status.error = Some(text.clone());
                    }
                    for port in &net.local_ports {
                        done.sandboxes.entry(port.sandbox.clone()).or_insert(text.clone());
                    }
                    done.networks.insert(id.clone(), text);
                    continue;
                }
            };
            if !net.info.internal && !links.contains_key(id) {
                links = self.host.host_links()?;
            }
            for (sandbox, error) in failed {
                done.sandboxes.entry(sandbox).or_insert_with(|| report(&error));
            }
        }
        Ok(())
    }

    /// Brings one network to its plan; returns the workloads whose ports failed.
    fn apply_network(
        &mut self,
        id: &NetworkId,
        net: &DesiredNet,
        want: &DesiredNetwork,
        links: &BTreeMap<NetworkId, HostLink>,
        thorough: bool,
    ) -> Result<BTreeMap<SandboxId, NetworkError>, NetworkError> {
        let name = &net.info.name;
        if net.info.kind == NetKind::Overlay && want.self_node.is_none() {
            return Err(NetworkError::NoSwarm { network: name.clone() });
        }
        let link = self.link_pair(id, net, links)?;
        self.open_network(id, net)?;
        let me: Option<&SelfNode> = want.self_node.as_ref();
        let context = Context { instance: &self.config.instance, self_node: me, link };
        let plan = NsPlan::of(net, &context);
        let Some(state) = self.networks.get_mut(id) else {
            return Err(NetworkError::Invalid { what: format!("network '{name}' vanished") });
        };
        let mut failed = BTreeMap::new();
        if thorough || state.plan.as_ref() != Some(&plan) {
            state.plan = None;
            let observed = state.namespace.observe(links.get(id))?;
            let diff = Diff::between(&plan, &observed);
            if !diff.is_empty() {
                tracing::info!(network = %name, changes = ?diff.describe(), "network changes");
                let around = Surroundings {
                    host: &self.host,
                    host_link: links.get(id),
                    id,
                    instance: &self.config.instance,
                    sandboxes: &self.sandboxes,
                };
                if diff.create_vxlan {
                    // The chain on the device went with the old one.
                    state.rules = None;
                }
                failed = state.namespace.execute(&plan, &diff, &around)?;
            }
            if let (NetKind::Bridge, Some(pair)) = (net.info.kind, link) {
                self.host.route_to(id, net, pair)?;
            }
            if failed.is_empty() {
                state.plan = Some(plan.clone());
            }
        }
        let rules = NetRules::of(net, &want.published, link, state.rules.as_ref());
        tables::apply_net(state, rules, name)?;
        let host = link.map(|pair| IpAddr::V4(pair.host));
        let mut members = Members::of(net, &want.published, host);
        let lost = self.lost.keys().filter(|(network, _)| network == id);
        lost.for_each(|(_, address)| members.remove(*address));
        flows::sort_out(state, members, &self.host, &self.sandboxes, name)?;
        state.status = status_of(net, &plan, want);
        Ok(failed)
    }

    fn open_network(&mut self, id: &NetworkId, net: &DesiredNet) -> Result<(), NetworkError> {
        if self.networks.contains_key(id) {
            return Ok(());
        }
        let namespace = Namespace::open(self.path('n', id.as_str()), &net.info.name)?;
        let status = NetStatus {
            name: net.info.name.clone(),
            kernel_revision: Revision::default(),
            links: Vec::new(),
            peers: Vec::new(),
            error: None,
        };
        let state = NetState {
            namespace,
            plan: None,
            rules: None,
            generation: None,
            members: None,
            status,
        };
        self.networks.insert(id.clone(), state);
        Ok(())
    }

    /// The addresses of the network's host link: the ones it has, or free ones.
    fn link_pair(
        &self,
        id: &NetworkId,
        net: &DesiredNet,
        links: &BTreeMap<NetworkId, HostLink>,
    ) -> Result<Option<LinkPair>, NetworkError> {
        if net.info.internal {
            return Ok(None);
        }
        let planned = self.networks.get(id).and_then(|state| state.plan.as_ref()?.link);
        if let Some(pair) = links.get(id).and_then(|link| link.pair).or(planned) {
            return Ok(Some(pair));
        }
        let others = self.networks.values().filter_map(|state| state.plan.as_ref()?.link);
        self.host.free_pair(&net.info.name, &others.collect()).map(Some)
    }

    /// The host link of every network that has one.
    fn links(&self) -> BTreeMap<NetworkId, LinkPair> {
        let pair = |state: &NetState| state.rules.as_ref().and_then(|rules| rules.shape.link);
        self.networks.iter().filter_map(|(id, state)| Some((id.clone(), pair(state)?))).collect()
    }

    fn apply_host(&mut self, want: &DesiredNetwork) -> Result<(), NetworkError> {
        let rules = HostRules::of(&want.published, &self.links());
        if rules.links.is_empty() && self.host_rules.is_none() {
            return Ok(());
        }
        if !self.forwarding && !rules.links.is_empty() {
            self.host.enable_forwarding()?;
            self.forwarding = true;
        }
        if self.host_rules.as_ref() == Some(&rules) {
            return Ok(());
        }
        let old = self.host_rules.take();
        tables::apply_host(&self.host, &self.config.instance, old.as_ref(), &rules)?;
        flows::forget_moved_ports(&self.host, old.as_ref(), &rules)?;
        self.host_rules = Some(rules);
        Ok(())
    }

    fn apply_host_ports(&mut self, want: &DesiredNetwork, done: &mut Applied) {
        let links = self.links();
        let ports: BTreeMap<&NetworkId, BTreeMap<usize, u16>> =
            links.keys().map(|network| (network, link_ports(network, &want.published))).collect();
        let listen: Vec<HostListen> = want
            .published
            .iter()
            .enumerate()
            .map(|(index, publication)| {
                let port = ports.get(&publication.network).and_then(|p| p.get(&index));
                let pair = links.get(&publication.network);
                HostListen {
                    port: publication.port,
                    host_ip: publication.host_ip,
                    target: pair.zip(port).map(|(pair, port)| (pair.inner, *port).into()),
                    holder: publication.holder.clone(),
                }
            })
            .collect();
        let mut seen = BTreeSet::new();
        let unique: Vec<HostListen> =
            listen.into_iter().filter(|l| seen.insert((l.port, l.host_ip))).collect();
        for (listen, error) in self.host_ports.apply(&unique) {
            done.ports.push((listen.port, report(&error)));
        }
    }

    /// See [`crate::NodeNetwork::status`].
    pub(crate) fn status(&self) -> NetworkStatus {
        NetworkStatus {
            networks: self
                .networks
                .iter()
                .map(|(id, state)| (id.clone(), state.status.clone()))
                .collect(),
            applied: self.applied.clone(),
            drift: self.drift.iter().cloned().collect(),
        }
    }
}

fn status_of(net: &DesiredNet, plan: &NsPlan, want: &DesiredNetwork) -> NetStatus {
    let mut links: Vec<String> = plan.ports.keys().cloned().collect();
    links.extend(plan.vxlan.as_ref().map(|_| crate::plan::VXLAN.to_owned()));
    links.extend(plan.link.map(|_| crate::plan::UPLINK.to_owned()));
    NetStatus {
        name: net.info.name.clone(),
        kernel_revision: want.revision,
        links,
        peers: net.peers.iter().map(|p| (p.index.transit_address(), p.underlay)).collect(),
        error: None,
    }
}
