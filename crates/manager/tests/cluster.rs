//! A manager over loopback: joining, running services, losing nodes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_manager::control::{Rotation, ServiceUpdate};
use shoal_manager::error::ControlError;
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::{ConfigId, NodeId};
use shoal_model::object::{NodeState, UpdateState};
use shoal_model::spec::node::{Availability, NodeRole, NodeSpec};
use shoal_model::spec::payload::{ConfigReference, FileTarget, PayloadData, PayloadSpec};
use shoal_model::spec::service::{EndpointSpec, PortConfig, Replicated, ServiceMode, ServiceSpec};
use shoal_plan::validate::CONFIG_BYTES_MAX;
use shoal_wire::error::WireError;
use shoal_wire::message::{ByeReason, Leave, ManagerMessage, NodeMessage};
use support::{DEADLINE, FakeNode, World, network, running, service};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_runs_on_every_node_that_joined() {
    let world = World::new().await;
    let a = world.worker("a").await;
    let b = world.worker("b").await;
    let net = world.control.create_network(network("mynet1")).await.unwrap();
    let id = world.control.create_service(service("web", 2, &["mynet1"]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let state = world.control.state();
    let nodes: BTreeSet<NodeId> =
        running(&state, &id).iter().map(|t| t.node_id.clone().unwrap()).collect();
    assert_eq!(nodes, BTreeSet::from([a.id(), b.id()]));
    let stored = state.services.get(&id).unwrap();
    assert_eq!(stored.endpoint.vips[0].addr.to_string(), "10.0.0.2/24");
    assert_eq!(stored.spec.networks()[0].target, net.to_string(), "ids are stored, as Docker does");
    // Every node learns both backends and confirms it.
    let complete = || {
        [&a, &b].iter().all(|node| {
            let assignment = node.assignment.lock().unwrap();
            let table = assignment.networks.get(&net);
            table.is_some_and(|t| t.services[0].backends.len() == 2 && t.peers.len() == 3)
        })
    };
    wait(complete).await;
    let revision = world.control.state().revision;
    wait(|| {
        let acked = world.control.acked();
        [&a, &b].iter().all(|n| acked.get(&n.id()).is_some_and(|r| *r >= revision))
    })
    .await;
}

/// Waits for something that no watch tells.
async fn wait(holds: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "waited too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_update_and_removal_are_carried_out() {
    let world = World::new().await;
    let _a = world.worker("a").await;
    let id = world.control.create_service(service("web", 1, &[]), None).await.unwrap().id;
    world.until_running(&id, 1).await;
    let stored = world.control.state().services.get(&id).unwrap().clone();
    let mut spec = (*stored.spec).clone();
    spec.mode = Some(ServiceMode {
        replicated: Some(Replicated { replicas: Some(3) }),
        ..ServiceMode::default()
    });
    let update = || ServiceUpdate::Spec(Box::new(spec.clone()));
    let version = stored.meta.version;
    world.control.update_service(&id, version, update(), None).await.unwrap();
    let again = world.control.update_service(&id, version, update(), None).await;
    assert!(matches!(again, Err(ControlError::OutOfSequence)));
    assert_eq!(again.unwrap_err().to_string(), "update out of sequence");
    world.until_running(&id, 3).await;
    let duplicate = world.control.create_service(service("web", 1, &[]), None).await.unwrap_err();
    assert_eq!(duplicate.kind(), FaultKind::Conflict);
    world.control.remove_service(&id).await.unwrap();
    world.until("every task is gone", |state| state.tasks.is_empty()).await;
}

/// Whoever has read the spec as it is now may change it, whatever else of the object was written
/// since; whoever has read another one may not.
#[tokio::test(flavor = "multi_thread")]
async fn only_another_spec_makes_a_version_old() {
    let world = World::impatient().await;
    let a = world.worker("a").await;
    let id = world.control.create_service(service("web", 1, &[]), None).await.unwrap().id;
    world.until_running(&id, 1).await;
    let read = || world.control.state().services.get(&id).unwrap().clone();
    let with = |label: &str| {
        let mut spec = (*read().spec).clone();
        spec.task_template.force_update = Some(spec.task_template.force_update.unwrap_or(0) + 1);
        spec.labels.insert("label".to_owned(), label.to_owned());
        ServiceUpdate::Spec(Box::new(spec))
    };
    let first = read().meta.version;
    world.control.update_service(&id, first, with("1"), None).await.unwrap();
    let second = read().meta.version;
    world
        .until("the update is over", |state| {
            let status = state.services.get(&id).unwrap().update_status.as_ref();
            status.is_some_and(|status| status.state == UpdateState::Completed)
        })
        .await;
    assert!(read().meta.version > second, "nothing was written since");
    let stale = world.control.update_service(&id, first, with("2"), None).await;
    assert!(matches!(stale, Err(ControlError::OutOfSequence)), "{stale:?}");
    world.control.update_service(&id, second, with("3"), None).await.unwrap();
    assert_eq!(read().spec.labels["label"], "3");

    let of = a.id();
    let node = || world.control.state().nodes.get(&of).unwrap().clone();
    let (known, up) = (node(), node().meta.version);
    a.kill();
    world.until("it is down", |state| state.nodes[&of].status.state == NodeState::Down).await;
    assert!(node().meta.version > up);
    let drained = NodeSpec { availability: Availability::Drain, ..known.spec.clone() };
    world.control.update_node(&known.id, up, drained).await.unwrap();
    let stale = world.control.update_node(&known.id, up, known.spec.clone()).await;
    assert!(matches!(stale, Err(ControlError::OutOfSequence)), "{stale:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_replaced_and_reconciled_when_it_returns() {
    let world = World::impatient().await;
    let a = world.worker("a").await;
    let b = world.worker("b").await;
    let id = world.control.create_service(service("web", 2, &[]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let lost = b.id();
    let identity = b.kill();
    world
        .until("the node is down", |state| {
            state.nodes.get(&lost).is_some_and(|n| n.status.state == NodeState::Down)
        })
        .await;
    world
        .until("the other node runs both", |state| {
            let tasks = running(state, &id);
            tasks.len() == 2 && tasks.iter().all(|t| t.node_id.as_ref() == Some(&a.id()))
        })
        .await;
    let back = FakeNode::start(identity, world.addr, "b");
    world
        .until("the old task ends", |state| {
            let ready = state.nodes.get(&lost).is_some_and(|n| n.status.state == NodeState::Ready);
            let old = state.tasks.values().filter(|t| t.node_id.as_ref() == Some(&lost));
            ready && old.into_iter().all(|t| t.status.state.is_terminal())
        })
        .await;
    assert_eq!(running(&world.control.state(), &id).len(), 2);
    drop(back);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_over_at_once_and_can_be_removed() {
    let world = World::impatient().await;
    let a = world.worker("a").await;
    let id = a.id();
    let refused = world.control.remove_node(&id, false).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("node {id} is not down and can't be removed"));
    a.tell(NodeMessage::Leave(Leave {})).await;
    let is = |state: &ClusterState, wanted| {
        state.nodes.get(&id).is_some_and(|n| n.status.state == wanted)
    };
    world.until("the node leaves", |state| is(state, NodeState::Disconnected)).await;
    drop(a);
    world.until("the node is down", |state| is(state, NodeState::Down)).await;
    world.control.remove_node(&id, false).await.unwrap();
    assert!(!world.control.state().nodes.contains_key(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_back_soon_keeps_its_tasks() {
    let world = World::new().await;
    let a = world.worker("a").await;
    let b = world.worker("b").await;
    let id = world.control.create_service(service("web", 2, &[]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let ids = || -> BTreeSet<_> {
        running(&world.control.state(), &id).iter().map(|t| t.id.clone()).collect()
    };
    let (before, away) = (ids(), b.id());
    let is = |state: &ClusterState, wanted| {
        state.nodes.get(&away).is_some_and(|n| n.status.state == wanted)
    };
    let identity = b.back_soon(3600).await;
    world.until("it is away", |state| is(state, NodeState::Unknown)).await;
    // New tasks go elsewhere meanwhile.
    let other = world.control.create_service(service("other", 2, &[]), None).await.unwrap().id;
    world.until_running(&other, 2).await;
    let state = world.control.state();
    assert!(running(&state, &other).iter().all(|t| t.node_id.as_ref() == Some(&a.id())));
    assert_eq!(ids(), before);
    let b = FakeNode::start(identity, world.addr, "b");
    world.until("it is back", |state| is(state, NodeState::Ready)).await;
    assert_eq!(ids(), before, "its task was replaced");
    // One that does not come back is lost like any other, when its time is over.
    b.back_soon(1).await;
    world.until("it is down", |state| is(state, NodeState::Down)).await;
    world
        .until("the other node runs both", |state| {
            let tasks = running(state, &id);
            tasks.len() == 2 && tasks.iter().all(|t| t.node_id.as_ref() == Some(&a.id()))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_told_so_and_the_manager_stays() {
    let world = World::new().await;
    let mut a = world.worker("a").await;
    world.control.remove_node(&a.id(), true).await.unwrap();
    // In its session; or, if that ended just before, when it asks for the next one.
    let told = tokio::time::timeout(DEADLINE, async {
        loop {
            match a.heard.recv().await.unwrap() {
                Ok(ManagerMessage::Bye(bye)) => return assert_eq!(bye.reason, ByeReason::Removed),
                Err(WireError::Remote(fault)) => {
                    return assert_eq!(fault.id(), Some(FaultId("SH-MGR-007")));
                }
                _ => {}
            }
        }
    });
    told.await.unwrap();
    let own = world.identity.node_id.clone();
    let refused = world.control.remove_node(&own, true).await.unwrap_err();
    assert!(refused.to_string().contains("must be demoted to worker"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_decide_who_joins() {
    let world = World::new().await;
    let second = world.join(&world.token(NodeRole::Manager), "m2").await.unwrap();
    assert_eq!(second.role, NodeRole::Manager);
    let state = world.control.state();
    let number = |id| state.nodes[id].manager.as_ref().map(|m| m.raft_id);
    let (own, other) = (number(&world.identity.node_id), number(&second.node_id));
    assert!(other.is_some() && other != own, "{own:?} and {other:?}");
    let old = world.token(NodeRole::Worker);
    let cluster = world.control.state().cluster.clone().unwrap();
    let rotation = Rotation { worker_token: true, ..Rotation::default() };
    world
        .control
        .update_cluster(cluster.meta.version, cluster.spec.clone(), rotation)
        .await
        .unwrap();
    let refused = world.join(&old, "late").await.unwrap_err();
    assert_eq!(refused.kind(), FaultKind::Unauthorized);
    assert_ne!(old, world.token(NodeRole::Worker));
    world.join(&world.token(NodeRole::Worker), "invited").await.unwrap();
    assert_eq!(world.control.state().nodes.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_manager_on_the_old_store_disturbs_no_task() {
    let mut world = World::impatient().await;
    let _a = world.worker("a").await;
    let _b = world.worker("b").await;
    let id = world.control.create_service(service("web", 4, &[]), None).await.unwrap().id;
    world.until_running(&id, 4).await;
    let before: BTreeSet<_> =
        running(&world.store.state(), &id).iter().map(|t| t.id.clone()).collect();
    world.restart_manager().await;
    world
        .until("both workers are back", |state| {
            let ready = state.nodes.values().filter(|n| n.status.state == NodeState::Ready);
            ready.count() == 2
        })
        .await;
    let after: BTreeSet<_> =
        running(&world.store.state(), &id).iter().map(|t| t.id.clone()).collect();
    assert_eq!(before, after);
    // Its own node has no agent in this test: it counts as down after a while, the others do not.
    world
        .until("the silent node is down", |state| {
            state.nodes.values().filter(|n| n.status.state == NodeState::Down).count() == 1
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_gives_its_tasks_away() {
    let world = World::new().await;
    let a = world.worker("a").await;
    let b = world.worker("b").await;
    let id = world.control.create_service(service("web", 2, &[]), None).await.unwrap().id;
    world.until_running(&id, 2).await;
    let node = world.control.state().nodes.get(&a.id()).unwrap().clone();
    let mut spec = node.spec.clone();
    spec.availability = Availability::Drain;
    world.control.update_node(&a.id(), node.meta.version, spec.clone()).await.unwrap();
    world
        .until("the other node runs both", |state| {
            let tasks = running(state, &id);
            tasks.len() == 2 && tasks.iter().all(|t| t.node_id.as_ref() == Some(&b.id()))
        })
        .await;
    let stale = world.control.update_node(&a.id(), node.meta.version, spec).await;
    assert!(matches!(stale, Err(ControlError::OutOfSequence)));
}

#[tokio::test(flavor = "multi_thread")]
async fn published_ports_reach_every_node_and_clash_in_dockers_words() {
    let world = World::new().await;
    let a = world.worker("a").await;
    let mut ingress = network("ingress");
    ingress.ingress = Some(true);
    world.control.create_network(ingress).await.unwrap();
    let mut spec = service("web", 1, &[]);
    let port = PortConfig { target_port: 80, published_port: Some(8091), ..PortConfig::default() };
    spec.endpoint_spec = Some(EndpointSpec { ports: Some(vec![port]), ..EndpointSpec::default() });
    let id = world.control.create_service(spec.clone(), None).await.unwrap().id;
    world.until_running(&id, 1).await;
    wait(|| {
        let assignment = a.assignment.lock().unwrap();
        assignment.ingress_ports.iter().any(|p| p.backends.len() == 1)
    })
    .await;
    spec.name = "other".into();
    let clash = world.control.create_service(spec, None).await.unwrap_err();
    assert_eq!(
        clash.to_string(),
        format!("port '8091' is already in use by service 'web' ({id}) as an ingress port")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_stay_and_replace_no_task() {
    let world = World::new().await;
    let a = world.worker("a").await;
    let auth = Some("e30K".to_owned());
    let id = world.control.create_service(service("web", 1, &[]), auth.clone()).await.unwrap().id;
    world.until_running(&id, 1).await;
    let task = running(&world.control.state(), &id)[0].clone();
    let stored = world.control.state().services.get(&id).unwrap().clone();
    let of = |spec: &shoal_model::spec::task::TaskSpec| {
        spec.container_spec.as_ref().unwrap().registry_auth().map(str::to_owned)
    };
    assert_eq!(of(&task.spec), auth, "the node needs them");
    let mut spec = service("web", 1, &[]);
    spec.labels.insert("a".into(), "b".into());
    let update = ServiceUpdate::Spec(Box::new(spec));
    world.control.update_service(&id, stored.meta.version, update, None).await.unwrap();
    let after = world.control.state().services.get(&id).unwrap().clone();
    assert_eq!(of(&after.spec.task_template), auth);
    assert_eq!(after.spec_version, stored.spec_version);
    drop(a);
}

/// `service` with references to these configs.
fn configured(name: &str, configs: &[(String, ConfigId)]) -> ServiceSpec {
    let mut spec = service(name, 1, &[]);
    let reference = |(name, id): &(String, ConfigId)| ConfigReference {
        file: Some(FileTarget { name: name.clone(), mode: 0o444, ..FileTarget::default() }),
        config_id: id.to_string(),
        config_name: name.clone(),
        ..ConfigReference::default()
    };
    let container = spec.task_template.container_spec.as_mut().unwrap();
    container.configs = Some(configs.iter().map(reference).collect());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_tasks_configs_however_many_messages_it_takes() {
    /// Together more than one message may have.
    const COUNT: u8 = 13;
    let world = World::new().await;
    let mut events = world.control.events();
    let mut configs = Vec::new();
    for number in 0..COUNT {
        let name = format!("config-{number}");
        let data = PayloadData::new(vec![number; CONFIG_BYTES_MAX - 1]);
        let spec = PayloadSpec { name: name.clone(), data, ..PayloadSpec::default() };
        configs.push((name, world.control.create_config(spec).await.unwrap()));
    }
    let event = events.recv().await.unwrap();
    assert_eq!((event.kind.as_str(), event.action.as_str()), ("config", "create"));
    assert_eq!(event.attributes["name"], "config-0");
    let a = world.worker("a").await;
    let id = world.control.create_service(configured("web", &configs), None).await.unwrap().id;
    let holds = |count: usize| {
        let assignment = a.assignment.lock().unwrap();
        let there = assignment.payloads.configs.values().flatten();
        there.filter(|payload| payload.data.len() == CONFIG_BYTES_MAX - 1).count() == count
    };
    wait(|| holds(usize::from(COUNT))).await;
    world.until_running(&id, 1).await;
    // What is in use stays; a service without it lets it go, also on the node.
    let (_, first) = &configs[0];
    let held = world.control.remove_config(first).await.unwrap_err().to_string();
    assert_eq!(held, "config 'config-0' is in use by the following service: web");
    let version = world.control.state().services[&id].meta.version;
    let update = ServiceUpdate::Spec(Box::new(configured("web", &configs[1..])));
    world.control.update_service(&id, version, update, None).await.unwrap();
    wait(|| holds(usize::from(COUNT) - 1)).await;
    world.control.remove_config(first).await.unwrap();
    let version = world.control.state().services[&id].meta.version;
    let back = world.control.update_service(&id, version, ServiceUpdate::Rollback, None).await;
    assert_eq!(back.unwrap_err().to_string(), "config not found: config-0");
}
