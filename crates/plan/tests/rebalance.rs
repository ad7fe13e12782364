//! Services that ask for it spread over nodes that come back: slowly, and never at the cost of a
//! request.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::{Chance, FakeCluster, set_image, spec};
use serde_json::json;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::NodeState;
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::ServiceSpec;
use shoal_model::spec::task::{Placement, ResourceRequirements, Resources};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

fn asks(mut spec: ServiceSpec, moves: &str) -> ServiceSpec {
    spec.labels.insert("shoal.rebalance".into(), moves.into());
    spec
}

/// How many tasks each node has, the fullest first.
fn counts(cluster: &FakeCluster, id: &ServiceId) -> Vec<usize> {
    let mut counts: Vec<usize> = cluster.spread(id).into_values().collect();
    counts.sort_by(|a, b| b.cmp(a));
    counts
}

/// Runs on, and checks that every place serves all the time and that one moves at a time.
fn run(cluster: &mut FakeCluster, id: &ServiceId, steps: usize) {
    let replicas = cluster.service(id).spec.replicas().unwrap();
    let mut chance = Chance(3);
    for _ in 0..steps {
        cluster.run(&mut chance, 1, 0);
        assert_eq!(cluster.running_places(id) as u64, replicas, "a place serves nobody");
        assert!(cluster.live(id).len() as u64 <= replicas + 1, "more than one move at a time");
    }
}

/// When tasks were made after `since`.
fn made(cluster: &FakeCluster, id: &ServiceId, since: Timestamp) -> Vec<Timestamp> {
    let tasks = cluster.tasks(id);
    let mut made: Vec<_> = tasks.iter().map(|t| t.meta.created_at).filter(|t| *t > since).collect();
    made.sort();
    made
}

/// Nine tasks on one node, and two nodes that come.
fn lopsided(wanted: ServiceSpec) -> (FakeCluster, ServiceId, Timestamp) {
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_service(wanted);
    cluster.run(&mut Chance(1), 30, 0);
    cluster.add_node(2);
    cluster.add_node(3);
    let now = cluster.now;
    (cluster, id, now)
}

#[test]
fn tasks_spread_over_nodes_that_come_as_fast_as_the_label_says() {
    for moves in [2_u64, 10, 60] {
        let wanted = asks(spec("web", 9, &[]), &moves.to_string());
        let (mut cluster, id, since) = lopsided(wanted);
        run(&mut cluster, &id, 600);
        assert_eq!(counts(&cluster, &id), [3, 3, 3], "{moves} a minute");
        let made = made(&cluster, &id, since);
        assert_eq!(made.len(), 6, "{moves} a minute");
        for pair in made.windows(2) {
            let apart = pair[1].since(pair[0]);
            assert!(apart >= Duration::from_secs(60 / moves), "{apart:?} at {moves} a minute");
        }
        cluster.plan();
        assert_eq!(cluster.wake_at, None, "it rests");
    }
}

#[test]
fn nobody_moves_who_did_not_ask_or_for_less_than_two() {
    for wanted in [spec("web", 9, &[]), asks(spec("web", 9, &[]), "0")] {
        let (mut cluster, id, since) = lopsided(wanted);
        run(&mut cluster, &id, 200);
        assert_eq!(counts(&cluster, &id), [9]);
        assert!(made(&cluster, &id, since).is_empty());
    }
    // One more here than there only changes sides.
    let (mut cluster, id, since) = lopsided(asks(spec("web", 1, &[]), "60"));
    run(&mut cluster, &id, 200);
    assert!(made(&cluster, &id, since).is_empty());
    let mut cluster = FakeCluster::new(3);
    let id = cluster.add_service(asks(spec("web", 7, &[]), "60"));
    cluster.run(&mut Chance(1), 30, 0);
    let since = cluster.now;
    run(&mut cluster, &id, 200);
    assert_eq!(counts(&cluster, &id), [3, 2, 2]);
    assert!(made(&cluster, &id, since).is_empty());
}

#[test]
fn a_node_that_comes_back_gets_its_share_and_a_paused_one_keeps_its() {
    let mut cluster = FakeCluster::new(3);
    let id = cluster.add_service(asks(spec("web", 6, &[]), "30"));
    cluster.run(&mut Chance(1), 30, 0);
    cluster.set_node_state(&node(3), NodeState::Down);
    cluster.run(&mut Chance(1), 60, 0);
    assert_eq!(counts(&cluster, &id), [3, 3]);
    cluster.set_node_state(&node(3), NodeState::Ready);
    cluster.run(&mut Chance(1), 8, 0);
    run(&mut cluster, &id, 200);
    assert_eq!(counts(&cluster, &id), [2, 2, 2]);
    // Its tasks stay where they are, however many.
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Pause);
    cluster.set_node_state(&node(2), NodeState::Down);
    cluster.set_node_state(&node(3), NodeState::Down);
    cluster.plan();
    cluster.add_node(4);
    cluster.add_node(5);
    cluster.run(&mut Chance(1), 30, 0);
    run(&mut cluster, &id, 200);
    assert_eq!(cluster.spread(&id).get(&node(1)), Some(&2));
}

#[test]
fn preferences_and_room_are_respected() {
    // Two zones with three tasks each stay so, though one of them has a node more.
    let mut cluster = FakeCluster::new(2);
    let zone = |cluster: &mut FakeCluster, index: u16, zone: &str| {
        let zone = zone.to_owned();
        cluster.edit_node(&node(index), |n| drop(n.spec.labels.insert("az".into(), zone)));
    };
    zone(&mut cluster, 1, "a");
    zone(&mut cluster, 2, "b");
    let mut wanted = asks(spec("web", 6, &[]), "60");
    let spread = json!({ "Spread": { "SpreadDescriptor": "node.labels.az" } });
    wanted.task_template.placement =
        Some(Placement { preferences: Some(vec![spread]), ..Placement::default() });
    let id = cluster.add_service(wanted);
    cluster.run(&mut Chance(1), 30, 0);
    cluster.add_node(3);
    zone(&mut cluster, 3, "b");
    run(&mut cluster, &id, 200);
    let all: BTreeMap<_, _> = cluster.spread(&id).into_iter().collect();
    assert_eq!(all, BTreeMap::from([(node(1), 3), (node(2), 2), (node(3), 1)]));
    // Two services that both want the room of one: one gets it, none waits.
    let mut cluster = FakeCluster::new(1);
    let big = |name: &str| {
        let mut wanted = asks(spec(name, 2, &[]), "60");
        let memory = Resources { memory_bytes: Some(2 << 30), ..Resources::default() };
        wanted.task_template.resources = Some(ResourceRequirements {
            reservations: Some(memory),
            ..ResourceRequirements::default()
        });
        wanted
    };
    let ids = [cluster.add_service(big("a")), cluster.add_service(big("b"))];
    cluster.run(&mut Chance(1), 30, 0);
    let small = cluster.add_node(2);
    cluster.edit_node(&small, |n| n.description.resources.memory_bytes = Some(3 << 30));
    for _ in 0..100 {
        cluster.run(&mut Chance(9), 1, 0);
        let waits = |t: &std::sync::Arc<shoal_model::object::Task>| {
            t.is_live() && t.status.state == TaskState::Pending
        };
        assert!(!cluster.state.tasks.values().any(waits), "a move waits for room");
    }
    let there = ids.iter().filter(|id| cluster.spread(id).contains_key(&small)).count();
    assert_eq!(there, 1);
    assert!(ids.iter().all(|id| cluster.running(id).len() == 2));
}

#[test]
fn replacements_that_fail_cost_no_more_than_the_rate_and_no_place() {
    let (mut cluster, id, since) = lopsided(asks(spec("web", 9, &[]), "6"));
    cluster.broken_images.push("web:1".into());
    let mut chance = Chance(3);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..600 {
        cluster.run(&mut chance, 1, 0);
        assert_eq!(cluster.running_places(&id), 9);
        seen.extend(made(&cluster, &id, since));
    }
    assert!((1..=31).contains(&seen.len()), "{} tries in five minutes", seen.len());
    // An update goes first, and is not disturbed.
    cluster.broken_images.clear();
    cluster.update_service(&id, |spec| set_image(spec, "web:2"));
    cluster.run(&mut chance, 400, 0);
    assert_eq!(cluster.running(&id).len(), 9);
    let fresh = |t: &std::sync::Arc<shoal_model::object::Task>| t.spec_version == 2;
    assert!(cluster.running(&id).iter().all(fresh));
}

#[test]
fn a_label_that_says_no_number_is_refused() {
    let cluster = FakeCluster::new(1);
    for bad in ["", "x", "-1", "61", "1.5"] {
        let refused =
            shoal_plan::validate::new_service(&cluster.state, &asks(spec("web", 1, &[]), bad));
        let text = refused.unwrap_err().to_string();
        let wanted = format!("invalid label shoal.rebalance={bad}: expected the moves a minute");
        assert!(text.starts_with(&wanted), "{text}");
    }
    for good in ["0", "1", "60"] {
        let wanted = asks(spec("web", 1, &[]), good);
        assert_eq!(shoal_plan::validate::new_service(&cluster.state, &wanted), Ok(()));
    }
}
