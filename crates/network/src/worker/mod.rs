//! Everything that touches the kernel, one call at a time, blocking.
//!
//! [`Worker::apply`] goes through the desired state part by part; what fails is noted and does not
//! keep the rest from being done. Nothing is remembered that could not be read again: after a
//! restart the first apply observes what is there and changes only the difference.

mod doors;
mod flows;
mod guests;
mod host;
mod namespace;
mod ports;
mod publish;
mod tables;
mod teardown;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;

use shoal_model::fault::report;
use shoal_model::id::{NetworkId, Revision};
use shoal_netlink::netns::NetnsHandle;

use self::doors::Closed;
use self::host::{Host, HostLink};
use self::namespace::{Namespace, Surroundings};
use crate::claims::{self, PortConflict};
use crate::desired::{DesiredNet, DesiredNetwork, NetKind, SandboxId, SandboxSpec, SelfNode};
use crate::error::NetworkError;
use crate::hostport::HostPorts;
use crate::layout::diff::Diff;
use crate::layout::doors::Senders;
use crate::layout::flows::Members;
use crate::layout::guest::GuestLayout;
use crate::layout::rules::{HostRules, NetRules};
use crate::layout::{Context, LinkPair, NsLayout};
use crate::node_network::NetworkConfig;
use crate::resolver::snapshot::Snapshot;
use crate::status::{Applied, Drift, NetStatus, NetworkStatus};

/// Drift reports that are kept: enough for a day of hourly trouble, never a leak.
const DRIFT_KEPT: usize = 32;

/// The file that names the links which were closed to each other before forwarding was on.
const CLOSED_LINKS: &str = "closed-links.json";

/// A network as it is in the kernel.
#[derive(Debug)]
struct NetState {
    namespace: Namespace,
    /// The layout that the kernel has; absent until an apply went through.
    layout: Option<NsLayout>,
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
    guests: BTreeMap<SandboxId, GuestLayout>,
    lost: BTreeMap<(NetworkId, IpAddr), Lost>,
    desired: Option<DesiredNetwork>,
    /// What the guard of the underlay holds; absent if unknown.
    senders: Option<Senders>,
    host_rules: Option<HostRules>,
    /// The host's links, as far as nothing has changed since they were listed.
    host_links: Option<BTreeMap<NetworkId, HostLink>>,
    forwarding: bool,
    closed_links: Closed,
    host_ports: HostPorts,
    applied: Applied,
    passes: u64,
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
        shoal_durable::make_private_dir(&dir)
            .map_err(|source| NetworkError::Files { path: dir, source: source.into() })?;
        let closed_links = Closed::open(config.exec_root.join(CLOSED_LINKS));
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
            host_ports: HostPorts::new(config.host_netns.clone(), runtime),
            config,
            networks: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            guests: BTreeMap::new(),
            lost: BTreeMap::new(),
            desired: None,
            senders: None,
            host_rules: None,
            host_links: None,
            forwarding: false,
            closed_links,
            applied: Applied::default(),
            passes: 0,
            drift: VecDeque::new(),
            cleaned: false,
            closed: false,
        })
    }

    fn path(&self, kind: char, id: &str) -> PathBuf {
        self.config.exec_root.join("netns").join(format!("{kind}-{id}"))
    }

    /// See [`crate::NodeNetwork::apply`].
    pub(crate) fn apply(&mut self, desired: DesiredNetwork) -> Result<Pass, NetworkError> {
        if self.closed {
            return Err(NetworkError::Closed);
        }
        self.settle_lost(&desired);
        let (effective, conflicts) = self.effective(&desired);
        self.desired = Some(desired);
        // Noted, so that the next verification tries again.
        self.run(&effective, conflicts, false)
            .inspect_err(|error| self.applied.host = Some(report(error)))
    }

    /// Takes an address out before the tables say so.
    pub(crate) fn backend_lost(
        &mut self,
        network: &NetworkId,
        address: IpAddr,
    ) -> Result<(), NetworkError> {
        let Some(desired) = self.desired.as_ref().filter(|_| !self.closed) else { return Ok(()) };
        let lost = Lost { revision: desired.revision, gone: false };
        self.lost.insert((network.clone(), address), lost);
        let (effective, _) = self.effective(desired);
        let Some(net) = effective.networks.get(network) else { return Ok(()) };
        self.apply_network(network, net, &effective, false).map(|_| ())
    }

    /// What is desired, without what is lost, and with one holder for each port.
    fn effective(&self, desired: &DesiredNetwork) -> (DesiredNetwork, Vec<PortConflict>) {
        let mut out = self.without_lost(desired);
        let (given, conflicts) = claims::decide(&out.published, &self.host_ports.holders());
        out.published = given;
        (out, conflicts)
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
    fn run(
        &mut self,
        want: &DesiredNetwork,
        conflicts: Vec<PortConflict>,
        thorough: bool,
    ) -> Result<Pass, NetworkError> {
        let mut done = Applied { revision: want.revision, ports: conflicts, ..Applied::default() };
        if thorough {
            self.host_links = None;
        }
        if !self.cleaned {
            match self.remove_leftovers(want) {
                Ok(()) => self.cleaned = true,
                // It stands in nobody's way, and the next pass tries again.
                Err(error) => done.host = Some(report(&error)),
            }
        }
        self.open_sandboxes(want, &mut done);
        self.drop_networks(want, &mut done)?;
        // The guard stands before there is a device to guard.
        if let Err(error) = self.apply_guard(want) {
            done.host.get_or_insert(report(&error));
        }
        self.apply_networks(want, thorough, &mut done);
        self.apply_guests(want, thorough, &mut done);
        let refused = self.apply_host_ports(want, &mut done);
        if let Err(error) = self.apply_host(want, &refused) {
            done.host.get_or_insert(report(&error));
        }
        self.drop_sandboxes(want, &mut done);
        self.sandboxes.values().for_each(NetnsHandle::rest);
        let questions = |(id, spec): (&SandboxId, &SandboxSpec)| match &spec.guest {
            Some(guest) => (id.clone(), self.path('n', guest.home.as_str())),
            None => (id.clone(), self.path('c', id.as_str())),
        };
        let paths = want.sandboxes.iter().map(questions).collect();
        let names = Snapshot::of(want, &paths);
        self.applied = done.clone();
        self.passes += 1;
        Ok(Pass { number: self.passes, done, names })
    }

    /// What became of the last pass's names.
    pub(crate) fn note_resolver(&mut self, error: Option<String>) {
        self.applied.resolver = error;
    }

    fn apply_guard(&mut self, want: &DesiredNetwork) -> Result<(), NetworkError> {
        let senders = Senders::of(want);
        let nothing = self.senders.is_none() && senders.numbers.is_empty();
        if nothing || self.senders.as_ref() == Some(&senders) {
            return Ok(());
        }
        let old = self.senders.take();
        doors::apply_guard(&self.host, &self.config.instance, old.as_ref(), &senders)?;
        self.senders = Some(senders);
        Ok(())
    }

    fn host_links(&mut self) -> Result<&BTreeMap<NetworkId, HostLink>, NetworkError> {
        let links = match self.host_links.take() {
            Some(links) => links,
            None => self.host.host_links()?,
        };
        Ok(self.host_links.insert(links))
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
                self.cleaned = false;
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
        for id in gone {
            let link = self.host_links()?.get(&id).cloned();
            let Some(state) = self.networks.remove(&id) else { continue };
            if let Err(error) = state.namespace.remove(&self.host, link.as_ref()) {
                done.networks.insert(id, report(&error));
                self.cleaned = false;
            }
        }
        self.host_links = None;
        Ok(())
    }

    fn apply_networks(&mut self, want: &DesiredNetwork, thorough: bool, done: &mut Applied) {
        for (id, net) in &want.networks {
            let failed = match self.apply_network(id, net, want, thorough) {
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
            for (sandbox, error) in failed {
                done.sandboxes.entry(sandbox).or_insert_with(|| report(&error));
            }
        }
    }

    /// Brings one network to its layout; returns the workloads whose ports failed.
    fn apply_network(
        &mut self,
        id: &NetworkId,
        net: &DesiredNet,
        want: &DesiredNetwork,
        thorough: bool,
    ) -> Result<BTreeMap<SandboxId, NetworkError>, NetworkError> {
        let name = &net.info.name;
        if net.info.kind == NetKind::Overlay && want.self_node.is_none() {
            return Err(NetworkError::NoSwarm { network: name.clone() });
        }
        let link = self.link_pair(id, net)?;
        self.open_network(id, net)?;
        let me: Option<&SelfNode> = want.self_node.as_ref();
        let context = Context { instance: &self.config.instance, self_node: me, link };
        let layout = NsLayout::of(net, &context);
        let failed = self.lay_out(id, net, &layout, thorough)?;
        let Some(state) = self.networks.get_mut(id) else { return Err(vanished(name)) };
        let rules = NetRules::of(net, &want.published, link, state.rules.as_ref());
        tables::apply_net(state, rules, name)?;
        let host = link.map(|pair| IpAddr::V4(pair.host));
        let mut members = Members::of(net, &want.published, host);
        let lost = self.lost.keys().filter(|(network, _)| network == id);
        lost.for_each(|(_, address)| members.remove(*address));
        flows::sort_out(state, members, &self.host, &self.sandboxes, name)?;
        state.status = status_of(net, &layout, want);
        Ok(failed)
    }

    /// Links, addresses, routes. Where the kernel is known to have the last layout, only what
    /// differs from that is touched and nothing is read; what the kernel really has is looked at
    /// first, when something failed, and by every verification.
    fn lay_out(
        &mut self,
        id: &NetworkId,
        net: &DesiredNet,
        layout: &NsLayout,
        thorough: bool,
    ) -> Result<BTreeMap<SandboxId, NetworkError>, NetworkError> {
        let Some(state) = self.networks.get_mut(id) else { return Err(vanished(&net.info.name)) };
        if !thorough && state.layout.as_ref() == Some(layout) {
            return Ok(BTreeMap::new());
        }
        let known = state.layout.take().filter(|_| !thorough);
        if let Some(diff) = known.and_then(|known| Diff::from_known(&known, layout)) {
            let around = Surroundings {
                host: &self.host,
                host_link: None,
                id,
                instance: &self.config.instance,
                sandboxes: &self.sandboxes,
            };
            let done = state.namespace.execute(layout, &diff, &around);
            if done.is_ok_and(|failed| failed.is_empty()) {
                state.layout = Some(layout.clone());
                return Ok(BTreeMap::new());
            }
        }
        self.lay_out_anew(id, net, layout)
    }

    fn lay_out_anew(
        &mut self,
        id: &NetworkId,
        net: &DesiredNet,
        layout: &NsLayout,
    ) -> Result<BTreeMap<SandboxId, NetworkError>, NetworkError> {
        self.host_links = None;
        let host_link = self.host_links()?.get(id).cloned();
        let Some(state) = self.networks.get_mut(id) else { return Err(vanished(&net.info.name)) };
        let observed = state.namespace.observe(host_link.as_ref())?;
        let diff = Diff::between(layout, &observed);
        let mut failed = BTreeMap::new();
        if !diff.is_empty() {
            tracing::info!(network = %net.info.name, changes = ?diff.describe(), "network changes");
            let around = Surroundings {
                host: &self.host,
                host_link: host_link.as_ref(),
                id,
                instance: &self.config.instance,
                sandboxes: &self.sandboxes,
            };
            if diff.create_vxlan {
                // The chain on the device went with the old one.
                state.rules = None;
            }
            failed = state.namespace.execute(layout, &diff, &around)?;
        }
        if let (NetKind::Bridge, Some(pair)) = (net.info.kind, layout.link) {
            self.host.route_to(id, net, pair)?;
        }
        if failed.is_empty() {
            state.layout = Some(layout.clone());
        }
        self.host_links = None;
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
            layout: None,
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
        &mut self,
        id: &NetworkId,
        net: &DesiredNet,
    ) -> Result<Option<LinkPair>, NetworkError> {
        if net.info.internal {
            return Ok(None);
        }
        let planned = self.networks.get(id).and_then(|state| state.layout.as_ref()?.link);
        if let Some(pair) = self.host_links()?.get(id).and_then(|link| link.pair).or(planned) {
            return Ok(Some(pair));
        }
        let others = self.networks.values().filter_map(|state| state.layout.as_ref()?.link);
        self.host.free_pair(&net.info.name, &others.collect()).map(Some)
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

/// A pass's result, and the names that it leaves to the resolver.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Passes are numbered: names of an older one never follow those of a newer one.
    pub(crate) number: u64,
    pub(crate) done: Applied,
    pub(crate) names: Snapshot,
}

fn vanished(network: &str) -> NetworkError {
    NetworkError::Invalid { what: format!("network '{network}' vanished") }
}

fn status_of(net: &DesiredNet, plan: &NsLayout, want: &DesiredNetwork) -> NetStatus {
    let mut links: Vec<String> = plan.ports.keys().cloned().collect();
    links.extend(plan.vxlan.as_ref().map(|_| crate::layout::VXLAN.to_owned()));
    links.extend(plan.link.map(|_| crate::layout::UPLINK.to_owned()));
    NetStatus {
        name: net.info.name.clone(),
        kernel_revision: want.revision,
        links,
        peers: net.peers.iter().map(|p| (p.index.transit_address(), p.underlay)).collect(),
        error: None,
    }
}
