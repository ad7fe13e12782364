//! What nodes are sent, change by change, comes to what they should have.
//!
//! `SHOAL_SIM_SEED=n` replays one seed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeMap;

use cluster::{Chance, FakeCluster, set_image, set_replicas, spec};
use shoal_model::assignment::{Assignment, KnownChanges};
use shoal_model::change::ObjectKey;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::NodeState;
use shoal_model::size::json_len;
use shoal_model::spec::service::{EndpointSpec, PortConfig};
use shoal_plan::assignment::{Feed, for_node};

const SEEDS: u64 = 60;
const EVENTS: usize = 25;
/// So little that nearly every update comes in parts.
const PART_BYTES: usize = 1_500;

#[test]
fn nodes_that_lag_come_to_what_they_should_have() {
    let one = std::env::var("SHOAL_SIM_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    for seed in one.map_or(0..SEEDS, |seed| seed..seed + 1) {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut chance = Chance(seed);
    let mut cluster = FakeCluster::new(2 + chance.below(4) as u16);
    cluster.add_network("net-a", false);
    cluster.add_network("net-b", false);
    let mut services: Vec<ServiceId> = Vec::new();
    let mut feed = Feed::default();
    let mut known: BTreeMap<NodeId, Assignment> = BTreeMap::new();
    for event in 0..EVENTS {
        happen(&mut cluster, &mut chance, &mut services, event);
        let steps = 1 + chance.below(4) as usize;
        cluster.run(&mut chance, steps, 20);
        let view = feed.next(&cluster.state);
        let changes = view.changes();
        for id in cluster.state.nodes.keys() {
            let next = view.for_node(id);
            assert_eq!(next, for_node(&cluster.state, id), "seed {seed}: node {id}");
            // A node that lags has none of what happens now, and all of it later.
            if !chance.one_in(3) {
                let node = known.entry(id.clone()).or_default();
                take(node, &next, &changes);
                assert_eq!(*node, next, "seed {seed}: node {id} after event {event}");
            }
        }
    }
}

fn happen(
    cluster: &mut FakeCluster,
    chance: &mut Chance,
    services: &mut Vec<ServiceId>,
    event: usize,
) {
    let pick = chance.below(services.len().max(1) as u64) as usize;
    match (chance.below(6), services.get(pick).cloned()) {
        (0, Some(id)) => {
            services.remove(pick);
            cluster.delete(ObjectKey::Service(id));
        }
        (1 | 2, Some(id)) => {
            let replicas = chance.below(9);
            cluster.update_service(&id, |spec| set_replicas(spec, replicas));
        }
        (3, Some(id)) => {
            cluster.update_service(&id, |spec| set_image(spec, &format!("web:{event}")));
        }
        (4, _) => {
            let nodes: Vec<NodeId> = cluster.state.nodes.keys().cloned().collect();
            let node = &nodes[chance.below(nodes.len() as u64) as usize];
            let state = if chance.one_in(2) { NodeState::Down } else { NodeState::Ready };
            cluster.set_node_state(node, state);
        }
        _ => {
            let on = ["net-a", "net-b"][chance.below(2) as usize];
            let mut wanted = spec(&format!("service-{event}"), 1 + chance.below(6), &[on]);
            if chance.one_in(2) {
                let port = PortConfig { target_port: 80, ..PortConfig::default() };
                let ports = Some(vec![port]);
                wanted.endpoint_spec = Some(EndpointSpec { ports, ..EndpointSpec::default() });
            }
            services.push(cluster.add_service(wanted));
        }
    }
}

/// Over the wire, in parts.
fn take(node: &mut Assignment, next: &Assignment, changes: &KnownChanges) {
    let update = match node.revision.0 {
        0 => next.full(),
        _ => node.delta_to(next, changes),
    };
    let parts = update.parts(PART_BYTES);
    let last = parts.len() - 1;
    for (number, part) in parts.into_iter().enumerate() {
        assert_eq!(part.more, number != last);
        // One entry may be larger by itself; a task of these has less than 2 KiB.
        assert!(json_len(&part).unwrap() < PART_BYTES + 2_048, "{part:?}");
        let text = serde_json::to_string(&part).unwrap();
        assert!(node.apply(serde_json::from_str(&text).unwrap()));
    }
}

/// What one changed task costs does not grow with what is there besides.
#[test]
fn a_change_is_as_large_as_what_changed() {
    let bytes = |replicas: u64| {
        let mut cluster = FakeCluster::new(3);
        cluster.add_network("net", false);
        let mut wanted = spec("web", replicas, &["net"]);
        let port = PortConfig { target_port: 80, ..PortConfig::default() };
        let ports = Some(vec![port]);
        wanted.endpoint_spec = Some(EndpointSpec { ports, ..EndpointSpec::default() });
        let id = cluster.add_service(wanted);
        cluster.run(&mut Chance(1), 30, 0);
        assert_eq!(cluster.running(&id).len() as u64, replicas);
        let node = cluster.state.nodes.keys().next().unwrap().clone();
        let before = for_node(&cluster.state, &node);
        let other = cluster.running(&id).into_iter().find(|t| t.node_id.as_ref() != Some(&node));
        let failed = shoal_model::task_state::TaskState::Failed;
        cluster.report((*other.unwrap()).clone(), failed);
        let after = for_node(&cluster.state, &node);
        json_len(&before.delta_to(&after, &KnownChanges::default())).unwrap()
    };
    let (few, many) = (bytes(6), bytes(200));
    assert!(many < few + 64, "{few} bytes with 6 tasks, {many} with 200");
}
