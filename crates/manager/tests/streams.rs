//! A manager over loopback: logs, attachments, events.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use shoal_model::event::Scope;
use shoal_model::id::ContainerId;
use shoal_model::log::{LogSelection, LogsOf, TaskLog};
use shoal_model::object::NodeState;
use shoal_wire::message::{AttachOutcome, AttachRequest, Detach, NodeMessage};
use support::{DEADLINE, FakeNode, World, network, service};

fn query(follow: bool) -> LogSelection {
    LogSelection { follow, ..LogSelection::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_every_node_and_a_lost_one_costs_one_line() {
    let world = World::impatient().await;
    let a = world.worker("a").await;
    let b = world.worker("b").await;
    let id = world.control.create_service(service("web", 2, &[]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let gather = async |follow| {
        let selector = LogsOf::Service(id.clone());
        world.control.service_logs(selector, query(follow)).await.unwrap()
    };
    let all = async |mut items: tokio::sync::mpsc::Receiver<TaskLog>| {
        let mut texts = Vec::new();
        while let Some(item) = items.recv().await {
            texts.push(match item {
                TaskLog::Line(line) => String::from_utf8(line.line).unwrap(),
                TaskLog::Warning(text) => text,
            });
        }
        texts.sort();
        texts
    };
    let lines = tokio::time::timeout(DEADLINE, all(gather(false).await)).await.unwrap();
    assert_eq!(lines, ["hello from a\n", "hello from b\n"]);
    let mut following = gather(true).await;
    for _ in 0..2 {
        let item = tokio::time::timeout(DEADLINE, following.recv()).await.unwrap();
        assert!(matches!(item, Some(TaskLog::Line(_))));
    }
    // A node opens its session anew with each certificate: what is followed goes on.
    a.stay_away();
    let _again = FakeNode::start(a.identity.clone(), world.addr, "a");
    let item = tokio::time::timeout(DEADLINE, following.recv()).await.unwrap();
    assert!(matches!(&item, Some(TaskLog::Line(l)) if l.line == b"hello from a\n"), "{item:?}");
    let lost = b.id();
    drop(b);
    let item = tokio::time::timeout(DEADLINE, following.recv()).await.unwrap().unwrap();
    let TaskLog::Warning(text) = item else { panic!("{item:?}") };
    assert!(text.contains("its session ended"), "{text}");
    world
        .until("the node is down", |state| {
            state.nodes.get(&lost).is_some_and(|n| n.status.state == NodeState::Down)
        })
        .await;
    let lines = tokio::time::timeout(DEADLINE, all(gather(false).await)).await.unwrap();
    let warnings: Vec<_> = lines.iter().filter(|l| l.contains("node 'b' cannot")).collect();
    assert_eq!(warnings.len(), 1, "{lines:?}");
}

async fn attach(node: &mut FakeNode, network: &str, request: u64) -> AttachOutcome {
    let message = AttachRequest {
        request,
        container_id: ContainerId::new("c1"),
        container_name: "box".into(),
        network: network.into(),
        aliases: vec!["alias".into()],
        addresses: Vec::new(),
    };
    support::attach(node, message).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_made_containers_get_a_place_and_hold_their_network() {
    let world = World::new().await;
    let mut a = world.worker("a").await;
    let refused = attach(&mut a, "nowhere", 1).await;
    assert!(matches!(refused, AttachOutcome::Refused(fault) if fault.text.contains("not found")));
    let net = world.control.create_network(network("mynet1")).await.unwrap();
    let AttachOutcome::Attached { network_id, task } = attach(&mut a, "mynet1", 2).await else {
        panic!("refused");
    };
    assert_eq!(network_id, net);
    assert_eq!(task.networks[0].addresses[0].to_string(), "10.0.0.2/24");
    assert_eq!(task.networks[0].aliases, ["box", "alias"]);
    let AttachOutcome::Attached { task: again, .. } = attach(&mut a, "mynet1", 3).await else {
        panic!("refused");
    };
    assert_eq!(again.id, task.id, "asking twice gives the same place");
    world
        .until("the place is in use", |state| {
            state.tasks.get(&task.id).is_some_and(|t| t.is_live())
        })
        .await;
    let held = world.control.remove_network(&net).await.unwrap_err();
    assert!(held.to_string().contains("is in use by container c1"), "{held}");
    a.tell(NodeMessage::Detach(Detach { task_id: task.id.clone() })).await;
    world.until("the place is gone", |state| state.tasks.is_empty()).await;
    world.control.remove_network(&net).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_changed_with_dockers_attributes() {
    let world = World::new().await;
    let mut events = world.control.events();
    let net = world.control.create_network(network("mynet1")).await.unwrap();
    let id = world.control.create_service(service("web", 1, &["mynet1"]), None).await.unwrap().id;
    let stored = world.control.state().services.get(&id).unwrap().clone();
    let mut spec = (*stored.spec).clone();
    spec.mode.as_mut().unwrap().replicated.as_mut().unwrap().replicas = Some(4);
    let update = shoal_manager::control::ServiceUpdate::Spec(Box::new(spec));
    // The plan may have given the service its address in between.
    let version = world.control.state().services.get(&id).unwrap().meta.version;
    match world.control.update_service(&id, version, update.clone(), None).await {
        Ok(_) => {}
        Err(_) => {
            let version = world.control.state().services.get(&id).unwrap().meta.version;
            world.control.update_service(&id, version, update, None).await.unwrap();
        }
    }
    world.control.remove_service(&id).await.unwrap();
    world.until("no task is left", |state| state.tasks.is_empty()).await;
    world.control.remove_network(&net).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 5 {
        let event = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
        if event.kind != "node" {
            assert_eq!(event.scope, Scope::Swarm);
            told.push((event.kind, event.action, event.attributes));
        }
    }
    let names: Vec<_> = told.iter().map(|(k, a, _)| format!("{k} {a}")).collect();
    assert_eq!(
        names,
        ["network create", "service create", "service update", "service remove", "network remove"]
    );
    let update = &told[2].2;
    assert_eq!(update.get("replicas.old").map(String::as_str), Some("1"));
    assert_eq!(update.get("replicas.new").map(String::as_str), Some("4"));
    assert_eq!(update.get("name").map(String::as_str), Some("web"));
}
