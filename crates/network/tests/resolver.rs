//! The resolver helper as a process of its own, asked through real sockets in namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use shoal_model::assignment::{Backend, BackendState, ServiceEntry};
use shoal_model::fault::chain;
use shoal_model::net::Vni;
use shoal_model::object::Subnet;
use shoal_model::spec::service::EndpointMode;
use shoal_netlink::netns::{self, NetnsHandle};
use shoal_network::desired::{
    DesiredNet, DesiredNetwork, LocalPort, NetKind, NetProperties, PortKind, SandboxId, SandboxSpec,
};
use shoal_network::error::NetworkError;
use shoal_network::resolver::snapshot::Snapshot;
use shoal_network::resolver::{self, Resolver};
use shoal_stopwatch::Stopwatch;

const DEADLINE: Duration = Duration::from_secs(60);
const RESOLVER: &str = "127.0.0.11:53";
/// Names the helper's directory when this program runs as the helper.
const HELPER_DIR: &str = "SHOAL_TEST_RESOLVER_DIR";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The helper is this program again, running only this "test".
#[test]
fn helper_process() {
    if let Some(dir) = std::env::var_os(HELPER_DIR) {
        let code = resolver::main(["--dir".into(), dir]);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    }
}

/// Two workloads on one network with 60 tasks, and the daemon's side of a helper.
struct Lab {
    dir: PathBuf,
    resolver: Resolver,
    number: AtomicU64,
    program: PathBuf,
    sandboxes: BTreeMap<SandboxId, PathBuf>,
    handles: Vec<NetnsHandle>,
    desired: DesiredNetwork,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Lab {
    fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/run/shoal-resolver-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        let this = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\n{HELPER_DIR}=\"$3\" exec '{}' --exact helper_process --nocapture\n",
            this.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let resolver = Resolver::open(Some(program.clone()), &dir).unwrap();
        let mut lab = Self {
            dir,
            resolver,
            number: AtomicU64::new(0),
            program,
            sandboxes: BTreeMap::new(),
            handles: Vec::new(),
            desired: DesiredNetwork::default(),
        };
        let network = desired_net();
        lab.desired.networks.insert(network.info.id.clone(), network);
        lab.add("c1", "10.0.1.4/24");
        lab.add("c2", "10.0.1.5/24");
        lab
    }

    fn add(&mut self, name: &str, address: &str) {
        let path = self.dir.join(format!("c-{name}"));
        netns::create(&path).unwrap();
        self.handles.push(NetnsHandle::open(&path).unwrap());
        let id = SandboxId::new(name);
        let port = LocalPort {
            sandbox: id.clone(),
            address: vec![address.parse().unwrap()],
            order: 0,
            aliases: vec![format!("{name}-alias")],
            default_route: true,
            kind: PortKind::Interface,
        };
        self.desired.networks.values_mut().next().unwrap().local_ports.push(port);
        let spec = SandboxSpec { names: vec![name.to_owned()], ..SandboxSpec::default() };
        self.desired.sandboxes.insert(id.clone(), spec);
        self.sandboxes.insert(id, path);
    }

    fn try_publish(&self) -> Result<(), NetworkError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.resolver.publish(number, Snapshot::of(&self.desired, &self.sandboxes), true)
    }

    fn publish(&self) {
        let done = self.try_publish();
        done.unwrap_or_else(|e| panic!("{}", chain(&e)));
    }

    fn ask(&self, who: usize, name: &str, kind: RecordType) -> Message {
        self.ask_with(who, name, kind, None)
    }

    fn ask_with(&self, who: usize, name: &str, kind: RecordType, edns: Option<Edns>) -> Message {
        let socket = self.handles[who].run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect(RESOLVER).unwrap();
        let mut question = question(name, kind);
        question.edns = edns;
        socket.send(&question.to_vec().unwrap()).unwrap();
        let mut buf = vec![0; 65536];
        let len = socket.recv(&mut buf).unwrap();
        Message::from_vec(&buf[..len]).unwrap()
    }

    fn ask_tcp(&self, who: usize, name: &str, kind: RecordType) -> Message {
        let connect = || TcpStream::connect_timeout(&RESOLVER.parse().unwrap(), DEADLINE);
        let mut stream = self.handles[who].run(connect).unwrap().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let bytes = question(name, kind).to_vec().unwrap();
        stream.write_all(&(bytes.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut len = [0; 2];
        stream.read_exact(&mut len).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut answer).unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// The helper's process, found by its lock on the directory.
    fn helper_pid(&self) -> Option<u32> {
        let want = format!("{HELPER_DIR}={}", self.dir.join("resolver").display());
        fs::read_dir("/proc").unwrap().filter_map(Result::ok).find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environ = fs::read(entry.path().join("environ")).ok()?;
            environ.split(|b| *b == 0).any(|var| var == want.as_bytes()).then_some(pid)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.resolver.stop();
        for entry in fs::read_dir(&self.dir).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("c-") {
                // Ignored because: clean-up must not hide why the test failed.
                let _ = netns::delete(&entry.path());
            }
        }
        // Ignored because: as above.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn desired_net() -> DesiredNet {
    let subnet = "10.0.1.0/24".parse().unwrap();
    let info = NetProperties {
        id: "net".into(),
        kind: NetKind::Overlay,
        name: "apps".to_owned(),
        subnets: vec![Subnet {
            subnet,
            gateway: ip("10.0.1.1"),
            range: None,
            reserved: Vec::new(),
        }],
        mtu: 1450,
        internal: false,
        ingress: false,
        vni: Vni(5000),
        data_path_port: 4789,
    };
    let backend = |n: u8| Backend {
        address: [10, 0, 1, n].into(),
        task_id: format!("t{n}").as_str().into(),
        state: BackendState::Serving,
    };
    let web = ServiceEntry {
        service_id: "s".into(),
        name: "web".to_owned(),
        aliases: Vec::new(),
        mode: EndpointMode::Vip,
        vip: Some(ip("10.0.1.2")),
        backends: (100..160).map(backend).collect(),
    };
    let services = vec![web];
    DesiredNet { info, peers: vec![], endpoints: vec![], services, local_ports: vec![] }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn addresses(answer: &Message) -> BTreeSet<IpAddr> {
    let address = |record: &Record| match record.data {
        RData::A(a) => IpAddr::V4(a.0),
        RData::AAAA(a) => IpAddr::V6(a.0),
        _ => panic!("not an address"),
    };
    answer.answers.iter().map(address).collect()
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

#[test]
fn every_workload_is_answered_at_the_usual_address() {
    let lab = Lab::new();
    lab.publish();
    for who in 0..2 {
        let answer = lab.ask(who, "WeB.", RecordType::A);
        assert_eq!(addresses(&answer), [ip("10.0.1.2")].into());
        assert_eq!(answer.answers[0].name.to_ascii(), "WeB.");
        let answer = lab.ask_tcp(who, "web.apps.", RecordType::A);
        assert_eq!(addresses(&answer), [ip("10.0.1.2")].into());
    }
    let answer = lab.ask(0, "c2.", RecordType::A);
    assert_eq!(addresses(&answer), [ip("10.0.1.5")].into());
    let answer = lab.ask(0, "web.", RecordType::AAAA);
    assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(code(&lab.ask(0, "nothing.", RecordType::A)), ResponseCode::NXDomain);
    let answer = lab.ask(0, "2.1.0.10.in-addr.arpa.", RecordType::PTR);
    assert!(matches!(&answer.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "web.apps."));
}

#[test]
fn long_answers_use_edns_or_tcp_and_change_their_order() {
    let lab = Lab::new();
    lab.publish();
    let short = lab.ask(0, "tasks.web.", RecordType::A);
    assert!(short.metadata.truncation && short.answers.len() < 60);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    let long = lab.ask_with(0, "tasks.web.", RecordType::A, Some(edns));
    assert_eq!((addresses(&long).len(), long.metadata.truncation), (60, false));
    assert!(long.edns.is_some());
    let firsts: BTreeSet<String> = (0..20)
        .map(|_| lab.ask_tcp(0, "tasks.web.", RecordType::A).answers[0].data.to_string())
        .collect();
    assert!(firsts.len() > 1);
}

#[test]
fn port_53_of_all_other_addresses_is_the_workloads_own() {
    let lab = Lab::new();
    lab.publish();
    let sockets = || (UdpSocket::bind("0.0.0.0:53"), TcpListener::bind("0.0.0.0:53"));
    let (udp, tcp) = lab.handles[0].run(sockets).unwrap();
    let (_udp, _tcp) = (udp.unwrap(), tcp.unwrap());
    assert_eq!(addresses(&lab.ask(0, "web.", RecordType::A)), [ip("10.0.1.2")].into());
    assert_eq!(addresses(&lab.ask_tcp(0, "web.", RecordType::A)), [ip("10.0.1.2")].into());
}

#[test]
fn names_outlive_the_daemon_and_the_next_one_adopts_the_helper() {
    let mut lab = Lab::new();
    lab.publish();
    let first = lab.helper_pid().expect("a helper runs");
    lab.resolver = Resolver::open(Some(lab.program.clone()), &lab.dir).unwrap();
    assert_eq!(addresses(&lab.ask(1, "web.", RecordType::A)), [ip("10.0.1.2")].into());
    lab.desired.networks.values_mut().next().unwrap().services[0].vip = Some(ip("10.0.1.3"));
    lab.add("c3", "10.0.1.6/24");
    lab.publish();
    assert_eq!(lab.helper_pid(), Some(first));
    for who in 0..3 {
        assert_eq!(addresses(&lab.ask(who, "web.", RecordType::A)), [ip("10.0.1.3")].into());
    }
}

#[test]
fn a_killed_helper_is_replaced_and_goes_on() {
    let lab = Lab::new();
    lab.publish();
    let first = lab.helper_pid().unwrap();
    let killed = Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
    assert!(killed.success());
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "no new helper");
        let socket = lab.handles[0].run(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.connect(RESOLVER).unwrap();
        // Ignored because: without a helper the port is closed; asked again until it is not.
        let _ = socket.send(&question("web.", RecordType::A).to_vec().unwrap());
        if socket.recv(&mut [0; 512]).is_ok() {
            break;
        }
    }
    assert_ne!(lab.helper_pid(), Some(first));
    lab.publish();
    assert_eq!(addresses(&lab.ask(1, "web.", RecordType::A)), [ip("10.0.1.2")].into());
}

#[test]
fn a_helper_whose_directory_is_removed_makes_room_for_another() {
    let lab = Lab::new();
    lab.publish();
    let first = lab.helper_pid().unwrap();
    fs::remove_dir_all(lab.dir.join("resolver")).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while lab.helper_pid().is_none_or(|pid| pid == first) {
        assert!(Instant::now() < deadline, "the old helper stays");
        std::thread::yield_now();
    }
    lab.publish();
    assert!(!std::path::Path::new(&format!("/proc/{first}/root")).exists());
    assert_eq!(addresses(&lab.ask(0, "web.", RecordType::A)), [ip("10.0.1.2")].into());
}

/// A signal stops every thread, but each only when it gets to run: until then it may answer.
fn wait_until_stopped(pid: u32) {
    let deadline = Instant::now() + DEADLINE;
    let stopped = |thread: io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    while !fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(stopped) {
        assert!(Instant::now() < deadline, "it runs on");
        std::thread::yield_now();
    }
}

#[test]
fn a_stopped_helper_is_replaced_whoever_started_it() {
    let mut lab = Lab::new();
    lab.publish();
    let first = lab.helper_pid().unwrap();
    // The next daemon is not the helper's parent.
    lab.resolver = Resolver::open(Some(lab.program.clone()), &lab.dir).unwrap();
    lab.publish();
    assert_eq!(lab.helper_pid(), Some(first));
    let stopped = Command::new("kill").args(["-STOP", &first.to_string()]).status().unwrap();
    assert!(stopped.success());
    wait_until_stopped(first);
    lab.desired.networks.values_mut().next().unwrap().services[0].vip = Some(ip("10.0.1.3"));
    lab.publish();
    assert_ne!(lab.helper_pid(), Some(first));
    assert_eq!(addresses(&lab.ask(0, "web.", RecordType::A)), [ip("10.0.1.3")].into());
}

#[test]
fn what_changes_is_told_and_what_is_gone_is_no_longer_served() {
    let mut lab = Lab::new();
    lab.publish();
    lab.add("c3", "10.0.1.6/24");
    lab.publish();
    assert_eq!(addresses(&lab.ask(0, "c3.", RecordType::A)), [ip("10.0.1.6")].into());
    assert_eq!(addresses(&lab.ask(2, "c1.", RecordType::A)), [ip("10.0.1.4")].into());
    let gone = SandboxId::new("c1");
    lab.desired.sandboxes.remove(&gone);
    lab.sandboxes.remove(&gone);
    let net = lab.desired.networks.values_mut().next().unwrap();
    net.local_ports.retain(|port| port.sandbox != gone);
    lab.publish();
    assert_eq!(code(&lab.ask(2, "c1.", RecordType::A)), ResponseCode::NXDomain);
    let at: SocketAddr = RESOLVER.parse().unwrap();
    let refused = lab.handles[0].run(|| TcpStream::connect_timeout(&at, DEADLINE)).unwrap();
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_sandbox_made_anew_is_served_again_and_a_missing_one_is_named() {
    let mut lab = Lab::new();
    lab.publish();
    let path = lab.sandboxes[&SandboxId::new("c1")].clone();
    netns::delete(&path).unwrap();
    netns::create(&path).unwrap();
    lab.handles[0] = NetnsHandle::open(&path).unwrap();
    lab.publish();
    assert_eq!(addresses(&lab.ask(0, "web.", RecordType::A)), [ip("10.0.1.2")].into());

    lab.sandboxes.insert(SandboxId::new("c2"), "/nowhere".into());
    let error = lab.try_publish().unwrap_err();
    let text = chain(&error);
    assert!(text.contains("serve the sandbox 'c2': no namespace at '/nowhere'"), "{text}");
    assert_eq!(addresses(&lab.ask(0, "web.", RecordType::A)), [ip("10.0.1.2")].into());
}

/// A server that gives every name one address, or none at all.
fn upstream(at: &str, answer: Option<[u8; 4]>) -> IpAddr {
    let at: SocketAddr = at.parse().unwrap();
    let socket = UdpSocket::bind(at).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        while let Ok((len, client)) = socket.recv_from(&mut buf) {
            let Some(octets) = answer else { continue };
            let question = Message::from_vec(&buf[..len]).unwrap();
            let mut message = Message::response(question.metadata.id, OpCode::Query);
            let name = question.queries[0].name().clone();
            message.queries = question.queries;
            message.add_answer(Record::from_rdata(name, 60, RData::A(A(octets.into()))));
            socket.send_to(&message.to_vec().unwrap(), client).unwrap();
        }
    });
    at.ip()
}

#[test]
fn other_names_are_asked_for_outside_and_a_silent_server_costs_little() {
    let mut lab = Lab::new();
    let pid = (std::process::id() % 250 + 1) as u8;
    let silent = upstream(&format!("127.77.{pid}.1:53"), None);
    let good = upstream(&format!("127.77.{pid}.2:53"), Some([198, 51, 100, 7]));
    for (name, servers) in [("c1", vec![silent, good]), ("c2", vec![silent])] {
        lab.desired.sandboxes.get_mut(&SandboxId::new(name)).unwrap().dns_servers = servers;
    }
    lab.publish();
    let begin = Stopwatch::start();
    let answer = lab.ask(0, "www.example.com.", RecordType::A);
    assert_eq!(addresses(&answer), [ip("198.51.100.7")].into());
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(answer.metadata.id, 7);
    let answer = lab.ask(1, "www.example.com.", RecordType::A);
    assert_eq!(code(&answer), ResponseCode::ServFail);
    lab.desired.networks.values_mut().next().unwrap().info.internal = true;
    lab.publish();
    let answer = lab.ask(0, "www.example.com.", RecordType::A);
    assert_eq!(code(&answer), ResponseCode::NXDomain);
}
