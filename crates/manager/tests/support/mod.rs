//! A real manager with a real store on loopback, and nodes that pretend to run tasks.

// Each test binary uses its own part of it.
#![allow(dead_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
use shoal_identity::external::{HttpsPost, NoHttps};
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::token::{JoinToken, generate_tokens};
use shoal_manager::control::Control;
use shoal_manager::manager::{Manager, ManagerConfig};
use shoal_manager::peers::OtherManagers;
use shoal_model::assignment::Assignment;
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ClusterId, ContainerId, CountingIds, NodeId, Revision, ServiceId};
use shoal_model::level;
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, ContainerStatus, ManagerStatus, Meta, Node, NodeDescription, NodeState, NodeStatus,
    Task, TaskStatus,
};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{Availability, NodeRole, NodeSpec};
use shoal_model::spec::service::{Replicated, ServiceMode, ServiceSpec};
use shoal_model::spec::task::{ContainerSpec, NetworkAttachmentConfig};
use shoal_model::task_state::TaskState;
use shoal_model::time::{Clock, Nanos, Timestamp};
use shoal_model::trust::{NodeTls, Trust};
use shoal_store::{NoPeers, Store, StoreConfig};
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    AckRevision, AttachOutcome, AttachRequest, BackSoon, Hello, LogChunk, LogEnd, LogLine,
    LogSource, ManagerMessage, NodeFacts, NodeMessage, PROTOCOL_VERSION, TaskReport, TaskStatuses,
};
use shoal_wire::session::SessionSender;
use tokio::sync::mpsc;

/// Longest that anything in these tests may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Heartbeats where no node shall be lost: three of them take longer than a busy machine lets a
/// process wait.
const RARE: Duration = Duration::from_secs(5);
/// Heartbeats where a lost node shall be noticed soon.
const OFTEN: Duration = Duration::from_secs(1);

pub fn clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Timestamp(since.as_nanos() as i64)
    })
}

pub struct World {
    pub manager: Option<Manager>,
    pub store: Store,
    pub identity: NodeIdentity,
    pub control: Control,
    pub addr: SocketAddr,
    https: Arc<dyn HttpsPost>,
    _dir: tempfile::TempDir,
}

impl World {
    /// A cluster of one manager whose own node has no agent yet. It is patient with its nodes.
    pub async fn new() -> Self {
        Self::with_heartbeat(RARE, Arc::new(NoHttps)).await
    }

    /// The same, with a way to external CAs.
    pub async fn asking(https: Arc<dyn HttpsPost>) -> Self {
        Self::with_heartbeat(RARE, https).await
    }

    /// The same, but a node that is lost is noticed within seconds.
    pub async fn impatient() -> Self {
        Self::with_heartbeat(OFTEN, Arc::new(NoHttps)).await
    }

    async fn with_heartbeat(heartbeat: Duration, https: Arc<dyn HttpsPost>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = clock()();
        let mut ids = CountingIds(1 << 64);
        let (authority, root_ca) = RootAuthority::create(now).unwrap();
        let (cluster_id, node_id) = (ClusterId::generate(&mut ids), NodeId::generate(&mut ids));
        let key = KeyAndCsr::generate().unwrap();
        let cert = authority
            .issue(&key.csr_pem, &node_id, NodeRole::Manager, &cluster_id, now, NODE_VALIDITY)
            .unwrap();
        let identity = NodeIdentity::new(cert, key.key_pem, root_ca.cert_pem.clone()).unwrap();
        let mut spec = ClusterSpec { name: "default".into(), ..ClusterSpec::default() };
        spec.dispatcher.heartbeat_period = Some(Nanos(heartbeat.as_nanos() as i64));
        let cluster = Cluster {
            id: cluster_id,
            meta: Meta::default(),
            spec,
            join_tokens: generate_tokens(&authority.digest()),
            root_ca,
            trust: Trust::default(),
            default_address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix_len: 24,
            data_path_port: 4789,
            unlock: None,
            level: level::FIRST,
            extra: Default::default(),
        };
        let node = Node {
            id: node_id,
            meta: Meta::default(),
            // It has no agent in these tests.
            spec: NodeSpec {
                role: NodeRole::Manager,
                availability: Availability::Drain,
                ..NodeSpec::default()
            },
            description: NodeDescription { hostname: "m1".into(), ..NodeDescription::default() },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: "127.0.0.1".into(),
                since: now,
                back_by: None,
            },
            index: NodeIndex(1),
            data_path_addr: Some(IpAddr::from([127, 0, 0, 1])),
            tls: NodeTls::default(),
            manager: Some(ManagerStatus {
                raft_id: 1,
                addr: "127.0.0.1:0".into(),
                reachable: true,
                leader: true,
            }),
            extra: Default::default(),
        };
        let put = |object| Change::Put { object, expect: Expect::Absent };
        let changes =
            vec![put(Object::Cluster(Box::new(cluster))), put(Object::Node(Box::new(node)))];
        let (path, peers) = (dir.path().join("store"), Arc::new(NoPeers));
        let config = StoreConfig::new(path, identity.node_id.clone(), peers);
        // So that a cluster can be of a later level than this program's nodes.
        let config = StoreConfig { reads: level::READS + 1, ..config };
        let store = Store::bootstrap(config, Transaction { changes, at: now }).await.unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let manager = start(&store, &identity, addr, Arc::clone(&https)).await;
        let addr = manager.local_addr();
        let control = manager.control();
        leads(&control).await;
        Self { manager: Some(manager), store, identity, control, addr, https, _dir: dir }
    }

    /// Stops the manager and starts another one on the same store and address.
    pub async fn restart_manager(&mut self) {
        self.manager.take().unwrap().shutdown().await;
        let manager = start(&self.store, &self.identity, self.addr, Arc::clone(&self.https)).await;
        self.control = manager.control();
        leads(&self.control).await;
        self.manager = Some(manager);
    }

    pub fn token(&self, role: NodeRole) -> String {
        let state = self.control.state();
        let tokens = &state.cluster.as_ref().unwrap().join_tokens;
        match role {
            NodeRole::Worker => tokens.worker.clone(),
            NodeRole::Manager => tokens.manager.clone(),
        }
    }

    pub async fn join(&self, token: &str, name: &str) -> Result<NodeIdentity, WireError> {
        let key = KeyAndCsr::generate().unwrap();
        let facts = NodeFacts { description: describe(name), ..NodeFacts::default() };
        let token = JoinToken::parse(token).unwrap();
        let joined = client::join(&self.addr.to_string(), &token, &key.csr_pem, facts).await?;
        Ok(NodeIdentity::new(joined.reply.cert_pem, key.key_pem, joined.root_pem).unwrap())
    }

    /// A worker that joined and runs its tasks.
    pub async fn worker(&self, name: &str) -> FakeNode {
        let identity = self.join(&self.token(NodeRole::Worker), name).await.unwrap();
        let node = FakeNode::start(identity, self.addr, name);
        let id = node.id();
        self.until("the node is ready", |state| {
            state.nodes.get(&id).is_some_and(|n| n.status.state == NodeState::Ready)
        })
        .await;
        node
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&ClusterState) -> bool) {
        let mut revision = self.store.watch();
        let wait = async {
            while !holds(&self.store.state()) {
                revision.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            let state = self.store.state();
            let tasks: Vec<_> = state
                .tasks
                .values()
                .map(|t| (t.name(), t.status.state, t.desired_state, &t.status.err, &t.node_id))
                .collect();
            panic!("waited for: {what}; tasks: {tasks:#?}; nodes: {:#?}", state.nodes);
        }
    }

    pub async fn until_running(&self, id: &ServiceId, count: usize) {
        let what = format!("{count} tasks of {id} run");
        self.until(&what, |state| running(state, id).len() == count).await;
    }
}

async fn start(
    store: &Store,
    identity: &NodeIdentity,
    listen: SocketAddr,
    https: Arc<dyn HttpsPost>,
) -> Manager {
    let config = ManagerConfig {
        store: store.clone(),
        identity: identity.clone(),
        others: OtherManagers::new(identity.clone()),
        https,
        listen,
        advertise: listen,
        clock: clock(),
        cert_expiry_min: Duration::from_secs(3600),
    };
    Manager::start(config).await.unwrap()
}

/// Waits until this manager decides.
async fn leads(control: &Control) {
    let mut leads = control.leads();
    let leads = leads.wait_for(|leads| *leads);
    tokio::time::timeout(DEADLINE, leads).await.expect("the manager leads in time").unwrap();
}

pub fn running(state: &ClusterState, id: &ServiceId) -> Vec<Arc<Task>> {
    let of = |t: &&Arc<Task>| {
        t.service_id.as_ref() == Some(id) && t.is_live() && t.status.state == TaskState::Running
    };
    state.tasks.values().filter(of).cloned().collect()
}

pub fn describe(name: &str) -> NodeDescription {
    NodeDescription { hostname: name.into(), ..NodeDescription::default() }
}

pub fn network(name: &str) -> NetworkSpec {
    NetworkSpec { name: name.into(), driver: Some("overlay".into()), ..NetworkSpec::default() }
}

pub fn service(name: &str, replicas: u64, networks: &[&str]) -> ServiceSpec {
    let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    spec.mode = Some(ServiceMode {
        replicated: Some(Replicated { replicas: Some(replicas) }),
        ..ServiceMode::default()
    });
    spec.task_template.container_spec =
        Some(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() });
    let attachments = networks.iter().map(|target| NetworkAttachmentConfig {
        target: (*target).into(),
        ..NetworkAttachmentConfig::default()
    });
    spec.task_template.networks = Some(attachments.collect());
    spec
}

/// A node that reports every task as it is wished to be.
pub struct FakeNode {
    pub identity: NodeIdentity,
    pub assignment: Arc<Mutex<Assignment>>,
    pub sender: Arc<Mutex<Option<SessionSender<NodeMessage>>>>,
    /// What the manager says beyond assignments, and how sessions end.
    pub heard: mpsc::UnboundedReceiver<Result<ManagerMessage, WireError>>,
    /// Set: the session that ends next is the last.
    away: Arc<AtomicBool>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl FakeNode {
    pub fn start(identity: NodeIdentity, addr: SocketAddr, name: &str) -> Self {
        let assignment = Arc::new(Mutex::new(Assignment::default()));
        let sender = Arc::new(Mutex::new(None));
        #[expect(clippy::disallowed_methods, reason = "a test says no more than it writes down")]
        let (say, heard) = mpsc::unbounded_channel();
        let away = Arc::new(AtomicBool::new(false));
        let agent = Agent {
            away: Arc::clone(&away),
            identity: identity.clone(),
            addr,
            name: name.to_owned(),
            assignment: Arc::clone(&assignment),
            sender: Arc::clone(&sender),
            say,
        };
        let running = tokio::spawn(agent.run());
        Self { identity, assignment, sender, heard, away, running }
    }

    pub fn id(&self) -> NodeId {
        self.identity.node_id.clone()
    }

    /// Says that the node will be back, and ends when the manager has heard it.
    pub async fn back_soon(mut self, within_s: u32) -> NodeIdentity {
        self.away.store(true, Ordering::Relaxed);
        self.tell(NodeMessage::BackSoon(BackSoon { within_s })).await;
        tokio::time::timeout(DEADLINE, &mut self.running).await.unwrap().unwrap();
        self.identity.clone()
    }

    /// Does not come back once its session is over.
    pub fn stay_away(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    /// Cuts the node off without a word.
    pub fn kill(self) -> NodeIdentity {
        self.identity.clone()
    }

    pub async fn tell(&self, message: NodeMessage) {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let sender = self.sender.lock().unwrap().clone();
            // The sender of a session that has just ended takes nothing: the next one comes.
            if let Some(sender) = sender
                && sender.send(message.clone()).await.is_ok()
            {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "no session");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Asks for a place and waits for the answer. Asks again where the session ended before it came:
/// whoever asks twice gets the same place.
pub async fn attach(node: &mut FakeNode, request: AttachRequest) -> AttachOutcome {
    let answer = async {
        loop {
            node.tell(NodeMessage::Attach(request.clone())).await;
            loop {
                match node.heard.recv().await.expect("the node lives") {
                    Ok(ManagerMessage::AttachReply(reply)) if reply.request == request.request => {
                        return reply.outcome;
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time")
}

struct Agent {
    away: Arc<AtomicBool>,
    identity: NodeIdentity,
    addr: SocketAddr,
    name: String,
    assignment: Arc<Mutex<Assignment>>,
    sender: Arc<Mutex<Option<SessionSender<NodeMessage>>>>,
    say: mpsc::UnboundedSender<Result<ManagerMessage, WireError>>,
}

impl Agent {
    async fn run(self) {
        loop {
            if let Err(ended) = self.session().await {
                drop(self.say.send(Err(ended)));
            }
            if self.away.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn session(&self) -> Result<(), WireError> {
        let client = client::connect(&self.addr.to_string(), &self.identity).await?;
        let hello = Hello { description: describe(&self.name), ..hello(&self.identity) };
        let mut session = client.session(hello).await?;
        let sender = session.sender();
        *self.sender.lock().unwrap() = Some(sender.clone());
        loop {
            match session.next().await? {
                ManagerMessage::Assignment(update) => {
                    let more = update.more;
                    let (revision, reports) = self.take(*update);
                    if more {
                        continue;
                    }
                    let ack = AckRevision { revision };
                    sender.send(NodeMessage::AckRevision(ack)).await?;
                    if !reports.is_empty() {
                        let list = TaskStatuses { statuses: reports };
                        sender.send(NodeMessage::TaskStatuses(list)).await?;
                    }
                }
                ManagerMessage::OpenLogs(open) => {
                    let line = format!("hello from {}\n", self.name).into_bytes();
                    let line = LogLine { time: clock()(), source: LogSource::Stdout, line };
                    let stream = open.stream;
                    let chunk = LogChunk { stream, lines: vec![line] };
                    sender.send(NodeMessage::LogChunk(chunk)).await?;
                    if !open.options.follow {
                        let end = LogEnd { stream, error: None };
                        sender.send(NodeMessage::LogEnd(end)).await?;
                    }
                }
                other => drop(self.say.send(Ok(other))),
            }
        }
    }

    fn take(
        &self,
        update: shoal_model::assignment::AssignmentUpdate,
    ) -> (Revision, Vec<TaskReport>) {
        let mut assignment = self.assignment.lock().unwrap();
        assert!(assignment.apply(update), "a delta did not fit");
        let reports = assignment.tasks.values().filter_map(|task| report(task)).collect();
        (assignment.revision, reports)
    }
}

fn report(task: &Task) -> Option<TaskReport> {
    let state = match task.desired_state {
        _ if task.status.state.is_terminal() => return None,
        desired if desired > TaskState::Running => TaskState::Shutdown,
        TaskState::Running => TaskState::Running,
        _ => TaskState::Ready,
    };
    if task.status.state == state {
        return None;
    }
    let mut status = TaskStatus::new(Timestamp(1), state, "pretended");
    status.container = Some(ContainerStatus {
        container_id: ContainerId::new(format!("{:0>64}", task.id.as_str())),
        pid: 1,
        exit_code: 0,
    });
    Some(TaskReport { task_id: task.id.clone(), status })
}

/// What a node says first.
pub fn hello(identity: &NodeIdentity) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        oldest: None,
        node_id: identity.node_id.clone(),
        description: describe("a"),
        advertise_addr: None,
        data_path_addr: None,
        revision: None,
        previous_session: None,
    }
}
