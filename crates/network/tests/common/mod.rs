//! A cluster in network namespaces: an underlay, hosts with a `NodeNetwork` each, an outside
//! client; small servers and clients whose sockets live in the namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

pub mod bridges;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use shoal_model::assignment::{Backend, BackendState, EndpointEntry, Peer, ServiceEntry};
use shoal_model::id::{InstanceId, NetworkId, NodeId, Revision, ServiceId, TaskId};
use shoal_model::net::{NodeIndex, Port, Protocol, Vni};
use shoal_model::object::Subnet;
use shoal_model::spec::service::EndpointMode;
use shoal_netlink::link::{LinkChange, LinkOptions};
use shoal_netlink::netns::{self, NetnsHandle};
use shoal_network::desired::{
    DesiredNet, DesiredNetwork, LocalPort, NetKind, NetProperties, PortKind, Published, SandboxId,
    SandboxSpec, SelfNode,
};
use shoal_network::node_network::{NetworkConfig, NodeNetwork};
use shoal_network::status::Applied;
use shoal_stopwatch::Stopwatch;

/// Nothing in these tests takes longer, unless it hangs.
pub const HANG: Duration = Duration::from_secs(3);
/// Longest that an answer may take which has to come: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);
const PORT: u16 = 80;

static LABS: AtomicU32 = AtomicU32::new(0);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

/// Host namespaces on one underlay: hosts 198.51.100.1 and so on, the client 198.51.100.99.
pub struct Lab {
    dir: PathBuf,
    id: u32,
    under: NetnsHandle,
    pub hosts: Vec<NetnsHandle>,
    pub client: NetnsHandle,
}

impl Lab {
    pub fn new(hosts: u8) -> Self {
        let id = LABS.fetch_add(1, Ordering::SeqCst);
        let dir = PathBuf::from(format!("/run/shoal-lab-{}-{id}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let make = |name: &str| {
            let path = dir.join(name);
            netns::create(&path).unwrap();
            NetnsHandle::open(&path).unwrap()
        };
        let under = make("under");
        let up = LinkOptions { up: true, ..LinkOptions::default() };
        under.create_bridge("br0", &up).unwrap();
        let join = |name: &str, number: u8| {
            let ns = make(name);
            let port = format!("u{number}");
            under.create_veth(&port, &up, &ns, "eth0", &up).unwrap();
            let member = LinkChange { master: Some("br0"), ..LinkChange::default() };
            under.set_link(&port, &member).unwrap();
            ns.add_address("eth0", format!("198.51.100.{number}/24").parse().unwrap()).unwrap();
            ns
        };
        let all = (1..=hosts).map(|n| join(&format!("host{n}"), n)).collect();
        let client = join("client", 99);
        Self { dir, id, under, hosts: all, client }
    }

    pub fn instance(&self, node: usize) -> InstanceId {
        let short = (std::process::id() as usize * 16 + self.id as usize * 4 + node) & 0xffff;
        InstanceId::new(format!("{short:04x}{:08x}", std::process::id()))
    }

    pub fn config(&self, host: usize, node: usize) -> NetworkConfig {
        NetworkConfig {
            instance: self.instance(node),
            exec_root: self.dir.join(format!("node{node}")),
            host_netns: Some(self.dir.join(format!("host{}", host + 1))),
            program: None,
        }
    }

    /// The namespaces that a node has made.
    pub fn leftovers(&self, node: usize) -> Vec<String> {
        let dir = self.dir.join(format!("node{node}")).join("netns");
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

fn unmount_below(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            unmount_below(&path);
        } else {
            let _ = netns::delete(&path);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        unmount_below(&self.dir);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A task of the one service `web`, on `mynet1` and on `ingress`.
#[derive(Clone, Debug)]
pub struct Task {
    pub name: &'static str,
    pub node: usize,
    /// Last byte of its addresses.
    pub byte: u8,
    pub state: BackendState,
    pub alive: bool,
}

impl Task {
    pub fn new(name: &'static str, node: usize, byte: u8) -> Self {
        Self { name, node, byte, state: BackendState::Serving, alive: true }
    }

    pub fn address(&self) -> String {
        format!("10.0.1.{}", self.byte)
    }

    pub fn ingress(&self) -> String {
        format!("10.255.0.{}", self.byte)
    }
}

pub const VIP: &str = "10.0.1.2";
pub const WEB: u16 = 8091;

/// What a manager would know.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub nodes: usize,
    pub tasks: Vec<Task>,
    pub revision: u64,
    pub internal: bool,
    pub vni: u32,
    pub port: u16,
}

pub fn node_id(node: usize) -> NodeId {
    NodeId::new(format!("node{node}"))
}

fn subnet(net: &str, gateway: &str) -> Subnet {
    Subnet { subnet: net.parse().unwrap(), gateway: ip(gateway), range: None, reserved: Vec::new() }
}

impl Cluster {
    pub fn new(nodes: usize, tasks: &[Task]) -> Self {
        let tasks = tasks.to_vec();
        Self { nodes, tasks, revision: 1, internal: false, vni: 4096, port: 4789 }
    }

    fn info(&self, name: &str, subnets: Vec<Subnet>, ingress: bool) -> NetProperties {
        NetProperties {
            id: NetworkId::from(name),
            kind: NetKind::Overlay,
            name: name.into(),
            subnets,
            mtu: 1400,
            internal: self.internal && !ingress,
            ingress,
            vni: Vni(self.vni + u32::from(ingress)),
            data_path_port: self.port,
        }
    }

    fn net(&self, node: usize, ingress: bool) -> DesiredNet {
        let (name, range, gateway) = if ingress {
            ("ingress", "10.255.0.0/16", "10.255.0.1")
        } else {
            ("mynet1", "10.0.1.0/24", "10.0.1.1")
        };
        let address = |t: &Task| if ingress { t.ingress() } else { t.address() };
        let alive = || self.tasks.iter().filter(|t| t.alive);
        let prefix = if ingress { 16 } else { 24 };
        DesiredNet {
            info: self.info(name, vec![subnet(range, gateway)], ingress),
            peers: (0..self.nodes)
                .filter(|n| *n != node)
                .map(|n| Peer {
                    node_id: node_id(n),
                    index: NodeIndex(n as u16 + 1),
                    underlay: ip(&format!("198.51.100.{}", n + 1)),
                })
                .collect(),
            endpoints: alive()
                .map(|t| EndpointEntry {
                    task_id: TaskId::from(t.name),
                    node_id: node_id(t.node),
                    address: ip(&address(t)),
                    names: Vec::new(),
                })
                .collect(),
            services: if ingress { Vec::new() } else { vec![self.service()] },
            local_ports: alive()
                .filter(|t| t.node == node)
                .map(|t| LocalPort {
                    sandbox: SandboxId::new(t.name),
                    address: vec![format!("{}/{prefix}", address(t)).parse().unwrap()],
                    order: u8::from(!ingress),
                    aliases: Vec::new(),
                    default_route: ingress,
                    kind: PortKind::Interface,
                })
                .collect(),
        }
    }

    fn service(&self) -> ServiceEntry {
        ServiceEntry {
            service_id: ServiceId::from("web"),
            name: "web".into(),
            aliases: Vec::new(),
            mode: EndpointMode::Vip,
            vip: Some(ip(VIP)),
            backends: self
                .tasks
                .iter()
                .filter(|t| t.alive)
                .map(|t| Backend {
                    address: ip(&t.address()),
                    task_id: TaskId::from(t.name),
                    state: t.state,
                })
                .collect(),
        }
    }

    fn published(&self) -> Vec<Published> {
        let serving = self.tasks.iter().filter(|t| t.alive && t.state == BackendState::Serving);
        let backends: Vec<_> = serving.map(|t| (ip(&t.ingress()), PORT)).collect();
        [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| Published {
                port: Port { protocol, number: WEB },
                host_ip: None,
                network: NetworkId::from("ingress"),
                backends: backends.clone(),
                holder: "service 'web'".into(),
            })
            .to_vec()
    }

    /// The node's part.
    pub fn desired(&self, node: usize) -> DesiredNetwork {
        let networks = [self.net(node, true), self.net(node, false)];
        let here = self.tasks.iter().filter(|t| t.alive && t.node == node);
        DesiredNetwork {
            revision: Revision(self.revision),
            self_node: Some(SelfNode {
                node_id: node_id(node),
                index: NodeIndex(node as u16 + 1),
                underlay: ip(&format!("198.51.100.{}", node + 1)),
            }),
            networks: networks.into_iter().map(|net| (net.info.id.clone(), net)).collect(),
            sandboxes: here
                .map(|t| (SandboxId::new(t.name), SandboxSpec::default()))
                .collect::<BTreeMap<_, _>>(),
            published: self.published(),
        }
    }
}

/// A lab with a node on every host and the cluster applied.
pub struct Running {
    pub nodes: Vec<NodeNetwork>,
    pub cluster: Cluster,
    pub lab: Lab,
}

impl Running {
    pub async fn new(cluster: Cluster) -> Self {
        let lab = Lab::new(u8::try_from(cluster.nodes).unwrap());
        let mut nodes = Vec::new();
        for node in 0..cluster.nodes {
            nodes.push(NodeNetwork::open(lab.config(node, node)).await.unwrap());
        }
        let mut running = Self { nodes, cluster, lab };
        running.apply().await;
        running
    }

    pub async fn apply(&mut self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let applied = node.apply(self.cluster.desired(index)).await.unwrap();
            complete(&applied);
        }
    }

    /// Changes the cluster and applies it everywhere as the next revision.
    pub async fn change(&mut self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.cluster);
        self.cluster.revision += 1;
        self.apply().await;
    }

    pub fn sandbox(&self, name: &str) -> NetnsHandle {
        let task = self.cluster.tasks.iter().find(|t| t.name == name).unwrap();
        let path = self.nodes[task.node].sandbox_path(&SandboxId::new(name));
        NetnsHandle::open(&path).unwrap()
    }

    /// Starts the server of every task.
    pub fn serve(&self) {
        for task in &self.cluster.tasks {
            serve(&self.sandbox(task.name), task.name, PORT);
        }
    }
}

pub fn complete(applied: &Applied) {
    assert!(applied.is_complete(), "{applied:#?}");
}

/// Answers every line and every datagram with its own name and the sender's address, until the
/// test process ends.
pub fn serve(ns: &NetnsHandle, name: &'static str, port: u16) {
    let (tcp, udp) = ns
        .run(|| (TcpListener::bind(("0.0.0.0", port)).unwrap(), UdpSocket::bind(("0.0.0.0", port))))
        .unwrap();
    let udp = udp.unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || answer(stream, name));
        }
    });
    std::thread::spawn(move || {
        let mut buf = [0; 1 << 16];
        while let Ok((_, from)) = udp.recv_from(&mut buf) {
            let _ = udp.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
        }
    });
}

fn answer(stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut out = stream;
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
        if writeln!(out, "{name} {}", peer.ip()).is_err() {
            return;
        }
        line.clear();
    }
}

/// An open connection of a client.
pub struct Talk {
    lines: BufReader<TcpStream>,
}

impl Talk {
    pub fn open(ns: &NetnsHandle, to: SocketAddr) -> io::Result<Self> {
        let stream = ns.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap()?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// Who answers, and which address it sees.
    pub fn ask(&mut self) -> io::Result<(String, IpAddr)> {
        self.lines.get_mut().write_all(b"who\n")?;
        self.read()
    }

    /// A long line, and its answer.
    pub fn send_much(&mut self, bytes: usize) -> io::Result<(String, IpAddr)> {
        self.lines.get_mut().write_all(&vec![b'x'; bytes])?;
        self.ask()
    }

    pub fn read(&mut self) -> io::Result<(String, IpAddr)> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (name, seen) = line.trim().split_once(' ').unwrap();
        Ok((name.to_owned(), seen.parse().unwrap()))
    }
}

/// One request over a new connection.
pub fn request(ns: &NetnsHandle, to: SocketAddr) -> io::Result<(String, IpAddr)> {
    Talk::open(ns, to)?.ask()
}

/// One datagram and its answer.
pub fn datagram(ns: &NetnsHandle, to: SocketAddr) -> io::Result<(String, IpAddr)> {
    datagram_of(ns, to, 3)
}

/// One datagram of that many bytes and its answer.
pub fn datagram_of(ns: &NetnsHandle, to: SocketAddr, bytes: usize) -> io::Result<(String, IpAddr)> {
    let socket = ns.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap()?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect(to)?;
    socket.send(&vec![b'x'; bytes])?;
    let mut buf = [0; 2048];
    let len = socket.recv(&mut buf)?;
    let text = String::from_utf8_lossy(&buf[..len]).into_owned();
    let (name, seen) = text.split_once(' ').unwrap();
    Ok((name.to_owned(), seen.parse().unwrap()))
}

/// Asks `count` times; every request must be answered. Who answered how often, and what was seen.
pub fn spread(
    count: usize,
    mut ask: impl FnMut() -> io::Result<(String, IpAddr)>,
) -> (BTreeMap<String, usize>, Vec<IpAddr>) {
    let mut by = BTreeMap::new();
    let mut seen = Vec::new();
    for n in 0..count {
        let (name, from) = ask().unwrap_or_else(|e| panic!("request {n} of {count}: {e}"));
        *by.entry(name).or_insert(0) += 1;
        seen.push(from);
    }
    seen.sort();
    seen.dedup();
    (by, seen)
}

/// Waits until `done` or panics after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Stopwatch::start();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
