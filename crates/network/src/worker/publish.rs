//! The host's side of published ports: sockets that hold them, and the daemon's own table.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::id::NetworkId;

use super::{NetState, Worker, flows, tables};
use crate::claims::{HostPort, PortConflict};
use crate::desired::DesiredNetwork;
use crate::error::NetworkError;
use crate::hostport::HostListen;
use crate::layout::LinkPair;
use crate::layout::rules::{HostRules, link_ports};
use crate::status::Applied;

impl Worker {
    /// The host link of every network that has one.
    fn links(&self) -> BTreeMap<NetworkId, LinkPair> {
        let pair = |state: &NetState| state.rules.as_ref().and_then(|rules| rules.shape.link);
        self.networks.iter().filter_map(|(id, state)| Some((id.clone(), pair(state)?))).collect()
    }

    /// The daemon's own table. Ports in `refused` are somebody else's, so nothing leads them here.
    pub(super) fn apply_host(
        &mut self,
        want: &DesiredNetwork,
        refused: &BTreeSet<HostPort>,
    ) -> Result<(), NetworkError> {
        let rules = HostRules::of(&want.published, &self.links(), refused);
        if rules.links.is_empty() && self.host_rules.is_none() {
            return Ok(());
        }
        let open = !self.forwarding && !rules.links.is_empty();
        if open && self.closed_links.remember(&self.host)? {
            // The rules name the links.
            self.host_rules = None;
        }
        if self.host_rules.as_ref() != Some(&rules) {
            let old = self.host_rules.take();
            let place = tables::HostPlace {
                instance: &self.config.instance,
                links: &self.host.all_links(),
            };
            let closed = self.closed_links.links();
            tables::apply_host(&self.host, &place, closed, old.as_ref(), &rules)?;
            flows::forget_moved_ports(&self.host, old.as_ref(), &rules)?;
            self.host_rules = Some(rules);
        }
        // Only now: what was closed before is kept apart from the first packet on.
        if open {
            self.host.enable_forwarding()?;
            self.forwarding = true;
        }
        Ok(())
    }

    /// Opens the ports; returns those that the system does not give.
    pub(super) fn apply_host_ports(
        &mut self,
        want: &DesiredNetwork,
        done: &mut Applied,
    ) -> BTreeSet<HostPort> {
        let links = self.links();
        let ports: BTreeMap<&NetworkId, BTreeMap<usize, u16>> =
            links.keys().map(|network| (network, link_ports(network, &want.published))).collect();
        let mut listen: BTreeMap<HostPort, HostListen> = BTreeMap::new();
        for (index, publication) in want.published.iter().enumerate() {
            let port = ports.get(&publication.network).and_then(|p| p.get(&index));
            let pair = links.get(&publication.network);
            let place = publication.place();
            listen.entry(place).or_insert_with(|| HostListen {
                port: publication.port,
                host_ip: place.address,
                target: pair.zip(port).map(|(pair, port)| (pair.inner, *port).into()),
                holder: publication.holder.clone(),
            });
        }
        let listen: Vec<HostListen> = listen.into_values().collect();
        let mut refused = BTreeSet::new();
        for (listen, error) in self.host_ports.apply(&listen) {
            let place = listen.place();
            done.ports.push(PortConflict::of(place, &listen.holder, &error));
            refused.insert(place);
        }
        refused
    }
}
