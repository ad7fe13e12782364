//! Tracked flows and sockets: found by what they are, and ended.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::Scratch;
use shoal_netlink::conntrack::Filter;
use shoal_netlink::nft::{Base, Batch, CtTimeout, Family, Rule, Table};
use shoal_netlink::sockdiag::{STATE_LISTEN, Transport};

const DEADLINE: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace whose own connections to 10.9.0.2 go to 127.0.0.9.
fn translated() -> Scratch {
    let scratch = Scratch::new();
    scratch.ns.add_address("lo", "10.9.0.1/32".parse().unwrap()).unwrap();
    scratch.ns.add_address("lo", "10.8.0.4/32".parse().unwrap()).unwrap();
    let all = shoal_netlink::route::Route::dev("10.9.0.2/32".parse().unwrap(), "lo");
    scratch.ns.add_route(&all).unwrap();
    let table = Table::new(Family::Ip, "t");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_base_chain(&table, "out", &Base::dstnat_output());
    batch.add_ct_timeout(&table, &CtTimeout::syn_sent("fast", false, 1));
    let mangle = Base::filter(shoal_netlink::nft::Hook::Output, -150);
    batch.add_base_chain(&table, "mangle", &mangle);
    let rule = Rule::new("fast").l4proto(6).daddr(ip("10.9.0.2")).ct_timeout("fast");
    batch.add_rule(&table, "mangle", &rule);
    let rule = Rule::new("vip").daddr(ip("10.9.0.2")).dnat(ip("10.8.0.4"), None);
    batch.add_rule(&table, "out", &rule);
    scratch.ns.commit(batch).unwrap();
    scratch
}

#[test]
fn flows_to_a_backend_are_found_and_forgotten() {
    let scratch = translated();
    let (client, server) = scratch
        .ns
        .run(|| (UdpSocket::bind("10.9.0.1:0").unwrap(), UdpSocket::bind("10.8.0.4:53").unwrap()))
        .unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    client.send_to(b"x", "10.9.0.2:53").unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    let backend = Filter::backend(ip("10.8.0.4"));
    let flows = scratch.ns.flows(&backend).unwrap();
    assert_eq!(flows.len(), 1, "{flows:?}");
    let flow = &flows[0];
    assert_eq!(flow.original.destination, ip("10.9.0.2"));
    assert_eq!((flow.original.destination_port, flow.original.protocol), (53, 17));
    assert!(flow.is_dnat() && !flow.seen_reply());
    let vip = Filter { original_destination: Some(ip("10.9.0.2")), ..Filter::default() };
    assert_eq!(scratch.ns.flows(&vip).unwrap()[0].original, flow.original);

    server.send_to(b"y", from).unwrap();
    let unreplied = Filter { unreplied: true, ..backend.clone() };
    assert_eq!(scratch.ns.delete_flows(&unreplied).unwrap(), []);
    assert_eq!(scratch.ns.delete_flows(&backend).unwrap().len(), 1);
    assert_eq!(scratch.ns.flows(&backend).unwrap(), []);
    assert!(!scratch.ns.delete_flow(flow).unwrap());
}

#[test]
fn an_unanswered_syn_is_forgotten_as_soon_as_the_policy_says() {
    let scratch = translated();
    let table = Table::new(Family::Ip, "mute");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    let input = Base::filter(shoal_netlink::nft::Hook::Input, 0);
    batch.add_base_chain(&table, "in", &input);
    batch.add_rule(&table, "in", &Rule::new("").l4proto(6).dport(81).drop_packet());
    scratch.ns.commit(batch).unwrap();
    let connect =
        || TcpStream::connect_timeout(&"10.9.0.2:81".parse().unwrap(), Duration::from_millis(50));
    scratch.ns.run(connect).unwrap().unwrap_err();
    let flows = scratch.ns.flows(&Filter::default()).unwrap();
    assert!(flows.iter().all(|flow| flow.timeout_s <= 1), "{flows:?}");
}

#[test]
fn a_destroyed_socket_wakes_its_owner_and_resets_its_peer() {
    let scratch = Scratch::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = scratch.ns.run(|| TcpListener::bind(address)).unwrap().unwrap();
        let at = listener.local_addr().unwrap();
        let mut client = scratch.ns.run(|| TcpStream::connect(at)).unwrap().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let all = scratch.ns.sockets(Transport::Tcp).unwrap();
        let listening = all.iter().find(|s| s.state == STATE_LISTEN && s.local == at).unwrap();
        assert_ne!(listening.inode, 0);
        let destroyed = scratch.ns.destroy_sockets(Transport::Tcp, |s| s.remote == at).unwrap();
        assert_eq!(destroyed.len(), 1);
        let error = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        let error = server.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(!scratch.ns.destroy_socket(&destroyed[0]).unwrap());
    }
}

#[test]
fn udp_sockets_are_listed_with_their_port() {
    let scratch = Scratch::new();
    let socket = scratch.ns.run(|| UdpSocket::bind("127.0.0.11:53")).unwrap().unwrap();
    let all = scratch.ns.sockets(Transport::Udp).unwrap();
    let locals: Vec<_> = all.iter().map(|s| s.local).collect();
    assert_eq!(locals, [socket.local_addr().unwrap()]);
}
