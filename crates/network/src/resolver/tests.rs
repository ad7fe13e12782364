//! From the desired network to what each workload is told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use shoal_model::assignment::{Backend, BackendState, EndpointEntry, ServiceEntry};
use shoal_model::net::Vni;
use shoal_model::object::Subnet;
use shoal_model::spec::service::EndpointMode;

use super::lookup::{Kind, Outcome, lookup};
use super::message::{Parsed, Question, parse};
use super::snapshot::Snapshot;
use crate::desired::{
    DesiredNet, DesiredNetwork, LocalPort, NetKind, NetProperties, PortKind, SandboxId, SandboxSpec,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(name: &str, kind: NetKind, subnet: &str) -> DesiredNet {
    let subnet: ipnet::IpNet = subnet.parse().unwrap();
    let gateway = subnet.hosts().next().unwrap();
    let info = NetProperties {
        id: name.into(),
        kind,
        name: name.to_owned(),
        subnets: vec![Subnet { subnet, gateway, range: None, reserved: Default::default() }],
        mtu: 1450,
        internal: false,
        ingress: name == "ingress",
        vni: Vni(5000),
        data_path_port: 4789,
    };
    DesiredNet { info, peers: vec![], endpoints: vec![], services: vec![], local_ports: vec![] }
}

fn port(sandbox: &str, address: &str, aliases: &[&str]) -> LocalPort {
    LocalPort {
        sandbox: SandboxId::new(sandbox),
        address: vec![address.parse().unwrap()],
        order: 0,
        aliases: aliases.iter().map(|&a| a.to_owned()).collect(),
        default_route: true,
        kind: PortKind::Interface,
    }
}

fn service(name: &str, vip: Option<&str>, backends: &[(&str, BackendState)]) -> ServiceEntry {
    ServiceEntry {
        service_id: name.into(),
        name: name.to_owned(),
        aliases: vec![format!("{name}-alias")],
        mode: if vip.is_some() { EndpointMode::Vip } else { EndpointMode::Dnsrr },
        vip: vip.map(ip),
        backends: backends
            .iter()
            .map(|(address, state)| Backend {
                address: ip(address),
                task_id: (*address).into(),
                state: *state,
            })
            .collect(),
    }
}

/// Two workloads on an overlay with two services, one of them also on a network of its node.
fn example() -> Snapshot {
    use BackendState::{Draining, Serving};
    let mut overlay = net("Apps", NetKind::Overlay, "10.0.1.0/24");
    overlay.services = vec![
        service("web", Some("10.0.1.2"), &[("10.0.1.4", Serving), ("10.0.1.5", Draining)]),
        service("db", None, &[("10.0.1.6", Serving), ("10.0.1.7", Serving)]),
        service("idle", Some("10.0.1.3"), &[]),
    ];
    overlay.local_ports = vec![port("c1", "10.0.1.4/24", &["front"])];
    overlay.endpoints = vec![EndpointEntry {
        task_id: "t".into(),
        node_id: "n".into(),
        address: ip("10.0.1.6"),
        names: vec!["db.1.xyz".to_owned()],
    }];
    let mut own = net("own", NetKind::Bridge, "172.18.0.0/16");
    own.local_ports = vec![port("c1", "172.18.0.2/16", &["web"]), port("c2", "172.18.0.3/16", &[])];
    let mut closed = net("closed", NetKind::Bridge, "172.19.0.0/16");
    closed.info.internal = true;
    closed.local_ports = vec![port("c3", "172.19.0.2/16", &[])];
    let mut ingress = net("ingress", NetKind::Overlay, "10.1.0.0/16");
    ingress.services = vec![service("web", Some("10.1.0.2"), &[("10.1.0.4", Serving)])];
    ingress.local_ports = vec![port("c1", "10.1.0.4/16", &[])];
    let networks = [overlay, own, closed, ingress];
    let sandbox = |name: &str| SandboxSpec {
        hostname: format!("{name}-host"),
        names: vec![format!("Container-{name}")],
        ..SandboxSpec::default()
    };
    let ids = ["c1", "c2", "c3", "c4"];
    let desired = DesiredNetwork {
        networks: networks.into_iter().map(|n| (n.info.id.clone(), n)).collect(),
        sandboxes: ids.iter().map(|&id| (SandboxId::new(id), sandbox(id))).collect(),
        ..DesiredNetwork::default()
    };
    let paths: BTreeMap<_, _> =
        ids.iter().map(|&id| (SandboxId::new(id), PathBuf::from(id))).collect();
    Snapshot::of(&desired, &paths)
}

fn ask(snapshot: &Snapshot, who: &str, name: &str, kind: Kind) -> Outcome {
    lookup(snapshot, &snapshot.views[&SandboxId::new(who)], name, kind)
}

fn addresses(list: &[&str], ttl_s: u32) -> Outcome {
    Outcome::Addresses { addresses: list.iter().map(|a| ip(a)).collect(), ttl_s }
}

#[test]
fn services_tasks_and_containers_have_names() {
    let all = example();
    let check = |who, name: &str, want: Outcome| {
        assert_eq!(ask(&all, who, name, Kind::A), want, "{who} asks for {name}");
    };
    check("c1", "web", addresses(&["10.0.1.2"], 30));
    check("c1", "web-alias", addresses(&["10.0.1.2"], 30));
    check("c1", "web.apps", addresses(&["10.0.1.2"], 30));
    check("c1", "tasks.web", addresses(&["10.0.1.4"], 5));
    check("c1", "tasks.web-alias.apps", addresses(&["10.0.1.4"], 5));
    check("c1", "db", addresses(&["10.0.1.6", "10.0.1.7"], 5));
    check("c1", "tasks.idle", addresses(&[], 5));
    check("c1", "db.1.xyz", addresses(&["10.0.1.6"], 5));
    check("c1", "db.1.xyz.apps", addresses(&["10.0.1.6"], 5));
    check("c1", "front", addresses(&["10.0.1.4"], 5));
    check("c1", "container-c2", addresses(&["172.18.0.3"], 5));
    check("c1", "container-c2.own", addresses(&["172.18.0.3"], 5));
    check("c1", "c1-host", addresses(&["10.0.1.4", "10.1.0.4", "172.18.0.2"], 5));
    // The same name on two networks: the overlay comes first, unless the other one is named.
    check("c1", "web.own", addresses(&["172.18.0.2"], 5));
    check("c2", "web", addresses(&["172.18.0.2"], 5));
}

#[test]
fn other_kinds_of_a_known_name_are_empty() {
    let all = example();
    assert_eq!(ask(&all, "c1", "web", Kind::Aaaa), addresses(&[], 30));
    assert_eq!(ask(&all, "c1", "db", Kind::Other), addresses(&[], 5));
}

#[test]
fn names_of_the_cluster_never_leave_it() {
    let all = example();
    for (who, name) in [
        ("c1", "nothing"),
        ("c1", "nothing.apps"),
        ("c1", "a.b.own"),
        ("c1", "web.ingress"),
        ("c2", "web.apps.own"),
        ("c3", "example.com"),
        ("c4", "example.com"),
    ] {
        assert_eq!(ask(&all, who, name, Kind::A), Outcome::Missing, "{who} asks for {name}");
    }
    assert_eq!(ask(&all, "c1", "example.com", Kind::A), Outcome::Forward);
    // The network is not the asker's, so its name means nothing to him.
    assert_eq!(ask(&all, "c2", "web.apps", Kind::A), Outcome::Forward);
    assert_eq!(ask(&all, "c1", "", Kind::Other), Outcome::Forward);
}

#[test]
fn addresses_have_names() {
    let all = example();
    let name = |name: &str| Outcome::Name { name: name.to_owned(), ttl_s: 5 };
    let of = |who, text: &str| ask(&all, who, text, Kind::Ptr);
    assert_eq!(of("c1", "2.1.0.10.in-addr.arpa"), name("web.apps."));
    assert_eq!(of("c1", "6.1.0.10.in-addr.arpa"), name("db.1.xyz.apps."));
    assert_eq!(of("c1", "3.0.18.172.in-addr.arpa"), name("container-c2.own."));
    assert_eq!(of("c1", "99.1.0.10.in-addr.arpa"), Outcome::Missing);
    assert_eq!(of("c1", "1.100.51.198.in-addr.arpa"), Outcome::Forward);
    assert_eq!(of("c3", "1.100.51.198.in-addr.arpa"), Outcome::Missing);
}

#[test]
fn a_change_makes_one_snapshot_of_another() {
    let (first, mut second) = (example(), example());
    second.revision.0 += 1;
    let gone = second.views.keys().next().unwrap().clone();
    second.views.remove(&gone);
    let zone = second.zones.values_mut().next().unwrap();
    let name = zone.names.keys().next().unwrap().clone();
    zone.names.remove(&name);
    zone.names.insert("new".to_owned(), Default::default());
    zone.pointers.clear();
    let last = second.zones.keys().next_back().unwrap().clone();
    second.zones.remove(&last);
    for (old, new) in [(&first, &second), (&second, &first), (&first, &first)] {
        let mut changed = old.clone();
        changed.apply(new.since(old, 1, 2));
        assert_eq!(changed, *new);
    }
    let nothing = first.since(&first, 1, 2);
    assert!(nothing.zones.is_empty() && nothing.views.is_empty(), "{nothing:?}");
}

#[test]
fn a_snapshot_survives_its_file() {
    let all = example();
    let text = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), all);
}

fn question(name: &str, kind: RecordType) -> Box<Question> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    match parse(&message.to_vec().unwrap()) {
        Parsed::Question(question) => question,
        _ => panic!("not taken for a question"),
    }
}

#[test]
fn an_answer_repeats_the_question_as_it_was_written() {
    let question = question("wEb.", RecordType::A);
    assert_eq!((question.name.as_str(), question.kind), ("web", Kind::A));
    let bytes = question.answer(&addresses(&["10.0.1.2"], 30), false, 1);
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.queries[0].name().to_ascii(), "wEb.");
    assert_eq!(answer.answers[0].name.to_ascii(), "wEb.");
    assert_eq!((answer.metadata.id, answer.answers[0].ttl), (77, 30));
    assert!(answer.metadata.recursion_available && answer.metadata.authoritative);
    assert!(matches!(answer.answers[0].data, RData::A(a) if a.0.octets() == [10, 0, 1, 2]));
}

#[test]
fn what_does_not_fit_is_left_for_tcp() {
    let many: Vec<String> = (0..200).map(|n| format!("10.0.1.{n}")).collect();
    let many = addresses(&many.iter().map(String::as_str).collect::<Vec<_>>(), 5);
    let question = question("tasks.web.", RecordType::A);
    let bytes = question.answer(&many, false, 1);
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 512 && answer.metadata.truncation && !answer.answers.is_empty());
    let whole = Message::from_vec(&question.answer(&many, true, 1)).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
}

#[test]
fn a_missing_name_may_be_remembered_for_a_moment() {
    let bytes = question("nothing.apps.", RecordType::A).answer(&Outcome::Missing, false, 9);
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(matches!(&answer.authorities[0].data, RData::SOA(soa) if soa.minimum == 2));
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let question = Message::new(5, MessageType::Query, OpCode::Query).to_vec().unwrap();
    let Parsed::Refused(answer) = parse(&question) else { panic!("a question without a name") };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (5, ResponseCode::FormErr));
    let response = Message::new(5, MessageType::Response, OpCode::Query).to_vec().unwrap();
    assert!(matches!(parse(&response), Parsed::Ignored));
    assert!(matches!(parse(&[1, 2, 3]), Parsed::Ignored));
    assert!(matches!(parse(&[0xff; 200][..]), Parsed::Ignored));
    assert!(matches!(parse(&[0x7f; 200][..]), Parsed::Refused(_)));
}

#[test]
fn answers_are_bounded() {
    let many: Vec<String> = (0..2500).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let many = addresses(&many.iter().map(String::as_str).collect::<Vec<_>>(), 5);
    let whole = question("tasks.web.", RecordType::A).answer(&many, true, 1);
    let whole = Message::from_vec(&whole).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (2000, false));
    // A client that would take more over UDP.
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("tasks.web.").unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX);
    message.edns = Some(edns);
    let Parsed::Question(asked) = parse(&message.to_vec().unwrap()) else {
        panic!("not taken for a question")
    };
    let bytes = asked.answer(&many, false, 1);
    assert!((513..=4096).contains(&bytes.len()), "{}", bytes.len());
    assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
}
