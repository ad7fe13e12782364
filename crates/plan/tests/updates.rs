//! Updates that meet something unusual: a paused node, no task yet, a spec that cannot be had back.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeMap;

use cluster::{Chance, FakeCluster, global_spec, set_image, spec};
use shoal_model::change::{Object, ObjectKey};
use shoal_model::id::{ConfigId, NodeId, ServiceId};
use shoal_model::object::{Config, Meta, UpdateState};
use shoal_model::spec::node::Availability;
use shoal_model::spec::payload::{ConfigReference, PayloadData, PayloadSpec};
use shoal_model::spec::service::UpdateConfig;
use shoal_model::time::Timestamp;

fn run(cluster: &mut FakeCluster) {
    cluster.run(&mut Chance(1), 200, 0);
}

fn state_of(cluster: &FakeCluster, id: &ServiceId) -> Option<UpdateState> {
    cluster.service(id).update_status.as_ref().map(|s| s.state)
}

/// The image that runs on each node.
fn images(cluster: &FakeCluster, id: &ServiceId) -> BTreeMap<NodeId, String> {
    let of = |task: std::sync::Arc<shoal_model::object::Task>| {
        let image = task.spec.container_spec.as_ref().unwrap().image.clone();
        (task.node_id.clone().unwrap(), image)
    };
    cluster.running(id).into_iter().map(of).collect()
}

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

#[test]
fn a_paused_node_is_left_alone_and_follows_when_it_is_active_again() {
    let mut cluster = FakeCluster::new(3);
    let id = cluster.add_service(global_spec("agent", &[]));
    run(&mut cluster);
    let old = cluster.running(&id).into_iter().find(|t| t.node_id == Some(node(2))).unwrap();
    cluster.edit_node(&node(2), |n| n.spec.availability = Availability::Pause);
    cluster.update_service(&id, |spec| set_image(spec, "web:2"));
    run(&mut cluster);
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed));
    let of = |image: &str| image.to_owned();
    let wanted = [(node(1), of("web:2")), (node(2), of("web:1")), (node(3), of("web:2"))];
    assert_eq!(images(&cluster, &id), BTreeMap::from(wanted));
    assert!(cluster.running(&id).iter().any(|t| t.id == old.id), "its task was replaced");

    cluster.edit_node(&node(2), |n| n.spec.availability = Availability::Active);
    run(&mut cluster);
    assert_eq!(images(&cluster, &id).get(&node(2)).map(String::as_str), Some("web:2"));
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed));
}

#[test]
fn an_update_before_the_first_task_ends_as_any_other() {
    for replicas in [0, 2] {
        let mut cluster = FakeCluster::new(2);
        let id = cluster.add_service(spec("web", replicas, &[]));
        cluster.update_service(&id, |spec| set_image(spec, "web:2"));
        run(&mut cluster);
        assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed), "{replicas} replicas");
        assert_eq!(cluster.running(&id).len() as u64, replicas);
        assert!(images(&cluster, &id).values().all(|image| image == "web:2"));
    }
    // One that nobody has updated has no state.
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_service(spec("web", 1, &[]));
    run(&mut cluster);
    assert_eq!(state_of(&cluster, &id), None);
}

#[test]
fn a_rollback_to_a_spec_whose_config_is_gone_says_so() {
    let mut cluster = FakeCluster::new(2);
    cluster.broken_images = vec!["web:bad".into()];
    let payload = PayloadSpec {
        name: "zone".into(),
        data: PayloadData::new(b"x".to_vec()),
        ..PayloadSpec::default()
    };
    let config =
        Config { id: "c1".into(), meta: Meta::default(), spec: payload, extra: Default::default() };
    cluster.put(Object::Config(Box::new(config)));
    let mut wanted = spec("web", 2, &[]);
    wanted.update_config = Some(UpdateConfig {
        parallelism: 1,
        failure_action: Some("rollback".into()),
        ..UpdateConfig::default()
    });
    let reference = ConfigReference {
        config_id: "c1".into(),
        config_name: "zone".into(),
        ..ConfigReference::default()
    };
    wanted.task_template.container_spec.as_mut().unwrap().configs = Some(vec![reference]);
    let id = cluster.add_service(wanted);
    run(&mut cluster);
    cluster.update_service(&id, |spec| {
        set_image(spec, "web:bad");
        spec.task_template.container_spec.as_mut().unwrap().configs = None;
    });
    cluster.delete(ObjectKey::Config(ConfigId::new("c1")));
    run(&mut cluster);
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Paused));
    let message = cluster.service(&id).update_status.clone().unwrap().message;
    assert!(message.contains("it cannot be rolled back") && message.contains("zone"), "{message}");
    assert_eq!(cluster.running(&id).len(), 1, "the other one runs on as it was");
}

/// A new leader's clock may be behind the last one's.
#[test]
fn a_clock_that_steps_back_makes_no_old_task_the_newest() {
    let mut cluster = FakeCluster::new(2);
    let mut wanted = spec("web", 2, &[]);
    wanted.update_config =
        Some(UpdateConfig { order: Some("start-first".into()), ..UpdateConfig::default() });
    let id = cluster.add_service(wanted);
    run(&mut cluster);
    for (version, hours) in [(2, 1), (3, 2)] {
        cluster.now = Timestamp::from_secs(cluster.now.secs() - hours * 3600);
        cluster.update_service(&id, |spec| set_image(spec, &format!("web:{version}")));
        run(&mut cluster);
        assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed), "web:{version}");
        assert_eq!(cluster.running(&id).len(), 2);
        assert!(images(&cluster, &id).values().all(|i| *i == format!("web:{version}")));
    }
}
