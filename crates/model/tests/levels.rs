//! What a program does with what a later one has written.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use shoal_model::change::{ApplyError, Change, Expect, Object, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NodeId, Revision};
use shoal_model::level::{FIRST, READS, UNKNOWN};
use shoal_model::object::{Cluster, Node, Task};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

const AT: &str = "1970-01-01T00:00:01Z";

fn meta() -> Value {
    json!({"version": 0, "created_at": AT, "updated_at": AT})
}

/// A node as a later version writes it.
fn node() -> Value {
    json!({
        "id": "n1", "meta": meta(), "index": 1, "data_path_addr": null, "manager": null,
        "spec": {"Role": "worker", "Availability": "active", "Labels": {}, "Mood": "fine"},
        "description": {"hostname": "h", "reads": 9, "colour": [1, {"a": null}]},
        "status": {"state": "ready", "message": "", "addr": "", "since": AT},
        "height": {"metres": 2},
    })
}

fn cluster(level: u32) -> Cluster {
    let text = json!({
        "id": "c", "meta": meta(), "spec": {}, "root_ca": {"cert_pem": "", "key_pem": ""},
        "join_tokens": {"worker": "", "manager": ""}, "default_address_pools": [],
        "subnet_prefix_len": 24, "data_path_port": 4789, "level": level, "motto": "onwards",
    });
    serde_json::from_value(text).unwrap()
}

fn task(state: &str) -> Task {
    let status = json!({"timestamp": AT, "state": state, "message": "", "err": "",
        "container": null, "ports": []});
    let text = json!({
        "id": "t1", "meta": meta(), "service_id": null, "service_name": "", "slot": 1,
        "node_id": null, "spec": {}, "spec_version": 1, "endpoint_ports": [], "networks": [],
        "status": status, "desired_state": "running", "not_before": null, "weight": 7,
    });
    serde_json::from_value(text).unwrap()
}

fn put(state: &mut ClusterState, object: Object) -> Result<(), ApplyError> {
    let next = Revision(state.revision.0 + 1);
    let changes = vec![Change::Put { object, expect: Expect::Any }];
    state.apply(next, &Transaction { changes, at: Timestamp::from_secs(1) }).map(drop)
}

fn same(object: &Object) {
    let text = serde_json::to_string(object).unwrap();
    assert_eq!(serde_json::from_str::<Object>(&text).unwrap(), *object, "{text}");
}

#[test]
fn fields_of_later_versions_survive_who_does_not_know_them() {
    let read: Node = serde_json::from_value(node()).unwrap();
    let mut state = ClusterState::default();
    put(&mut state, Object::Node(Box::new(read))).unwrap();
    // An older program changes what it knows, and leaves the rest.
    let mut known = (*state.nodes[&NodeId::new("n1")]).clone();
    known.status.message = "changed".into();
    known.description.hostname = "other".into();
    put(&mut state, Object::Node(Box::new(known))).unwrap();
    let written = serde_json::to_value(&*state.nodes[&NodeId::new("n1")]).unwrap();
    assert_eq!(written["height"], json!({"metres": 2}));
    assert_eq!(written["description"]["colour"], json!([1, {"a": null}]));
    assert_eq!(written["description"]["reads"], 9);
    assert_eq!(written["spec"]["Mood"], "fine");
    assert_eq!(written["status"]["message"], "changed");
    for object in state.objects() {
        same(&object);
    }
    same(&Object::Cluster(Box::new(cluster(FIRST))));
    same(&Object::Task(Box::new(task("running"))));
    assert_eq!(serde_json::to_value(task("running")).unwrap()["weight"], 7);
    let restored = ClusterState::restore(state.revision, state.objects());
    assert_eq!(restored, state);
}

#[test]
fn what_an_earlier_version_wrote_has_the_first_level() {
    let mut text = serde_json::to_value(cluster(FIRST)).unwrap();
    text.as_object_mut().unwrap().remove("level");
    assert_eq!(serde_json::from_value::<Cluster>(text).unwrap().level, FIRST);
    let mut text = node();
    text["description"].as_object_mut().unwrap().remove("reads");
    assert_eq!(serde_json::from_value::<Node>(text).unwrap().description.reads(), FIRST);
    assert_eq!(ClusterState::default().level(), FIRST);
}

#[test]
fn the_level_only_grows() {
    let mut state = ClusterState::default();
    put(&mut state, Object::Cluster(Box::new(cluster(READS)))).unwrap();
    put(&mut state, Object::Cluster(Box::new(cluster(READS + 3)))).unwrap();
    put(&mut state, Object::Cluster(Box::new(cluster(FIRST)))).unwrap();
    assert_eq!(state.level(), READS + 3);
    assert_eq!(state.cluster.unwrap().extra["motto"], "onwards");
    let raise = |level| Transaction {
        changes: vec![Change::Put {
            object: Object::Cluster(Box::new(cluster(level))),
            expect: Expect::Any,
        }],
        at: Timestamp::ZERO,
    };
    assert_eq!((raise(5).level(), raise(FIRST).level()), (5, FIRST));
}

#[test]
fn words_that_are_not_known_are_not_written() {
    let mut state = ClusterState::default();
    put(&mut state, Object::Task(Box::new(task("running")))).unwrap();
    let before = state.clone();
    for object in [
        Object::Task(Box::new(task("hibernating"))),
        Object::Task(Box::new(Task {
            desired_state: task("asleep").status.state,
            ..task("running")
        })),
    ] {
        assert_eq!(object.needs(), UNKNOWN);
        let refused = put(&mut state, object).unwrap_err();
        assert!(matches!(refused, ApplyError::Level { needs: UNKNOWN, .. }), "{refused}");
        assert!(refused.to_string().contains("not known"), "{refused}");
        assert_eq!(state, before);
    }
    let mut resting = node();
    resting["spec"]["Availability"] = json!("half");
    let resting: Node = serde_json::from_value(resting).unwrap();
    put(&mut state, Object::Node(Box::new(resting))).unwrap_err();
    assert_eq!(state, before);
    assert_eq!(task("complete").status.state.needs(), FIRST);
    assert!(TaskState::ALL.iter().all(|known| known.needs() <= READS));
}
