//! Links, addresses, routes, rules, neighbours and forwarding entries in scratch namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::IpAddr;

use common::Scratch;
use ipnet::IpNet;
use shoal_model::fault::chain;
use shoal_model::net::{Mac, Vni};
use shoal_netlink::link::{LinkChange, LinkOptions, VxlanSpec};
use shoal_netlink::neighbour::{FdbEntry, Neighbour};
use shoal_netlink::netns;
use shoal_netlink::route::Route;
use shoal_netlink::rule::Rule;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn options(alias: &str) -> LinkOptions {
    LinkOptions { alias: Some(alias.to_owned()), up: true, ..LinkOptions::default() }
}

fn veth(a: &Scratch, b: &Scratch) {
    a.ns.create_veth("one", &options("x:one"), &b.ns, "two", &options("x:two")).unwrap();
}

#[test]
fn a_namespace_lives_at_its_path_until_it_is_deleted() {
    let path = std::env::temp_dir().join(format!("shoal-netns-{}", std::process::id()));
    assert!(!netns::exists(&path));
    netns::create(&path).unwrap();
    assert!(netns::exists(&path));
    assert!(netns::create(&path).unwrap_err().is_exists());
    let up = netns::run_in(&path, || std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    assert!(up.unwrap().contains("lo:"));
    // The machine that runs this may forward and filter; what it makes does not.
    let handle = netns::NetnsHandle::open(&path).unwrap();
    for key in ["ip_forward", "conf/all/rp_filter", "conf/all/arp_ignore", "conf/lo/forwarding"] {
        assert_eq!(handle.sysctl(&format!("net/ipv4/{key}")).unwrap(), "0", "{key}");
    }
    netns::delete(&path).unwrap();
    netns::delete(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_tap_device_stays_without_a_program_and_takes_one_later() {
    let a = Scratch::new();
    let wanted = LinkOptions { mtu: Some(1400), ..options("x:tap") };
    a.ns.create_tap("p1", 65_534, &wanted).unwrap();
    let link = a.ns.link("p1").unwrap().unwrap();
    assert_eq!((link.kind.as_str(), link.alias.as_str(), link.mtu), ("tun", "x:tap", 1400));
    assert!(link.up);
    assert!(a.ns.create_tap("p1", 0, &wanted).unwrap_err().is_exists());
    let details = a.output(&["ip", "-d", "link", "show", "p1"]);
    for part in ["type tap", "vnet_hdr on", "persist on", "user nobody", "pi off"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    a.ns.delete_link("p1").unwrap();
    assert_eq!(a.ns.link("p1").unwrap(), None);
}

#[test]
fn a_veth_pair_spans_two_namespaces_with_names_aliases_and_macs() {
    let (a, b) = (Scratch::new(), Scratch::new());
    let mac = Mac([2, 0x42, 10, 0, 1, 4]);
    let mine = LinkOptions { mtu: Some(1400), mac: Some(mac), ..options("x:one") };
    a.ns.create_veth("one", &mine, &b.ns, "two", &options("x:two")).unwrap();
    let link = a.ns.link("one").unwrap().unwrap();
    assert_eq!((link.kind.as_str(), link.alias.as_str(), link.mtu), ("veth", "x:one", 1400));
    assert_eq!(link.mac, Some(mac));
    assert!(link.up);
    assert_eq!(b.ns.link("two").unwrap().unwrap().alias, "x:two");
    assert_eq!(a.ns.link("two").unwrap(), None);

    a.ns.set_link("one", &LinkChange { mtu: Some(1300), ..LinkChange::default() }).unwrap();
    assert_eq!(a.ns.link("one").unwrap().unwrap().mtu, 1300);
    let again = a.ns.create_veth("one", &mine, &b.ns, "three", &options("")).unwrap_err();
    assert!(again.is_exists(), "{}", chain(&again));
    a.ns.delete_link("one").unwrap();
    a.ns.delete_link("one").unwrap();
    assert_eq!(b.ns.link("two").unwrap(), None);
    let names: Vec<_> = b.ns.links().unwrap().into_iter().map(|l| l.name).collect();
    assert!(names.contains(&"lo".to_owned()));
}

#[test]
fn a_link_moves_and_is_renamed_and_enters_a_bridge() {
    let (a, b) = (Scratch::new(), Scratch::new());
    veth(&a, &b);
    let change = LinkChange {
        netns: Some(&b.ns),
        name: Some("moved"),
        up: Some(false),
        ..LinkChange::default()
    };
    a.ns.set_link("one", &change).unwrap();
    b.ns.create_bridge("br0", &options("x:bridge")).unwrap();
    b.ns.set_link("moved", &LinkChange { master: Some("br0"), ..LinkChange::default() }).unwrap();
    let (bridge, port) = (b.ns.link("br0").unwrap().unwrap(), b.ns.link("moved").unwrap().unwrap());
    assert_eq!(port.master, Some(bridge.index));
    assert_eq!(bridge.kind, "bridge");
    b.ns.set_link("moved", &LinkChange { master: Some(""), ..LinkChange::default() }).unwrap();
    assert_eq!(b.ns.link("moved").unwrap().unwrap().master, None);
}

#[test]
fn a_vxlan_device_is_made_where_its_packets_leave_and_lives_elsewhere() {
    let (host, other, home) = (Scratch::new(), Scratch::new(), Scratch::new());
    veth(&host, &other);
    host.ns.add_address("one", net("198.51.100.1/24")).unwrap();
    let spec = VxlanSpec {
        vni: Vni(5000),
        port: 4789,
        local: ip("198.51.100.1"),
        underlay: Some("one".to_owned()),
    };
    let mac = Mac([2, 0xfe, 0xa9, 0xfe, 1, 1]);
    let opts = LinkOptions { mtu: Some(1450), mac: Some(mac), ..options("x:vx") };
    host.ns.create_vxlan("vx", &spec, &opts, &home.ns).unwrap();
    assert_eq!(host.ns.link("vx").unwrap(), None);
    let link = home.ns.link("vx").unwrap().unwrap();
    let info = link.vxlan.unwrap();
    assert_eq!((info.vni, info.port, info.local), (Vni(5000), 4789, Some(ip("198.51.100.1"))));
    assert!(!info.learning);
    assert_eq!((link.mac, link.mtu, link.alias.as_str()), (Some(mac), 1450, "x:vx"));
    let twice = host.ns.create_vxlan("vx2", &spec, &opts, &home.ns).unwrap_err();
    assert!(twice.is_exists(), "{}", chain(&twice));

    let peer = Mac([2, 0xfe, 0xa9, 0xfe, 1, 2]);
    let entry = FdbEntry { mac: peer, destination: ip("198.51.100.2") };
    home.ns.append_fdb("vx", entry).unwrap();
    home.ns.append_fdb("vx", entry).unwrap();
    assert_eq!(home.ns.fdb("vx").unwrap(), vec![entry]);
    let moved = FdbEntry { destination: ip("198.51.100.3"), ..entry };
    home.ns.set_fdb("vx", moved).unwrap();
    assert_eq!(home.ns.fdb("vx").unwrap(), vec![moved]);
    home.ns.delete_fdb("vx", moved).unwrap();
    home.ns.delete_fdb("vx", moved).unwrap();
    assert_eq!(home.ns.fdb("vx").unwrap(), vec![]);

    home.ns.set_neighbour("vx", ip("169.254.1.2"), peer).unwrap();
    home.ns.set_neighbour("vx", ip("169.254.1.2"), mac).unwrap();
    let all = home.ns.neighbours("vx").unwrap();
    let want = Neighbour { address: ip("169.254.1.2"), mac: Some(mac), permanent: true };
    assert!(all.contains(&want), "{all:?}");
    home.ns.delete_neighbour("vx", ip("169.254.1.2")).unwrap();
    home.ns.delete_neighbour("vx", ip("169.254.1.2")).unwrap();
}

#[test]
fn addresses_routes_and_rules_of_both_families() {
    let (a, b) = (Scratch::new(), Scratch::new());
    veth(&a, &b);
    for address in ["10.0.1.4/24", "fd00:1::4/64"] {
        a.ns.add_address("one", net(address)).unwrap();
        a.ns.add_address("one", net(address)).unwrap();
    }
    let got = a.ns.addresses("one").unwrap();
    assert!(got.contains(&net("10.0.1.4/24")) && got.contains(&net("fd00:1::4/64")), "{got:?}");
    assert!(a.ns.link("one").unwrap().unwrap().addresses.contains(&net("10.0.1.4/24")));

    let routes = [
        Route::via(net("10.9.0.0/16"), ip("10.0.1.1"), "one"),
        Route::via(net("0.0.0.0/0"), ip("169.254.255.254"), "one").onlink().in_table(7),
        Route::dev(net("10.0.2.0/24"), "lo"),
        Route::via(net("fd00:9::/64"), ip("fd00:1::1"), "one"),
        Route::via(net("::/0"), ip("fd00:77::1"), "one").onlink().in_table(700),
    ];
    for route in &routes {
        a.ns.add_route(route).unwrap();
        assert!(a.ns.add_route(route).unwrap_err().is_exists());
    }
    let normal = |mut r: Route| {
        if r.destination.addr().is_ipv6() {
            r.metric = 0;
        }
        r
    };
    let got: Vec<Route> = a.ns.routes().unwrap().into_iter().map(normal).collect();
    for route in &routes {
        assert!(got.contains(route), "{route:?} is not among {got:#?}");
    }
    let other = Route::via(net("10.9.0.0/16"), ip("10.0.1.2"), "one");
    a.ns.replace_route(&other).unwrap();
    assert!(a.ns.routes().unwrap().contains(&other));
    a.ns.delete_route(&other).unwrap();
    a.ns.delete_route(&other).unwrap();
    assert!(!a.ns.routes().unwrap().contains(&other));
    assert_eq!(Route::default_of(ip("10.0.0.1")), net("0.0.0.0/0"));
    assert_eq!(Route::default_of(ip("fd00::1")), net("::/0"));

    let marked = Rule {
        ipv6: false,
        priority: 100,
        mark: Some((1, 0xffff)),
        from: None,
        iif: None,
        table: 7,
    };
    let from = Rule {
        ipv6: true,
        priority: 101,
        mark: None,
        from: Some(net("fd00:1::/64")),
        iif: Some("one".to_owned()),
        table: 700,
    };
    for rule in [&marked, &from] {
        a.ns.add_rule(rule).unwrap();
        a.ns.add_rule(rule).unwrap();
        assert!(a.ns.rules().unwrap().contains(rule), "{:#?}", a.ns.rules());
        a.ns.delete_rule(rule).unwrap();
        a.ns.delete_rule(rule).unwrap();
        assert!(!a.ns.rules().unwrap().contains(rule));
    }
    a.ns.delete_address("one", net("10.0.1.4/24")).unwrap();
    a.ns.delete_address("one", net("10.0.1.4/24")).unwrap();
}

#[test]
fn settings_belong_to_their_namespace_and_errors_name_the_object() {
    let (a, b) = (Scratch::new(), Scratch::new());
    // A new namespace takes its first settings from the host's.
    b.ns.set_sysctls(&[("net/ipv4/ip_forward", "0")]).unwrap();
    a.ns.set_sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")])
        .unwrap();
    assert_eq!(a.ns.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(b.ns.sysctl("net/ipv4/ip_forward").unwrap(), "0");
    let missing = a.ns.set_sysctls(&[("net/ipv4/conf/none/rp_filter", "0")]).unwrap_err();
    assert!(chain(&missing).contains("net/ipv4/conf/none/rp_filter"), "{}", chain(&missing));

    let error = a.ns.set_up("nothing").unwrap_err();
    assert!(error.is_missing());
    let want = format!("find the link 'nothing' in '{}': no such link", a.path.display());
    assert_eq!(chain(&error), want);
    let route = Route::via(net("10.9.0.0/16"), ip("10.0.1.1"), "lo");
    let text = chain(&a.ns.add_route(&route).unwrap_err());
    assert!(text.starts_with("add the route '10.9.0.0/16' in"), "{text}");
    assert!(text.to_lowercase().contains("nexthop has invalid gateway"), "{text}");
}
