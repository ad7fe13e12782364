//! Random clusters: whatever services, nodes and failures do, the plan keeps its promises.
//!
//! `SHOAL_SIM_SEED=n` replays one seed; `SHOAL_SIM_SEEDS=n` runs that many.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};

use cluster::{
    Chance, FakeCluster, global_job_spec, global_spec, job_spec, set_image, set_replicas, spec,
};
use shoal_model::change::ObjectKey;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::{NodeState, Service, UpdateState};
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::{EndpointSpec, PortConfig, UpdateConfig};
use shoal_model::spec::task::{Placement, RestartPolicy};
use shoal_model::task_state::TaskState;
use shoal_model::time::Nanos;

/// Seeds by default: quick enough for every build.
const SEEDS: u64 = 150;
/// Seeds of the update test.
const UPDATE_SEEDS: u64 = 40;
/// Random events in each run.
const EVENTS: usize = 12;
/// Steps of half a second in which a cluster must come to rest once events stop.
const REST_STEPS: usize = 400;

#[test]
fn random_clusters_converge_and_keep_their_promises() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SHOAL_SIM_SEED") {
        run_seed(seed);
        return;
    }
    for seed in 0..number("SHOAL_SIM_SEEDS").unwrap_or(SEEDS) {
        let outcome = std::panic::catch_unwind(|| run_seed(seed));
        if let Err(cause) = outcome {
            eprintln!("seed {seed} failed; replay it with SHOAL_SIM_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}

/// Without failures, an update never has more places without a running task than it may.
#[test]
fn updates_take_down_no_more_than_their_parallelism() {
    for seed in 0..UPDATE_SEEDS {
        let mut chance = Chance(seed);
        let mut cluster = FakeCluster::new(1 + chance.below(4) as u16);
        let replicas = 2 + chance.below(6);
        let parallelism = 1 + chance.below(3);
        let start_first = chance.one_in(2);
        let mut wanted = spec("web", replicas, &[]);
        wanted.update_config = Some(UpdateConfig {
            parallelism,
            delay: Some(Nanos::from_secs(chance.below(3) as i64)),
            order: start_first.then(|| "start-first".to_owned()),
            ..UpdateConfig::default()
        });
        let id = cluster.add_service(wanted);
        cluster.run(&mut chance, 30, 0);
        for round in 2..4 {
            cluster.update_service(&id, |spec| set_image(spec, &format!("web:{round}")));
            let may_lack = if start_first { 0 } else { parallelism };
            for _ in 0..250 {
                cluster.run(&mut chance, 1, 0);
                let lacking = replicas - cluster.running_places(&id) as u64;
                assert!(lacking <= may_lack, "seed {seed}: {lacking} places lack a task");
                if is_completed(&cluster, &id) {
                    break;
                }
            }
            assert!(is_completed(&cluster, &id), "seed {seed}");
        }
    }
}

fn is_completed(cluster: &FakeCluster, id: &ServiceId) -> bool {
    let status = cluster.service(id).update_status.as_ref();
    status.is_some_and(|s| s.state == UpdateState::Completed)
}

struct Run {
    cluster: FakeCluster,
    chance: Chance,
    services: Vec<ServiceId>,
    made: u64,
}

fn run_seed(seed: u64) {
    let mut chance = Chance(seed);
    let nodes = 1 + chance.below(5) as u16;
    let mut cluster = FakeCluster::new(nodes);
    cluster.add_network("net-a", false);
    cluster.add_network("net-b", false);
    let mut run = Run { cluster, chance, services: Vec::new(), made: 0 };
    for _ in 0..EVENTS {
        run.event();
        run.cluster.plan();
        run.check();
        let steps = 1 + run.chance.below(12) as usize;
        for _ in 0..steps {
            run.cluster.run(&mut run.chance, 1, 40);
            run.check();
        }
    }
    run.calm_down();
}

impl Run {
    fn event(&mut self) {
        match self.chance.below(12) {
            0..=2 => self.new_service(),
            10 => self.new_job(),
            11 => self.force(),
            3 => self.scale(),
            4 | 5 => self.change_image(),
            6 => self.remove_service(),
            7 => self.lose_or_return_node(),
            8 => self.change_availability(),
            _ => self.attach_container(),
        }
    }

    fn pick(&mut self) -> Option<ServiceId> {
        let n = self.chance.below(self.services.len() as u64) as usize;
        self.services.get(n).cloned()
    }

    fn node(&mut self) -> NodeId {
        let n = self.chance.below(self.cluster.state.nodes.len() as u64) as usize;
        self.cluster.state.nodes.keys().nth(n).unwrap().clone()
    }

    fn new_service(&mut self) {
        self.made += 1;
        let name = format!("s{}", self.made);
        let networks: &[&str] =
            [&["net-a"][..], &["net-a", "net-b"], &[]][self.chance.below(3) as usize];
        let mut wanted = if self.chance.one_in(4) {
            global_spec(&name, networks)
        } else {
            spec(&name, self.chance.below(8), networks)
        };
        wanted.update_config = Some(UpdateConfig {
            parallelism: self.chance.below(3),
            monitor: Some(Nanos::from_secs(1)),
            order: self.chance.one_in(2).then(|| "start-first".to_owned()),
            failure_action: Some("continue".into()),
            ..UpdateConfig::default()
        });
        wanted.task_template.restart_policy =
            Some(RestartPolicy { delay: Some(Nanos::from_secs(1)), ..RestartPolicy::default() });
        if self.chance.one_in(3) {
            let ports = vec![PortConfig { target_port: 80, ..PortConfig::default() }];
            wanted.endpoint_spec =
                Some(EndpointSpec { ports: Some(ports), ..EndpointSpec::default() });
        }
        if self.chance.one_in(4) {
            wanted.labels.insert("shoal.rebalance".into(), "60".into());
        }
        if self.chance.one_in(5) {
            let placement = Placement {
                constraints: Some(vec!["node.hostname != host-1".into()]),
                max_replicas: self.chance.one_in(2).then_some(2),
                ..Placement::default()
            };
            wanted.task_template.placement = Some(placement);
        }
        shoal_plan::validate::new_service(&self.cluster.state, &wanted).unwrap();
        self.services.push(self.cluster.add_service(wanted));
    }

    fn new_job(&mut self) {
        self.made += 1;
        let name = format!("j{}", self.made);
        let mut wanted = match self.chance.below(3) {
            0 => global_job_spec(&name),
            _ => job_spec(&name, self.chance.below(4), self.chance.below(9)),
        };
        wanted.task_template.restart_policy =
            Some(RestartPolicy { delay: Some(Nanos::from_secs(1)), ..RestartPolicy::default() });
        shoal_plan::validate::new_service(&self.cluster.state, &wanted).unwrap();
        self.services.push(self.cluster.add_service(wanted));
    }

    fn force(&mut self) {
        let Some(id) = self.pick() else { return };
        let number = self.chance.below(1000);
        self.cluster.update_service(&id, |spec| spec.task_template.force_update = Some(number));
    }

    fn scale(&mut self) {
        let Some(id) = self.pick() else { return };
        let replicas = self.chance.below(10);
        if self.cluster.service(&id).spec.replicas().is_some() {
            self.cluster.update_service(&id, |spec| set_replicas(spec, replicas));
        }
    }

    fn change_image(&mut self) {
        let Some(id) = self.pick() else { return };
        let image = format!("web:{}", self.chance.below(1000));
        self.cluster.update_service(&id, |spec| set_image(spec, &image));
    }

    fn remove_service(&mut self) {
        let Some(id) = self.pick() else { return };
        self.services.retain(|other| *other != id);
        self.cluster.delete(ObjectKey::Service(id));
    }

    fn lose_or_return_node(&mut self) {
        let id = self.node();
        let next = match self.cluster.state.nodes.get(&id).unwrap().status.state {
            NodeState::Ready => NodeState::Down,
            _ => NodeState::Ready,
        };
        self.cluster.set_node_state(&id, next);
    }

    fn change_availability(&mut self) {
        let id = self.node();
        let next = [Availability::Active, Availability::Pause, Availability::Drain]
            [self.chance.below(3) as usize];
        self.cluster.edit_node(&id, |node| node.spec.availability = next);
    }

    fn attach_container(&mut self) {
        let wanted = shoal_plan::attachment::Wanted {
            node_id: self.node(),
            container_id: "c".into(),
            network: "net-a".into(),
            names: vec!["box".into()],
            addresses: Vec::new(),
        };
        let cluster = &mut self.cluster;
        let task =
            shoal_plan::attachment::attach(&cluster.state, &wanted, cluster.now, &mut cluster.ids);
        cluster.put(shoal_model::change::Object::Task(Box::new(task.unwrap())));
    }

    /// What must hold at every moment after planning.
    fn check(&self) {
        let state = &self.cluster.state;
        let mut holders = BTreeMap::new();
        for task in state.tasks.values().filter(|t| !t.status.state.is_terminal()) {
            for place in &task.networks {
                for address in &place.addresses {
                    let known = holders.insert((&place.network_id, address.addr()), &task.id);
                    assert_eq!(known, None, "{} is given out twice", address);
                }
            }
        }
        for task in state.tasks.values().filter(|t| t.is_live()) {
            assert_ne!(task.status.state, TaskState::New, "{task:?} waits without a reason");
            let delayed = task.not_before.is_some_and(|at| at > self.cluster.now);
            if task.status.state == TaskState::Pending && !delayed {
                let feasible = shoal_plan::schedule::is_feasible(state, task, self.cluster.now);
                assert!(!feasible, "{} waits though a node could take it", task.id);
                assert!(!task.status.err.is_empty(), "{} does not say why it waits", task.id);
            }
        }
        for service in state.services.values().filter(|s| s.spec.is_job()) {
            self.check_job(service);
        }
        for service in state.services.values().filter(|s| s.spec.replicas().is_some()) {
            let live = self.cluster.live(&service.id);
            let mut slots: Vec<u32> = live.iter().map(|t| t.slot).collect();
            slots.dedup();
            assert!(slots.len() as u64 <= service.spec.replicas().unwrap(), "too many places");
        }
    }

    /// No more of a job's tasks run than may, and no place is completed twice.
    fn check_job(&self, service: &Service) {
        let tasks = self.cluster.tasks(&service.id);
        if let Some(job) = service.spec.replicated_job() {
            let live = tasks.iter().filter(|t| t.is_live()).count() as u64;
            assert!(live <= job.max_concurrent(), "{live} tasks of a job at a time");
        }
        let done: Vec<_> = tasks
            .iter()
            .filter(|t| t.is_done() && t.spec_version == service.spec_version)
            .map(|t| (t.slot, t.node_id.clone().filter(|_| t.slot == 0)))
            .collect();
        let places: BTreeSet<_> = done.iter().collect();
        assert_eq!(places.len(), done.len(), "a place of a job was completed twice");
    }

    /// Whether a service that asks for it lies as evenly as it can.
    fn is_even(&self, service: &Service) -> bool {
        let placed = service.spec.task_template.placement.is_some();
        if placed || !service.spec.labels.contains_key("shoal.rebalance") {
            return true;
        }
        let spread = self.cluster.spread(&service.id);
        let counts = || self.cluster.state.nodes.keys().map(|id| spread.get(id).unwrap_or(&0));
        counts().max().unwrap_or(&0) - counts().min().unwrap_or(&0) < 2
    }

    /// Whether every place of a job is done.
    fn is_complete(&self, service: &Service) -> bool {
        let tasks = self.cluster.tasks(&service.id);
        let done = tasks.iter().filter(|t| t.is_done() && t.spec_version == service.spec_version);
        let wanted = match service.spec.replicated_job() {
            Some(job) if job.max_concurrent() == 0 => 0,
            Some(job) => job.total_completions() as usize,
            None => self.cluster.state.nodes.len(),
        };
        done.count() == wanted
    }

    /// Ends the trouble and waits for everything to be as it should.
    fn calm_down(&mut self) {
        let nodes: Vec<NodeId> = self.cluster.state.nodes.keys().cloned().collect();
        for id in nodes {
            self.cluster.set_node_state(&id, NodeState::Ready);
            self.cluster.edit_node(&id, |node| node.spec.availability = Availability::Active);
        }
        self.cluster.plan();
        let mut rested = false;
        for _ in 0..2 * REST_STEPS {
            self.cluster.run(&mut self.chance, 1, 0);
            if !self.is_at_rest() {
                continue;
            }
            self.check();
            if self.cluster.state.services.values().all(|service| self.is_even(service)) {
                return;
            }
            if !std::mem::replace(&mut rested, true) {
                // Where a service failed lately, nothing is moved to.
                let memory = shoal_plan::schedule::FAULT_MEMORY;
                self.cluster.now = self.cluster.now.plus(memory);
            }
        }
        let state = &self.cluster.state;
        let services: Vec<_> =
            state.services.values().map(|s| (&s.spec.name, &s.update_status)).collect();
        let tasks: Vec<_> = state
            .tasks
            .values()
            .map(|t| (t.name(), t.spec_version, t.status.state, t.desired_state, &t.status.err))
            .collect();
        panic!("no rest: {services:#?} {tasks:#?}");
    }

    fn is_at_rest(&self) -> bool {
        let state = &self.cluster.state;
        let owned = |t: &shoal_model::object::Task| match &t.service_id {
            Some(id) => state.services.contains_key(id),
            None => true,
        };
        state.tasks.values().all(|t| owned(t) && (t.is_live() || t.status.state.is_terminal()))
            && state.services.values().all(|service| {
                if service.spec.is_job() {
                    return self.is_complete(service);
                }
                let live = self.cluster.live(&service.id);
                let allowed = |n: &&std::sync::Arc<shoal_model::object::Node>| {
                    let placement = service.spec.task_template.placement.as_ref();
                    shoal_plan::constraint::constraints_hold(n, placement)
                };
                let nodes = state.nodes.values().filter(allowed).count() as u64;
                let placement = service.spec.task_template.placement.as_ref();
                let most = placement.and_then(|p| p.max_replicas).map_or(u64::MAX, |m| m * nodes);
                let most = if nodes == 0 { 0 } else { most };
                let wanted = match service.spec.replicas() {
                    Some(replicas) => replicas,
                    None => nodes,
                };
                let running = self.cluster.running(&service.id).len() as u64;
                let updating = service.update_status.as_ref().is_some_and(|status| {
                    matches!(status.state, UpdateState::Updating | UpdateState::RollbackStarted)
                });
                let fresh = live.iter().all(|t| t.spec_version == service.spec_version);
                let stuck = wanted > most;
                running == wanted.min(most)
                    && live.len() as u64 == wanted
                    && (stuck || (fresh && !updating))
            })
    }
}
