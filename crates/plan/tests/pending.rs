//! No task that could run waits, whatever changes; and one that waits says for how many nodes why.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::sync::Arc;

use cluster::{Chance, FakeCluster, global_spec, job_spec, set_replicas, spec};
use serde_json::json;
use shoal_model::change::ObjectKey;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::{NodeState, Task};
use shoal_model::spec::generic::GenericResource;
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::{EndpointSpec, PortConfig, PublishMode, ServiceSpec};
use shoal_model::spec::task::{Placement, ResourceRequirements, Resources};
use shoal_model::task_state::TaskState;

/// Seeds by default.
const SEEDS: u64 = 40;
/// Changes in each run.
const CHANGES: usize = 40;

/// Tasks that wait for a node and whose time has come.
fn waiting(cluster: &FakeCluster) -> Vec<Arc<Task>> {
    let due = |t: &&Arc<Task>| t.not_before.is_none_or(|at| at <= cluster.now);
    let pending = |t: &&Arc<Task>| t.is_live() && t.status.state == TaskState::Pending;
    cluster.state.tasks.values().filter(pending).filter(due).cloned().collect()
}

/// The nodes that a text counts, in all.
fn counted(text: &str) -> usize {
    let Some((_, inside)) = text.split_once("no suitable node (") else { return 0 };
    let inside = inside.split_once(')').expect("the counts end").0;
    let number =
        |part: &str| part.split(' ').find_map(|word| word.parse::<usize>().ok()).expect("a count");
    inside.split("; ").map(number).sum()
}

#[test]
fn nothing_that_could_run_waits_and_what_waits_counts_every_node_once() {
    let mut explained = 0;
    for seed in 0..SEEDS {
        let mut chance = Chance(seed);
        let mut cluster = FakeCluster::new(1 + chance.below(4) as u16);
        let mut next_node = 10;
        for number in 0..CHANGES {
            change(&mut cluster, &mut chance, number, &mut next_node);
            cluster.plan();
            for _ in 0..chance.below(4) {
                explained += check(&cluster, seed);
                cluster.run(&mut chance, 1, 0);
            }
            explained += check(&cluster, seed);
        }
    }
    assert!(explained > 1000, "only {explained} waiting tasks were seen");
}

fn check(cluster: &FakeCluster, seed: u64) -> usize {
    let tasks = waiting(cluster);
    for task in &tasks {
        let feasible = shoal_plan::schedule::is_feasible(&cluster.state, task, cluster.now);
        assert!(!feasible, "seed {seed}: {} waits though a node could take it", task.name());
        let err = &task.status.err;
        let wanted = if task.node_id.is_some() { 1 } else { cluster.state.nodes.len() };
        assert_eq!(counted(err), wanted, "seed {seed}: {err}");
    }
    tasks.len()
}

/// One of the changes that could matter to a task that waits.
fn change(cluster: &mut FakeCluster, chance: &mut Chance, number: usize, next_node: &mut u16) {
    match chance.below(11) {
        0..=3 => {
            let wanted = random_spec(chance, number);
            shoal_plan::validate::new_service(&cluster.state, &wanted).ok();
            cluster.add_service(wanted);
        }
        4 => {
            let Some(id) = pick_service(cluster, chance) else { return };
            cluster.delete(ObjectKey::Service(id));
        }
        5 => {
            let Some(id) = pick_service(cluster, chance) else { return };
            let replicas = chance.below(6);
            if cluster.service(&id).spec.replicas().is_some() {
                cluster.update_service(&id, |spec| set_replicas(spec, replicas));
            }
        }
        6 => {
            cluster.add_node(*next_node);
            *next_node += 1;
        }
        7 => {
            let id = pick_node(cluster, chance);
            let states = [NodeState::Ready, NodeState::Ready, NodeState::Down];
            cluster.set_node_state(&id, states[chance.below(3) as usize]);
        }
        8 => {
            let id = pick_node(cluster, chance);
            let to = [Availability::Active, Availability::Pause, Availability::Drain];
            let to = to[chance.below(3) as usize];
            cluster.edit_node(&id, |node| node.spec.availability = to);
        }
        9 => {
            let id = pick_node(cluster, chance);
            let ssd = chance.one_in(2);
            cluster.edit_node(&id, |node| {
                node.spec.labels.clear();
                node.spec.labels.extend(ssd.then(|| ("disk".to_owned(), "ssd".to_owned())));
            });
        }
        _ => {
            let id = pick_node(cluster, chance);
            let cpus = 1 + chance.below(8) as i64;
            let gpus = ["GPU=a", "GPU=b", "GPU=c", "SSD=4"];
            let gpus = gpus.iter().filter(|_| chance.one_in(2)).map(ToString::to_string);
            let generic = GenericResource::parse_all(&gpus.collect::<Vec<_>>()).unwrap();
            let generic = generic.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
            cluster.edit_node(&id, |node| {
                node.description.resources.generic_resources = Some(generic);
                node.description.resources.nano_cpus = Some(cpus * 1_000_000_000);
            });
        }
    }
}

fn random_spec(chance: &mut Chance, number: usize) -> ServiceSpec {
    let name = format!("s{number}");
    let mut wanted = match chance.below(5) {
        0 => global_spec(&name, &[]),
        1 => job_spec(&name, 2, 4),
        _ => spec(&name, chance.below(6), &[]),
    };
    let some = |chance: &mut Chance, of: i64| chance.one_in(2).then_some(of);
    let reservations = Resources {
        nano_cpus: some(chance, 1_500_000_000),
        memory_bytes: some(chance, 3 << 30),
        generic_resources: chance.one_in(3).then(|| {
            let kind = if chance.one_in(2) { "GPU" } else { "SSD" };
            vec![json!({ "DiscreteResourceSpec": { "Kind": kind, "Value": 1 + chance.below(2) } })]
        }),
        ..Resources::default()
    };
    wanted.task_template.resources = Some(ResourceRequirements {
        reservations: Some(reservations),
        ..ResourceRequirements::default()
    });
    wanted.task_template.placement = Some(Placement {
        constraints: chance.one_in(3).then(|| vec!["node.labels.disk == ssd".into()]),
        max_replicas: chance.one_in(3).then_some(1),
        ..Placement::default()
    });
    if chance.one_in(3) {
        let port = PortConfig {
            target_port: 80,
            published_port: Some(8080 + chance.below(2) as u16),
            publish_mode: Some(PublishMode::Host),
            ..PortConfig::default()
        };
        wanted.endpoint_spec = Some(EndpointSpec { ports: Some(vec![port]), ..Default::default() });
    }
    wanted
}

fn pick_service(cluster: &FakeCluster, chance: &mut Chance) -> Option<ServiceId> {
    let nth = chance.below(cluster.state.services.len() as u64) as usize;
    cluster.state.services.keys().nth(nth).cloned()
}

fn pick_node(cluster: &FakeCluster, chance: &mut Chance) -> NodeId {
    let nth = chance.below(cluster.state.nodes.len() as u64) as usize;
    cluster.state.nodes.keys().nth(nth).cloned().unwrap()
}

#[test]
fn the_reasons_are_dockers_and_follow_what_changes() {
    let mut cluster = FakeCluster::new(3);
    let node = |index: u16| NodeId::new(format!("node-{index}"));
    cluster.set_node_state(&node(1), NodeState::Down);
    cluster.edit_node(&node(2), |n| n.spec.availability = Availability::Pause);
    let mut wanted = spec("db", 1, &[]);
    wanted.task_template.placement = Some(Placement {
        constraints: Some(vec!["node.labels.disk == ssd".into()]),
        ..Placement::default()
    });
    let id = cluster.add_service(wanted);
    cluster.plan();
    let err = |c: &FakeCluster| c.live(&id)[0].status.err.clone();
    let said = "no suitable node (2 nodes not available for new tasks; scheduling constraints not \
                satisfied on 1 node)";
    assert!(err(&cluster).ends_with(said), "{}", err(&cluster));
    // Clients cut the text: the nearest cause is in what they leave.
    assert!(err(&cluster).starts_with("constraints not satisfied on "), "{}", err(&cluster));
    cluster.edit_node(&node(2), |n| n.spec.availability = Availability::Active);
    cluster.plan();
    let said = "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not \
                available for new tasks)";
    assert!(err(&cluster).ends_with(said), "{}", err(&cluster));
    cluster.edit_node(&node(2), |n| drop(n.spec.labels.insert("disk".into(), "ssd".into())));
    cluster.plan();
    assert_eq!(cluster.live(&id)[0].node_id, Some(node(2)));
    assert_eq!(err(&cluster), "");
}
