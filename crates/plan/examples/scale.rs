//! What starting many tasks costs the manager, part by part:
//! `cargo run --release -p shoal-plan --example scale -- [TASKS] [NODES] [BATCH]`.
//! Nodes report as they do, a few tasks at a time; each report is applied, planned upon, and turned
//! into assignments.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock and its arguments")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/cluster/mod.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster::FakeCluster;
use shoal_model::assignment::Assignment;
use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::object::TaskStatus;
use shoal_model::size::json_len;
use shoal_model::spec::network::{Ipam, IpamConfig, NetworkSpec};
use shoal_model::task_state::TaskState;
use shoal_plan::assignment::Feed;

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
    cluster: FakeCluster,
    /// What readers hold: every write copies what it changes.
    published: ClusterState,
    feed: Feed,
    spent: Spent,
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u64>().unwrap());
    let tasks = arguments.next().unwrap_or(1000);
    let nodes = arguments.next().unwrap_or(1);
    let batch = usize::try_from(arguments.next().unwrap_or(20)).unwrap();
    let mut cluster = FakeCluster::new(u16::try_from(nodes).unwrap());
    let config = IpamConfig { subnet: Some("10.1.0.0/16".into()), ..IpamConfig::default() };
    cluster.add_network_spec(NetworkSpec {
        name: "net".into(),
        ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
        ..NetworkSpec::default()
    });
    cluster.add_service(cluster::spec("web", tasks, &["net"]));
    let published = cluster.state.clone();
    let mut world = World { cluster, published, feed: Feed::default(), spent: Spent::default() };
    let start = Instant::now();
    let mut known: BTreeMap<NodeId, Assignment> = BTreeMap::new();
    let mut bytes = 0;
    loop {
        world.plan();
        bytes += world.assign(&mut known);
        if !world.report(batch) {
            break;
        }
    }
    println!("{tasks} tasks, {nodes} nodes, {batch} reports at a time: {:?}", start.elapsed());
    for (what, (time, count)) in &world.spent.0 {
        println!("  {what:12} {time:>12.2?} in {count}");
    }
    println!("  sent to nodes {bytes} bytes");
}

impl World {
    fn apply(&mut self, changes: Vec<Change>) {
        self.spent.on("encode", || changes.iter().map(|c| json_len(c).unwrap()).sum::<usize>());
        self.spent.on("apply", || self.cluster.apply(changes));
        self.published = self.cluster.state.clone();
    }

    fn plan(&mut self) {
        loop {
            let (state, now, ids) = (&self.published, self.cluster.now, &mut self.cluster.ids);
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
        self.cluster.now = self.cluster.now.plus(Duration::from_millis(20));
        let now = self.cluster.now;
        let report = |task: &std::sync::Arc<shoal_model::object::Task>| {
            let mut task = (**task).clone();
            task.status = TaskStatus::new(now, next(task.status.state)?, "reported");
            Some(Change::Put { object: Object::Task(Box::new(task)), expect: Expect::Any })
        };
        let changes: Vec<Change> =
            self.published.tasks.values().filter_map(report).take(batch).collect();
        let some = !changes.is_empty();
        if some {
            self.apply(changes);
        }
        some
    }

    /// The bytes that would be sent.
    fn assign(&mut self, known: &mut BTreeMap<NodeId, Assignment>) -> usize {
        let (state, spent) = (&self.published, &mut self.spent);
        let mut feed = std::mem::take(&mut self.feed);
        let view = spent.on("view", || feed.next(state));
        let changes = view.changes();
        let mut bytes = 0;
        for node in state.nodes.keys() {
            let next = spent.on("for_node", || view.for_node(node));
            let old = known.entry(node.clone()).or_default();
            if spent.on("compare", || old.same_content(&next)) {
                continue;
            }
            let delta = spent.on("delta", || old.delta_to(&next, &changes));
            bytes += spent.on("send", || json_len(&delta).unwrap());
            *old = next;
        }
        drop(view);
        self.feed = feed;
        bytes
    }
}
