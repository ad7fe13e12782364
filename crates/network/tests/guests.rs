//! Guests: workloads behind TAP devices. A guest here is a network namespace of the test's own,
//! whose TAP device is wired to the node's, frame by frame.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use common::*;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use shoal_model::id::NetworkId;
use shoal_model::net::Mac;
use shoal_netlink::link::LinkOptions;
use shoal_netlink::netns::{self, NetnsHandle};
use shoal_netlink::route::Route;
use shoal_network::desired::{DesiredNetwork, Guest, PortKind, SandboxId};
use shoal_network::node_network::NodeNetwork;
use shoal_network::resolver;

/// Names the helper's directory when this program runs as the helper.
const HELPER_DIR: &str = "SHOAL_TEST_RESOLVER_DIR";
const HOME: &str = "mynet1";

/// The resolver is this program again, running only this "test".
#[test]
fn helper_process() {
    if let Some(dir) = std::env::var_os(HELPER_DIR) {
        let code = resolver::main(["--dir".into(), dir]);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    }
}

/// Makes `name` a guest on the networks that it has ports on.
fn make_guest(want: &mut DesiredNetwork, name: &str, direct: bool) -> Guest {
    let id = SandboxId::new(name);
    let guest = Guest { owner: 65_534, home: NetworkId::from(HOME), direct };
    let Some(spec) = want.sandboxes.get_mut(&id) else { panic!("no sandbox {name}") };
    spec.guest = Some(guest.clone());
    spec.names = vec![name.to_owned()];
    for net in want.networks.values_mut() {
        if direct && net.info.ingress {
            net.local_ports.retain(|port| port.sandbox != id);
        }
        let home = net.info.id.as_str() == HOME;
        for port in net.local_ports.iter_mut().filter(|port| port.sandbox == id && home) {
            port.kind = if direct { PortKind::Tap { owner: guest.owner } } else { PortKind::Guest };
        }
    }
    guest
}

/// Guests of this process so far: tests run side by side, and their guests have the same names.
static WIRED: AtomicU32 = AtomicU32::new(0);

/// A guest's own namespace, its interface wired to the node's device.
struct Wired {
    path: PathBuf,
    ns: NetnsHandle,
}

impl Wired {
    fn new(node: &NodeNetwork, name: &str, guest: &Guest, address: &str, gateway: &str) -> Self {
        let (place, device) = node.tap_place(&SandboxId::new(name), guest);
        let number = WIRED.fetch_add(1, Ordering::Relaxed);
        let file = format!("guest-{name}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(file);
        netns::create(&path).unwrap();
        let ns = NetnsHandle::open(&path).unwrap();
        let address: ipnet::IpNet = address.parse().unwrap();
        let mac = Some(Mac::of_port(address.addr()));
        let options = LinkOptions { mac, up: true, ..LinkOptions::default() };
        ns.create_tap("eth0", 0, &options).unwrap();
        ns.add_address("eth0", address).unwrap();
        let far = NetnsHandle::open(&place).unwrap().attach_tap(&device).unwrap();
        let near = ns.attach_tap("eth0").unwrap();
        pump(far.try_clone().unwrap(), near.try_clone().unwrap());
        pump(near, far);
        let gateway: IpAddr = gateway.parse().unwrap();
        ns.replace_route(&Route::via(Route::default_of(gateway), gateway, "eth0")).unwrap();
        Self { path, ns }
    }

    /// What the name means to the guest, asked at the gateway.
    fn lookup(&self, gateway: &str, name: &str) -> Vec<IpAddr> {
        let socket = self.ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect((gateway, 53)).unwrap();
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_utf8(name).unwrap(), RecordType::A));
        socket.send(&question.to_vec().unwrap()).unwrap();
        let mut buf = [0; 2048];
        let len = socket.recv(&mut buf).unwrap();
        let answers = Message::from_vec(&buf[..len]).unwrap().answers;
        let address = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            _ => None,
        };
        answers.iter().filter_map(|record| address(&record.data)).collect()
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        // Ignored because: a failed clean-up must not hide why the test failed.
        let _ = netns::delete(&self.path);
    }
}

/// Carries frames until one of the devices is gone.
fn pump(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 16];
        loop {
            match from.read(&mut frame) {
                // A frame that the other end refuses (it is going away) is lost, as on a wire.
                Ok(len) => drop(to.write(&frame[..len])),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
}

/// The lab's nodes with a resolver.
async fn open(lab: &Lab, node: usize) -> NodeNetwork {
    let mut config = lab.config(node, node);
    std::fs::create_dir_all(&config.exec_root).unwrap();
    let program = config.exec_root.join("program");
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n{HELPER_DIR}=\"$3\" exec '{}' --exact helper_process --nocapture\n",
        this.display()
    );
    // Written by another process: a child that a test beside this one starts would have this one's
    // open file, and a program that is open for writing cannot be started.
    let write = ["-c", "printf %s \"$0\" > \"$1\" && chmod 755 \"$1\"", &script];
    let written = std::process::Command::new("sh").args(write).arg(&program).status().unwrap();
    assert!(written.success());
    config.program = Some(program);
    NodeNetwork::open(config).await.unwrap()
}

/// Whether a resolver of that node answers.
fn helper_lives(lab: &Lab, node: usize) -> bool {
    let socket = lab.config(node, node).exec_root.join("resolver/control.sock");
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

fn guests_links(ns: &NetnsHandle) -> BTreeMap<String, String> {
    ns.links().unwrap().into_iter().map(|link| (link.name, link.kind)).collect()
}

fn answer(name: &str, seen: &str) -> (String, IpAddr) {
    (name.to_owned(), ip(seen))
}

/// Ends the resolvers of a lab's nodes, which outlive their nodes by design, if a test fails.
struct Resolvers(Vec<PathBuf>);

impl Drop for Resolvers {
    fn drop(&mut self) {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            let ours = environment.split(|byte| *byte == 0).any(|variable| {
                let of = String::from_utf8_lossy(variable);
                let dir = of.strip_prefix(HELPER_DIR).and_then(|rest| rest.strip_prefix('='));
                dir.is_some_and(|dir| {
                    self.0.iter().any(|root| PathBuf::from(dir).starts_with(root))
                })
            });
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|_| ours) {
                // Ignored because: it may have ended meanwhile.
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Two nodes: a guest `uk` and a container `con` on the first, a container `far` on the second, and
/// a client outside. Only the guest is behind the service's address. Take `_resolvers` out first:
/// it must go last, because a node that lives starts its resolver again.
struct Scene {
    _resolvers: Resolvers,
    lab: Lab,
    nodes: [NodeNetwork; 2],
    want: DesiredNetwork,
    guest: Guest,
    uk: Wired,
    con: NetnsHandle,
    far: NetnsHandle,
}

impl Scene {
    async fn new(direct: bool) -> Self {
        let tasks = [Task::new("uk", 0, 4), Task::new("con", 0, 5), Task::new("far", 1, 6)];
        let mut cluster = Cluster::new(2, &tasks);
        for task in &mut cluster.tasks[1..] {
            task.state = shoal_model::assignment::BackendState::Draining;
        }
        let lab = Lab::new(2);
        let roots = [0, 1].map(|node| lab.config(node, node).exec_root);
        let resolvers = Resolvers(roots.to_vec());
        let nodes = [open(&lab, 0).await, open(&lab, 1).await];
        let mut want = cluster.desired(0);
        let guest = make_guest(&mut want, "uk", direct);
        complete(&nodes[0].apply(want.clone()).await.unwrap());
        complete(&nodes[1].apply(cluster.desired(1)).await.unwrap());
        let uk = Wired::new(&nodes[0], "uk", &guest, "10.0.1.4/24", "10.0.1.1");
        let (con, far) = (sandbox(&nodes[0], "con"), sandbox(&nodes[1], "far"));
        serve(&uk.ns, "uk", 80);
        serve(&con, "con", 80);
        serve(&far, "far", 80);
        serve(&lab.client, "outside", 7000);
        Self { _resolvers: resolvers, lab, nodes, want, guest, uk, con, far }
    }
}

fn sandbox(node: &NodeNetwork, name: &str) -> NetnsHandle {
    NetnsHandle::open(&node.sandbox_path(&SandboxId::new(name))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_a_port_like_any_other() {
    let Scene { _resolvers, lab, nodes, want, guest, uk, con, far } = Scene::new(true).await;
    assert!(!nodes[0].sandbox_path(&SandboxId::new("uk")).exists(), "it has no namespace");
    for client in [(&con, "10.0.1.5"), (&far, "10.0.1.6")] {
        for to in ["10.0.1.4", VIP] {
            assert_eq!(request(client.0, at(to, 80)).unwrap(), answer("uk", client.1));
            assert_eq!(datagram(client.0, at(to, 80)).unwrap(), answer("uk", client.1));
        }
    }
    assert_eq!(request(&uk.ns, at("10.0.1.5", 80)).unwrap(), answer("con", "10.0.1.4"));
    assert_eq!(request(&uk.ns, at("10.0.1.6", 80)).unwrap(), answer("far", "10.0.1.4"));
    assert_eq!(request(&uk.ns, at("198.51.100.99", 7000)).unwrap().0, "outside");
    // A call to itself through the service's address.
    assert_eq!(request(&uk.ns, at(VIP, 80)).unwrap().0, "uk");
    // Names, at the gateway's address; a stranger gets no answer with addresses.
    assert_eq!(uk.lookup("10.0.1.1", "web."), [ip(VIP)]);
    assert_eq!(uk.lookup("10.0.1.1", "uk.mynet1."), [ip("10.0.1.4")]);

    // Somebody takes the device away: it is made anew, and reported.
    let (place, device) = nodes[0].tap_place(&SandboxId::new("uk"), &guest);
    let inside = NetnsHandle::open(&place).unwrap();
    inside.delete_link(&device).unwrap();
    let drift = nodes[0].verify().await.unwrap();
    assert!(
        drift.iter().any(|d| d.repaired && d.found.contains(&format!("missing link {device}")))
    );
    assert_eq!(guests_links(&inside).get(&device).map(String::as_str), Some("tun"));

    // The next life of the daemon adopts the device: the guest's connection survives.
    drop(uk);
    let uk = Wired::new(&nodes[0], "uk", &guest, "10.0.1.4/24", "10.0.1.1");
    serve(&uk.ns, "uk", 80);
    let mut talk = Talk::open(&con, at("10.0.1.4", 80)).unwrap();
    assert_eq!(talk.ask().unwrap(), answer("uk", "10.0.1.5"));
    nodes[0].close().await;
    // With it goes its side of the resolver, which would start a helper that ends.
    let [old, other] = nodes;
    drop(old);
    let next = open(&lab, 0).await;
    complete(&next.apply(want).await.unwrap());
    assert_eq!(talk.ask().unwrap(), answer("uk", "10.0.1.5"));

    // Nothing is left.
    next.teardown().await.unwrap();
    other.teardown().await.unwrap();
    assert_eq!(lab.leftovers(0), Vec::<String>::new());
    assert!(!helper_lives(&lab, 0) && !helper_lives(&lab, 1), "a resolver is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_several_networks_has_one_address_and_all_of_them_reach_it() {
    let Scene { _resolvers, lab, nodes, uk, con, far, .. } = Scene::new(false).await;
    for client in [(&con, "10.0.1.5"), (&far, "10.0.1.6")] {
        for to in ["10.0.1.4", VIP] {
            assert_eq!(request(client.0, at(to, 80)).unwrap(), answer("uk", client.1));
        }
    }
    // The mesh, on both nodes, with the client's address.
    for host in ["198.51.100.1", "198.51.100.2"] {
        for _ in 0..3 {
            assert_eq!(request(&lab.client, at(host, WEB)).unwrap(), answer("uk", "198.51.100.99"));
            assert_eq!(
                datagram(&lab.client, at(host, WEB)).unwrap(),
                answer("uk", "198.51.100.99")
            );
        }
    }
    assert_eq!(request(&uk.ns, at("10.0.1.5", 80)).unwrap(), answer("con", "10.0.1.4"));
    assert_eq!(request(&uk.ns, at("10.0.1.6", 80)).unwrap(), answer("far", "10.0.1.4"));
    assert_eq!(request(&uk.ns, at("198.51.100.99", 7000)).unwrap().0, "outside");
    assert_eq!(uk.lookup("10.0.1.1", "web."), [ip(VIP)]);
    // What somebody breaks is repaired.
    let own = sandbox(&nodes[0], "uk");
    own.delete_route(&Route::dev("10.0.1.4/32".parse().unwrap(), "tap0")).unwrap();
    let drift = nodes[0].verify().await.unwrap();
    assert!(drift.iter().any(|d| d.repaired && d.place.contains("guest")), "{drift:?}");
    assert_eq!(request(&con, at("10.0.1.4", 80)).unwrap(), answer("uk", "10.0.1.5"));
    for node in &nodes {
        node.teardown().await.unwrap();
    }
    assert_eq!(lab.leftovers(0), Vec::<String>::new());
}
