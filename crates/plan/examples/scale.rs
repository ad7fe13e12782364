//! What starting many tasks costs the manager, part by part:
//! `cargo run --release -p shoal-plan --example scale -- [TASKS] [NODES] [BATCH]`.
//! Nodes report as they do, a few tasks at a time; each report is applied, planned upon, and turned
//! into assignments.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock and its arguments")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_model::assignment::Assignment;
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ClusterId, CountingIds, NetworkId, NodeId, Revision, ServiceId};
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, Endpoint, JoinTokens, Meta, Network, Node, NodeDescription, NodeState, NodeStatus,
    RootCa, Service, TaskStatus,
};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::{Ipam, IpamConfig, NetworkSpec};
use shoal_model::spec::node::NodeSpec;
use shoal_model::spec::service::{Replicated, ServiceMode, ServiceSpec};
use shoal_model::spec::task::{ContainerSpec, NetworkAttachmentConfig};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_plan::assignment::View;

/// Where the time went.
#[derive(Default)]
struct Spent(BTreeMap<&'static str, (Duration, u64)>);

impl Spent {
    fn on<T>(&mut self, what: &'static str, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = act();
        let (time, count) = self.0.entry(what).or_default();
        (*time, *count) = (*time + start.elapsed(), *count + 1);
        result
    }
}

struct World {
    state: ClusterState,
    /// What readers hold: every write copies what it changes.
    published: ClusterState,
    ids: CountingIds,
    now: Timestamp,
    revision: u64,
    spent: Spent,
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u64>().unwrap_or(1000));
    let tasks = arguments.next().unwrap_or(1000);
    let nodes = arguments.next().unwrap_or(1);
    let batch = usize::try_from(arguments.next().unwrap_or(20)).unwrap_or(20);
    let mut world = World {
        state: ClusterState::default(),
        published: ClusterState::default(),
        ids: CountingIds::default(),
        now: Timestamp::from_secs(1_700_000_000),
        revision: 0,
        spent: Spent::default(),
    };
    world.found(nodes);
    world.create(tasks);
    let start = Instant::now();
    let mut known: BTreeMap<NodeId, Assignment> = BTreeMap::new();
    let mut bytes = 0;
    while world.report(batch) || start.elapsed().is_zero() {
        world.plan();
        bytes += world.assign(&mut known);
    }
    println!("{tasks} tasks, {nodes} nodes, {batch} reports at a time: {:?}", start.elapsed());
    for (what, (time, count)) in &world.spent.0 {
        println!("  {what:12} {time:>12.2?} in {count}");
    }
    println!("  sent to nodes {bytes} bytes");
}

impl World {
    fn apply(&mut self, changes: Vec<Change>) {
        self.revision += 1;
        let transaction = Transaction { changes, at: self.now };
        let (state, revision) = (&mut self.state, Revision(self.revision));
        let json = self.spent.on("encode", || serde_json::to_vec(&transaction));
        drop(json);
        let applied = self.spent.on("apply", || state.apply(revision, &transaction));
        if let Err(refused) = applied {
            eprintln!("refused: {refused}");
        }
        self.published = self.state.clone();
    }

    fn put(&mut self, object: Object) {
        self.apply(vec![Change::Put { object, expect: Expect::Any }]);
    }

    fn found(&mut self, nodes: u64) {
        let cluster = Cluster {
            id: ClusterId::generate(&mut self.ids),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
            join_tokens: JoinTokens { worker: String::new(), manager: String::new() },
            default_address_pools: "10.0.0.0/8".parse().into_iter().collect(),
            subnet_prefix_len: 24,
            data_path_port: 4789,
        };
        self.put(Object::Cluster(Box::new(cluster)));
        for (name, subnet, ingress) in
            [("ingress", "10.255.0.0/16", true), ("net", "10.1.0.0/16", false)]
        {
            let config = IpamConfig { subnet: Some(subnet.into()), ..IpamConfig::default() };
            let spec = NetworkSpec {
                name: name.into(),
                ingress: Some(ingress),
                ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
                ..NetworkSpec::default()
            };
            let Ok(plan) = shoal_plan::network::allocate(&self.state, &spec) else { return };
            let id = NetworkId::generate(&mut self.ids);
            let (vni, subnets, mtu) = (plan.vni, plan.subnets, plan.mtu);
            let network = Network { id, meta: Meta::default(), spec, vni, subnets, mtu };
            self.put(Object::Network(Box::new(network)));
        }
        for index in 1..=nodes {
            let node = Node {
                id: NodeId::generate(&mut self.ids),
                meta: Meta::default(),
                spec: NodeSpec::default(),
                description: NodeDescription::default(),
                status: NodeStatus {
                    state: NodeState::Ready,
                    message: String::new(),
                    addr: String::new(),
                    since: self.now,
                },
                index: NodeIndex(u16::try_from(index).unwrap_or(1)),
                data_path_addr: Some([192, 168, 0, 1].into()),
                manager: None,
            };
            self.put(Object::Node(Box::new(node)));
        }
    }

    fn create(&mut self, tasks: u64) {
        let network =
            NetworkAttachmentConfig { target: "net".into(), ..NetworkAttachmentConfig::default() };
        let mut spec = ServiceSpec { name: "web".into(), ..ServiceSpec::default() };
        spec.mode = Some(ServiceMode {
            replicated: Some(Replicated { replicas: Some(tasks) }),
            ..ServiceMode::default()
        });
        let image = "registry.example/web:1".to_owned();
        let container = ContainerSpec { image, ..ContainerSpec::default() };
        spec.task_template.container_spec = Some(container);
        spec.task_template.networks = Some(vec![network]);
        let service = Service {
            id: ServiceId::generate(&mut self.ids),
            meta: Meta::default(),
            spec: Arc::new(spec),
            spec_version: 1,
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status: None,
            allocation_error: None,
        };
        self.put(Object::Service(Box::new(service)));
        self.plan();
    }

    fn plan(&mut self) {
        loop {
            let (state, now, ids) = (&self.published, self.now, &mut self.ids);
            let plan = self.spent.on("plan", || shoal_plan::reconcile(state, now, ids));
            if plan.changes.is_empty() {
                return;
            }
            self.apply(plan.changes);
        }
    }

    /// Some tasks come one step further.
    fn report(&mut self, batch: usize) -> bool {
        let next = |state: TaskState| match state {
            TaskState::Assigned => Some(TaskState::Accepted),
            TaskState::Accepted => Some(TaskState::Preparing),
            TaskState::Preparing => Some(TaskState::Ready),
            TaskState::Ready => Some(TaskState::Starting),
            TaskState::Starting => Some(TaskState::Running),
            _ => None,
        };
        self.now = self.now.plus(Duration::from_millis(20));
        let mut changes = Vec::new();
        for task in self.published.tasks.values() {
            if changes.len() == batch {
                break;
            }
            if let Some(next) = next(task.status.state) {
                let mut task = (**task).clone();
                task.status = TaskStatus::new(self.now, next, "reported");
                let object = Object::Task(Box::new(task));
                changes.push(Change::Put { object, expect: Expect::Any });
            }
        }
        let some = !changes.is_empty();
        if some {
            self.apply(changes);
        }
        some
    }

    /// The bytes that would be sent.
    fn assign(&mut self, known: &mut BTreeMap<NodeId, Assignment>) -> usize {
        let (state, spent) = (&self.published, &mut self.spent);
        let view = spent.on("view", || View::new(state));
        let mut bytes = 0;
        for node in state.nodes.keys() {
            let next = spent.on("for_node", || view.for_node(node));
            let old = known.entry(node.clone()).or_default();
            if spent.on("compare", || old.same_content(&next)) {
                continue;
            }
            let delta = spent.on("delta", || old.delta_to(&next));
            let json = spent.on("send", || serde_json::to_vec(&delta));
            bytes += json.map_or(0, |json| json.len());
            *old = next;
        }
        bytes
    }
}
