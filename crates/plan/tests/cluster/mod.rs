//! A cluster in memory: applies plans to a real [`ClusterState`] and plays the agents of its nodes.

// Each test binary uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::{Change, Changed, Expect, Object, ObjectKey, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ClusterId, CountingIds, NetworkId, NodeId, Revision, ServiceId};
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, Endpoint, JoinTokens, Meta, Network, Node, NodeDescription, NodeState, NodeStatus,
    RootCa, Service, Task, TaskStatus,
};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::spec::service::{Replicated, ReplicatedJob, ServiceMode, ServiceSpec};
use shoal_model::spec::task::{ContainerSpec, NetworkAttachmentConfig, Platform, Resources};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_model::trust::{NodeTls, Trust};

/// Passes after which a plan that still changes something is called restless.
const PASSES_MAX: usize = 50;

/// A small reproducible source of chance (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A place: its number, or its node for global services.
pub type SlotName = (u32, Option<NodeId>);

pub struct FakeCluster {
    pub state: ClusterState,
    pub now: Timestamp,
    pub ids: CountingIds,
    pub wake_at: Option<Timestamp>,
    /// Containers of that image fail when they should start.
    pub broken_images: Vec<String>,
    /// Containers of that image are refused while they are prepared.
    pub missing_images: Vec<String>,
    /// Ends that were reported: when, of which service, which place.
    pub failures: Vec<(Timestamp, ServiceId, SlotName)>,
    revision: u64,
}

impl FakeCluster {
    pub fn new(nodes: u16) -> Self {
        let mut cluster = Self {
            state: ClusterState::default(),
            now: Timestamp::from_secs(1_700_000_000),
            ids: CountingIds::default(),
            wake_at: None,
            broken_images: Vec::new(),
            missing_images: Vec::new(),
            failures: Vec::new(),
            revision: 0,
        };
        let object = Cluster {
            id: ClusterId::generate(&mut cluster.ids),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca: RootCa { cert_pem: String::new(), key_pem: String::new() },
            trust: Trust::default(),
            join_tokens: JoinTokens { worker: String::new(), manager: String::new() },
            default_address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix_len: 24,
            data_path_port: 4789,
            unlock: None,
            level: shoal_model::level::FIRST,
            extra: Default::default(),
        };
        cluster.put(Object::Cluster(Box::new(object)));
        cluster.add_network("ingress", true);
        for index in 1..=nodes {
            cluster.add_node(index);
        }
        cluster
    }

    pub fn add_network(&mut self, name: &str, ingress: bool) -> NetworkId {
        let spec = NetworkSpec {
            name: name.into(),
            ingress: ingress.then_some(true),
            ..NetworkSpec::default()
        };
        self.add_network_spec(spec)
    }

    pub fn add_network_spec(&mut self, spec: NetworkSpec) -> NetworkId {
        let plan = shoal_plan::network::allocate(&self.state, &spec).unwrap();
        let id = NetworkId::generate(&mut self.ids);
        self.put(Object::Network(Box::new(Network {
            id: id.clone(),
            meta: Meta::default(),
            spec,
            vni: plan.vni,
            subnets: plan.subnets,
            mtu: plan.mtu,
            extra: Default::default(),
        })));
        id
    }

    pub fn add_node(&mut self, index: u16) -> NodeId {
        let id = NodeId::new(format!("node-{index}"));
        let underlay: IpAddr = format!("192.168.7.{index}").parse().unwrap();
        self.put(Object::Node(Box::new(Node {
            id: id.clone(),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: NodeDescription {
                hostname: format!("host-{index}"),
                platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
                resources: Resources {
                    nano_cpus: Some(4_000_000_000),
                    memory_bytes: Some(8 << 30),
                    ..Resources::default()
                },
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: underlay.to_string(),
                since: self.now,
                back_by: None,
            },
            index: NodeIndex(index),
            data_path_addr: Some(underlay),
            manager: None,
            tls: NodeTls::default(),
            extra: Default::default(),
        })));
        id
    }

    pub fn add_service(&mut self, spec: ServiceSpec) -> ServiceId {
        let id = ServiceId::generate(&mut self.ids);
        self.put(Object::Service(Box::new(Service {
            id: id.clone(),
            meta: Meta::default(),
            spec: Arc::new(spec),
            spec_version: 1,
            previous_spec: None,
            endpoint: Endpoint::default(),
            update_status: None,
            allocation_error: None,
            job_status: None,
            extra: Default::default(),
        })));
        id
    }

    /// What `Control::update_service` does.
    pub fn update_service(&mut self, id: &ServiceId, edit: impl FnOnce(&mut ServiceSpec)) {
        let mut service = (**self.state.services.get(id).unwrap()).clone();
        let mut spec = (*service.spec).clone();
        edit(&mut spec);
        if shoal_plan::validate::outdates_tasks(&service.spec, &spec) {
            service.spec_version += 1;
            service.update_status = None;
        }
        service.previous_spec = Some(std::mem::replace(&mut service.spec, Arc::new(spec)));
        self.put(Object::Service(Box::new(service)));
    }

    pub fn edit_node(&mut self, id: &NodeId, edit: impl FnOnce(&mut Node)) {
        let mut node = (**self.state.nodes.get(id).unwrap()).clone();
        edit(&mut node);
        self.put(Object::Node(Box::new(node)));
    }

    pub fn set_node_state(&mut self, id: &NodeId, state: NodeState) {
        let now = self.now;
        self.edit_node(id, |node| {
            node.status.state = state;
            node.status.since = now;
        });
    }

    pub fn put(&mut self, object: Object) {
        self.apply(vec![Change::Put { object, expect: Expect::Any }]);
    }

    pub fn delete(&mut self, key: ObjectKey) {
        self.apply(vec![Change::Delete { key, expect: Expect::Any }]);
    }

    pub fn apply(&mut self, changes: Vec<Change>) {
        self.revision += 1;
        let transaction = Transaction { changes, at: self.now };
        let done = self.state.apply(Revision(self.revision), &transaction).unwrap();
        for change in &done {
            check_growth(change);
        }
    }

    /// Plans until there is nothing to do.
    pub fn plan(&mut self) {
        for _ in 0..PASSES_MAX {
            let plan = shoal_plan::reconcile(&self.state, self.now, &mut self.ids);
            self.wake_at = plan.wake_at;
            if plan.changes.is_empty() {
                return;
            }
            self.apply(plan.changes);
        }
        let plan = shoal_plan::reconcile(&self.state, self.now, &mut self.ids);
        panic!("the plan does not come to rest: {:#?}", plan.changes);
    }

    /// Every agent takes each of its tasks one step further; then the leader plans.
    pub fn step(&mut self, chance: &mut Chance, failure_one_in: u64) {
        let nodes: Vec<NodeId> = self.state.nodes.keys().cloned().collect();
        let mut changes = Vec::new();
        for node in nodes {
            if self.state.nodes.get(&node).unwrap().status.state != NodeState::Ready {
                continue;
            }
            let assignment = shoal_plan::assignment::for_node(&self.state, &node);
            for task in assignment.tasks.into_values() {
                let mut task = Arc::unwrap_or_clone(task);
                if let Some(next) = self.next_state(&task, chance, failure_one_in) {
                    if matches!(next, TaskState::Failed | TaskState::Rejected) {
                        let place = (task.slot, task.node_id.clone().filter(|_| task.slot == 0));
                        let service = task.service_id.clone().unwrap();
                        self.failures.push((self.now, service, place));
                    }
                    task.status = TaskStatus::new(self.now, next, "reported");
                    let object = Object::Task(Box::new(task));
                    changes.push(Change::Put { object, expect: Expect::Any });
                }
            }
        }
        if !changes.is_empty() {
            self.apply(changes);
        }
        self.plan();
    }

    /// Steps through simulated time: half a second, or on to the planned wake-up.
    pub fn run(&mut self, chance: &mut Chance, steps: usize, failure_one_in: u64) {
        for _ in 0..steps {
            self.now = self.now.plus(Duration::from_millis(500));
            self.step(chance, failure_one_in);
        }
    }

    fn next_state(
        &self,
        task: &Task,
        chance: &mut Chance,
        failure_one_in: u64,
    ) -> Option<TaskState> {
        let state = task.status.state;
        if state.is_terminal() {
            return None;
        }
        if task.desired_state > TaskState::Running {
            return (!chance.one_in(3)).then_some(TaskState::Shutdown);
        }
        if task.service_id.is_none() {
            return (state != TaskState::Running).then_some(TaskState::Running);
        }
        if failure_one_in > 0 && chance.one_in(failure_one_in) {
            return Some(TaskState::Failed);
        }
        let image = task.spec.container_spec.as_ref().map(|c| c.image.as_str()).unwrap_or("");
        match state {
            TaskState::Assigned => Some(TaskState::Accepted),
            TaskState::Accepted => Some(TaskState::Preparing),
            TaskState::Preparing if self.missing_images.iter().any(|m| m == image) => {
                Some(TaskState::Rejected)
            }
            TaskState::Preparing => Some(TaskState::Ready),
            TaskState::Ready if task.desired_state == TaskState::Running => {
                Some(TaskState::Starting)
            }
            TaskState::Starting if self.broken_images.iter().any(|b| b == image) => {
                Some(TaskState::Failed)
            }
            TaskState::Starting => Some(TaskState::Running),
            TaskState::Running if task.job_iteration.is_some() => {
                chance.one_in(3).then_some(TaskState::Complete)
            }
            _ => None,
        }
    }

    pub fn report(&mut self, mut task: Task, state: TaskState) {
        task.status = TaskStatus::new(self.now, state, "reported");
        self.put(Object::Task(Box::new(task)));
    }

    pub fn tasks(&self, service: &ServiceId) -> Vec<Arc<Task>> {
        let own = |t: &&Arc<Task>| t.service_id.as_ref() == Some(service);
        let mut tasks: Vec<_> = self.state.tasks.values().filter(own).cloned().collect();
        tasks.sort_by_key(|t| (t.slot, t.meta.created_at, t.id.clone()));
        tasks
    }

    pub fn live(&self, service: &ServiceId) -> Vec<Arc<Task>> {
        self.tasks(service).into_iter().filter(|t| t.is_live()).collect()
    }

    pub fn running(&self, service: &ServiceId) -> Vec<Arc<Task>> {
        let live = self.live(service).into_iter();
        live.filter(|t| t.status.state == TaskState::Running).collect()
    }

    /// Places with a running task.
    pub fn running_places(&self, service: &ServiceId) -> usize {
        let slots: std::collections::BTreeSet<u32> =
            self.running(service).iter().map(|t| t.slot).collect();
        slots.len()
    }

    pub fn service(&self, id: &ServiceId) -> &Service {
        self.state.services.get(id).unwrap()
    }

    /// How many running tasks each node has.
    pub fn spread(&self, service: &ServiceId) -> BTreeMap<NodeId, usize> {
        let mut spread = BTreeMap::new();
        for task in self.running(service) {
            *spread.entry(task.node_id.clone().unwrap()).or_default() += 1;
        }
        spread
    }
}

/// Observed and desired states only grow, whoever writes.
fn check_growth(change: &Changed) {
    if let (Some(Object::Task(before)), Some(Object::Task(after))) = (&change.before, &change.after)
    {
        assert!(before.status.state <= after.status.state, "{}: observed shrank", after.id);
        assert!(before.desired_state <= after.desired_state, "{}: desired shrank", after.id);
        if before.node_id.is_some() {
            assert_eq!(before.node_id, after.node_id, "{}: moved", after.id);
        }
    }
}

/// A service that is as plain as possible.
pub fn spec(name: &str, replicas: u64, networks: &[&str]) -> ServiceSpec {
    let attachments = networks.iter().map(|target| NetworkAttachmentConfig {
        target: (*target).into(),
        ..NetworkAttachmentConfig::default()
    });
    let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    spec.mode = Some(ServiceMode {
        replicated: Some(Replicated { replicas: Some(replicas) }),
        ..ServiceMode::default()
    });
    spec.task_template.container_spec =
        Some(ContainerSpec { image: "web:1".into(), ..ContainerSpec::default() });
    spec.task_template.networks = Some(attachments.collect());
    spec
}

/// The same, one task on every node.
pub fn global_spec(name: &str, networks: &[&str]) -> ServiceSpec {
    let mut spec = spec(name, 0, networks);
    spec.mode = Some(ServiceMode { global: Some(Default::default()), ..ServiceMode::default() });
    spec
}

/// The same, as a job that must be completed `total` times, by `concurrent` tasks at a time.
pub fn job_spec(name: &str, concurrent: u64, total: u64) -> ServiceSpec {
    let mut spec = spec(name, 0, &[]);
    let job = ReplicatedJob { max_concurrent: Some(concurrent), total_completions: Some(total) };
    spec.mode = Some(ServiceMode { replicated_job: Some(job), ..ServiceMode::default() });
    spec
}

/// The same, to be completed once on every node.
pub fn global_job_spec(name: &str) -> ServiceSpec {
    let mut spec = spec(name, 0, &[]);
    let job = Some(Default::default());
    spec.mode = Some(ServiceMode { global_job: job, ..ServiceMode::default() });
    spec
}

pub fn set_image(spec: &mut ServiceSpec, image: &str) {
    spec.task_template.container_spec.as_mut().unwrap().image = image.into();
}

pub fn set_replicas(spec: &mut ServiceSpec, replicas: u64) {
    spec.mode.as_mut().unwrap().replicated = Some(Replicated { replicas: Some(replicas) });
}
