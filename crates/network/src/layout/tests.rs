#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use shoal_model::assignment::{Backend, BackendState, EndpointEntry, Peer, ServiceEntry};
use shoal_model::id::{InstanceId, NetworkId, NodeId, ServiceId, TaskId};
use shoal_model::net::{NodeIndex, Port, Protocol, Vni};
use shoal_model::object::Subnet;
use shoal_model::spec::service::EndpointMode;
use shoal_netlink::link::Link;
use shoal_netlink::neighbour::Neighbour;

use super::diff::{Diff, Observed};
use super::flows::{Flow, Members, Opener, Verdict};
use super::rules::{HostRules, NetRules, link_ports};
use super::*;
use crate::desired::{DesiredNetwork, Guest, NetProperties, Published, SandboxSpec};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ip4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn endpoint(node: &str, address: &str) -> EndpointEntry {
    EndpointEntry {
        task_id: TaskId::new(format!("t{address}")),
        node_id: NodeId::from(node),
        address: ip(address),
        names: Vec::new(),
    }
}

fn backend(address: &str, state: BackendState) -> Backend {
    Backend { address: ip(address), task_id: TaskId::new(format!("t{address}")), state }
}

fn me() -> SelfNode {
    SelfNode { node_id: "a".into(), index: NodeIndex(1), underlay: ip("198.51.100.1") }
}

fn net() -> DesiredNet {
    DesiredNet {
        info: NetProperties {
            id: "net1".into(),
            kind: NetKind::Overlay,
            name: "mynet1".into(),
            subnets: vec![Subnet {
                subnet: "10.0.1.0/24".parse().unwrap(),
                gateway: ip("10.0.1.1"),
                range: None,
                reserved: Vec::new(),
            }],
            mtu: 1400,
            internal: false,
            ingress: false,
            vni: Vni(4096),
            data_path_port: 4789,
        },
        peers: vec![Peer {
            node_id: "b".into(),
            index: NodeIndex(2),
            underlay: ip("198.51.100.2"),
        }],
        endpoints: vec![endpoint("a", "10.0.1.4"), endpoint("b", "10.0.1.5")],
        services: vec![ServiceEntry {
            service_id: ServiceId::from("s"),
            name: "web".into(),
            aliases: Vec::new(),
            mode: EndpointMode::Vip,
            vip: Some(ip("10.0.1.2")),
            backends: vec![
                backend("10.0.1.4", BackendState::Serving),
                backend("10.0.1.5", BackendState::Serving),
            ],
        }],
        local_ports: vec![LocalPort {
            sandbox: SandboxId::new("c1"),
            address: vec!["10.0.1.4/24".parse().unwrap()],
            order: 0,
            aliases: Vec::new(),
            default_route: true,
            kind: PortKind::Interface,
        }],
    }
}

fn pair() -> LinkPair {
    LinkPair::of(ip4("169.254.128.1"))
}

fn plan_of(net: &DesiredNet) -> NsLayout {
    let (instance, me) = (InstanceId::from("0123456789ab"), me());
    NsLayout::of(net, &Context { instance: &instance, self_node: Some(&me), link: Some(pair()) })
}

/// What a kernel would report of a namespace that is exactly as planned.
fn observed(plan: &NsLayout) -> Observed {
    let link = |name: &str, index| Link {
        name: name.into(),
        index,
        alias: plan.ports.get(name).map(|p| p.alias.clone()).unwrap_or_default(),
        kind: String::new(),
        mtu: plan.mtu,
        mac: plan.vxlan.as_ref().map(|v| v.mac),
        up: true,
        master: None,
        lower: None,
        addresses: plan.addresses.iter().filter(|(l, _)| l == name).map(|(_, a)| *a).collect(),
        vxlan: plan.vxlan.as_ref().filter(|_| name == VXLAN).map(|v| {
            shoal_netlink::link::VxlanInfo {
                vni: v.vni,
                port: v.port,
                local: Some(v.local),
                learning: false,
            }
        }),
    };
    let names = ["lo", VXLAN, UPLINK].into_iter().chain(plan.ports.keys().map(String::as_str));
    Observed {
        links: names.zip(1..).map(|(name, index)| link(name, index)).collect(),
        routes: plan.routes.iter().cloned().collect(),
        rules: plan.rules.iter().cloned().collect(),
        neighbours: plan
            .neighbours
            .iter()
            .map(|(address, mac)| Neighbour { address: *address, mac: Some(*mac), permanent: true })
            .collect(),
        fdb: plan.fdb.iter().copied().collect(),
        host_end: true,
    }
}

#[test]
fn an_overlay_has_device_peers_and_routes() {
    let plan = plan_of(&net());
    let device = plan.vxlan.clone().unwrap();
    assert_eq!((device.vni, device.port, device.local), (Vni(4096), 4789, ip("198.51.100.1")));
    let to_b = Route::via("10.0.1.5/32".parse().unwrap(), ip("169.254.0.2"), VXLAN).onlink();
    assert!(plan.routes.contains(&to_b));
    let port = port_name(&SandboxId::new("c1"));
    assert!(port.len() <= 15);
    assert!(plan.routes.contains(&Route::dev("10.0.1.4/32".parse().unwrap(), &port)));
    assert!(plan.routes.contains(&Route::dev("10.0.1.0/24".parse().unwrap(), "lo")));
    assert_eq!(plan.fdb.len(), 1);
    assert_eq!(plan.neighbours.len(), 2, "the peer and the one for marked replies");
    assert_eq!(plan.rules.len(), 2);
}

#[test]
fn what_is_as_planned_needs_nothing() {
    let plan = plan_of(&net());
    assert_eq!(Diff::between(&plan, &observed(&plan)), Diff::default());
}

#[test]
fn an_empty_namespace_gets_everything() {
    let plan = plan_of(&net());
    let diff = Diff::between(&plan, &Observed::default());
    assert!(diff.create_vxlan && diff.create_uplink);
    assert_eq!(diff.create_ports.len(), 1);
    assert_eq!(diff.put_routes.len(), plan.routes.len());
    assert!(diff.delete_links.is_empty());
}

#[test]
fn a_replaced_device_takes_its_routes_along() {
    let plan = plan_of(&net());
    let mut have = observed(&plan);
    let vx = have.links.iter_mut().find(|l| l.name == VXLAN).unwrap();
    vx.vxlan.as_mut().unwrap().port = 4790;
    let diff = Diff::between(&plan, &have);
    assert_eq!(diff.delete_links, [VXLAN]);
    assert!(diff.create_vxlan);
    assert_eq!(diff.set_fdb.len(), 1);
    let back = diff.put_routes.iter().filter(|r| r.device.as_deref() == Some(VXLAN)).count();
    assert_eq!(back, 2);
}

#[test]
fn a_moved_endpoint_is_one_replaced_route() {
    let have = observed(&plan_of(&net()));
    let mut moved = net();
    moved.peers.push(Peer {
        node_id: "c".into(),
        index: NodeIndex(3),
        underlay: ip("198.51.100.3"),
    });
    moved.endpoints[1].node_id = "c".into();
    let diff = Diff::between(&plan_of(&moved), &have);
    assert_eq!(diff.put_routes.len(), 1);
    assert!(diff.delete_routes.is_empty());
    assert_eq!((diff.set_fdb.len(), diff.set_neighbours.len()), (1, 1));
    assert!(diff.describe().iter().any(|line| line.starts_with("missing route 10.0.1.5/32")));
}

#[test]
fn a_known_layout_needs_no_look_at_the_kernel() {
    let mut net = net();
    let known = plan_of(&net);
    net.local_ports.push(LocalPort {
        sandbox: SandboxId::new("new"),
        address: vec!["10.0.1.77/24".parse().unwrap()],
        order: 0,
        aliases: Vec::new(),
        default_route: true,
        kind: PortKind::Interface,
    });
    let want = plan_of(&net);
    let diff = Diff::from_known(&known, &want).unwrap();
    assert_eq!(diff.create_ports, [port_name(&SandboxId::new("new"))]);
    assert_eq!(diff.put_routes.len(), 1, "{diff:?}");
    let only = Diff {
        create_ports: diff.create_ports.clone(),
        put_routes: diff.put_routes.clone(),
        ..Diff::default()
    };
    assert_eq!(diff, only);
    // Back again: with the link goes its route.
    let back = Diff::from_known(&want, &known).unwrap();
    let only = Diff { delete_links: diff.create_ports, ..Diff::default() };
    assert_eq!(back, only);
    // The same as by looking, for a namespace that has the layout.
    assert_eq!(Diff::between(&known, &observed(&known)), Diff::from_known(&known, &known).unwrap());
    net.info.mtu += 1;
    assert_eq!(Diff::from_known(&known, &plan_of(&net)), None);
}

#[test]
fn foreign_links_stay() {
    let plan = plan_of(&net());
    let mut have = observed(&plan);
    let mut tunl = have.links[0].clone();
    tunl.name = "tunl0".into();
    tunl.up = false;
    have.links.push(tunl);
    assert!(Diff::between(&plan, &have).is_empty());
}

fn published(network: &str, number: u16, host_ip: Option<&str>, backend: &str) -> Published {
    Published {
        port: Port { protocol: Protocol::Tcp, number },
        host_ip: host_ip.map(ip),
        network: NetworkId::from(network),
        backends: vec![(ip(backend), 80)],
        holder: "service 'web'".into(),
    }
}

#[test]
fn buckets_hold_only_serving_backends() {
    let mut net = net();
    net.services[0].backends[1].state = BackendState::Draining;
    let ports = [published("net1", 8091, None, "10.0.1.5")];
    let rules = NetRules::of(&net, &ports, Some(pair()), None);
    assert_eq!(rules.shape.buckets, 16);
    assert!(rules.vip[&ip4("10.0.1.2")].iter().all(|b| *b == ip4("10.0.1.4")));
    assert_eq!(rules.mesh[&(6, 8091)][0], (ip4("10.0.1.5"), 80));
    assert_eq!(rules.hairpin[&ip4("10.0.1.4")], ip4("10.0.1.1"));
    net.services[0].backends.clear();
    let empty = NetRules::of(&net, &[], None, Some(&rules));
    assert!(empty.vip.is_empty() && empty.vips.contains(&ip4("10.0.1.2")), "known, to reject");
}

#[test]
fn one_number_on_two_host_addresses_gets_two_link_ports() {
    let ports = [
        published("net1", 80, Some("192.0.2.1"), "10.0.1.4"),
        published("other", 80, None, "10.0.2.4"),
        published("net1", 80, Some("127.0.0.1"), "10.0.1.5"),
    ];
    let at = link_ports(&"net1".into(), &ports);
    assert_eq!(at, BTreeMap::from([(0, 80), (2, 61_000)]));
    let links = BTreeMap::from([(NetworkId::from("net1"), pair())]);
    let host = HostRules::of(&ports, &links, &BTreeSet::new());
    assert_eq!(host.address_ports[&(ip4("192.0.2.1"), 6, 80)], (pair().inner, 80));
    assert!(host.ports.is_empty(), "the other network has no link");
    assert_eq!(host.address_ports.len(), 1, "loopback is not translated");
}

#[test]
fn members_of_a_network_are_its_peers() {
    let net = net();
    let vni = net.info.vni;
    let peers: Vec<_> = net.peers.iter().filter(|p| p.node_id != me().node_id).collect();
    let want = DesiredNetwork {
        self_node: Some(me()),
        networks: [(net.info.id.clone(), net.clone())].into(),
        ..DesiredNetwork::default()
    };
    let senders = doors::Senders::of(&want);
    assert_eq!(senders.numbers, [(net.info.data_path_port, vni)].into());
    assert_eq!(senders.members, peers.iter().map(|p| (p.underlay, vni)).collect());
    let outside = DesiredNetwork { self_node: None, ..want };
    assert_eq!(doors::Senders::of(&outside), doors::Senders::default());
}

#[test]
fn link_pairs_avoid_what_is_used() {
    let used = ["169.254.128.0/31".parse().unwrap(), "169.254.128.2/32".parse().unwrap()];
    assert_eq!(LinkPair::free(&used).unwrap().host, ip4("169.254.128.4"));
    assert_eq!(LinkPair::free(&["169.254.0.0/16".parse().unwrap()]), None);
}

fn flow(protocol: u8, source: &str, to: &str, answers: &str, replied: bool) -> Flow {
    let at = |text: &str| text.parse().unwrap();
    Flow { protocol, source: at(source), destination: at(to), answers: at(answers), replied }
}

#[test]
fn connections_to_a_gone_backend_are_reset_and_new_ones_forgotten() {
    let mut net = net();
    net.endpoints.pop();
    net.services[0].backends.pop();
    let members = Members::of(&net, &[], Some(ip("169.254.128.0")));
    let gone =
        |source, replied| members.verdict(&flow(6, source, "10.0.1.2:80", "10.0.1.5:80", replied));
    let here = Opener::Sandbox(SandboxId::new("c1"));
    assert_eq!(gone("10.0.1.4:999", true), Verdict::Reset(here));
    assert_eq!(gone("10.0.1.4:999", false), Verdict::Forget, "the next SYN picks another");
    assert_eq!(gone("169.254.128.0:999", true), Verdict::Reset(Opener::Host));
    assert_eq!(gone("192.0.2.9:999", true), Verdict::Reset(Opener::Remote));
    let alive = flow(6, "10.0.1.4:999", "10.0.1.2:80", "10.0.1.4:80", true);
    assert_eq!(members.verdict(&alive), Verdict::Keep);
    let out = flow(6, "10.0.1.4:999", "192.0.2.1:80", "192.0.2.1:80", true);
    assert_eq!(members.verdict(&out), Verdict::Keep);
}

#[test]
fn a_draining_backend_keeps_what_is_established() {
    let mut net = net();
    net.services[0].backends[1].state = BackendState::Draining;
    let members = Members::of(&net, &[], None);
    let drained = |protocol, to, replied| {
        members.verdict(&flow(protocol, "10.0.1.4:999", to, "10.0.1.5:80", replied))
    };
    assert_eq!(drained(6, "10.0.1.2:80", true), Verdict::Keep);
    assert_eq!(drained(6, "10.0.1.2:80", false), Verdict::Forget);
    assert_eq!(drained(17, "10.0.1.2:80", true), Verdict::Forget);
    assert_eq!(drained(17, "10.0.1.5:80", true), Verdict::Keep, "not balanced");
    let before = Members::of(&super::tests::net(), &[], None);
    assert!(before.loses_to(&members) && !members.loses_to(&before));
}

#[test]
fn a_guest_on_several_networks_gets_a_router() {
    let mut home = net();
    home.local_ports[0].kind = PortKind::Guest;
    let mut other = net();
    other.info.id = NetworkId::from("other");
    other.info.mtu = 1300;
    other.local_ports[0].address = vec!["10.0.2.4/24".parse().unwrap()];
    other.local_ports[0].order = 1;
    let guest = Guest { owner: 7, home: home.info.id.clone(), direct: false };
    let mut want = DesiredNetwork::default();
    for net in [home, other] {
        want.networks.insert(net.info.id.clone(), net);
    }
    let id = SandboxId::new("c1");
    let spec = SandboxSpec { guest: Some(guest), ..SandboxSpec::default() };
    let plan =
        |spec: &SandboxSpec| super::guest::GuestLayout::of(&id, spec, &want, &InstanceId::new("i"));
    let made = plan(&spec).unwrap();
    assert_eq!((made.mtu, made.owner), (1300, 7));
    assert_eq!(made.route().destination.to_string(), "10.0.1.4/32");
    assert_eq!(made.others[0].interface, "eth1");
    assert_eq!(made.rules().map(|rule| rule.table).collect::<Vec<_>>(), [101]);
    let mut direct = spec.clone();
    direct.guest.as_mut().unwrap().direct = true;
    assert_eq!(plan(&direct), None);
    assert_eq!(plan(&SandboxSpec::default()), None);
}
