//! Held ports in a namespace that plays the host.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use shoal_model::fault::{Fault, chain};
use shoal_model::net::{Port, Protocol};
use shoal_netlink::netns::{self, NetnsHandle};
use shoal_network::hostport::{HostListen, HostPorts};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(60);

static COUNT: AtomicU32 = AtomicU32::new(0);

struct Host {
    path: PathBuf,
    ns: NetnsHandle,
    ports: HostPorts,
    _runtime: Runtime,
}

impl Host {
    fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shoal-hostport-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        netns::create(&path).unwrap();
        let ns = NetnsHandle::open(&path).unwrap();
        let runtime = Runtime::new().unwrap();
        let ports = HostPorts::new(Some(path.clone()), runtime.handle().clone());
        Self { path, ns, ports, _runtime: runtime }
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).unwrap()
    }

    fn connect(&self, at: &str) -> std::io::Result<TcpStream> {
        let at: SocketAddr = at.parse().unwrap();
        let stream = self.run(|| TcpStream::connect_timeout(&at, DEADLINE))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    fn must(&self, wanted: &[HostListen]) {
        let failed = self.ports.apply(wanted);
        let texts: Vec<String> = failed.iter().map(|(_, error)| chain(error)).collect();
        assert!(texts.is_empty(), "{texts:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.ports.close();
        // Ignored because: clean-up must not hide why the test failed.
        let _ = netns::delete(&self.path);
    }
}

fn listen(protocol: Protocol, number: u16, target: Option<&str>) -> HostListen {
    HostListen {
        port: Port { protocol, number },
        host_ip: None,
        target: target.map(|t| t.parse().unwrap()),
        holder: "service 'web'".to_owned(),
    }
}

/// Answers with all that came, once the client has said everything.
fn echo_at_end(host: &Host, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let listener = host.run(|| TcpListener::bind(at)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        }
    });
}

#[test]
fn connections_on_loopback_are_carried_until_both_sides_have_ended() {
    let host = Host::new();
    echo_at_end(&host, "127.0.0.9:80");
    host.must(&[listen(Protocol::Tcp, 8080, Some("127.0.0.9:80"))]);
    for at in ["127.0.0.1:8080", "[::1]:8080"] {
        let mut stream = host.connect(at).unwrap();
        let sent = vec![7; 1 << 20];
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == sent, "{at}: {} bytes", answer.len());
    }
}

#[test]
fn without_a_target_the_port_is_held_and_connections_are_reset() {
    let host = Host::new();
    host.must(&[listen(Protocol::Tcp, 8080, None)]);
    // The reset may be there before the client has looked at its new connection.
    let read = host.connect("127.0.0.1:8080").and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The target comes later; the socket stays.
    echo_at_end(&host, "127.0.0.9:80");
    host.must(&[listen(Protocol::Tcp, 8080, Some("127.0.0.9:80"))]);
    let mut stream = host.connect("127.0.0.1:8080").unwrap();
    stream.write_all(b"x").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 2]).unwrap(), 1);
    host.must(&[]);
    let error = host.connect("127.0.0.1:8080").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn datagrams_of_several_clients_keep_apart() {
    let host = Host::new();
    let server = host.run(|| UdpSocket::bind("127.0.0.9:53")).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut buf) {
            server.send_to(&buf[..len], from).unwrap();
        }
    });
    host.must(&[listen(Protocol::Udp, 5353, Some("127.0.0.9:53"))]);
    let clients: Vec<UdpSocket> =
        (0..3).map(|_| host.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.connect("127.0.0.1:5353").unwrap();
    }
    for round in 0..3_u8 {
        for (n, client) in (0_u8..).zip(&clients) {
            client.send(&[round, n]).unwrap();
        }
        for (n, client) in (0_u8..).zip(&clients) {
            let mut buf = [0; 8];
            let len = client.recv(&mut buf).unwrap();
            assert_eq!(buf[..len], [round, n]);
        }
    }
}

#[test]
fn a_taken_port_names_who_has_it() {
    let host = Host::new();
    let _other = host.run(|| TcpListener::bind("127.0.0.1:8080")).unwrap();
    let _bound = host.run(|| UdpSocket::bind("0.0.0.0:5353")).unwrap();
    let wanted = [listen(Protocol::Tcp, 8080, None), listen(Protocol::Udp, 5353, None)];
    let failed = host.ports.apply(&wanted);
    let texts: Vec<String> = failed.iter().map(|(_, error)| chain(error)).collect();
    let pid = std::process::id();
    assert!(texts[0].starts_with("port 8080/tcp is taken: cannot publish it for service 'web': '"));
    assert!(texts[0].ends_with(&format!("(pid {pid}) listens on 127.0.0.1:8080")), "{}", texts[0]);
    assert!(texts[1].ends_with(&format!("(pid {pid}) is bound to 0.0.0.0:5353")), "{}", texts[1]);
    assert_eq!(failed[0].1.id().unwrap().0, "SH-NET-010");
}

#[test]
fn a_port_moves_from_all_addresses_to_one_and_back() {
    let host = Host::new();
    let first = listen(Protocol::Tcp, 8080, None);
    let one: IpAddr = "127.0.0.1".parse().unwrap();
    host.must(std::slice::from_ref(&first));
    // The old socket is gone before the new one is made.
    host.must(&[HostListen { host_ip: Some(one), ..first.clone() }]);
    host.must(std::slice::from_ref(&first));
    let elsewhere = HostListen { host_ip: Some("198.51.100.7".parse().unwrap()), ..first };
    let failed = host.ports.apply(&[elsewhere]);
    let text = chain(&failed[0].1);
    let want = "port 8080/tcp cannot be opened on address '198.51.100.7' for service 'web'";
    assert!(text.starts_with(want), "{text}");
}
