//! The difference between what a namespace must have and what it has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::net::Mac;
use shoal_netlink::link::Link;
use shoal_netlink::neighbour::{FdbEntry, Neighbour};
use shoal_netlink::route::Route;
use shoal_netlink::rule::Rule;

use super::{LinkPair, NsLayout, PORT_PREFIX, UPLINK, VXLAN};

/// What a namespace has.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All links with their addresses.
    pub links: Vec<Link>,
    /// All routes that somebody configured.
    pub routes: Vec<Route>,
    /// All policy rules.
    pub rules: Vec<Rule>,
    /// Neighbours of the VXLAN device.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of the VXLAN device.
    pub fdb: Vec<FdbEntry>,
    /// Whether the host has the other end of the host link, with its address, up.
    pub host_end: bool,
}

/// What is to be done, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Links that must not be there, or not so.
    pub delete_links: Vec<String>,
    /// Make the VXLAN device.
    pub create_vxlan: bool,
    /// Make the host link.
    pub create_uplink: bool,
    /// Make these ports.
    pub create_ports: Vec<String>,
    /// Links whose MTU or state is wrong.
    pub fix_links: Vec<String>,
    /// Missing addresses.
    pub add_addresses: Vec<(String, IpNet)>,
    /// Addresses too many.
    pub delete_addresses: Vec<(String, IpNet)>,
    /// Missing or wrong neighbours.
    pub set_neighbours: Vec<(IpAddr, Mac)>,
    /// Permanent neighbours too many.
    pub delete_neighbours: Vec<IpAddr>,
    /// Missing forwarding entries, after [`Self::delete_fdb`].
    pub set_fdb: Vec<FdbEntry>,
    /// Forwarding entries too many: of a MAC the first one counts, so they go first.
    pub delete_fdb: Vec<FdbEntry>,
    /// Missing or wrong routes.
    pub put_routes: Vec<Route>,
    /// Routes too many.
    pub delete_routes: Vec<Route>,
    /// Missing rules.
    pub add_rules: Vec<Rule>,
    /// Rules too many.
    pub delete_rules: Vec<Rule>,
}

impl Diff {
    /// What turns `have` into `want`.
    #[must_use]
    pub fn between(want: &NsLayout, have: &Observed) -> Self {
        let mut out = Self::default();
        let kept = out.links(want, have);
        out.addresses(want, have, &kept);
        out.forwarding(want, have, kept.contains(VXLAN));
        out.routing(want, have, &kept);
        out
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn links<'a>(&mut self, want: &NsLayout, have: &'a Observed) -> BTreeSet<&'a str> {
        let mut kept = BTreeSet::from(["lo"]);
        for link in have.links.iter().filter(|link| link.name != "lo") {
            if fits(want, have, link) {
                kept.insert(link.name.as_str());
                if link.mtu != want.mtu || !link.up {
                    self.fix_links.push(link.name.clone());
                }
            } else if is_ours(&link.name) {
                self.delete_links.push(link.name.clone());
            }
        }
        self.create_vxlan = want.vxlan.is_some() && !kept.contains(VXLAN);
        self.create_uplink = want.link.is_some() && !kept.contains(UPLINK);
        self.create_ports =
            want.ports.keys().filter(|name| !kept.contains(name.as_str())).cloned().collect();
        kept
    }

    fn addresses(&mut self, want: &NsLayout, have: &Observed, kept: &BTreeSet<&str>) {
        let mut there = BTreeSet::new();
        for link in have.links.iter().filter(|link| kept.contains(link.name.as_str())) {
            let real = link.addresses.iter().filter(|a| a.addr().is_ipv4() && !is_loopback(a));
            there.extend(real.map(|a| (link.name.clone(), *a)));
        }
        (self.add_addresses, self.delete_addresses) = apart(&want.addresses, &there);
    }

    fn forwarding(&mut self, want: &NsLayout, have: &Observed, vxlan_kept: bool) {
        let neighbours = have.neighbours.iter().filter(|n| vxlan_kept && n.permanent);
        let there: BTreeSet<(IpAddr, Mac)> =
            neighbours.filter_map(|n| Some((n.address, n.mac?))).collect();
        self.neighbours(&want.neighbours, &there);
        let fdb: BTreeSet<FdbEntry> = have.fdb.iter().filter(|_| vxlan_kept).copied().collect();
        (self.set_fdb, self.delete_fdb) = apart(&want.fdb, &fdb);
    }

    fn routing(&mut self, want: &NsLayout, have: &Observed, kept: &BTreeSet<&str>) {
        let survives = |route: &&Route| {
            route.device.as_deref().is_some_and(|device| kept.contains(device))
                && route.destination.addr().is_ipv4()
        };
        let there: BTreeSet<&Route> = have.routes.iter().filter(survives).collect();
        self.routes(&want.routes.iter().collect(), &there);
        let kernels = |rule: &&Rule| rule.ipv6 || [0, 32766, 32767].contains(&rule.priority);
        let rules = have.rules.iter().filter(|rule| !kernels(rule)).cloned().collect();
        (self.add_rules, self.delete_rules) = apart(&want.rules, &rules);
    }

    /// What turns `known`, which the kernel has, into `want`, without a look at the kernel. Nothing
    /// if the VXLAN device or the host link is another one: then the kernel must be asked.
    #[must_use]
    pub fn from_known(known: &NsLayout, want: &NsLayout) -> Option<Self> {
        if (known.mtu, &known.vxlan, known.link) != (want.mtu, &want.vxlan, want.link) {
            return None;
        }
        let mut out = Self::default();
        for (name, port) in &known.ports {
            if want.ports.get(name).is_none_or(|new| new.alias != port.alias) {
                out.delete_links.push(name.clone());
            }
        }
        for (name, port) in &want.ports {
            if known.ports.get(name).is_none_or(|old| old.alias != port.alias) {
                out.create_ports.push(name.clone());
            }
        }
        let gone: BTreeSet<String> = out.delete_links.iter().cloned().collect();
        (out.add_addresses, out.delete_addresses) = apart(&want.addresses, &known.addresses);
        out.neighbours(&want.neighbours, &known.neighbours);
        (out.set_fdb, out.delete_fdb) = apart(&want.fdb, &known.fdb);
        // With a link go its routes.
        let stays = |route: &&Route| !route.device.as_deref().is_some_and(|d| gone.contains(d));
        out.routes(&want.routes.iter().collect(), &known.routes.iter().filter(stays).collect());
        (out.add_rules, out.delete_rules) = apart(&want.rules, &known.rules);
        Some(out)
    }

    fn neighbours(&mut self, want: &BTreeSet<(IpAddr, Mac)>, there: &BTreeSet<(IpAddr, Mac)>) {
        self.set_neighbours = want.difference(there).copied().collect();
        let wanted: BTreeSet<IpAddr> = want.iter().map(|(address, _)| *address).collect();
        self.delete_neighbours = there
            .difference(want)
            .map(|(address, _)| *address)
            .filter(|address| !wanted.contains(address))
            .collect();
    }

    fn routes(&mut self, wanted: &BTreeSet<&Route>, there: &BTreeSet<&Route>) {
        let place = |route: &Route| (route.destination, route.table, route.metric);
        let places: BTreeSet<_> = wanted.iter().map(|route| place(route)).collect();
        self.put_routes = wanted.difference(there).map(|route| (*route).clone()).collect();
        // Routes by way of another one's interface come after the ones that are on the link.
        self.put_routes.sort_by_key(|route| route.gateway.is_some());
        self.delete_routes = there
            .difference(wanted)
            .filter(|route| !places.contains(&place(route)))
            .map(|route| (*route).clone())
            .collect();
    }

    /// One line for each difference: `missing route 10.0.1.4/32`.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |what: &str, items: Vec<String>| {
            lines.extend(items.into_iter().map(|item| format!("{what} {item}")));
        };
        let on = |(link, address): &(String, IpNet)| format!("{address} on '{link}'");
        let fdb = |entry: &FdbEntry| format!("{} to {}", entry.mac, entry.destination);
        say("unexpected link", self.delete_links.clone());
        say("missing link", self.missing_links());
        say("changed link", self.fix_links.clone());
        say("missing address", self.add_addresses.iter().map(on).collect());
        say("unexpected address", self.delete_addresses.iter().map(on).collect());
        let neighbours = self.set_neighbours.iter();
        say("missing neighbour", neighbours.map(|(ip, mac)| format!("{ip} at {mac}")).collect());
        say("unexpected neighbour", strings(&self.delete_neighbours));
        say("missing forwarding entry", self.set_fdb.iter().map(fdb).collect());
        say("unexpected forwarding entry", self.delete_fdb.iter().map(fdb).collect());
        let route = |r: &Route| format!("{} in table {}", r.destination, r.table);
        say("missing route", self.put_routes.iter().map(route).collect());
        say("unexpected route", self.delete_routes.iter().map(route).collect());
        let rule = |r: &Rule| format!("{} to table {}", r.priority, r.table);
        say("missing rule", self.add_rules.iter().map(rule).collect());
        say("unexpected rule", self.delete_rules.iter().map(rule).collect());
        lines
    }

    fn missing_links(&self) -> Vec<String> {
        let mut out = self.create_ports.clone();
        out.extend(self.create_vxlan.then(|| VXLAN.to_owned()));
        out.extend(self.create_uplink.then(|| UPLINK.to_owned()));
        out
    }
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn is_loopback(net: &IpNet) -> bool {
    net.addr().is_loopback()
}

/// Whether we would ever make a link of that name; others (devices that the kernel puts into every
/// namespace) stay.
fn is_ours(name: &str) -> bool {
    name == VXLAN || name == UPLINK || name.starts_with(PORT_PREFIX)
}

fn fits(want: &NsLayout, have: &Observed, link: &Link) -> bool {
    match link.name.as_str() {
        VXLAN => want.vxlan.as_ref().is_some_and(|plan| {
            link.mac == Some(plan.mac)
                && link.vxlan.as_ref().is_some_and(|is| {
                    is.vni == plan.vni
                        && is.port == plan.port
                        && is.local == Some(plan.local)
                        && !is.learning
                })
        }),
        UPLINK => want.link.is_some_and(|pair: LinkPair| {
            have.host_end && link.addresses.contains(&LinkPair::net(pair.inner))
        }),
        name => want.ports.get(name).is_some_and(|plan| link.alias == plan.alias),
    }
}

/// What is missing, and what is too much.
fn apart<T: Ord + Clone>(want: &BTreeSet<T>, there: &BTreeSet<T>) -> (Vec<T>, Vec<T>) {
    (want.difference(there).cloned().collect(), there.difference(want).cloned().collect())
}
