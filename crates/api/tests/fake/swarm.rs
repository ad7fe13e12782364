//! A swarm of one node without consensus: changes go straight into a [`ClusterState`].

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use ipnet::IpNet;
use shoal_api::backend::ApiState;
use shoal_api::backend::swarm::*;
use shoal_api::error::{ApiError, ApiResult};
use shoal_model::change::{Change, Expect, Object, ObjectKey, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::event::Event;
use shoal_model::id::*;
use shoal_model::log::{LogSelection, LogsOf, TaskLog, TaskLogLine};
use shoal_model::net::{NodeIndex, Vni};
use shoal_model::object::*;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::spec::payload::PayloadSpec;
use shoal_model::spec::service::ServiceSpec;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_model::trust::{NodeTls, Trust};

pub const NODE: &str = "node0000000000000000000n1";
const AT: Timestamp = Timestamp::from_secs(1_500_000_000);

#[derive(Clone, Default)]
pub struct Swarm {
    control: Arc<Mutex<Option<Control>>>,
    /// The one other node that can be reached.
    pub elsewhere: Arc<Mutex<Option<Arc<ApiState>>>>,
    pub worker: Arc<Mutex<bool>>,
    /// A manager that waits for its unlock key.
    pub locked: Arc<Mutex<bool>>,
    changes: Arc<tokio::sync::watch::Sender<u64>>,
}

#[derive(Clone)]
pub struct Control(Arc<Mutex<(ClusterState, CountingIds)>>, Elsewhere);

type Elsewhere = Arc<Mutex<Option<Arc<ApiState>>>>;

pub const UNLOCK_KEY: &str = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8";

pub const OTHER_NODE: &str = "node0000000000000000000n2";

impl Swarm {
    /// Moves the only task to the other node, as if it were this container there; the task's id.
    pub fn move_task(&self, container: &str) -> String {
        let control = self.control.lock().unwrap().clone().unwrap();
        let mut task = (**control.state().tasks.values().next().unwrap()).clone();
        task.node_id = Some(OTHER_NODE.into());
        task.status.container.as_mut().unwrap().container_id = ContainerId::new(container);
        let id = task.id.to_string();
        control.delete(ObjectKey::Task(task.id.clone())).unwrap();
        control.put(Object::Task(Box::new(task)), Expect::Any).unwrap();
        id
    }
}

#[async_trait]
impl SwarmMembership for Swarm {
    fn status(&self) -> SwarmStatus {
        if *self.locked.lock().unwrap() {
            return SwarmStatus { state: LocalState::Locked, ..SwarmStatus::default() };
        }
        let manager = self.control.lock().unwrap().is_some();
        let member = manager || *self.worker.lock().unwrap();
        if !member {
            return SwarmStatus::default();
        }
        SwarmStatus {
            state: LocalState::Active,
            node_id: Some(NODE.into()),
            node_addr: "10.1.2.3".into(),
            control_available: manager,
            error: String::new(),
            remote_managers: vec![(NODE.into(), "10.1.2.3:2377".into())],
        }
    }
    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn control(&self) -> Option<Arc<dyn SwarmControl>> {
        let control = self.control.lock().unwrap().clone()?;
        if *self.locked.lock().unwrap() {
            return None;
        }
        Some(Arc::new(control))
    }
    async fn init(&self, request: InitRequest) -> ApiResult<NodeId> {
        let mut slot = self.control.lock().unwrap();
        if slot.is_some() {
            return Err(ApiError::unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this \
                 swarm and join another one.",
            ));
        }
        *slot = Some(Control::new(request.spec, self.elsewhere.clone()));
        self.changes.send_modify(|count| *count += 1);
        Ok(NODE.into())
    }
    async fn join(&self, request: JoinRequest) -> ApiResult<()> {
        if !request.join_token.starts_with("SWMTKN-1-") {
            return Err(ApiError::invalid("invalid join token"));
        }
        *self.worker.lock().unwrap() = true;
        Ok(())
    }
    async fn backup(&self) -> ApiResult<bytes::Bytes> {
        if self.control.lock().unwrap().is_none() {
            return Err(ApiError::unavailable(self.status().not_a_manager()));
        }
        Ok(bytes::Bytes::from_static(b"the whole swarm"))
    }
    async fn restore(&self, request: RestoreRequest) -> ApiResult<NodeId> {
        if &*request.file != b"the whole swarm" {
            return Err(ApiError::invalid("read the backup: it is not one of shoal's"));
        }
        self.init(InitRequest::default()).await
    }
    async fn unlock(&self, text: &str) -> ApiResult<()> {
        if text != UNLOCK_KEY {
            return Err(ApiError::new(http::StatusCode::UNAUTHORIZED, "invalid key provided"));
        }
        *self.locked.lock().unwrap() = false;
        Ok(())
    }
    async fn leave(&self, _: bool) -> ApiResult<()> {
        *self.control.lock().unwrap() = None;
        *self.worker.lock().unwrap() = false;
        Ok(())
    }
}

impl Control {
    fn new(spec: ClusterSpec, elsewhere: Elsewhere) -> Self {
        let control = Self(Arc::default(), elsewhere);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let cluster = Cluster {
            id: ClusterId::new("cluster00000000000000000c"),
            meta: Meta::default(),
            spec,
            root_ca: RootCa { cert_pem: ca.pem(), key_pem: String::new() },
            trust: Trust::default(),
            join_tokens: JoinTokens {
                worker: format!("SWMTKN-1-{}-{}", "a".repeat(50), "w".repeat(25)),
                manager: format!("SWMTKN-1-{}-{}", "a".repeat(50), "m".repeat(25)),
            },
            default_address_pools: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_prefix_len: 24,
            data_path_port: 4789,
            unlock: None,
            level: shoal_model::level::FIRST,
            extra: Default::default(),
        };
        let node = Node {
            id: NODE.into(),
            meta: Meta::default(),
            spec: NodeSpec { role: NodeRole::Manager, ..NodeSpec::default() },
            description: NodeDescription {
                hostname: "one".into(),
                engine_version: "0.1.0".into(),
                ..NodeDescription::default()
            },
            status: NodeStatus {
                state: NodeState::Ready,
                message: String::new(),
                addr: "10.1.2.3".into(),
                since: AT,
                back_by: None,
            },
            index: NodeIndex(1),
            data_path_addr: Some("10.1.2.3".parse().unwrap()),
            tls: NodeTls::default(),
            manager: Some(ManagerStatus {
                raft_id: 1,
                addr: "10.1.2.3:2377".into(),
                reachable: true,
                leader: true,
            }),
            extra: Default::default(),
        };
        let ingress =
            NetworkSpec { name: "ingress".into(), ingress: Some(true), ..NetworkSpec::default() };
        control.put(Object::Cluster(Box::new(cluster)), Expect::Any).unwrap();
        control.put(Object::Node(Box::new(node)), Expect::Any).unwrap();
        control.add_network(ingress).unwrap();
        control
    }

    fn put(&self, object: Object, expect: Expect) -> ApiResult<()> {
        self.apply(Change::Put { object, expect })
    }

    fn delete(&self, key: ObjectKey) -> ApiResult<()> {
        self.apply(Change::Delete { key, expect: Expect::Any })
    }

    fn apply(&self, change: Change) -> ApiResult<()> {
        let mut inner = self.0.lock().unwrap();
        let next = Revision(inner.0.revision.0 + 1);
        let changes = vec![change];
        inner
            .0
            .apply(next, &Transaction { changes, at: AT })
            .map(|_| ())
            .map_err(|error| ApiError::internal(error.to_string()))
    }

    fn add_network(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        let (id, n) = {
            let mut inner = self.0.lock().unwrap();
            let n = inner.0.networks.len() as u8;
            (NetworkId::generate(&mut inner.1), n)
        };
        let subnet: IpNet = format!("10.0.{n}.0/24").parse().unwrap();
        let network = Network {
            id: id.clone(),
            meta: Meta::default(),
            spec,
            vni: Vni(4096 + u32::from(n)),
            subnets: vec![Subnet {
                subnet,
                gateway: format!("10.0.{n}.1").parse().unwrap(),
                range: None,
                reserved: Vec::new(),
            }],
            mtu: 1450,
            extra: Default::default(),
        };
        self.put(Object::Network(Box::new(network)), Expect::Absent)?;
        Ok(id)
    }

    /// Running tasks for every replica, as if agents had carried everything out.
    fn converge(&self, service: &Service) -> ApiResult<()> {
        let network = service.endpoint.vips.first().map(|vip| vip.network_id.clone());
        let job = service.job_status();
        let completions = service.spec.replicated_job().map(|job| job.total_completions());
        let (slots, state, message) = match (job, completions) {
            (None, _) => {
                (1..=service.spec.replicas().unwrap_or(1) as u32, TaskState::Running, "started")
            }
            (Some(_), Some(total)) => (1..=total as u32, TaskState::Complete, "finished"),
            (Some(_), None) => (0..=0, TaskState::Complete, "finished"),
        };
        for slot in slots {
            let id = TaskId::generate(&mut self.0.lock().unwrap().1);
            let addresses = vec![format!("10.0.1.{}/24", 100 + slot).parse().unwrap()];
            let place = |network_id| TaskNetwork { network_id, addresses, aliases: Vec::new() };
            let mut status = TaskStatus::new(AT, state, message);
            status.container = Some(ContainerStatus {
                container_id: ContainerId::new("c".repeat(64)),
                pid: 77,
                exit_code: 0,
            });
            let task = Task {
                id,
                meta: Meta::default(),
                service_id: Some(service.id.clone()),
                service_name: service.spec.name.clone(),
                slot,
                node_id: Some(NODE.into()),
                spec: Arc::new(service.spec.task_template.clone()),
                spec_version: service.spec_version,
                endpoint_ports: Vec::new(),
                networks: network.clone().map(place).into_iter().collect(),
                status,
                desired_state: TaskState::Running,
                not_before: None,
                job_iteration: job.map(|status| status.iteration),
                assigned_generic_resources: Vec::new(),
                extra: Default::default(),
            };
            self.put(Object::Task(Box::new(task)), Expect::Absent)?;
        }
        Ok(())
    }
}

#[async_trait]
impl SwarmControl for Control {
    fn state(&self) -> Arc<ClusterState> {
        Arc::new(self.0.lock().unwrap().0.clone())
    }
    fn events(&self) -> BoxStream<'static, Event> {
        stream::pending().boxed()
    }
    async fn create_service(
        &self,
        spec: ServiceSpec,
        _: Option<String>,
    ) -> ApiResult<ServiceWritten> {
        let id = ServiceId::generate(&mut self.0.lock().unwrap().1);
        let vips = spec.networks().iter().map(|network| VirtualIp {
            network_id: NetworkId::new(network.target.clone()),
            addr: "10.0.1.2/24".parse().unwrap(),
        });
        let endpoint = Endpoint { ports: spec.ports().to_vec(), vips: vips.collect() };
        let service = Service {
            id: id.clone(),
            meta: Meta::default(),
            spec: Arc::new(spec),
            spec_version: 1,
            previous_spec: None,
            endpoint,
            update_status: None,
            allocation_error: None,
            job_status: None,
            extra: Default::default(),
        };
        self.put(Object::Service(Box::new(service.clone())), Expect::Absent)?;
        self.converge(&service)?;
        Ok(ServiceWritten { id, warnings: Vec::new() })
    }
    async fn update_service(
        &self,
        id: &ServiceId,
        version: Revision,
        update: ServiceUpdate,
    ) -> ApiResult<ServiceWritten> {
        let mut service = (*self.state().services[id]).clone();
        service.previous_spec = Some(service.spec.clone());
        service.spec = Arc::new(update.spec);
        self.put(Object::Service(Box::new(service)), Expect::Version(version))?;
        Ok(ServiceWritten { id: id.clone(), warnings: Vec::new() })
    }
    async fn remove_service(&self, _: &ServiceId) -> ApiResult<()> {
        Ok(())
    }
    async fn create_network(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        self.add_network(spec)
    }
    async fn remove_network(&self, _: &NetworkId) -> ApiResult<()> {
        Ok(())
    }
    async fn create_secret(&self, spec: PayloadSpec) -> ApiResult<SecretId> {
        let id = SecretId::generate(&mut self.0.lock().unwrap().1);
        let (meta, extra) = (Meta::default(), Default::default());
        let secret = Secret { id: id.clone(), meta, spec, extra };
        self.put(Object::Secret(Box::new(secret)), Expect::Absent)?;
        Ok(id)
    }
    async fn update_secret(
        &self,
        id: &SecretId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()> {
        let mut secret = (*self.state().secrets[id]).clone();
        secret.spec.labels = spec.labels;
        self.put(Object::Secret(Box::new(secret)), Expect::Version(version))
    }
    async fn remove_secret(&self, id: &SecretId) -> ApiResult<()> {
        self.delete(ObjectKey::Secret(id.clone()))
    }
    async fn create_config(&self, spec: PayloadSpec) -> ApiResult<ConfigId> {
        let id = ConfigId::generate(&mut self.0.lock().unwrap().1);
        let (meta, extra) = (Meta::default(), Default::default());
        let config = Config { id: id.clone(), meta, spec, extra };
        self.put(Object::Config(Box::new(config)), Expect::Absent)?;
        Ok(id)
    }
    async fn update_config(
        &self,
        id: &ConfigId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()> {
        let mut config = (*self.state().configs[id]).clone();
        config.spec.labels = spec.labels;
        self.put(Object::Config(Box::new(config)), Expect::Version(version))
    }
    async fn remove_config(&self, id: &ConfigId) -> ApiResult<()> {
        self.delete(ObjectKey::Config(id.clone()))
    }
    async fn update_node(&self, id: &NodeId, version: Revision, spec: NodeSpec) -> ApiResult<()> {
        let mut node = (*self.state().nodes[id]).clone();
        node.spec = spec;
        self.put(Object::Node(Box::new(node)), Expect::Version(version))
    }
    async fn remove_node(&self, _: &NodeId, _: bool) -> ApiResult<()> {
        Err(ApiError::invalid("node is not down and can't be removed"))
    }
    async fn update_cluster(
        &self,
        version: Revision,
        spec: ClusterSpec,
        _: Rotations,
    ) -> ApiResult<()> {
        let mut cluster = (**self.state().cluster.as_ref().unwrap()).clone();
        let locks = spec.encryption_config.auto_lock_managers;
        cluster.unlock = locks.then(|| UnlockSecret(UNLOCK_KEY.to_owned()));
        cluster.spec = spec;
        self.put(Object::Cluster(Box::new(cluster)), Expect::Version(version))
    }
    async fn open_stream(&self, node: &NodeId) -> ApiResult<NodeStream> {
        let state = self.1.lock().unwrap().clone().filter(|_| node.as_str() == OTHER_NODE);
        let state = state.ok_or_else(|| ApiError::unavailable("reach node 'two': it is off"))?;
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        tokio::spawn(shoal_api::anywhere::serve(state, theirs));
        Ok(Box::new(ours))
    }
    async fn logs(&self, of: LogsOf, _: LogSelection) -> ApiResult<BoxStream<'static, TaskLog>> {
        let state = self.state();
        let of_task = |task: &&Arc<Task>| match &of {
            LogsOf::Service(id) => task.service_id.as_ref() == Some(id),
            LogsOf::Task(id) => task.id == *id,
        };
        let lines: Vec<TaskLog> = state
            .tasks
            .values()
            .filter(of_task)
            .map(|task| {
                TaskLog::Line(TaskLogLine {
                    task_id: task.id.clone(),
                    service_id: task.service_id.clone(),
                    node_id: NODE.into(),
                    time: AT,
                    stderr: false,
                    line: format!("hello from {}\n", task.slot).into_bytes(),
                })
            })
            .collect();
        let warning = TaskLog::Warning("node two is down".into());
        Ok(stream::iter(lines.into_iter().chain([warning])).boxed())
    }
}
