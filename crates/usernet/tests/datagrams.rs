//! UDP, ping, and what is no frame at all.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use common::{Guest, PATIENCE, start};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use rustix::net::SendFlags;
use shoal_usernet::config::Config;
use shoal_usernet::link;
use shoal_usernet::network::Network;
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{icmp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpEndpoint};

const GATEWAY: IpAddress = IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 2));
const DNS: IpAddress = IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 3));

fn udp_socket(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer =
        || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 64 * 1024]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    guest.sockets.add(socket)
}

fn receive(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
    let mut got = None;
    guest.until("a datagram", |guest| {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        got = socket.recv().ok().map(|(data, meta)| (data.to_vec(), meta.endpoint));
        got.is_some()
    });
    got.unwrap()
}

/// Answers one datagram with the same, backwards.
fn reversing_server() -> SocketAddr {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = server.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (bytes, from) = server.recv_from(&mut buffer).unwrap();
        buffer[..bytes].reverse();
        server.send_to(&buffer[..bytes], from).unwrap();
    });
    address
}

fn ask(guest: &mut Guest, to: (IpAddress, u16), question: &[u8]) -> (Vec<u8>, IpEndpoint) {
    let handle = udp_socket(guest, 5000);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(question, to).unwrap();
    receive(guest, handle)
}

#[test]
fn the_guest_asks_a_server_of_the_host() {
    let (mut guest, _running) = start(Config::default()).unwrap();
    let port = reversing_server().port();
    let (answer, from) = ask(&mut guest, (GATEWAY, port), b"question");
    assert_eq!(answer, b"noitseuq");
    assert_eq!(from, (GATEWAY, port).into());
}

#[test]
fn the_name_server_is_the_hosts() {
    let config = Config { resolver: Some(reversing_server()), ..Config::default() };
    let (mut guest, _running) = start(config).unwrap();
    let (answer, from) = ask(&mut guest, (DNS, 53), b"name");
    assert_eq!(answer, b"eman");
    assert_eq!(from, (DNS, 53).into());
}

#[test]
fn clients_of_a_published_port_are_told_apart() {
    let config = Config { published: vec!["0:53/udp".parse().unwrap()], ..Config::default() };
    let (mut guest, running) = start(config).unwrap();
    let to = running.addresses()[0];
    let handle = udp_socket(&mut guest, 53);
    // Two addresses of the host with one port: the guest sees the gateway twice.
    let first = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    let second = UdpSocket::bind(("127.0.0.2", port)).unwrap();
    for (client, text) in [(&first, b"one"), (&second, b"two")] {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(text, to).unwrap();
    }
    for _ in 0..2 {
        let (data, from) = receive(&mut guest, handle);
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(&data, from).unwrap();
    }
    guest.poll();
    for (client, text) in [(&first, b"one"), (&second, b"two")] {
        let mut answer = [0; 16];
        let bytes = client.recv(&mut answer).unwrap();
        assert_eq!(&answer[..bytes], text);
    }
}

#[test]
fn nobody_there_is_said_so() {
    let (mut guest, _running) = start(Config::default()).unwrap();
    let unused = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
    let mut errors = icmp::Socket::new(buffer(), buffer());
    errors.bind(icmp::Endpoint::Udp(5000.into())).unwrap();
    let errors = guest.sockets.add(errors);
    let handle = udp_socket(&mut guest, 5000);
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
    socket.send_slice(b"anyone?", (GATEWAY, unused)).unwrap();
    guest.until("the error", |guest| guest.sockets.get_mut::<icmp::Socket<'_>>(errors).can_recv());
    let (data, _) = guest.sockets.get_mut::<icmp::Socket<'_>>(errors).recv().unwrap();
    let packet = Icmpv4Packet::new_checked(data).unwrap();
    let repr = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
    assert!(matches!(repr, Icmpv4Repr::DstUnreachable { .. }), "{repr:?}");
}

#[test]
fn the_gateway_answers_ping() {
    let (mut guest, _running) = start(Config::default()).unwrap();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let handle = guest.sockets.add(socket);
    let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"ping" };
    let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
    let bytes = socket.send(request.buffer_len(), GATEWAY).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    guest.until("the answer", |guest| guest.sockets.get_mut::<icmp::Socket<'_>>(handle).can_recv());
    let (data, from) = guest.sockets.get_mut::<icmp::Socket<'_>>(handle).recv().unwrap();
    assert_eq!(from, GATEWAY);
    let packet = Icmpv4Packet::new_checked(data).unwrap();
    let repr = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).unwrap();
    assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: b"ping" });
}

#[test]
fn it_ends_with_the_guest() {
    let (fd, ours) = link::pair().unwrap();
    let network = Network::bind(Config::default()).unwrap();
    let runner = thread::spawn(move || network.run(ours));
    drop(fd);
    runner.join().unwrap().unwrap();
}

#[test]
fn it_ends_when_told() {
    let (_guest, running) = start(Config::default()).unwrap();
    running.stop().unwrap();
}

/// Something that begins like a frame of the guest: random bytes alone would go no further than the
/// first check.
fn almost_a_frame() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop_oneof![Just(1_u8), Just(6), Just(17), any::<u8>()];
    let target = prop_oneof![Just(2_u8), Just(3), Just(9)];
    let rest = proptest::collection::vec(any::<u8>(), 0..80);
    let lie = prop_oneof![3 => Just(0_i32), 1 => -40..40_i32];
    (protocol, target, rest, lie, any::<bool>()).prop_map(|(protocol, target, rest, lie, arp)| {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[2, 0x53, 0x48, 0, 2, 2, 2, 0, 0, 0, 0, 0x15]);
        if arp {
            frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0]);
        } else {
            let len = u16::try_from((20 + rest.len() as i32 + lie).max(0)).unwrap();
            frame.extend_from_slice(&[8, 0, 0x45, 0]);
            frame.extend_from_slice(&len.to_be_bytes());
            frame.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15]);
            frame.extend_from_slice(&[10, 0, 2, target]);
        }
        frame.extend_from_slice(&rest);
        frame
    })
}

#[test]
fn no_frame_harms() {
    // Nothing random may reach the host's own services.
    let config = Config { host_loopback: false, outside: false, ..Config::default() };
    let (fd, ours) = link::pair().unwrap();
    let sender = fd.try_clone().unwrap();
    let mut guest = Guest::new(fd, &config);
    let running = Network::bind(config).unwrap().start(ours).unwrap();
    let runner = &mut proptest::test_runner::TestRunner::deterministic();
    let mut sent = 0;
    for _ in 0..4000 {
        let frame = almost_a_frame().new_tree(runner).unwrap().current();
        shoal_usernet::fuzz(&frame);
        rustix::net::send(&sender, &frame, SendFlags::empty()).unwrap();
        sent += 1;
        guest.poll();
    }
    guest.until("all are taken", |_| running.counters().frames_in.get() >= sent);
    assert!(running.counters().frames_refused.get() > 0);
    running.stop().unwrap();
}
