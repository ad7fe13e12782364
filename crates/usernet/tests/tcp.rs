//! Real connections of the host through the network, to and from a guest.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use common::{PATIENCE, pattern, start};
use shoal_usernet::config::Config;
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpAddress;

const GATEWAY: IpAddress = IpAddress::Ipv4(Ipv4Addr::new(10, 0, 2, 2));

fn published() -> Config {
    Config { published: vec!["0:80".parse().unwrap()], ..Config::default() }
}

fn client(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Takes one connection and sends everything back, then ends its side.
fn echo_server() -> (u16, thread::JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
        data.len()
    });
    (port, server)
}

fn echo_through(mtu: u16, len: usize) {
    let (mut guest, _running) = start(Config { mtu, ..Config::default() }).unwrap();
    let (port, server) = echo_server();
    let handle = guest.connect((GATEWAY, port), 40_000);
    let data = pattern(len);
    let mut left = &data[..];
    guest.until("the guest sends everything", |guest| {
        guest.send(handle, &mut left);
        left.is_empty()
    });
    // Half-closed: the answer comes only after the server saw the end.
    guest.tcp(handle).close();
    let mut back = Vec::new();
    guest.until("the answer and its end", |guest| {
        guest.receive(handle, &mut back);
        !guest.tcp(handle).may_recv()
    });
    assert_eq!(server.join().unwrap(), len);
    assert!(back == data, "the echo differs");
}

#[test]
fn the_guest_speaks_with_a_server_of_the_host() {
    echo_through(1500, 3_000_000);
}

#[test]
fn large_packets_pass() {
    echo_through(65_520, 3_000_000);
}

#[test]
fn a_refusal_is_a_refusal() {
    let (mut guest, _running) = start(Config::default()).unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let handle = guest.connect((GATEWAY, unused), 40_001);
    guest.until("the refusal", |guest| guest.tcp(handle).state() == State::Closed);
}

#[test]
fn a_client_of_a_published_port_reaches_the_guest() {
    let (mut guest, running) = start(published()).unwrap();
    let to = running.addresses()[0];
    let data = pattern(2_000_000);
    let sent = data.clone();
    let worker = thread::spawn(move || {
        let mut stream = client(to);
        let mut reader = stream.try_clone().unwrap();
        let reading = thread::spawn(move || {
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            back
        });
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        reading.join().unwrap()
    });
    let handle = guest.listen(80);
    guest.until("the connection", |guest| guest.tcp(handle).state() == State::Established);
    assert_eq!(guest.tcp(handle).remote_endpoint().unwrap().addr, GATEWAY);
    let mut got = Vec::new();
    let mut returned = 0;
    guest.until("everything comes and goes back", |guest| {
        guest.receive(handle, &mut got);
        let mut left = &got[returned..];
        guest.send(handle, &mut left);
        returned = got.len() - left.len();
        returned == data.len() && !guest.tcp(handle).may_recv()
    });
    guest.tcp(handle).close();
    guest.until("the guest's end is taken", |guest| guest.tcp(handle).state() == State::Closed);
    assert!(worker.join().unwrap() == data, "the echo differs");
}

#[test]
fn a_guest_that_does_not_read_holds_its_client_back() {
    let (mut guest, running) = start(published()).unwrap();
    let mut stream = client(running.addresses()[0]);
    let handle = guest.listen(80);
    guest.until("the connection", |guest| guest.tcp(handle).state() == State::Established);
    stream.set_nonblocking(true).unwrap();
    let chunk = pattern(64 * 1024);
    let mut sent = Vec::new();
    // Full when the client was refused for so many turns of the guest in a row.
    let mut refused = 0;
    guest.until("the client is held back", |_| {
        match stream.write(&chunk) {
            Ok(bytes) => {
                sent.extend_from_slice(&chunk[..bytes]);
                refused = 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => refused += 1,
            Err(error) => panic!("{error}"),
        }
        refused > 50
    });
    // Kernel buffers (6 MB at most by default) and those here; not more.
    assert!(sent.len() < 32 * 1024 * 1024, "{} bytes went nowhere", sent.len());
    drop(stream);
    let mut got = Vec::new();
    guest.until("everything and the end", |guest| {
        guest.receive(handle, &mut got);
        !guest.tcp(handle).may_recv()
    });
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
}

#[test]
fn the_guests_reset_reaches_the_client() {
    let (mut guest, running) = start(published()).unwrap();
    let mut stream = client(running.addresses()[0]);
    let handle = guest.listen(80);
    guest.until("the connection", |guest| guest.tcp(handle).state() == State::Established);
    guest.tcp(handle).abort();
    let reader = thread::spawn(move || stream.read(&mut [0; 16]));
    guest.until("the client notices", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_clients_reset_reaches_the_guest() {
    let (mut guest, running) = start(published()).unwrap();
    let stream = client(running.addresses()[0]);
    let handle = guest.listen(80);
    guest.until("the connection", |guest| guest.tcp(handle).state() == State::Established);
    let now = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, now).unwrap();
    drop(stream);
    guest.until("the guest notices", |guest| guest.tcp(handle).state() == State::Closed);
}

#[test]
fn clients_wait_for_a_guest_that_is_not_yet_there() {
    let (mut guest, running) = start(published()).unwrap();
    let to = running.addresses()[0];
    let worker = thread::spawn(move || {
        let mut stream = client(to);
        stream.write_all(b"early").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    // The guest has not said anything yet: it is asked for its address when it comes up.
    let handle = guest.listen(80);
    let mut got = Vec::new();
    guest.until("the request", |guest| {
        guest.receive(handle, &mut got);
        got == b"early"
    });
    guest.until("the answer", |guest| guest.tcp(handle).send_slice(b"late").is_ok());
    guest.until("the client has it", |_| worker.is_finished());
    assert_eq!(&worker.join().unwrap(), b"late");
}

#[test]
fn many_connections_at_once() {
    let (mut guest, running) = start(published()).unwrap();
    let to = running.addresses()[0];
    let handles: Vec<_> = (0..64).map(|_| guest.listen(80)).collect();
    let workers: Vec<_> = (0..64_u8)
        .map(|n| {
            thread::spawn(move || {
                let mut stream = client(to);
                stream.write_all(&[n; 1000]).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                back == [n; 1000]
            })
        })
        .collect();
    guest.until("all are served", |guest| {
        for handle in &handles {
            let mut data = Vec::new();
            guest.receive(*handle, &mut data);
            if !data.is_empty() {
                guest.tcp(*handle).send_slice(&data).unwrap();
            }
            if guest.tcp(*handle).state() == State::CloseWait {
                guest.tcp(*handle).close();
            }
        }
        workers.iter().all(thread::JoinHandle::is_finished)
    });
    assert!(workers.into_iter().all(|worker| worker.join().unwrap()));
    assert_eq!(running.counters().connections.get(), 64);
}

#[test]
fn a_taken_port_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let publish = format!("{}:80", taken.local_addr().unwrap().port());
    let config = Config { published: vec![publish.parse().unwrap()], ..Config::default() };
    let error = shoal_usernet::network::Network::bind(config).unwrap_err();
    assert_eq!(error.id(), "SH-USN-001");
}
