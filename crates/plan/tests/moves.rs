//! Tasks that must leave their node: started elsewhere first, so many at a time as the policy says.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::{Chance, FakeCluster, set_image, spec};
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::UpdateState;
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::UpdateConfig;
use shoal_model::spec::task::Placement;
use shoal_model::task_state::TaskState;
use shoal_model::time::{Nanos, Timestamp};

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

fn on(cluster: &FakeCluster, id: &ServiceId, index: u16) -> usize {
    let here = |t: &&std::sync::Arc<shoal_model::object::Task>| t.node_id == Some(node(index));
    cluster.live(id).iter().filter(here).count()
}

/// Places with more than one live task: those that move.
fn moving(cluster: &FakeCluster, id: &ServiceId) -> usize {
    let mut places: BTreeMap<u32, usize> = BTreeMap::new();
    for task in cluster.live(id) {
        *places.entry(task.slot).or_default() += 1;
    }
    places.values().filter(|tasks| **tasks > 1).count()
}

/// A cluster whose first node alone runs all tasks, with others to go to.
fn crowded(replicas: u64, policy: Option<UpdateConfig>) -> (FakeCluster, ServiceId) {
    let mut cluster = FakeCluster::new(1);
    let mut wanted = spec("web", replicas, &[]);
    wanted.update_config = policy;
    let id = cluster.add_service(wanted);
    cluster.run(&mut Chance(1), 30, 0);
    cluster.add_node(2);
    cluster.add_node(3);
    assert_eq!(on(&cluster, &id, 1) as u64, replicas);
    (cluster, id)
}

/// Runs until the first node is empty. Returns when each replacement was made.
fn empty(cluster: &mut FakeCluster, id: &ServiceId, replicas: u64, most: usize) -> Vec<Timestamp> {
    let before: BTreeSet<_> = cluster.tasks(id).iter().map(|t| t.id.clone()).collect();
    let mut chance = Chance(5);
    for _ in 0..400 {
        cluster.run(&mut chance, 1, 0);
        assert!(moving(cluster, id) <= most, "{} places move at a time", moving(cluster, id));
        assert_eq!(cluster.running_places(id) as u64, replicas, "a place serves nobody");
        if on(cluster, id, 1) == 0 {
            break;
        }
    }
    assert_eq!(on(cluster, id, 1), 0, "the node is not empty");
    let fresh = cluster.tasks(id).into_iter().filter(|t| !before.contains(&t.id));
    let mut made: Vec<Timestamp> = fresh.map(|t| t.meta.created_at).collect();
    made.sort();
    made
}

#[test]
fn a_drain_moves_so_many_places_at_a_time_as_the_update_policy_says() {
    let policy = |parallelism, delay| {
        Some(UpdateConfig {
            parallelism,
            delay: Some(Nanos::from_secs(delay)),
            // What clients send when the user said nothing of it.
            order: Some("stop-first".into()),
            ..UpdateConfig::default()
        })
    };
    let cases = [(None, 1, 0), (policy(2, 0), 2, 0), (policy(2, 4), 2, 4), (policy(0, 0), 6, 0)];
    for (policy, most, delay) in cases {
        let (mut cluster, id) = crowded(6, policy);
        cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
        let made = empty(&mut cluster, &id, 6, most);
        assert_eq!(made.len(), 6);
        let batches: BTreeSet<_> = made.iter().collect();
        assert!(batches.len() >= 6 / most, "{made:?}");
        // Each waits until the one before has run for the delay.
        for pair in made.windows(most + 1) {
            let apart = pair[most].since(pair[0]);
            assert!(apart >= Duration::from_secs(delay), "{apart:?} after {:?}", pair[0]);
        }
    }
}

#[test]
fn a_single_replica_serves_all_the_time() {
    for seed in 0..20 {
        let (mut cluster, id) = crowded(1, None);
        cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
        let mut chance = Chance(seed);
        for _ in 0..40 {
            cluster.run(&mut chance, 1, 0);
            assert_eq!(cluster.running_places(&id), 1, "seed {seed}");
        }
        assert_eq!(on(&cluster, &id, 1), 0);
    }
}

#[test]
fn labels_that_do_not_suit_any_more_move_tasks_by_the_same_policy() {
    let mut cluster = FakeCluster::new(2);
    cluster.edit_node(&node(1), |n| drop(n.spec.labels.insert("disk".into(), "ssd".into())));
    let mut wanted = spec("db", 3, &[]);
    wanted.task_template.placement = Some(Placement {
        constraints: Some(vec!["node.labels.disk == ssd".into()]),
        ..Placement::default()
    });
    let id = cluster.add_service(wanted);
    cluster.run(&mut Chance(1), 30, 0);
    cluster.edit_node(&node(2), |n| drop(n.spec.labels.insert("disk".into(), "ssd".into())));
    cluster.edit_node(&node(1), |n| n.spec.labels.clear());
    assert_eq!(empty(&mut cluster, &id, 3, 1).len(), 3);
}

#[test]
fn a_node_is_emptied_though_nothing_fits_elsewhere_or_nothing_starts() {
    // Nowhere to go.
    let (mut cluster, id) = crowded(3, None);
    for index in 1..=3 {
        cluster.edit_node(&node(index), |n| n.spec.availability = Availability::Drain);
    }
    cluster.run(&mut Chance(1), 40, 0);
    assert!(cluster.running(&id).is_empty());
    // The replacements fail: each place is given up after a few attempts.
    let (mut cluster, id) = crowded(2, None);
    cluster.broken_images.push("web:1".into());
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    cluster.run(&mut Chance(1), 200, 0);
    assert_eq!(on(&cluster, &id, 1), 0);
    assert_eq!(cluster.live(&id).len(), 2, "and tried further elsewhere");
}

#[test]
fn a_drain_that_is_taken_back_leaves_the_rest_where_it_is() {
    let (mut cluster, id) = crowded(6, None);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    let mut chance = Chance(2);
    while on(&cluster, &id, 1) > 4 {
        cluster.run(&mut chance, 1, 0);
    }
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Active);
    cluster.run(&mut chance, 60, 0);
    assert_eq!(moving(&cluster, &id), 0);
    let stayed = on(&cluster, &id, 1);
    assert!((3..=4).contains(&stayed), "{stayed}");
    assert_eq!(cluster.running(&id).len(), 6);
}

#[test]
fn an_update_while_a_node_is_drained_comes_to_its_end() {
    for seed in 0..30 {
        let (mut cluster, id) =
            crowded(5, Some(UpdateConfig { parallelism: 2, ..Default::default() }));
        let mut chance = Chance(seed);
        cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
        cluster.run(&mut chance, chance_steps(seed), 0);
        cluster.update_service(&id, |spec| set_image(spec, "web:2"));
        cluster.run(&mut chance, 150, 0);
        assert_eq!(on(&cluster, &id, 1), 0, "seed {seed}");
        assert_eq!(cluster.running(&id).len(), 5, "seed {seed}");
        let state = cluster.service(&id).update_status.as_ref().map(|s| s.state);
        assert_eq!(state, Some(UpdateState::Completed), "seed {seed}");
        let left = |t: &std::sync::Arc<shoal_model::object::Task>| {
            t.is_live() || t.status.state > TaskState::Running
        };
        assert!(cluster.tasks(&id).iter().all(left), "seed {seed}");
    }
}

fn chance_steps(seed: u64) -> usize {
    (seed % 12) as usize
}
