//! Nodes whose programs are too old for what the cluster writes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::fault::Fault as _;
use shoal_model::id::NodeId;
use shoal_model::level::READS;
use shoal_model::object::{Cluster, NodeState, TaskStatus};
use shoal_model::spec::node::NodeRole;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{Hello, NodeMessage, PROTOCOL_VERSION, TaskReport, TaskStatuses};
use support::{World, hello, service};
use tokio::time::Instant;

/// As a later version's managers do.
async fn raise(world: &World) {
    let state = world.store.state();
    let known = state.cluster.as_ref().unwrap();
    let next = Cluster { level: READS + 1, ..(**known).clone() };
    let object = Object::Cluster(Box::new(next));
    let changes = vec![Change::Put { object, expect: Expect::Any }];
    let by = Instant::now() + Duration::from_secs(10);
    world.store.propose(Transaction { changes, at: Timestamp::from_secs(2) }, by).await.unwrap();
}

fn id_of(error: &WireError) -> Option<&'static str> {
    error.id().map(|id| id.0)
}

fn is_down(world: &World, id: &NodeId) -> bool {
    let state = world.control.state();
    let status = &state.nodes[id].status;
    status.state == NodeState::Down && status.message.contains("upgrade this node")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_too_old_is_refused_by_name_and_comes_back_upgraded() {
    let world = World::new().await;
    let node = world.worker("old").await;
    let id = node.id();
    raise(&world).await;
    // Its session ends, and it is not taken back as it is.
    world.until("it is down", |_| is_down(&world, &id)).await;
    let warnings = world.control.warnings().join("\n");
    assert!(warnings.contains("node old: upgrade this node"), "{warnings}");
    let identity = node.kill();
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let mut described = hello(&identity);
    described.description.engine_version = "0.0.9".into();
    let refused = client.session(described).await.unwrap_err();
    assert_eq!(id_of(&refused), Some("SH-MGR-020"), "{refused}");
    let words = format!("(version 0.0.9) reads up to {READS}");
    assert!(refused.to_string().contains(&words), "{refused}");
    world
        .until("its version is known", |state| {
            state.nodes[&id].description.engine_version == "0.0.9"
        })
        .await;
    let mut upgraded = hello(&identity);
    upgraded.description.reads = READS + 1;
    let _session = client.session(upgraded).await.unwrap();
    world.until("it is ready", |s| s.nodes[&id].status.state == NodeState::Ready).await;
    assert!(!is_down(&world, &id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_too_old_does_not_join() {
    let world = World::new().await;
    raise(&world).await;
    let refused = world.join(&world.token(NodeRole::Worker), "old").await.unwrap_err();
    assert_eq!(id_of(&refused), Some("SH-MGR-020"), "{refused}");
    let nodes = world.control.state().nodes.len();
    assert_eq!(nodes, 1, "it was entered all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_protocol_is_spoken_with_if_it_speaks_with_ours() {
    let world = World::new().await;
    let identity = world.worker("a").await.kill();
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let later =
        Hello { version: PROTOCOL_VERSION + 5, oldest: Some(PROTOCOL_VERSION), ..hello(&identity) };
    drop(client.session(later.clone()).await.unwrap());
    for oldest in [None, Some(PROTOCOL_VERSION + 1)] {
        let refused = client.session(Hello { oldest, ..later.clone() }).await.unwrap_err();
        assert_eq!(id_of(&refused), Some("SH-WIR-007"), "{refused}");
    }
    let older = Hello { version: 0, ..hello(&identity) };
    let refused = client.session(older).await.unwrap_err();
    assert_eq!(id_of(&refused), Some("SH-WIR-007"), "{refused}");
}

/// A status with a word of a later version is left out; its neighbours are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_of_a_later_version_is_not_written() {
    let world = World::new().await;
    let node = world.worker("a").await;
    let made = world.control.create_service(service("web", 2, &[]), None).await.unwrap();
    world.until_running(&made.id, 2).await;
    let tasks = support::running(&world.store.state(), &made.id);
    let report = |task: usize, state: TaskState| TaskReport {
        task_id: tasks[task].id.clone(),
        status: TaskStatus::new(Timestamp(9), state, "said"),
    };
    let odd: TaskState = serde_json::from_str("\"hibernating\"").unwrap();
    let statuses = vec![report(0, odd), report(1, TaskState::Failed)];
    node.tell(NodeMessage::TaskStatuses(TaskStatuses { statuses })).await;
    let (first, second) = (tasks[0].id.clone(), tasks[1].id.clone());
    world
        .until("the other is heard", |state| {
            state.tasks.get(&second).is_none_or(|task| task.status.state == TaskState::Failed)
        })
        .await;
    assert_eq!(world.store.state().tasks[&first].status.state, TaskState::Running);
}
