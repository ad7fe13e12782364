//! What users do to services and nodes, one story each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Chance, FakeCluster, global_spec, set_image, set_replicas, spec};
use shoal_model::assignment::BackendState;
use shoal_model::change::{Object, ObjectKey};
use shoal_model::check::{CheckResult, Need, Verdict};
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::{NodeState, UpdateState};
use shoal_model::spec::network::{Ipam, IpamConfig, NetworkSpec};
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::{EndpointSpec, PortConfig, PublishMode, UpdateConfig};
use shoal_model::spec::task::{Placement, ResourceRequirements, Resources, RestartPolicy};
use shoal_model::task_state::TaskState;
use shoal_model::time::Nanos;

const STEPS: usize = 60;

fn calm(cluster: &mut FakeCluster) {
    cluster.run(&mut Chance(1), STEPS, 0);
}

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

fn state_of(cluster: &FakeCluster, id: &ServiceId) -> Option<UpdateState> {
    cluster.service(id).update_status.as_ref().map(|s| s.state)
}

fn images(cluster: &FakeCluster, id: &ServiceId) -> BTreeSet<String> {
    let image = |t: std::sync::Arc<shoal_model::object::Task>| {
        t.spec.container_spec.as_ref().unwrap().image.clone()
    };
    cluster.running(id).into_iter().map(image).collect()
}

#[test]
fn the_first_network_and_service_get_small_numbers_as_in_the_founding_story() {
    let mut cluster = FakeCluster::new(2);
    let net = cluster.add_network("mynet1", false);
    let network = cluster.state.networks.get(&net).unwrap().clone();
    assert_eq!(network.subnets[0].subnet.to_string(), "10.0.0.0/24");
    assert_eq!(network.subnets[0].gateway.to_string(), "10.0.0.1");
    let ingress = cluster.state.networks.values().find(|n| n.is_ingress()).unwrap();
    assert_eq!(ingress.subnets[0].subnet.to_string(), "10.255.0.0/16");
    let id = cluster.add_service(spec("mynginx", 2, &["mynet1"]));
    cluster.plan();
    let vip = &cluster.service(&id).endpoint.vips[0];
    assert_eq!(vip.addr.to_string(), "10.0.0.2/24");
    let addresses: Vec<String> =
        cluster.tasks(&id).iter().map(|t| t.networks[0].addresses[0].to_string()).collect();
    assert_eq!(addresses, ["10.0.0.3/24", "10.0.0.4/24"]);
    calm(&mut cluster);
    assert_eq!(cluster.spread(&id).len(), 2, "one task on each node");
    assert_eq!(state_of(&cluster, &id), None, "creating is no update");
}

#[test]
fn default_subnets_keep_away_from_the_nodes_own_addresses() {
    let mut cluster = FakeCluster::new(1);
    cluster.edit_node(&node(1), |n| n.data_path_addr = Some("10.0.0.7".parse().unwrap()));
    let net = cluster.add_network("mynet1", false);
    let subnet = cluster.state.networks.get(&net).unwrap().subnets[0].subnet;
    assert_eq!(subnet.to_string(), "10.0.1.0/24");
}

#[test]
fn a_failed_task_is_replaced_after_its_delay_and_history_is_bounded() {
    let mut cluster = FakeCluster::new(1);
    cluster.broken_images = vec!["web:1".into()];
    let id = cluster.add_service(spec("web", 1, &[]));
    cluster.plan();
    let mut chance = Chance(3);
    while cluster.live(&id)[0].not_before.is_none() {
        cluster.run(&mut chance, 1, 0);
    }
    let tasks = cluster.tasks(&id);
    let failed = &tasks[0];
    assert_eq!(failed.status.state, TaskState::Failed);
    assert_eq!(failed.desired_state, TaskState::Shutdown);
    let next = &tasks[1];
    assert_eq!(next.desired_state, TaskState::Ready, "made, but held");
    assert_eq!(next.node_id, None, "no node sees it before its time");
    let delay = next.not_before.unwrap().since(failed.status.timestamp);
    assert_eq!(delay, Duration::from_secs(5));
    assert_eq!(cluster.wake_at, next.not_before);
    cluster.run(&mut chance, 400, 0);
    assert_eq!(cluster.tasks(&id).len(), 5);
    assert_eq!(cluster.live(&id).len(), 1);
}

#[test]
fn restart_policies_are_kept_to() {
    let attempts = |condition: Option<&str>, max: Option<u64>| {
        let mut cluster = FakeCluster::new(1);
        cluster.broken_images = vec!["web:1".into()];
        let mut wanted = spec("web", 1, &[]);
        wanted.task_template.restart_policy = Some(RestartPolicy {
            condition: condition.map(str::to_owned),
            delay: Some(Nanos::from_secs(1)),
            max_attempts: max,
            window: None,
        });
        let id = cluster.add_service(wanted);
        cluster.plan();
        cluster.run(&mut Chance(5), 200, 0);
        (cluster.tasks(&id).len(), cluster.live(&id).len())
    };
    assert_eq!(attempts(Some("none"), None), (1, 0));
    assert_eq!(attempts(Some("on-failure"), Some(2)), (3, 0));
    assert_eq!(attempts(Some("any"), Some(7)), (8, 0), "history is kept as long as it counts");
    assert_eq!(attempts(None, None).1, 1);
}

#[test]
fn a_rolling_update_takes_down_no_more_than_it_may() {
    for (order, parallelism, expected_low) in
        [(None, 1, 3), (None, 2, 2), (Some("start-first"), 2, 4)]
    {
        let mut cluster = FakeCluster::new(3);
        let mut wanted = spec("web", 4, &[]);
        wanted.update_config = Some(UpdateConfig {
            parallelism,
            delay: Some(Nanos::from_secs(1)),
            order: order.map(str::to_owned),
            ..UpdateConfig::default()
        });
        let id = cluster.add_service(wanted);
        calm(&mut cluster);
        cluster.update_service(&id, |spec| set_image(spec, "web:2"));
        cluster.plan();
        assert_eq!(state_of(&cluster, &id), Some(UpdateState::Updating));
        let mut chance = Chance(7);
        let mut low = usize::MAX;
        for _ in 0..200 {
            cluster.run(&mut chance, 1, 0);
            low = low.min(cluster.running(&id).len());
        }
        assert_eq!(low, expected_low, "{order:?} {parallelism}");
        assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed));
        assert_eq!(images(&cluster, &id), BTreeSet::from(["web:2".to_owned()]));
        let status = cluster.service(&id).update_status.clone().unwrap();
        assert_eq!(status.message, "update completed");
        assert!(status.completed_at.unwrap() > status.started_at);
    }
}

#[test]
fn a_bad_update_pauses_and_the_old_tasks_keep_their_spec() {
    let mut cluster = FakeCluster::new(2);
    cluster.broken_images = vec!["web:bad".into()];
    let id = cluster.add_service(spec("web", 3, &[]));
    calm(&mut cluster);
    cluster.update_service(&id, |spec| set_image(spec, "web:bad"));
    calm(&mut cluster);
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Paused));
    let message = cluster.service(&id).update_status.clone().unwrap().message;
    assert!(message.starts_with("update paused due to failure or early termination of task "));
    assert_eq!(cluster.running(&id).len(), 2);
    // What fails while the update is paused comes back as it was.
    let victim = cluster.running(&id)[0].clone();
    cluster.report((*victim).clone(), TaskState::Failed);
    cluster.plan();
    cluster.run(&mut Chance(2), 40, 0);
    assert_eq!(cluster.running(&id).len(), 2);
    assert_eq!(images(&cluster, &id), BTreeSet::from(["web:1".to_owned()]));
    // A better spec goes on from there.
    cluster.update_service(&id, |spec| set_image(spec, "web:2"));
    cluster.run(&mut Chance(2), 200, 0);
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed));
    assert_eq!(cluster.running(&id).len(), 3);
}

#[test]
fn a_bad_update_goes_back_by_itself_if_told_so() {
    let mut cluster = FakeCluster::new(2);
    cluster.broken_images = vec!["web:bad".into()];
    let mut wanted = spec("web", 3, &[]);
    wanted.update_config = Some(UpdateConfig {
        parallelism: 1,
        failure_action: Some("rollback".into()),
        ..UpdateConfig::default()
    });
    let id = cluster.add_service(wanted);
    calm(&mut cluster);
    cluster.update_service(&id, |spec| set_image(spec, "web:bad"));
    let mut chance = Chance(9);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        cluster.run(&mut chance, 1, 0);
        seen.extend(state_of(&cluster, &id).map(|s| format!("{s:?}")));
    }
    assert!(seen.contains("RollbackStarted"), "{seen:?}");
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::RollbackCompleted));
    assert_eq!(images(&cluster, &id), BTreeSet::from(["web:1".to_owned()]));
    assert_eq!(cluster.running(&id).len(), 3);
}

#[test]
fn forced_updates_replace_and_labels_do_not() {
    let mut cluster = FakeCluster::new(2);
    let id = cluster.add_service(spec("web", 2, &[]));
    calm(&mut cluster);
    let ids = |c: &FakeCluster| c.running(&id).iter().map(|t| t.id.clone()).collect::<Vec<_>>();
    let before = ids(&cluster);
    cluster.update_service(&id, |spec| {
        spec.labels.insert("a".into(), "b".into());
        set_replicas(spec, 2);
    });
    calm(&mut cluster);
    assert_eq!(before, ids(&cluster));
    assert_eq!(state_of(&cluster, &id), None);
    cluster.update_service(&id, |spec| spec.task_template.force_update = Some(1));
    cluster.run(&mut Chance(1), 200, 0);
    assert!(ids(&cluster).iter().all(|t| !before.contains(t)));
    assert_eq!(state_of(&cluster, &id), Some(UpdateState::Completed));
}

#[test]
fn a_drain_keeps_every_replica_serving() {
    let mut cluster = FakeCluster::new(3);
    cluster.add_network("net", false);
    let id = cluster.add_service(spec("web", 3, &["net"]));
    calm(&mut cluster);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    cluster.plan();
    let mut chance = Chance(4);
    let mut low = usize::MAX;
    for _ in 0..60 {
        cluster.run(&mut chance, 1, 0);
        let assignment = shoal_plan::assignment::for_node(&cluster.state, &node(2));
        let table = assignment.networks.values().find(|t| t.network.name == "net").unwrap();
        let serving =
            table.services[0].backends.iter().filter(|b| b.state == BackendState::Serving);
        low = low.min(serving.count());
    }
    assert_eq!(low, 3, "no request found fewer backends");
    assert!(!cluster.spread(&id).contains_key(&node(1)));
    // Where nothing else can take the task, draining still empties the node.
    for index in [2, 3] {
        cluster.edit_node(&node(index), |n| n.spec.availability = Availability::Drain);
    }
    calm(&mut cluster);
    assert!(cluster.running(&id).is_empty());
    let waiting = cluster.live(&id)[0].clone();
    assert_eq!(
        waiting.status.err,
        "3 nodes not available for new tasks: no suitable node (3 nodes not available for new \
         tasks)"
    );
}

#[test]
fn a_changed_label_moves_the_task() {
    let mut cluster = FakeCluster::new(2);
    cluster.edit_node(&node(1), |n| drop(n.spec.labels.insert("disk".into(), "ssd".into())));
    let mut wanted = spec("db", 1, &[]);
    wanted.task_template.placement = Some(Placement {
        constraints: Some(vec!["node.labels.disk == ssd".into()]),
        ..Placement::default()
    });
    let id = cluster.add_service(wanted);
    calm(&mut cluster);
    assert!(cluster.spread(&id).contains_key(&node(1)));
    cluster.edit_node(&node(2), |n| drop(n.spec.labels.insert("disk".into(), "ssd".into())));
    cluster.edit_node(&node(1), |n| n.spec.labels.clear());
    calm(&mut cluster);
    assert_eq!(cluster.spread(&id).keys().collect::<Vec<_>>(), [&node(2)]);
}

#[test]
fn a_lost_nodes_tasks_are_replaced_at_once_and_stop_when_it_returns() {
    let mut cluster = FakeCluster::new(2);
    cluster.add_network("net", false);
    let id = cluster.add_service(spec("web", 2, &["net"]));
    calm(&mut cluster);
    let old = cluster.running(&id).iter().find(|t| t.node_id == Some(node(2))).unwrap().clone();
    cluster.set_node_state(&node(2), NodeState::Down);
    cluster.plan();
    let assignment = shoal_plan::assignment::for_node(&cluster.state, &node(1));
    let table = assignment.networks.values().find(|t| t.network.name == "net").unwrap();
    assert_eq!(table.services[0].backends.len(), 1, "the lost task is no backend any more");
    assert!(table.endpoints.iter().all(|e| e.task_id != old.id));
    let fresh = cluster.live(&id).into_iter().find(|t| t.status.state == TaskState::Assigned);
    let fresh = fresh.expect("a replacement without delay");
    assert_eq!(fresh.node_id, Some(node(1)));
    assert_eq!(fresh.desired_state, TaskState::Running, "it need not wait for the lost one");
    cluster.run(&mut Chance(1), 10, 0);
    assert_eq!(cluster.running(&id).len(), 2);
    cluster.set_node_state(&node(2), NodeState::Ready);
    cluster.plan();
    calm(&mut cluster);
    let ended = cluster.state.tasks.get(&old.id).unwrap();
    assert_eq!(ended.status.state, TaskState::Shutdown);
    assert_eq!(cluster.running(&id).len(), 2);
}

#[test]
fn a_node_that_leaves_hands_over_before_its_connections_are_cut() {
    let mut cluster = FakeCluster::new(2);
    cluster.add_network("net", false);
    cluster.add_service(spec("web", 2, &["net"]));
    calm(&mut cluster);
    cluster.set_node_state(&node(2), NodeState::Disconnected);
    let backends = |c: &FakeCluster| {
        let assignment = shoal_plan::assignment::for_node(&c.state, &node(1));
        let table = assignment.networks.values().find(|t| t.network.name == "net").unwrap();
        let mut states: Vec<_> = table.services[0].backends.iter().map(|b| b.state).collect();
        states.sort();
        states
    };
    assert_eq!(backends(&cluster), [BackendState::Serving, BackendState::Draining]);
    cluster.plan();
    assert_eq!(backends(&cluster), [BackendState::Serving, BackendState::Draining]);
    cluster.run(&mut Chance(1), 10, 0);
    cluster.set_node_state(&node(2), NodeState::Down);
    cluster.plan();
    assert_eq!(backends(&cluster), [BackendState::Serving, BackendState::Serving]);
}

#[test]
fn a_node_that_lacks_something_gets_no_task_and_the_task_says_what() {
    let mut cluster = FakeCluster::new(1);
    cluster.add_network("net", false);
    let failed = CheckResult {
        id: "SH-DOC-003".into(),
        name: "vxlan device".into(),
        verdict: Verdict::Fail,
        detail: "create a VXLAN link: operation not supported".into(),
        remedy: "load the kernel module 'vxlan'".into(),
        needed_for: Need::Overlay,
    };
    cluster.edit_node(&node(1), |n| n.description.checks = vec![failed]);
    let plain = cluster.add_service(spec("plain", 1, &[]));
    let web = cluster.add_service(spec("web", 1, &["net"]));
    calm(&mut cluster);
    assert_eq!(cluster.running(&plain).len(), 1, "it needs no overlay");
    let err = cluster.live(&web)[0].status.err.clone();
    assert_eq!(err.get(..29), Some("vxlan device missing on 1 nod"));
    for part in ["operation not supported", "load the kernel module", "SH-DOC-003", "host-1"] {
        assert!(err.contains(part), "{part}: {err}");
    }
}

#[test]
fn reservations_and_host_ports_limit_what_fits() {
    let mut cluster = FakeCluster::new(2);
    let mut wanted = spec("big", 3, &[]);
    wanted.task_template.resources = Some(ResourceRequirements {
        reservations: Some(Resources { memory_bytes: Some(6 << 30), ..Resources::default() }),
        ..ResourceRequirements::default()
    });
    let big = cluster.add_service(wanted);
    let mut wanted = spec("edge", 3, &[]);
    let port = PortConfig {
        target_port: 80,
        published_port: Some(8080),
        publish_mode: Some(PublishMode::Host),
        ..PortConfig::default()
    };
    wanted.endpoint_spec = Some(EndpointSpec { ports: Some(vec![port]), ..Default::default() });
    let edge = cluster.add_service(wanted);
    calm(&mut cluster);
    for (id, cause) in [(&big, "insufficient memory on 2 nodes"), (&edge, "port 8080/tcp in use")] {
        assert_eq!(cluster.running(id).len(), 2);
        let waiting = cluster.live(id).into_iter().find(|t| t.node_id.is_none()).unwrap();
        assert!(waiting.status.err.starts_with(cause), "{}", waiting.status.err);
    }
    cluster.add_node(3);
    calm(&mut cluster);
    assert_eq!(cluster.running(&big).len(), 3, "what waits is tried again when a node comes");
    assert_eq!(cluster.running(&edge).len(), 3);
}

#[test]
fn a_full_subnet_is_said_and_waits_for_room() {
    let mut cluster = FakeCluster::new(1);
    let config = IpamConfig { subnet: Some("10.9.0.0/29".into()), ..IpamConfig::default() };
    let ipam = Ipam { config: Some(vec![config]), ..Ipam::default() };
    cluster.add_network_spec(NetworkSpec {
        name: "tiny".into(),
        ipam: Some(ipam),
        ..NetworkSpec::default()
    });
    let id = cluster.add_service(spec("web", 6, &["tiny"]));
    calm(&mut cluster);
    assert_eq!(cluster.running(&id).len(), 4, "six addresses: a gateway, a VIP, four tasks");
    let waiting = cluster.live(&id).into_iter().find(|t| t.status.state == TaskState::New).unwrap();
    let err = &waiting.status.err;
    assert!(err.starts_with("subnet full: no address left"), "{err}");
    assert!(err.contains("'tiny'") && err.contains("5 of 5 in use"), "{err}");
    let second = cluster.add_service(spec("late", 1, &["tiny"]));
    cluster.plan();
    let said = cluster.service(&second).allocation_error.clone().unwrap();
    assert!(said.starts_with("subnet full: no virtual address"), "{said}");
    assert_eq!(cluster.live(&second)[0].status.err, said);
    cluster.delete(ObjectKey::Service(id));
    cluster.plan();
    calm(&mut cluster);
    assert_eq!(cluster.running(&second).len(), 1);
}

#[test]
fn published_ports_are_chosen_once_and_kept() {
    let mut cluster = FakeCluster::new(1);
    let ports = |list: &[(u16, Option<u16>)]| {
        let one = |(target_port, published_port): &(u16, Option<u16>)| PortConfig {
            target_port: *target_port,
            published_port: *published_port,
            ..PortConfig::default()
        };
        let ports = Some(list.iter().map(one).collect());
        Some(EndpointSpec { ports, ..EndpointSpec::default() })
    };
    let mut wanted = spec("web", 1, &[]);
    wanted.endpoint_spec = ports(&[(80, None), (443, Some(8443))]);
    let id = cluster.add_service(wanted);
    calm(&mut cluster);
    let numbers = |c: &FakeCluster| {
        let ports = c.service(&id).endpoint.ports.iter();
        ports.map(|p| p.published_port.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&cluster), [30_000, 8443]);
    let vip = cluster.service(&id).endpoint.vips[0].addr.to_string();
    assert_eq!(vip, "10.255.0.2/16");
    let task = cluster.running(&id)[0].clone();
    assert_eq!(task.networks.len(), 1, "the ingress network, without the user naming it");
    cluster.update_service(&id, |s| s.endpoint_spec = ports(&[(80, None), (443, Some(9443))]));
    calm(&mut cluster);
    assert_eq!(numbers(&cluster), [30_000, 9443]);
    assert_eq!(cluster.running(&id)[0].id, task.id, "the mesh concerns no task");
    let assignment = shoal_plan::assignment::for_node(&cluster.state, &node(1));
    assert_eq!(assignment.ingress_ports.len(), 2);
    assert_eq!(assignment.ingress_ports[0].backends.len(), 1);
    cluster.update_service(&id, |spec| spec.endpoint_spec = None);
    cluster.run(&mut Chance(1), 100, 0);
    assert!(cluster.service(&id).endpoint.vips.is_empty());
    assert!(cluster.running(&id)[0].networks.is_empty());
}

#[test]
fn global_services_follow_the_nodes() {
    let mut cluster = FakeCluster::new(3);
    let id = cluster.add_service(global_spec("agent", &[]));
    calm(&mut cluster);
    assert_eq!(cluster.running(&id).len(), 3);
    cluster.add_node(4);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    cluster.set_node_state(&node(2), NodeState::Down);
    calm(&mut cluster);
    let nodes: Vec<NodeId> = cluster.spread(&id).into_keys().collect();
    assert_eq!(nodes, [node(3), node(4)]);
    let name = cluster.running(&id)[0].name();
    assert!(name.starts_with("agent.node-"), "{name}");
    cluster.delete(ObjectKey::Node(node(2)));
    calm(&mut cluster);
    let orphan = cluster.tasks(&id).into_iter().find(|t| t.node_id == Some(node(2))).unwrap();
    assert_eq!(orphan.status.state, TaskState::Orphaned);
}

#[test]
fn scaling_down_keeps_the_nodes_balanced() {
    let mut cluster = FakeCluster::new(3);
    let id = cluster.add_service(spec("web", 7, &[]));
    calm(&mut cluster);
    cluster.update_service(&id, |spec| set_replicas(spec, 3));
    calm(&mut cluster);
    assert!(cluster.spread(&id).values().all(|count| *count == 1));
    assert_eq!(cluster.tasks(&id).len(), 3, "what is not wanted any more leaves no history");
    cluster.update_service(&id, |spec| set_replicas(spec, 0));
    calm(&mut cluster);
    assert!(cluster.tasks(&id).is_empty());
}

#[test]
fn a_service_too_large_for_one_transaction_still_comes_up() {
    let mut cluster = FakeCluster::new(5);
    cluster.add_network_spec(NetworkSpec {
        name: "wide".into(),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some("10.8.0.0/16".into()),
                ..IpamConfig::default()
            }]),
            ..Ipam::default()
        }),
        ..NetworkSpec::default()
    });
    let id = cluster.add_service(spec("web", 1500, &["wide"]));
    cluster.plan();
    assert_eq!(cluster.live(&id).len(), 1500);
    assert!(cluster.live(&id).iter().all(|t| t.status.state == TaskState::Assigned));
    cluster.delete(ObjectKey::Service(id.clone()));
    cluster.plan();
    cluster.run(&mut Chance(1), 12, 0);
    assert!(cluster.tasks(&id).is_empty());
}

#[test]
fn the_same_snapshot_gives_the_same_plan() {
    let mut cluster = FakeCluster::new(4);
    cluster.add_network("net", false);
    for name in ["a", "b", "c"] {
        cluster.add_service(spec(name, 5, &["net"]));
    }
    let plan = |cluster: &FakeCluster| {
        shoal_plan::reconcile(&cluster.state, cluster.now, &mut cluster.ids.clone())
    };
    assert_eq!(plan(&cluster), plan(&cluster));
}

#[test]
fn hand_made_places_go_with_their_container_and_stay_through_drains() {
    let mut cluster = FakeCluster::new(1);
    cluster.add_network("net", false);
    let wanted = shoal_plan::attachment::Wanted {
        node_id: node(1),
        container_id: "c1".into(),
        network: "net".into(),
        names: vec!["box".into()],
        addresses: vec!["10.0.0.77".parse().unwrap()],
    };
    let (now, mut ids) = (cluster.now, cluster.ids.clone());
    let task = shoal_plan::attachment::attach(&cluster.state, &wanted, now, &mut ids).unwrap();
    assert_eq!(task.networks[0].addresses[0].to_string(), "10.0.0.77/24");
    cluster.put(Object::Task(Box::new(task.clone())));
    let again = shoal_plan::attachment::attach(&cluster.state, &wanted, now, &mut ids);
    assert!(again.unwrap_err().to_string().contains("10.0.0.77 is in use"));
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    calm(&mut cluster);
    let kept = cluster.state.tasks.get(&task.id).unwrap().clone();
    assert_eq!(kept.status.state, TaskState::Running);
    cluster.report((*kept).clone(), TaskState::Shutdown);
    cluster.plan();
    assert!(cluster.state.tasks.is_empty());
}
