//! Who must not come in: strangers on the underlay, hosts outside with a route to a bridge, other
//! networks, containers that speak in another's name.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use common::bridges::*;
use common::*;
use shoal_model::net::{Mac, NodeIndex, Protocol};
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::route::Route;
use shoal_network::desired::SandboxId;

/// A second, to see that nothing comes.
const NOTHING: Duration = Duration::from_secs(1);
const PORT: u16 = 9000;

fn listen(ns: &NetnsHandle) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn send(ns: &NetnsHandle, to: &str, text: &[u8]) -> io::Result<usize> {
    let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap()?;
    socket.send_to(text, at(to, PORT))
}

/// What comes next, as text.
fn next(socket: &UdpSocket) -> io::Result<String> {
    let mut buf = [0; 64];
    let len = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = bytes.chunks(2).fold(0u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
    });
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An IPv4 packet with a datagram to [`PORT`].
fn packet(from: Ipv4Addr, to: Ipv4Addr, text: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + text.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    // A datagram without a checksum of its own (RFC 768).
    for part in [PORT, PORT, udp_len, 0] {
        ip.extend(part.to_be_bytes());
    }
    ip.extend(text);
    ip
}

/// What a VXLAN device would send over UDP: header, Ethernet frame, packet.
fn vxlan_frame(vni: u32, to_node: Mac, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08, 0, 0, 0];
    out.extend((vni << 8).to_be_bytes());
    out.extend(to_node.0);
    out.extend([2, 0, 0, 0, 0, 9]);
    out.extend([0x08, 0x00]);
    out.extend(packet);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_of_a_network_send_frames_to_it() {
    let mut lab =
        Running::new(Cluster::new(2, &[Task::new("ta", 0, 4), Task::new("tb", 1, 5)])).await;
    let inside = listen(&lab.sandbox("ta"));
    let frame = |text: &[u8]| {
        let inner = packet(v4("10.0.1.5"), v4("10.0.1.4"), text);
        vxlan_frame(4096, NodeIndex(1).transit_mac(), &inner)
    };
    let deliver = |ns: &NetnsHandle, text: &[u8]| {
        let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
        socket.send_to(&frame(text), at("198.51.100.1", 4789)).unwrap();
    };
    deliver(&lab.lab.client, b"stranger");
    deliver(&lab.lab.hosts[1], b"member");
    assert_eq!(next(&inside).unwrap(), "member");
    send(&lab.sandbox("tb"), "10.0.1.4", b"task").unwrap();
    assert_eq!(next(&inside).unwrap(), "task");

    // A node that left is a stranger from then on.
    lab.change(|cluster| cluster.tasks[1].alive = false).await;
    let mut alone = lab.cluster.desired(0);
    for net in alone.networks.values_mut() {
        net.peers.clear();
    }
    alone.revision.0 += 1;
    complete(&lab.nodes[0].apply(alone).await.unwrap());
    deliver(&lab.lab.hosts[1], b"former member");
    inside.set_read_timeout(Some(NOTHING)).unwrap();
    assert!(next(&inside).is_err());
    assert_eq!(lab.nodes[0].verify().await.unwrap(), []);
    // The guard is repaired when somebody takes it away.
    let host = &lab.lab.hosts[0];
    let guard = host.nft_tables().unwrap().into_iter().find(|t| t.family.as_str() == "inet");
    let mut batch = shoal_netlink::nft::Batch::new();
    batch.delete_table(&guard.unwrap());
    host.commit(batch).unwrap();
    deliver(&lab.lab.client, b"unguarded");
    inside.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(next(&inside).unwrap(), "unguarded", "the frame itself is good");
    inside.set_read_timeout(Some(NOTHING)).unwrap();
    assert_eq!(lab.nodes[0].verify().await.unwrap().len(), 1);
    deliver(&lab.lab.hosts[1], b"former member");
    assert!(next(&inside).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_are_apart_and_outside_reaches_published_ports_only() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let a = Container { name: "a", places: vec![("bridge", "172.17.0.2")] };
    let b = Container { name: "b", places: vec![("other", "172.18.0.2")] };
    let mut want = desired(&[a, b]);
    want.published.extend(publish("bridge", 8080, None, "172.17.0.2"));
    want.published.extend(publish("other", PORT, None, "172.18.0.2"));
    for port in &mut want.published {
        for backend in port.backends.iter_mut().filter(|_| port.port.number == PORT) {
            backend.1 = PORT;
        }
    }
    complete(&node.apply(want).await.unwrap());
    let (a, b) = (sandbox(&node, "a"), sandbox(&node, "b"));
    serve(&a, "a", 80);
    serve(&lab.client, "outside", 7000);
    // The outside host knows the way to the bridges, and to the links between them and the host.
    for range in ["172.17.0.0/16", "172.18.0.0/16", "169.254.128.0/17"] {
        let route = Route::via(range.parse().unwrap(), ip("198.51.100.1"), "eth0");
        lab.client.replace_route(&route).unwrap();
    }
    let inside = listen(&b);
    send(&lab.client, "172.18.0.2", b"by route").unwrap();
    for pair in ["169.254.128.1", "169.254.128.3"] {
        send(&lab.client, pair, b"by link").unwrap();
        send(&a, pair, b"by link from the other bridge").unwrap();
    }
    // From the other bridge it is refused, not lost.
    let neighbour = a.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    neighbour.connect(at("172.18.0.2", PORT)).unwrap();
    neighbour.set_read_timeout(Some(DEADLINE)).unwrap();
    neighbour.send(b"by the other bridge").unwrap();
    assert!(neighbour.recv(&mut [0; 8]).is_err());
    let refused = request(&b, at("172.17.0.2", 80)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // What is published is reached from everywhere, and the way out is open.
    send(&lab.client, "198.51.100.1", b"published").unwrap();
    assert_eq!(next(&inside).unwrap(), "published");
    assert_eq!(request(&lab.client, at("198.51.100.1", 8080)).unwrap().0, "a");
    assert_eq!(request(&b, at("198.51.100.1", 8080)).unwrap().0, "a");
    assert_eq!(request(&a, at("198.51.100.1", 8080)).unwrap().0, "a");
    assert_eq!(request(&a, at("198.51.100.99", 7000)).unwrap().0, "outside");
    assert_eq!(request(&lab.hosts[0], at("172.17.0.2", 80)).unwrap().0, "a");
    node.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_bridge_has_no_door_at_all() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let a = Container { name: "a", places: vec![("bridge", "172.17.0.2")] };
    let b = Container { name: "b", places: vec![("inner", "172.19.0.2")] };
    let mut want = desired(&[a, b]);
    for net in want.networks.values_mut().filter(|net| net.info.name == "inner") {
        net.info.internal = true;
    }
    for port in want.networks.values_mut().flat_map(|net| &mut net.local_ports) {
        port.default_route &= port.sandbox != SandboxId::new("b");
    }
    complete(&node.apply(want).await.unwrap());
    let (a, b) = (sandbox(&node, "a"), sandbox(&node, "b"));
    let route = Route::via("172.19.0.0/16".parse().unwrap(), ip("198.51.100.1"), "eth0");
    lab.client.replace_route(&route).unwrap();
    let inside = listen(&b);
    let outside = listen(&lab.client);
    let _ = send(&lab.client, "172.19.0.2", b"in");
    let _ = send(&a, "172.19.0.2", b"across");
    let _ = send(&b, "198.51.100.99", b"out");
    send(&a, "198.51.100.99", b"from a").unwrap();
    assert_eq!(next(&outside).unwrap(), "from a");
    send(&b, "172.19.0.2", b"itself").unwrap();
    assert_eq!(next(&inside).unwrap(), "itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_in_anothers_name() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let place = |name, address| Container { name, places: vec![("bridge", address)] };
    let want =
        desired(&[place("a", "172.17.0.2"), place("b", "172.17.0.3"), place("c", "172.17.0.4")]);
    complete(&node.apply(want).await.unwrap());
    let (a, c) = (sandbox(&node, "a"), sandbox(&node, "c"));
    let inside = listen(&c);
    // As a container with CAP_NET_ADMIN may: it takes its neighbour's address, and the host's.
    for address in ["172.17.0.3", "169.254.128.0", "203.0.113.7"] {
        a.add_address("eth0", format!("{address}/32").parse().unwrap()).unwrap();
        let from: IpAddr = ip(address);
        let socket = a.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        let _ = socket.send_to(b"forged", at("172.17.0.4", PORT));
    }
    let socket = a.run(|| UdpSocket::bind((ip("172.17.0.2"), 0))).unwrap().unwrap();
    socket.send_to(b"true", at("172.17.0.4", PORT)).unwrap();
    assert_eq!(next(&inside).unwrap(), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_lend_other_nodes_its_way_out() {
    let lab = Running::new(Cluster::new(2, &[Task::new("ta", 0, 4), Task::new("tb", 1, 5)])).await;
    let outside = listen(&lab.lab.client);
    let socket = lab.lab.hosts[1].run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    let inner = packet(v4("10.0.1.5"), v4("198.51.100.99"), b"borrowed");
    let frame = vxlan_frame(4096, NodeIndex(1).transit_mac(), &inner);
    socket.send_to(&frame, at("198.51.100.1", 4789)).unwrap();
    send(&lab.sandbox("ta"), "198.51.100.99", b"own").unwrap();
    assert_eq!(next(&outside).unwrap(), "own");
}

/// A host that passed nothing on between its links does not begin to because Shoal has come.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_no_router_does_not_become_one() {
    let lab = Lab::new(2);
    // The second host of the lab gets its own wire to the first one, and a way over it.
    let (router, far) = (&lab.hosts[0], &lab.hosts[1]);
    let up = shoal_netlink::link::LinkOptions { up: true, ..Default::default() };
    router.create_veth("eth1", &up, far, "eth1", &up).unwrap();
    router.add_address("eth1", "203.0.113.1/24".parse().unwrap()).unwrap();
    far.add_address("eth1", "203.0.113.2/24".parse().unwrap()).unwrap();
    far.delete_address("eth0", "198.51.100.2/24".parse().unwrap()).unwrap();
    let back = Route::via("198.51.100.0/24".parse().unwrap(), ip("203.0.113.1"), "eth1");
    far.replace_route(&back).unwrap();
    let there = Route::via("203.0.113.0/24".parse().unwrap(), ip("198.51.100.1"), "eth0");
    lab.client.replace_route(&there).unwrap();
    let inside = listen(far);

    for life in 0..2 {
        let node = node(&lab).await;
        let mut want = desired(&[Container { name: "a", places: vec![("bridge", "172.17.0.2")] }]);
        want.published.extend(publish("bridge", 8080, None, "172.17.0.2"));
        complete(&node.apply(want).await.unwrap());
        if life == 0 {
            serve(&sandbox(&node, "a"), "a", 80);
        }
        assert_eq!(router.sysctl("net/ipv4/ip_forward").unwrap(), "1");
        send(&lab.client, "203.0.113.2", b"through").unwrap();
        assert_eq!(request(&lab.client, at("198.51.100.1", 8080)).unwrap().0, "a");
        assert_eq!(request(far, at("203.0.113.1", 8080)).unwrap().0, "a");
        if life == 0 {
            node.close().await;
        } else {
            node.teardown().await.unwrap();
            assert_eq!(router.sysctl("net/ipv4/ip_forward").unwrap(), "0");
        }
    }
    send(router, "203.0.113.2", b"own").unwrap();
    assert_eq!(next(&inside).unwrap(), "own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_has_one_holder_and_the_other_hears_who_it_is() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let place = |name, address| Container { name, places: vec![("bridge", address)] };
    let mut want = desired(&[place("a", "172.17.0.2"), place("b", "172.17.0.3")]);
    want.published.extend(publish("bridge", 8080, None, "172.17.0.2"));
    complete(&node.apply(want.clone()).await.unwrap());
    serve(&sandbox(&node, "a"), "a", 80);
    serve(&sandbox(&node, "b"), "b", 80);
    // A service comes and wants the port too, first in the list; and a port of another program.
    let _nginx = lab.hosts[0].run(|| std::net::TcpListener::bind("0.0.0.0:8081")).unwrap().unwrap();
    serve(&lab.hosts[0], "host", 8082);
    let mut service = publish("bridge", 8080, None, "172.17.0.3").to_vec();
    service.extend(publish("bridge", 8082, None, "172.17.0.3"));
    service.iter_mut().for_each(|port| port.holder = "service 'web'".into());
    want.published.splice(0..0, service);
    let applied = node.apply(want.clone()).await.unwrap();
    let seen: Vec<_> = applied
        .ports
        .iter()
        .map(|c| (c.place.port.number, c.wanted_by.as_str(), c.held_by.clone().unwrap()))
        .collect();
    let web = "service 'web'";
    assert_eq!(seen[0], (8080, web, "container 'x'".to_owned()));
    assert_eq!(seen[1], (8080, web, "container 'x'".to_owned()));
    assert_eq!((seen[2].0, seen[2].1), (8082, web));
    assert!(seen[2].2.contains("listens on") || seen[2].2.contains("bound to"), "{seen:?}");
    let text = &applied.ports[0].cause;
    assert!(text.starts_with("port 8080/"), "{text}");
    assert!(text.contains("container 'x' publishes it on this node already"), "{text}");
    assert!(applied.networks.is_empty() && applied.sandboxes.is_empty(), "{applied:#?}");
    for _ in 0..3 {
        assert_eq!(request(&lab.client, at("198.51.100.1", 8080)).unwrap().0, "a");
        assert_eq!(request(&lab.client, at("198.51.100.1", 8082)).unwrap().0, "host");
    }
    // When the container is gone, the service gets it.
    want.published.retain(|port| port.holder != "container 'x'" || port.port.number != 8080);
    let applied = node.apply(want).await.unwrap();
    assert!(applied.ports.iter().all(|c| c.place.port.number == 8082), "{applied:#?}");
    assert_eq!(request(&lab.client, at("198.51.100.1", 8080)).unwrap().0, "b");
    let tcp = |c: &&shoal_network::claims::PortConflict| c.place.port.protocol == Protocol::Tcp;
    assert_eq!(applied.ports.iter().filter(tcp).count(), 1);
}
