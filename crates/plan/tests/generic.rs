//! Generic resources: counted, named, given to one task at a time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeSet;

use cluster::{Chance, FakeCluster, set_image, set_replicas, spec};
use serde_json::json;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::{Task, UpdateState};
use shoal_model::spec::generic::GenericResource;
use shoal_model::spec::service::ServiceSpec;
use shoal_model::spec::task::{ResourceRequirements, Resources};
use shoal_model::task_state::TaskState;

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

fn equip(cluster: &mut FakeCluster, index: u16, terms: &[&str]) {
    let terms: Vec<String> = terms.iter().map(ToString::to_string).collect();
    let all = GenericResource::parse_all(&terms).unwrap();
    let all = all.iter().map(|one| serde_json::to_value(one).unwrap()).collect();
    cluster.edit_node(&node(index), |n| n.description.resources.generic_resources = Some(all));
}

fn asks(name: &str, replicas: u64, kinds: &[(&str, i64)]) -> ServiceSpec {
    let mut wanted = spec(name, replicas, &[]);
    let ask = |(kind, value): &(&str, i64)| {
        let counted = json!({ "Kind": kind, "Value": value });
        json!({ "DiscreteResourceSpec": counted })
    };
    let reservations = Resources {
        generic_resources: Some(kinds.iter().map(ask).collect()),
        ..Resources::default()
    };
    wanted.task_template.resources = Some(ResourceRequirements {
        reservations: Some(reservations),
        ..ResourceRequirements::default()
    });
    wanted
}

/// What the tasks have that may run, on each node.
fn given(cluster: &FakeCluster, id: &ServiceId) -> Vec<(NodeId, Vec<String>)> {
    let alive = |t: &&std::sync::Arc<Task>| !t.status.state.is_terminal() && t.node_id.is_some();
    let tasks = cluster.tasks(id);
    let one = |t: &std::sync::Arc<Task>| {
        (t.node_id.clone().unwrap(), GenericResource::environment(&t.assigned_generic_resources))
    };
    let mut given: Vec<_> = tasks.iter().filter(alive).map(one).collect();
    given.sort();
    given
}

#[test]
fn named_ones_are_chosen_and_counted_ones_add_up() {
    let mut cluster = FakeCluster::new(3);
    equip(&mut cluster, 1, &["GPU=a", "GPU=b", "GPU=c", "SSD=2"]);
    equip(&mut cluster, 2, &["GPU=2", "SSD=1"]);
    let id = cluster.add_service(asks("ml", 3, &[("GPU", 2), ("SSD", 1)]));
    cluster.run(&mut Chance(1), 30, 0);
    let text =
        |gpu: &str| vec![format!("DOCKER_RESOURCE_GPU={gpu}"), "DOCKER_RESOURCE_SSD=1".into()];
    assert_eq!(given(&cluster, &id), [(node(1), text("a,b")), (node(2), text("2"))]);
    let waiting = cluster.live(&id).into_iter().find(|t| t.node_id.is_none()).unwrap();
    assert_eq!(
        waiting.status.err,
        "insufficient GPU on 3 nodes: no suitable node (insufficient resources on 3 nodes)"
    );
    // What was asked for nothing of has none.
    let plain = cluster.add_service(asks("plain", 1, &[("GPU", 0)]));
    cluster.run(&mut Chance(1), 30, 0);
    assert!(cluster.running(&plain)[0].assigned_generic_resources.is_empty());
    // A node that gets more takes the one that waits.
    equip(&mut cluster, 3, &["GPU=x", "GPU=y", "SSD=9"]);
    cluster.run(&mut Chance(1), 30, 0);
    assert_eq!(given(&cluster, &id)[2], (node(3), text("x,y")));
}

#[test]
fn a_device_is_given_on_only_when_its_task_has_ended() {
    for seed in 0..40 {
        let mut chance = Chance(seed);
        let mut cluster = FakeCluster::new(2);
        equip(&mut cluster, 1, &["GPU=a", "GPU=b"]);
        equip(&mut cluster, 2, &["GPU=c"]);
        let id = cluster.add_service(asks("ml", 3, &[("GPU", 1)]));
        for round in 0..6 {
            cluster.update_service(&id, |spec| match round % 3 {
                0 => set_replicas(spec, 1 + chance.below(4)),
                _ => set_image(spec, &format!("web:{round}")),
            });
            for _ in 0..30 {
                cluster.run(&mut chance, 1, 30);
                let mut used = BTreeSet::new();
                for (node, devices) in given(&cluster, &id) {
                    assert_eq!(devices.len(), 1, "seed {seed}");
                    assert!(used.insert((node, devices)), "seed {seed}: a device is used by two");
                }
            }
        }
        // However it went: an update that must wait for the device comes to its end.
        cluster.update_service(&id, |spec| {
            set_replicas(spec, 3);
            set_image(spec, "web:last");
            spec.update_config = Some(shoal_model::spec::service::UpdateConfig {
                failure_action: Some("continue".into()),
                ..Default::default()
            });
        });
        cluster.run(&mut chance, 200, 0);
        assert_eq!(cluster.running(&id).len(), 3, "seed {seed}");
        let state = cluster.service(&id).update_status.as_ref().map(|s| s.state);
        assert_eq!(state, Some(UpdateState::Completed), "seed {seed}");
    }
}

#[test]
fn tasks_of_versions_before_have_none() {
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_service(spec("web", 1, &[]));
    cluster.run(&mut Chance(1), 10, 0);
    let task = cluster.tasks(&id)[0].clone();
    assert_eq!(task.status.state, TaskState::Running);
    let text = serde_json::to_value(&*task).unwrap();
    assert!(text.get("assigned_generic_resources").is_none(), "{text}");
    assert_eq!(serde_json::from_value::<Task>(text).unwrap(), *task);
}

#[test]
fn only_numbers_can_be_reserved() {
    let cluster = FakeCluster::new(1);
    let refused = |spec: &ServiceSpec| {
        shoal_plan::validate::new_service(&cluster.state, spec).map_err(|e| e.to_string())
    };
    assert_eq!(refused(&asks("ml", 1, &[("GPU", 2)])), Ok(()));
    let text = "could not parse GenericResource: cannot ask for negative resource GPU";
    assert_eq!(refused(&asks("ml", 1, &[("GPU", -1)])), Err(text.into()));
    let with = |value: serde_json::Value, limits: bool| {
        let mut wanted = spec("ml", 1, &[]);
        let part = Some(Resources { generic_resources: Some(vec![value]), ..Resources::default() });
        let none = ResourceRequirements::default();
        wanted.task_template.resources = Some(if limits {
            ResourceRequirements { limits: part, ..none }
        } else {
            ResourceRequirements { reservations: part, ..none }
        });
        wanted
    };
    let named = json!({ "NamedResourceSpec": { "Kind": "GPU", "Value": "a" } });
    let said = refused(&with(named, false));
    assert_eq!(said, Err("invalid argument for resource GPU".into()));
    let counted = json!({ "DiscreteResourceSpec": { "Kind": "GPU", "Value": 1 } });
    assert!(refused(&with(counted, true)).unwrap_err().contains("reserved, not limited"));
    assert!(refused(&with(json!({ "x": 1 }), false)).unwrap_err().contains("invalid generic"));
}
