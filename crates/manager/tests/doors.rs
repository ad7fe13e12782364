//! What nodes may say, and what they cannot: removed nodes, statuses of others, statuses without
//! bound, places that nobody holds any more.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use shoal_identity::authority::KeyAndCsr;
use shoal_manager::error::ControlError;
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::Fault as _;
use shoal_model::id::{ContainerId, NodeId, Revision, TaskId};
use shoal_model::object::{NodeState, Task, TaskStatus};
use shoal_model::spec::node::NodeRole;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    AttachOutcome, AttachRequest, AttachmentSet, Hello, Leave, NodeMessage, PROTOCOL_VERSION,
    RenewCertificate, TaskReport, TaskStatuses,
};
use support::{FakeNode, World, hello, network, running, service};

fn id_of(error: &WireError) -> Option<&'static str> {
    error.id().map(|id| id.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_nodes_certificate_opens_nothing() {
    let world = World::new().await;
    let identity = world.worker("a").await.kill();
    world.control.remove_node(&identity.node_id, true).await.unwrap();
    // Its certificate is as good as before: what it may do is decided here.
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let refused = client.session(hello(&identity)).await.unwrap_err();
    assert_eq!(id_of(&refused), Some("SH-MGR-007"), "{refused}");
    assert!(refused.to_string().contains("was removed"), "{refused}");
    let csr_pem = KeyAndCsr::generate().unwrap().csr_pem;
    let renew = RenewCertificate { version: PROTOCOL_VERSION, csr_pem, manager_addr: None };
    let refused = client.renew(renew).await.unwrap_err();
    assert_eq!(id_of(&refused), Some("SH-MGR-007"), "{refused}");
    assert!(!world.control.state().nodes.contains_key(&identity.node_id));
}

/// The state of a manager whose disk went back is older than what its nodes have; they follow it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_more_than_a_confirmed_leader_is_let_in() {
    let world = World::new().await;
    let identity = world.join(&world.token(NodeRole::Worker), "w").await.unwrap();
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let ahead = Hello { revision: Some(Revision(1_000_000)), ..hello(&identity) };
    client.session(ahead).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_without_bound_is_refused() {
    let world = World::new().await;
    let identity = world.worker("a").await.kill();
    let mut hello = hello(&identity);
    hello.description.hostname = "x".repeat(1 << 20);
    let client = client::connect(&world.addr.to_string(), &identity).await.unwrap();
    let refused = client.session(hello).await.unwrap_err();
    assert!(refused.to_string().contains("at most 262144 are allowed"), "{refused}");
}

fn report(task: &Task, state: TaskState, text: &str) -> TaskReport {
    let mut status = TaskStatus::new(Timestamp(1), state, text);
    text.clone_into(&mut status.err);
    status.container.clone_from(&task.status.container);
    TaskReport { task_id: task.id.clone(), status }
}

async fn say(node: &FakeNode, statuses: Vec<TaskReport>) {
    node.tell(NodeMessage::TaskStatuses(TaskStatuses { statuses })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_for_its_own_tasks_only() {
    let world = World::new().await;
    let (a, b) = (world.worker("a").await, world.worker("b").await);
    let id = world.control.create_service(service("web", 2, &[]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let state = world.control.state();
    let tasks = running(&state, &id);
    let of = |node: &FakeNode| {
        tasks.iter().find(|t| t.node_id.as_ref() == Some(&node.id())).unwrap().clone()
    };
    let (own, theirs) = (of(&a), of(&b));
    let lies = [TaskState::Failed, TaskState::Complete, TaskState::Shutdown, TaskState::Running];
    let mut said: Vec<_> = lies.iter().map(|s| report(&theirs, *s, "a lie")).collect();
    // What managers decide, nodes cannot say.
    said.push(report(&own, TaskState::Orphaned, "a lie"));
    said.push(report(&own, TaskState::Remove, "a lie"));
    said.push(TaskReport { task_id: TaskId::new("nobodys"), ..said[0].clone() });
    said.push(report(&own, TaskState::Running, "the last word"));
    say(&a, said).await;
    let heard = |state: &ClusterState| {
        state.tasks.get(&own.id).is_some_and(|t| t.status.message == "the last word")
    };
    world.until("the node is heard", heard).await;
    let state = world.control.state();
    assert_eq!(state.tasks.get(&theirs.id).unwrap().status, theirs.status);
    assert!(state.tasks.values().all(|t| t.status.err != "a lie"), "{:?}", state.tasks);
    // An end that nobody wished for is a failure: it counts, and it waits out its delay.
    say(&a, vec![report(&own, TaskState::Shutdown, "")]).await;
    world
        .until("the end is a failure", |state| {
            let task = state.tasks.get(&own.id);
            task.is_some_and(|t| {
                t.status.state == TaskState::Failed && t.status.err.starts_with("stopped by its")
            })
        })
        .await;
}

/// Texts far larger than any that is kept: everything is written, cut, and nobody else waits.
#[tokio::test(flavor = "multi_thread")]
async fn statuses_without_bound_stop_nobody() {
    const TASKS: usize = 100;
    let world = World::new().await;
    let a = world.worker("a").await;
    let id =
        world.control.create_service(service("web", TASKS as u64, &[]), None).await.unwrap().id;
    world.until_running(&id, TASKS).await;
    let tasks = running(&world.control.state(), &id);
    let text = "x".repeat(100_000);
    // Small messages: a large one takes longer than these tests' heartbeats may.
    for some in tasks.chunks(2) {
        say(&a, some.iter().map(|t| report(t, TaskState::Running, &text)).collect()).await;
    }
    world
        .until("every status is written", |state| {
            let cut =
                |t: &&std::sync::Arc<Task>| t.status.err.contains("the node said 100000 bytes");
            running(state, &id).iter().filter(cut).count() == TASKS
        })
        .await;
    let other = world.control.create_service(service("other", 2, &[]), None).await.unwrap().id;
    world.until_running(&other, 2).await;
}

async fn attach(node: &mut FakeNode, name: &str, request: u64) -> Task {
    let message = AttachRequest {
        request,
        container_id: ContainerId::new(name),
        container_name: name.into(),
        network: "mynet1".into(),
        aliases: Vec::new(),
        addresses: Vec::new(),
    };
    match support::attach(node, message).await {
        AttachOutcome::Attached { task, .. } => *task,
        AttachOutcome::Refused(fault) => panic!("{fault}"),
    }
}

async fn state_set(node: &FakeNode, tasks: &[&Task]) {
    let tasks = tasks.iter().map(|t| t.id.clone()).collect();
    node.tell(NodeMessage::AttachmentSet(AttachmentSet { tasks })).await;
}

/// A daemon and its containers are killed, or a `Detach` is lost with its manager: what the node
/// does not hold goes with its next session.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_nobody_holds_go_with_the_next_session() {
    let mut world = World::new().await;
    let net = world.control.create_network(network("mynet1")).await.unwrap();
    let mut a = world.worker("a").await;
    let mut b = world.worker("b").await;
    let (kept, lost) = (attach(&mut a, "c1", 1).await, attach(&mut a, "c2", 2).await);
    let other = attach(&mut b, "c3", 1).await;
    let identity = a.kill();
    world.restart_manager().await;
    let mut a = FakeNode::start(identity, world.addr, "a");
    // What is asked for in this session is not taken back by its sets: the answer may not have been
    // read when they were stated.
    let fresh = attach(&mut a, "c4", 1).await;
    state_set(&a, &[&kept]).await;
    let has = |state: &ClusterState, task: &Task| {
        state.tasks.get(&task.id).is_some_and(|t| !t.status.state.is_terminal())
    };
    world.until("the lost place is gone", |state| !has(state, &lost)).await;
    let state = world.control.state();
    assert!(has(&state, &kept) && has(&state, &fresh) && has(&state, &other));
    // The next session holds nothing at all.
    let identity = a.kill();
    let a = FakeNode::start(identity, world.addr, "a");
    state_set(&a, &[]).await;
    world.until("all places are gone", |s| !has(s, &kept) && !has(s, &fresh)).await;
    assert!(has(&world.control.state(), &other), "another node's place");
    world.control.remove_network(&net).await.unwrap_err();
    // A node that leaves takes along what it holds.
    b.tell(NodeMessage::Leave(Leave {})).await;
    world.until("the place is gone with its node", |state| !has(state, &other)).await;
    world.until("nothing holds the network", |state| state.tasks.is_empty()).await;
    world.control.remove_network(&net).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_takes_its_places_along() {
    let world = World::impatient().await;
    let net = world.control.create_network(network("mynet1")).await.unwrap();
    let mut a = world.worker("a").await;
    attach(&mut a, "c1", 1).await;
    let id: NodeId = a.kill().node_id;
    let is_down =
        |state: &ClusterState| state.nodes.get(&id).unwrap().status.state == NodeState::Down;
    world.until("the node is down", is_down).await;
    let held = world.control.remove_network(&net).await.unwrap_err();
    assert!(matches!(held, ControlError::Spec(_)), "{held}");
    world.control.remove_node(&id, false).await.unwrap();
    world.until("its place is gone", |state| state.tasks.is_empty()).await;
    world.control.remove_network(&net).await.unwrap();
}
