//! The nft tables, from their planned contents: as transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use shoal_model::id::InstanceId;
use shoal_netlink::error::NetlinkError;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::nft::{
    Base, Batch, CmpOp, CtTimeout, Data, Element, Expr, Family, Field, FieldType, Hook, Load, Reg,
    Reject, Rule, Set, Table, ct_state, priority,
};

use super::host::Host;
use super::{NetState, doors};
use crate::error::NetworkError;
use crate::layout::rules::{HostRules, NetRules, Shape};
use crate::layout::{ANY_PEER_MAC, MARK_HOST, MARK_PEER, UPLINK, VXLAN};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// FIN, SYN, RST and ACK; only the second is set in the first packet of a connection.
const TCP_MASK: u8 = 0x17;
const TCP_SYN: u8 = 0x02;
/// An unanswered SYN is forgotten after this long: its next repetition finds another backend.
const SYN_SENT_S: u32 = 1;
const SYN_TIMEOUT: &str = "unanswered";
/// Register 0 and 1: an Ethernet address is read into both, its last two bytes begin the second.
const R0: Reg = Reg(0);
const R1: Reg = Reg(1);

fn net_table() -> Table {
    Table::new(Family::Ip, "shoal")
}

fn frame_table() -> Table {
    Table::new(Family::Netdev, "shoal")
}

pub(super) fn host_table(instance: &InstanceId) -> Table {
    Table::new(Family::Ip, format!("shoal_{instance}"))
}

fn vips_set() -> Set {
    Set::plain("vips", [FieldType::Ip])
}

fn vip_map() -> Set {
    Set::map("vip", [FieldType::Ip, FieldType::Number], [FieldType::Ip])
}

fn mesh_map() -> Set {
    let key = [FieldType::Protocol, FieldType::Port, FieldType::Number];
    Set::map("mesh", key, [FieldType::Ip, FieldType::Port])
}

fn hairpin_map() -> Set {
    Set::map("hairpin", [FieldType::Ip, FieldType::Ip], [FieldType::Ip])
}

fn links_set() -> Set {
    Set::plain("links", [FieldType::Ip])
}

fn ports_map() -> Set {
    let key = [FieldType::Protocol, FieldType::Port];
    Set::map("ports", key, [FieldType::Ip, FieldType::Port])
}

fn address_ports_map() -> Set {
    let key = [FieldType::Ip, FieldType::Protocol, FieldType::Port];
    Set::map("address_ports", key, [FieldType::Ip, FieldType::Port])
}

/// Key → value of every set and map; a plain set's values are empty.
pub(super) type Contents = Vec<(Set, BTreeMap<Vec<Field>, Vec<Field>>)>;

fn net_contents(rules: &NetRules) -> Contents {
    let ip = Field::Ip;
    let vips = rules.vips.iter().map(|vip| (vec![ip(*vip)], Vec::new())).collect();
    let numbered = |n: usize| Field::Number(u32::try_from(n).unwrap_or(u32::MAX));
    let mut buckets = BTreeMap::new();
    for (vip, backends) in &rules.vip {
        for (n, backend) in backends.iter().enumerate() {
            buckets.insert(vec![ip(*vip), numbered(n)], vec![ip(*backend)]);
        }
    }
    let mut mesh = BTreeMap::new();
    for ((protocol, port), backends) in &rules.mesh {
        for (n, (backend, to)) in backends.iter().enumerate() {
            let key = vec![Field::Protocol(*protocol), Field::Port(*port), numbered(n)];
            mesh.insert(key, vec![ip(*backend), Field::Port(*to)]);
        }
    }
    let hairpin = rules.hairpin.iter();
    let hairpin = hairpin.map(|(own, gateway)| (vec![ip(*own), ip(*own)], vec![ip(*gateway)]));
    vec![
        (vips_set(), vips),
        (vip_map(), buckets),
        (mesh_map(), mesh),
        (hairpin_map(), hairpin.collect()),
    ]
}

fn host_contents(rules: &HostRules) -> Contents {
    let target = |(address, port): &(Ipv4Addr, u16)| vec![Field::Ip(*address), Field::Port(*port)];
    let links = rules.links.iter().map(|address| (vec![Field::Ip(*address)], Vec::new()));
    let ports = rules.ports.iter().map(|((protocol, port), to)| {
        (vec![Field::Protocol(*protocol), Field::Port(*port)], target(to))
    });
    let address_ports = rules.address_ports.iter().map(|((address, protocol, port), to)| {
        let key = vec![Field::Ip(*address), Field::Protocol(*protocol), Field::Port(*port)];
        (key, target(to))
    });
    vec![
        (links_set(), links.collect()),
        (ports_map(), ports.collect()),
        (address_ports_map(), address_ports.collect()),
    ]
}

fn element(set: &Set, key: &[Field], value: &[Field]) -> Element {
    let data = match set.data {
        shoal_netlink::nft::SetData::Nothing => Data::Nothing,
        _ => Data::Fields(value.to_vec()),
    };
    Element { key: key.to_vec(), end: None, data }
}

/// Everything, into a table that was just made.
pub(super) fn fill(batch: &mut Batch, table: &Table, contents: &Contents) {
    for (set, content) in contents {
        batch.add_set(table, set);
        let all: Vec<_> = content.iter().map(|(key, value)| element(set, key, value)).collect();
        if !all.is_empty() {
            batch.add_elements(table, set, &all);
        }
    }
}

/// Only what differs.
pub(super) fn change(batch: &mut Batch, table: &Table, old: &Contents, new: &Contents) {
    for ((set, before), (_, after)) in old.iter().zip(new) {
        let pick = |from: &BTreeMap<Vec<Field>, Vec<Field>>,
                    other: &BTreeMap<Vec<Field>, Vec<Field>>| {
            let differ = from.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differ.map(|(key, value)| element(set, key, value)).collect::<Vec<_>>()
        };
        let (gone, come) = (pick(before, after), pick(after, before));
        if !gone.is_empty() {
            batch.delete_elements(table, set, &gone);
        }
        if !come.is_empty() {
            batch.add_elements(table, set, &come);
        }
    }
}

/// Brings a network's tables to `rules`.
pub(super) fn apply_net(
    state: &mut NetState,
    rules: NetRules,
    network: &str,
) -> Result<(), NetworkError> {
    if state.rules.as_ref() == Some(&rules) {
        return Ok(());
    }
    let refused = |source: NetlinkError| NetworkError::Nft {
        what: format!("tables of network '{network}'"),
        source: source.into(),
    };
    let handle = &state.namespace.handle;
    match state.rules.take().filter(|old| old.shape == rules.shape) {
        Some(old) => {
            let mut batch = Batch::new();
            let before = net_contents(&differing(&old, &rules));
            let after = net_contents(&differing(&rules, &old));
            change(&mut batch, &net_table(), &before, &after);
            handle.commit(batch).map_err(refused)?;
        }
        None => {
            rebuild_net(handle, &rules.shape, &net_contents(&rules)).map_err(refused)?;
            state.namespace.settle_tracking()?;
        }
    }
    state.generation = Some(handle.nft_generation().map_err(refused)?);
    state.rules = Some(rules);
    Ok(())
}

/// `rules` without the services and ports that `other` has just so: most of a large network.
fn differing(rules: &NetRules, other: &NetRules) -> NetRules {
    let mut out = rules.clone();
    out.vip.retain(|vip, buckets| other.vip.get(vip) != Some(buckets));
    out.mesh.retain(|port, buckets| other.mesh.get(port) != Some(buckets));
    out
}

fn rebuild_net(
    handle: &NetnsHandle,
    shape: &Shape,
    contents: &Contents,
) -> Result<(), NetlinkError> {
    match handle.commit(whole_net(shape, contents, true)) {
        // Timeout policies are an optional part of the kernel: without, an unanswered SYN sticks
        // to its backend until the backend is known to be dead.
        Err(error) if error.is_unsupported() || error.is_missing() => {
            handle.commit(whole_net(shape, contents, false))
        }
        done => done,
    }
}

fn whole_net(shape: &Shape, contents: &Contents, timeouts: bool) -> Batch {
    let (mut batch, table) = (Batch::new(), net_table());
    batch.replace_table(&table);
    if timeouts {
        batch.add_ct_timeout(&table, &CtTimeout::syn_sent(SYN_TIMEOUT, false, SYN_SENT_S));
    }
    fill(&mut batch, &table, contents);
    mark_chain(&mut batch, &table, shape, timeouts);
    balance_chains(&mut batch, &table, shape);
    reject_chains(&mut batch, &table, shape);
    let frames = frame_table();
    batch.replace_table(&frames);
    if shape.overlay {
        let [a, b, c, d, ..] = ANY_PEER_MAC.0;
        batch.add_base_chain(&frames, "egress", &Base::egress(VXLAN));
        let rule = Rule::new("a reply goes to the node in its mark")
            .ether_daddr(ANY_PEER_MAC)
            .push(Expr::Immediate(R0, vec![a, b, c, d]))
            .push(Expr::Load(Load::Mark, R1))
            .push(Expr::SetEtherDaddr(R0));
        batch.add_rule(&frames, "egress", &rule);
    }
    batch
}

fn mark_chain(batch: &mut Batch, table: &Table, shape: &Shape, timeouts: bool) {
    let chain = "marks";
    batch.add_base_chain(table, chain, &Base::filter(Hook::Prerouting, priority::MANGLE));
    if shape.overlay {
        let rule = Rule::new("remember the node that a connection came from")
            .iifname(VXLAN)
            .ct_state(ct_state::NEW)
            .push(Expr::Load(Load::EtherSaddr, R0))
            .push(Expr::Bitwise(R1, vec![0xff, 0xff, 0, 0], MARK_PEER.to_vec()))
            .push(Expr::SetCtMark(R1));
        batch.add_rule(table, chain, &rule);
    }
    let from_host = |text: &str| Rule::new(text).iifname(UPLINK);
    if shape.link.is_some() {
        let rule = from_host("remember that a connection came by the host link")
            .ct_state(ct_state::NEW)
            .set_ct_mark(u32::from_ne_bytes(MARK_HOST));
        batch.add_rule(table, chain, &rule);
    }
    let rule = Rule::new("replies go back the way of the first packet").ct_reply().mark_from_ct();
    batch.add_rule(table, chain, &rule);
    let to_vip = |text: &str| Rule::new(text).in_set(&[Load::IpDaddr], "vips");
    let mut balanced = |text: &str, finish: &dyn Fn(Rule) -> Rule| {
        batch.add_rule(table, chain, &finish(to_vip(text).l4proto(TCP)));
        if shape.link.is_some() {
            batch.add_rule(table, chain, &finish(from_host(text).l4proto(TCP)));
        }
    };
    balanced("a connection that nobody knows any more is reset", &|rule| {
        rule.ct_state(ct_state::NEW)
            .masked(Load::TcpFlags, vec![TCP_MASK], CmpOp::Ne, [TCP_SYN])
            .reject(Reject::TcpReset)
    });
    if timeouts {
        balanced("an unanswered SYN is soon forgotten", &|rule| rule.ct_timeout(SYN_TIMEOUT));
    }
}

fn balance_chains(batch: &mut Batch, table: &Table, shape: &Shape) {
    let bucket = Load::random(shape.buckets);
    batch.add_base_chain(table, "balance", &Base::dstnat());
    let rule = Rule::new("virtual address to backend");
    batch.add_rule(table, "balance", &rule.dnat_map(&[Load::IpDaddr, bucket], "vip", false));
    batch.add_base_chain(table, "source", &Base::srcnat());
    let rule = Rule::new("who calls itself sees the gateway")
        .map(&[Load::IpSaddr, Load::IpDaddr], "hairpin")
        .push(Expr::Nat { destination: false, ipv6: false, address: Some(R0), port: None });
    batch.add_rule(table, "source", &rule);
    let Some(link) = shape.link else { return };
    let rule = Rule::new("published port to backend")
        .iifname(UPLINK)
        .daddr(IpAddr::V4(link.inner))
        .dnat_map(&[Load::L4Proto, Load::Dport, bucket], "mesh", true);
    batch.add_rule(table, "balance", &rule);
    if shape.overlay {
        // The host's end has the same address on every node; the transit address is unique.
        let rule = Rule::new("the host's own connections to other nodes")
            .oifname(VXLAN)
            .saddr(IpAddr::V4(link.host))
            .masquerade();
        batch.add_rule(table, "source", &rule);
    }
    let rule = Rule::new("outside reach").oifname(UPLINK).masquerade();
    batch.add_rule(table, "source", &rule);
}

fn reject_chains(batch: &mut Batch, table: &Table, shape: &Shape) {
    batch.add_base_chain(table, "pass", &Base::filter(Hook::Forward, priority::FILTER));
    let to_vip = || Rule::new("no backend").in_set(&[Load::IpDaddr], "vips");
    let to_nobody = || Rule::new("no such address").oifname("lo");
    for rule in [to_vip(), to_nobody()] {
        batch.add_rule(table, "pass", &rule.clone().l4proto(TCP).reject(Reject::TcpReset));
        batch.add_rule(table, "pass", &rule.reject(Reject::IcmpPort));
    }
    if shape.overlay && shape.link.is_some() {
        // Every node has its own way out.
        let rule = Rule::new("no way out for other nodes").iifname(VXLAN).oifname(UPLINK);
        let rule = rule.ct_state(ct_state::NEW).counter().drop_packet();
        batch.add_rule(table, "pass", &rule);
    }
    batch.add_base_chain(table, "own", &Base::filter(Hook::Input, priority::FILTER));
    // Rejected here, a connection is not remembered, so that a backend gets the next packet.
    let links = [(UPLINK, shape.link.is_some()), (VXLAN, shape.overlay)];
    for (link, _) in links.into_iter().filter(|(_, there)| *there) {
        let unpublished = || Rule::new("no backend").iifname(link).ct_state(ct_state::NEW);
        batch.add_rule(table, "own", &unpublished().l4proto(TCP).reject(Reject::TcpReset));
        batch.add_rule(table, "own", &unpublished().l4proto(UDP).reject(Reject::IcmpPort));
    }
}

/// Whether somebody else changed the tables since our last change.
pub(super) fn is_changed(state: &NetState) -> Result<bool, NetworkError> {
    let now = state.namespace.handle.nft_generation();
    let now = now.map_err(|source| unreadable(&state.status.name, source))?;
    Ok(state.rules.is_some() && state.generation != Some(now))
}

fn unreadable(place: &str, source: NetlinkError) -> NetworkError {
    NetworkError::Observe { what: format!("nftables of '{place}'"), source: source.into() }
}

fn host_refused(source: NetlinkError) -> NetworkError {
    NetworkError::Nft { what: "this daemon's table on the host".to_owned(), source: source.into() }
}

/// Whose table it is, and what the names of its host links begin with.
pub(super) struct HostPlace<'a> {
    pub(super) instance: &'a InstanceId,
    pub(super) links: &'a str,
}

/// Brings this daemon's table on the host to `new`.
pub(super) fn apply_host(
    host: &Host,
    place: &HostPlace<'_>,
    closed: &BTreeSet<String>,
    old: Option<&HostRules>,
    new: &HostRules,
) -> Result<(), NetworkError> {
    let (mut batch, table) = (Batch::new(), host_table(place.instance));
    match old {
        Some(old) => change(&mut batch, &table, &host_contents(old), &host_contents(new)),
        None => {
            whole_host(&mut batch, &table, new);
            doors::forward_rules(&mut batch, &table, place.links, closed);
        }
    }
    host.handle.commit(batch).map_err(host_refused)
}

fn whole_host(batch: &mut Batch, table: &Table, rules: &HostRules) {
    batch.replace_table(table);
    fill(batch, table, &host_contents(rules));
    batch.add_chain(table, "publish");
    let one = Rule::new("port of one address");
    let one = one.dnat_map(&[Load::IpDaddr, Load::L4Proto, Load::Dport], "address_ports", true);
    batch.add_rule(table, "publish", &one);
    let all = Rule::new("port of every address");
    batch.add_rule(table, "publish", &all.dnat_map(&[Load::L4Proto, Load::Dport], "ports", true));
    let local = || Rule::new("to this host").daddr_local();
    batch.add_base_chain(table, "arriving", &Base::dstnat());
    batch.add_rule(table, "arriving", &local().jump("publish"));
    batch.add_base_chain(table, "leaving", &Base::dstnat_output());
    // The daemon's own sockets serve loopback: translated packets would keep a loopback source.
    let loopback = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    let rule = Rule::new("to this host").daddr_not_in(loopback.into()).daddr_local();
    batch.add_rule(table, "leaving", &rule.jump("publish"));
    batch.add_base_chain(table, "source", &Base::srcnat());
    let rule = Rule::new("outside reach").in_set(&[Load::IpSaddr], "links").masquerade();
    batch.add_rule(table, "source", &rule);
}

/// Which of these tables of this daemon are missing on the host.
pub(super) fn missing_on_host(host: &Host, wanted: &[Table]) -> Result<Vec<String>, NetworkError> {
    let tables = host.handle.nft_tables().map_err(|source| unreadable("host", source))?;
    let missing = wanted.iter().filter(|table| !tables.contains(table));
    Ok(missing.map(|table| format!("missing nftables table '{}'", table.name)).collect())
}

/// Removes tables of this daemon from the host.
pub(super) fn delete_on_host(host: &Host, own: &[Table]) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    own.iter().for_each(|table| batch.delete_table(table));
    host.handle.commit(batch).map_err(host_refused)
}
