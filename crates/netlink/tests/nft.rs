//! Rulesets as another tool reads them back, and packets that take the way the rules say.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::Scratch;
use serde_json::{Value, json};
use shoal_model::fault::chain;
use shoal_model::net::{Mac, Vni};
use shoal_netlink::link::{LinkOptions, VxlanSpec};
use shoal_netlink::nft::{
    Base, Batch, CtTimeout, Element, Expr, Family, Field, FieldType, Hook, Load, Reg, Reject, Rule,
    Set, SetRef, Table, Verdict, ct_state, ct_status, priority,
};
use shoal_netlink::route::Route;

const DEADLINE: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn up() -> LinkOptions {
    LinkOptions { up: true, ..LinkOptions::default() }
}

/// What the nft tool reads back: the rules of a chain as their expressions, without handles.
fn oracle(scratch: &Scratch, kind: &str) -> Vec<Value> {
    let text = scratch.output(&["nft", "--json", "list", "ruleset"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    let list = all["nftables"].as_array().unwrap();
    list.iter().filter_map(|item| item.get(kind)).cloned().collect()
}

fn check(rule: Rule, want: Value) {
    check_in(Family::Inet, &Base::filter(Hook::Prerouting, priority::MANGLE), rule, want);
}

fn check_in(family: Family, base: &Base, rule: Rule, want: Value) {
    let scratch = Scratch::new();
    if let Some(device) = &base.device {
        scratch.ns.create_bridge(device, &up()).unwrap();
    }
    let table = Table::new(family, "t");
    let numbers = Set::map("numbers", [FieldType::Number], [FieldType::Mac]);
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_set(&table, &numbers);
    batch.add_set(&table, &Set::plain("ports", [FieldType::Protocol, FieldType::Port]));
    if family != Family::Netdev {
        batch.add_ct_timeout(&table, &CtTimeout::syn_sent("fast", false, 1));
    }
    batch.add_base_chain(&table, "c", base);
    batch.add_chain(&table, "other");
    batch.add_rule(&table, "c", &rule);
    scratch.ns.commit(batch).unwrap_or_else(|e| panic!("{}", chain(&e)));
    let rules = oracle(&scratch, "rule");
    assert_eq!(rules[0]["expr"], want, "{}", rules[0]["expr"]);
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn eq(left: Value, right: Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

#[test]
fn matches_read_back_as_meant() {
    let meta = |key: &str| json!({"meta": {"key": key}});
    check(
        Rule::new("").iifname("vx").oifname("p*").l4proto(6).dport(80).accept(),
        json!([
            eq(meta("iifname"), json!("vx")),
            eq(meta("oifname"), json!("p*")),
            eq(payload("tcp", "dport"), json!(80)),
            {"accept": null}
        ]),
    );
    check(
        Rule::new("")
            .ipv4()
            .saddr(ip("10.0.1.4"))
            .daddr_in("10.1.0.0/16".parse().unwrap())
            .jump("other"),
        json!([
            eq(payload("ip", "saddr"), json!("10.0.1.4")),
            eq(payload("ip", "daddr"), json!({"prefix": {"addr": "10.1.0.0", "len": 16}})),
            {"jump": {"target": "other"}}
        ]),
    );
    check(
        Rule::new("").ipv6().daddr(ip("fd00::1")).mark(7).drop_packet(),
        json!([
            eq(payload("ip6", "daddr"), json!("fd00::1")),
            eq(meta("mark"), json!(7)),
            {"drop": null}
        ]),
    );
    check(
        Rule::new("")
            .l4proto(6)
            .tcp_flags(0x17, 0x02)
            .ct_state(ct_state::NEW)
            .counter()
            .give_back(),
        json!([
            {"match": {"op": "==", "left": {"&": [payload("tcp", "flags"),
                ["fin", "syn", "rst", "ack"]]}, "right": "syn"}},
            {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}},
            {"counter": {"packets": 0, "bytes": 0}},
            {"return": null}
        ]),
    );
}

#[test]
fn matches_of_connections_and_sets_read_back_as_meant() {
    let meta = |key: &str| json!({"meta": {"key": key}});
    check(
        Rule::new("").ct_status(ct_status::DNAT).ct_reply().mark_from_ct(),
        json!([
            {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}},
            eq(json!({"ct": {"key": "direction"}}), json!("reply")),
            {"mangle": {"key": meta("mark"), "value": {"ct": {"key": "mark"}}}}
        ]),
    );
    check(
        Rule::new("").daddr_local().l4proto(17).reject(Reject::IcmpxPort),
        json!([
            eq(json!({"fib": {"result": "type", "flags": ["daddr"]}}), json!("local")),
            eq(meta("l4proto"), json!("udp")),
            {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
        ]),
    );
    check(
        Rule::new("")
            .in_set(&[Load::L4Proto, Load::Dport], "ports")
            .l4proto(6)
            .reject(Reject::TcpReset),
        json!([
            eq(json!({"concat": [meta("l4proto"), payload("th", "dport")]}), json!("@ports")),
            {"match": {"op": "==", "left": meta("l4proto"), "right": "tcp"}},
            {"reject": {"type": "tcp reset"}}
        ]),
    );
}

#[test]
fn statements_and_own_sets_read_back_as_meant() {
    let own = Set::plain("", [FieldType::Port]);
    let ports = [Element::member([Field::Port(80)]), Element::member([Field::Port(443)])];
    check(
        Rule::new("").l4proto(6).in_set(&[Load::Dport], SetRef::Own(own, ports.into())).notrack(),
        json!([eq(payload("tcp", "dport"), json!({"set": [80, 443]})), {"notrack": null}]),
    );
    let verdicts = Set::verdicts("", [FieldType::Protocol]);
    let elements = [
        Element::verdict([Field::Protocol(6)], Verdict::Accept),
        Element::verdict([Field::Protocol(17)], Verdict::Jump("other".to_owned())),
    ];
    check(
        Rule::new("").verdict_map(&[Load::L4Proto], SetRef::Own(verdicts, elements.into())),
        json!([{"vmap": {"key": {"meta": {"key": "l4proto"}}, "data": {"set": [
            ["tcp", {"accept": null}], ["udp", {"jump": {"target": "other"}}]]}}}]),
    );
    check_in(
        Family::Ip,
        &Base::filter(Hook::Prerouting, priority::MANGLE),
        Rule::new("").l4proto(6).ct_timeout("fast"),
        json!([eq(json!({"meta": {"key": "l4proto"}}), json!("tcp")), {"ct timeout": "fast"}]),
    );
    check_in(
        Family::Ip,
        &Base::dstnat(),
        Rule::new("").l4proto(6).dport(80).dnat(ip("10.0.1.4"), Some(8080)),
        json!([eq(payload("tcp", "dport"), json!(80)),
            {"dnat": {"addr": "10.0.1.4", "port": 8080}}]),
    );
    check(
        Rule::new("").l4proto(17).dport(53).set_port(17, true, 1011),
        json!([eq(payload("udp", "dport"), json!(53)),
            {"mangle": {"key": payload("udp", "dport"), "value": 1011}}]),
    );
    check_in(
        Family::Ip6,
        &Base::dstnat_output(),
        Rule::new("").dnat(ip("fd00::4"), None),
        json!([{"dnat": {"addr": "fd00::4"}}]),
    );
    check_in(
        Family::Ip,
        &Base::srcnat(),
        Rule::new("").not_oifname("vx").masquerade(),
        json!([{"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "vx"}},
            {"masquerade": null}]),
    );
    check(
        Rule::new("").push(Expr::Limit { per_second: 10, burst: 5 }).set_mark(3).set_ct_mark(4),
        json!([
            {"limit": {"rate": 10, "burst": 5, "per": "second"}},
            {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 3}},
            {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 4}}
        ]),
    );
}

#[test]
fn egress_rewrites_the_destination_by_a_map_from_mark_to_mac() {
    let dummy = Mac([2, 0, 0, 0, 0, 1]);
    // The tool names the field only where it knows that the device is an Ethernet.
    let bits = json!({"payload": {"base": "ll", "offset": 0, "len": 48}});
    check_in(
        Family::Netdev,
        &Base::egress("vx"),
        Rule::new("").ether_daddr(dummy).ether_daddr_map(&[Load::Mark], "numbers"),
        json!([
            eq(bits.clone(), json!(0x0200_0000_0001_u64)),
            {"mangle": {"key": bits,
                "value": {"map": {"key": {"meta": {"key": "mark"}}, "data": "@numbers"}}}}
        ]),
    );
}

/// A set of each kind, with elements.
fn examples() -> Vec<(Set, Vec<Element>)> {
    let keys = [FieldType::Ip, FieldType::Number];
    vec![
        (
            Set::map("buckets", keys, [FieldType::Ip, FieldType::Port]),
            (0..2000)
                .map(|n| {
                    let key = [Field::Ip([10, 0, 1, 2].into()), Field::Number(n)];
                    Element::entry(key, [Field::Ip([10, 0, 1, 4].into()), Field::Port(80)])
                })
                .collect(),
        ),
        (
            Set::plain("links", [FieldType::Link]),
            vec![Element::member([Field::Link("vx".to_owned())])],
        ),
        (
            Set::map("six", [FieldType::Ip6, FieldType::Protocol], [FieldType::Ip6]),
            vec![Element::entry(
                [Field::from(ip("fd00::2")), Field::Protocol(6)],
                [Field::from(ip("fd00::4"))],
            )],
        ),
        (
            Set::plain("subnets", [FieldType::Ip]).interval(),
            ["10.0.0.0/8", "192.168.1.0/24", "255.0.0.0/8"]
                .map(|net| Element::prefix(net.parse().unwrap()))
                .to_vec(),
        ),
        (
            Set::plain("pairs", [FieldType::Ip, FieldType::Port]).interval(),
            vec![Element {
                end: Some(vec![Field::Ip([10, 0, 1, 255].into()), Field::Port(99)]),
                ..Element::member([Field::Ip([10, 0, 1, 0].into()), Field::Port(80)])
            }],
        ),
        (
            Set::verdicts("decide", [FieldType::Mac]),
            vec![Element::verdict([Field::Mac(Mac([2; 6]))], Verdict::Jump("c".to_owned()))],
        ),
    ]
}

#[test]
fn sets_maps_and_ranges_are_listed_as_they_were_added() {
    let scratch = Scratch::new();
    let table = Table::new(Family::Inet, "t");
    let sets = examples();
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_chain(&table, "c");
    for (set, elements) in &sets {
        batch.add_set(&table, set);
        batch.add_elements(&table, set, elements);
    }
    scratch.ns.commit(batch).unwrap_or_else(|e| panic!("{}", chain(&e)));
    for (set, elements) in &sets {
        let mut want: Vec<Element> = elements.clone();
        want.sort();
        assert_eq!(&scratch.ns.nft_elements(&table, set).unwrap(), &want, "{}", set.name);
    }
    let listed = oracle(&scratch, "set");
    let subnets = listed.iter().find(|s| s["name"] == "subnets").unwrap();
    assert_eq!(subnets["elem"][0], json!({"prefix": {"addr": "10.0.0.0", "len": 8}}));
    let pairs = listed.iter().find(|s| s["name"] == "pairs").unwrap();
    assert_eq!(
        pairs["elem"][0],
        json!({"concat": [{"prefix": {"addr": "10.0.1.0", "len": 24}}, {"range": [80, 99]}]})
    );
    let maps = oracle(&scratch, "map");
    let buckets = maps.iter().find(|s| s["name"] == "buckets").unwrap();
    assert_eq!(buckets["elem"].as_array().unwrap().len(), 2000);
    let names: BTreeSet<String> =
        scratch.ns.nft_sets(&table).unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names.len(), sets.len());
}

#[test]
fn elements_are_deleted_one_by_one_or_all_at_once() {
    let scratch = Scratch::new();
    let table = Table::new(Family::Inet, "t");
    let (set, elements) = &examples()[0];
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_set(&table, set);
    batch.add_elements(&table, set, elements);
    scratch.ns.commit(batch).unwrap();
    let mut batch = Batch::new();
    batch.delete_elements(&table, set, &elements[..1999]);
    scratch.ns.commit(batch).unwrap();
    assert_eq!(scratch.ns.nft_elements(&table, set).unwrap(), elements[1999..]);
    let mut batch = Batch::new();
    batch.flush_set(&table, "buckets");
    scratch.ns.commit(batch).unwrap();
    assert_eq!(scratch.ns.nft_elements(&table, set).unwrap(), []);
}

#[test]
fn a_transaction_is_all_or_nothing_and_its_error_names_the_change() {
    let scratch = Scratch::new();
    let table = Table::new(Family::Inet, "t");
    let generation = scratch.ns.nft_generation().unwrap();
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_chain(&table, "c");
    batch.add_rule(&table, "c", &Rule::new("points nowhere").jump("missing"));
    batch.add_rule(&table, "c", &Rule::new("fine").accept());
    let error = scratch.ns.commit(batch).unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("add the nft rule 'inet t c: points nowhere' in '"), "{text}");
    assert_eq!(scratch.ns.nft_tables().unwrap(), []);
    assert_eq!(scratch.ns.nft_generation().unwrap(), generation);

    let set = Set::plain("s", [FieldType::Port]);
    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_elements(&table, &set, &[Element::member([Field::Number(1)])]);
    let text = chain(&scratch.ns.commit(batch).unwrap_err());
    assert!(text.contains("an element is not made of what the set is made of"), "{text}");

    let mut batch = Batch::new();
    batch.add_table(&table);
    batch.add_base_chain(&table, "pre", &Base::dstnat());
    batch.add_chain(&table, "c");
    batch.add_rule(&table, "c", &Rule::new("one").accept());
    batch.add_rule(&table, "c", &Rule::new("two").push(Expr::Load(Load::Mark, Reg(3))));
    scratch.ns.commit(batch).unwrap();
    assert_ne!(scratch.ns.nft_generation().unwrap(), generation);
    assert_eq!(scratch.ns.nft_tables().unwrap(), vec![table.clone()]);
    let chains = scratch.ns.nft_chains(&table).unwrap();
    let pre = chains.iter().find(|c| c.name == "pre").unwrap();
    assert_eq!(pre.base, Some((0, priority::DSTNAT, None)));
    let rules = scratch.ns.nft_rules(&table).unwrap();
    let comments: Vec<_> = rules.iter().map(|r| r.comment.as_str()).collect();
    assert_eq!(comments, ["one", "two"]);
    let mut batch = Batch::new();
    batch.delete_rule(&table, "c", rules[0].handle);
    scratch.ns.commit(batch).unwrap();
    assert_eq!(scratch.ns.nft_rules(&table).unwrap().len(), 1);
    let mut batch = Batch::new();
    batch.delete_table(&table);
    batch.delete_table(&Table::new(Family::Ip, "never was"));
    scratch.ns.commit(batch).unwrap();
    assert_eq!(scratch.ns.nft_tables().unwrap(), []);
    assert_eq!(scratch.ns.nft_rules(&table).unwrap(), []);
    scratch.ns.commit(Batch::new()).unwrap();
}

/// A client, a router with the rules, and a namespace with several servers.
struct Path3 {
    client: Scratch,
    router: Scratch,
    servers: Scratch,
}

fn path3() -> Path3 {
    let path = Path3 { client: Scratch::new(), router: Scratch::new(), servers: Scratch::new() };
    let (c, r, s) = (&path.client.ns, &path.router.ns, &path.servers.ns);
    c.create_veth("eth0", &up(), r, "c", &up()).unwrap();
    s.create_veth("eth0", &up(), r, "s", &up()).unwrap();
    for (ns, link, address) in [
        (c, "eth0", "10.7.0.2/24"),
        (r, "c", "10.7.0.1/24"),
        (r, "s", "10.8.0.1/24"),
        (s, "eth0", "10.8.0.4/24"),
        (s, "eth0", "10.8.0.5/24"),
    ] {
        ns.add_address(link, address.parse().unwrap()).unwrap();
    }
    let all = Route::default_of(ip("10.0.0.0"));
    c.add_route(&Route::via(all, ip("10.7.0.1"), "eth0")).unwrap();
    s.add_route(&Route::via(all, ip("10.8.0.1"), "eth0")).unwrap();
    r.set_sysctls(&[("net/ipv4/ip_forward", "1")]).unwrap();
    path
}

/// A server that tells each client which address it listens on and whom it sees.
fn serve(scratch: &Scratch, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = scratch.ns.run(|| TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let seen = stream.peer_addr().unwrap().ip();
            stream.write_all(format!("{address} sees {seen}").as_bytes()).unwrap();
        }
    });
}

fn ask(scratch: &Scratch, address: &str) -> String {
    let address = address.parse().unwrap();
    let connect = || TcpStream::connect_timeout(&address, DEADLINE);
    let mut stream = scratch.ns.run(connect).unwrap().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn buckets(backends: &[&str]) -> Vec<Element> {
    let vip = Field::from(ip("10.9.0.2"));
    (0..16_u32)
        .map(|n| {
            let backend = Field::from(ip(backends[n as usize % backends.len()]));
            Element::entry([vip.clone(), Field::Number(n)], [backend])
        })
        .collect()
}

#[test]
fn connections_to_a_virtual_address_reach_all_backends() {
    let path = path3();
    serve(&path.servers, "10.8.0.4:80");
    serve(&path.servers, "10.8.0.5:80");
    let table = Table::new(Family::Ip, "lb");
    let set = Set::map("buckets", [FieldType::Ip, FieldType::Number], [FieldType::Ip]);
    let key = [Load::IpDaddr, Load::random(16)];
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_set(&table, &set);
    batch.add_elements(&table, &set, &buckets(&["10.8.0.4", "10.8.0.5"]));
    batch.add_base_chain(&table, "pre", &Base::dstnat());
    batch.add_rule(&table, "pre", &Rule::new("balance").dnat_map(&key, "buckets", false));
    path.router.ns.commit(batch).unwrap();
    let answers: BTreeSet<String> = (0..40).map(|_| ask(&path.client, "10.9.0.2:80")).collect();
    let want = ["10.8.0.4:80 sees 10.7.0.2", "10.8.0.5:80 sees 10.7.0.2"];
    assert_eq!(answers, want.map(str::to_owned).into());

    let mut batch = Batch::new();
    batch.flush_set(&table, "buckets");
    batch.add_elements(&table, &set, &buckets(&["10.8.0.5"]));
    path.router.ns.commit(batch).unwrap();
    let answers: BTreeSet<String> = (0..10).map(|_| ask(&path.client, "10.9.0.2:80")).collect();
    assert_eq!(answers, [want[1].to_owned()].into());
}

#[test]
fn a_published_port_becomes_address_and_port_of_a_backend() {
    let path = path3();
    serve(&path.servers, "10.8.0.4:80");
    serve(&path.servers, "10.8.0.5:81");
    let types = [FieldType::Protocol, FieldType::Port, FieldType::Number];
    let set = Set::map("ports", types, [FieldType::Ip, FieldType::Port]);
    let entry = |bucket, backend: &str, port| {
        let key = [Field::Protocol(6), Field::Port(8091), Field::Number(bucket)];
        Element::entry(key, [Field::from(ip(backend)), Field::Port(port)])
    };
    let table = Table::new(Family::Ip, "mesh");
    let key = [Load::L4Proto, Load::Dport, Load::in_turn(2)];
    let rule = Rule::new("mesh").daddr_local().dnat_map(&key, "ports", true);
    let refuse = Rule::new("nobody").l4proto(6).dport(9).reject(Reject::TcpReset);
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_set(&table, &set);
    batch.add_elements(&table, &set, &[entry(0, "10.8.0.4", 80), entry(1, "10.8.0.5", 81)]);
    batch.add_base_chain(&table, "pre", &Base::dstnat());
    batch.add_rule(&table, "pre", &rule);
    batch.add_base_chain(&table, "in", &Base::filter(Hook::Input, priority::FILTER));
    batch.add_rule(&table, "in", &refuse);
    path.router.ns.commit(batch).unwrap();
    let answers: Vec<String> = (0..4).map(|_| ask(&path.client, "10.7.0.1:8091")).collect();
    for want in ["10.8.0.4:80 sees 10.7.0.2", "10.8.0.5:81 sees 10.7.0.2"] {
        assert_eq!(answers.iter().filter(|a| *a == want).count(), 2, "{answers:?}");
    }
    let connect = || TcpStream::connect_timeout(&"10.7.0.1:9".parse().unwrap(), DEADLINE);
    let refused = path.client.ns.run(connect).unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// What comes in over `vx` from the node with that MAC goes back to it, whatever its address is.
fn remember_and_rewrite(side: &Scratch, node_mac: Mac, dummy: Mac) {
    let (inet, netdev) = (Table::new(Family::Inet, "back"), Table::new(Family::Netdev, "out"));
    let marks = Set::map("marks", [FieldType::Mac], [FieldType::Number]);
    let nodes = Set::map("nodes", [FieldType::Number], [FieldType::Mac]);
    let mut batch = Batch::new();
    batch.replace_table(&inet);
    batch.add_set(&inet, &marks);
    let mark = [Element::entry([Field::Mac(node_mac)], [Field::Number(1)])];
    batch.add_elements(&inet, &marks, &mark);
    batch.add_base_chain(&inet, "pre", &Base::filter(Hook::Prerouting, priority::MANGLE));
    let remember = Rule::new("remember the ingress node")
        .counter()
        .iifname("vx")
        .ct_state(ct_state::NEW)
        .ct_mark_map(&[Load::EtherSaddr], "marks");
    batch.add_rule(&inet, "pre", &remember);
    let route = Base::new(shoal_netlink::nft::ChainKind::Route, Hook::Output, priority::MANGLE);
    batch.add_base_chain(&inet, "out", &route);
    batch.add_rule(&inet, "out", &Rule::new("give it back").counter().ct_reply().mark_from_ct());
    batch.replace_table(&netdev);
    batch.add_set(&netdev, &nodes);
    let node = [Element::entry([Field::Number(1)], [Field::Mac(node_mac)])];
    batch.add_elements(&netdev, &nodes, &node);
    batch.add_base_chain(&netdev, "egress", &Base::egress("vx"));
    let rewrite =
        Rule::new("to the ingress node").ether_daddr(dummy).ether_daddr_map(&[Load::Mark], "nodes");
    batch.add_rule(&netdev, "egress", &rewrite);
    side.ns.commit(batch).unwrap_or_else(|e| panic!("{}", chain(&e)));
}

#[test]
fn replies_find_their_ingress_node_by_connection_mark_and_rewritten_mac() {
    // The outer packets' route is looked up by the inner one's mark too, so they need a namespace
    // without the rule for marks.
    let (a, b, host_a, host_b) = (Scratch::new(), Scratch::new(), Scratch::new(), Scratch::new());
    host_a.ns.create_veth("wire", &up(), &host_b.ns, "wire", &up()).unwrap();
    let macs = [Mac([2, 0xfe, 0xa9, 0xfe, 0, 1]), Mac([2, 0xfe, 0xa9, 0xfe, 0, 2])];
    for (side, host, n) in [(&a, &host_a, 1), (&b, &host_b, 2)] {
        let local = ip(&format!("198.51.100.{n}"));
        host.ns.add_address("wire", format!("{local}/24").parse().unwrap()).unwrap();
        let spec =
            VxlanSpec { vni: Vni(5000), port: 4789, local, underlay: Some("wire".to_owned()) };
        let options = LinkOptions { mac: Some(macs[n - 1]), mtu: Some(1450), ..up() };
        host.ns.create_vxlan("vx", &spec, &options, &side.ns).unwrap();
        let other = 2 - n;
        let remote = ip(&format!("198.51.100.{}", other + 1));
        let entry = shoal_netlink::neighbour::FdbEntry { mac: macs[other], destination: remote };
        side.ns.append_fdb("vx", entry).unwrap();
    }
    // A sends from an address that B has no route to: only the mark can bring the answer back.
    a.ns.add_address("vx", "203.0.113.9/32".parse().unwrap()).unwrap();
    a.ns.set_neighbour("vx", ip("10.0.1.5"), macs[1]).unwrap();
    a.ns.add_route(&Route::dev("10.0.1.5/32".parse().unwrap(), "vx")).unwrap();
    b.ns.add_address("vx", "10.0.1.5/32".parse().unwrap()).unwrap();
    let (dummy, gateway) = (Mac([2, 0, 0, 0, 0, 1]), ip("169.254.255.254"));
    b.ns.set_neighbour("vx", gateway, dummy).unwrap();
    let back = Route::via(Route::default_of(gateway), gateway, "vx").onlink().in_table(7);
    b.ns.add_route(&back).unwrap();
    b.ns.set_sysctls(&[
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/vx/rp_filter", "0"),
        ("net/ipv4/fwmark_reflect", "0"),
    ])
    .unwrap();
    let rule = shoal_netlink::rule::Rule {
        ipv6: false,
        priority: 100,
        mark: Some((1, 0xffff)),
        from: None,
        iif: None,
        table: 7,
    };
    b.ns.add_rule(&rule).unwrap();
    remember_and_rewrite(&b, macs[0], dummy);

    // UDP, because an answer to an unknown source needs no route before the mark is set there.
    b.ns.add_route(&Route::via(Route::default_of(gateway), gateway, "vx").onlink()).unwrap();
    let server = b.ns.run(|| UdpSocket::bind("10.0.1.5:53")).unwrap().unwrap();
    let client = a.ns.run(|| UdpSocket::bind("203.0.113.9:0")).unwrap().unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    // A link that has just come up may still lose packets.
    let deadline = Instant::now() + DEADLINE;
    let mut buf = [0; 16];
    let answer = loop {
        assert!(Instant::now() < deadline, "no answer");
        client.send_to(b"where", "10.0.1.5:53").unwrap();
        let Ok((len, from)) = server.recv_from(&mut buf) else { continue };
        assert_eq!((&buf[..len], from.ip()), (&b"where"[..], ip("203.0.113.9")));
        server.send_to(b"here", from).unwrap();
        if let Ok((len, _)) = client.recv_from(&mut buf) {
            break buf[..len].to_vec();
        }
    };
    assert_eq!(answer, b"here");
}
