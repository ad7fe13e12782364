//! A daemon's life: restart, drift, several daemons on one host, the end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use common::bridges::{Container, desired};
use common::*;
use shoal_model::id::NetworkId;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::nft::{Batch, Family, Table};
use shoal_netlink::route::Route;
use shoal_network::desired::{DesiredNetwork, SandboxId};
use shoal_network::node_network::NodeNetwork;

fn two_tasks() -> [Task; 2] {
    [Task::new("ta", 0, 4), Task::new("tb", 1, 5)]
}

fn of_instance(host: &NetnsHandle, instance: &str) -> Vec<String> {
    let links = host.links().unwrap().into_iter();
    let tables = host.nft_tables().unwrap().into_iter();
    links
        .filter(|l| l.alias.contains(instance))
        .map(|l| l.name)
        .chain(tables.filter(|t| t.name.contains(instance)).map(|t| t.name))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_plane_outlives_the_daemon() {
    let mut lab = Running::new(Cluster::new(2, &two_tasks())).await;
    lab.serve();
    let ns = lab.sandbox("ta");
    let mut talk = Talk::open(&ns, at(VIP, 80)).unwrap();
    let mut mesh = Talk::open(&lab.lab.client, at("198.51.100.1", WEB)).unwrap();
    let who = (talk.ask().unwrap(), mesh.ask().unwrap());
    for node in &lab.nodes {
        node.close().await;
    }
    assert_eq!((talk.ask().unwrap(), mesh.ask().unwrap()), who, "with no daemon");
    let links = |host: &NetnsHandle| {
        host.links().unwrap().into_iter().map(|l| (l.name, l.index)).collect::<Vec<_>>()
    };
    let before = links(&lab.lab.hosts[0]);
    for (index, node) in lab.nodes.iter_mut().enumerate() {
        *node = NodeNetwork::open(lab.lab.config(index, index)).await.unwrap();
    }
    lab.apply().await;
    assert_eq!(links(&lab.lab.hosts[0]), before, "everything is adopted");
    assert_eq!((talk.ask().unwrap(), mesh.ask().unwrap()), who, "after the restart");
    let (by, _) = spread(20, || request(&ns, at(VIP, 80)));
    assert_eq!(by.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_wanted_after_a_restart_goes() {
    let mut lab = Running::new(Cluster::new(1, &[Task::new("ta", 0, 4)])).await;
    lab.nodes[0].close().await;
    lab.nodes[0] = NodeNetwork::open(lab.lab.config(0, 0)).await.unwrap();
    let mut desired = lab.cluster.desired(0);
    desired.networks.remove(&NetworkId::from("mynet1"));
    complete(&lab.nodes[0].apply(desired).await.unwrap());
    let mut left = lab.lab.leftovers(0);
    left.sort();
    assert_eq!(left, ["c-ta", "n-ingress"]);
    let instance = lab.lab.instance(0);
    let links = || of_instance(&lab.lab.hosts[0], instance.as_str());
    assert_eq!(links().len(), 3, "one link and two tables: {:?}", links());
    // And the next one wants nothing at all.
    lab.nodes[0].close().await;
    lab.nodes[0] = NodeNetwork::open(lab.lab.config(0, 0)).await.unwrap();
    complete(&lab.nodes[0].apply(DesiredNetwork::default()).await.unwrap());
    assert_eq!(links(), Vec::<String>::new());
    assert_eq!(lab.lab.leftovers(0), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_said_and_stands_in_nobodys_way() {
    let mut lab = Running::new(Cluster::new(1, &two_tasks()[..1])).await;
    lab.nodes[0].close().await;
    // No namespace: a directory with something in it is not removed like one.
    let config = lab.lab.config(0, 0);
    let stuck = config.exec_root.join("netns/c-stuck");
    std::fs::create_dir_all(stuck.join("inside")).unwrap();
    lab.nodes[0] = NodeNetwork::open(config).await.unwrap();
    let applied = lab.nodes[0].apply(lab.cluster.desired(0)).await.unwrap();
    let said = applied.host.clone().unwrap_or_default();
    assert!(said.contains("c-stuck"), "{applied:?}");
    assert!(applied.networks.is_empty() && applied.sandboxes.is_empty(), "{applied:?}");
    lab.serve();
    assert_eq!(request(&lab.sandbox("ta"), at(VIP, 80)).unwrap().0, "ta");
    std::fs::remove_dir(stuck.join("inside")).unwrap();
    std::fs::remove_dir(&stuck).unwrap();
    complete(&lab.nodes[0].apply(lab.cluster.desired(0)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn teardown_leaves_nothing() {
    let lab = Running::new(Cluster::new(2, &two_tasks())).await;
    let host = &lab.lab.hosts[0];
    let instance = lab.lab.instance(0);
    assert_eq!(of_instance(host, instance.as_str()).len(), 4);
    lab.nodes[0].teardown().await.unwrap();
    assert_eq!(of_instance(host, instance.as_str()), Vec::<String>::new());
    assert_eq!(lab.lab.leftovers(0), Vec::<String>::new());
    let names: Vec<_> = host.links().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["lo", "eth0"]);
    assert!(host.nft_tables().unwrap().is_empty());
    assert_eq!(lab.lab.leftovers(1).len(), 3, "the other node's things stay");
    // And a new life begins.
    complete(&lab.nodes[0].apply(lab.cluster.desired(0)).await.unwrap());
    lab.serve();
    let (by, _) = spread(20, || request(&lab.sandbox("ta"), at(VIP, 80)));
    assert_eq!(by.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_named_and_repaired() {
    let lab = Running::new(Cluster::new(2, &two_tasks())).await;
    lab.serve();
    let node = &lab.nodes[0];
    assert_eq!(node.verify().await.unwrap(), []);
    let path = lab.lab.config(0, 0).exec_root.join("netns/n-mynet1");
    let inside = NetnsHandle::open(&path).unwrap();
    inside.delete_route(&Route::dev("10.0.1.5/32".parse().unwrap(), "vx")).unwrap();
    inside.delete_link("up").unwrap();
    let mut batch = Batch::new();
    batch.flush_chain(&Table::new(Family::Ip, "shoal"), "balance");
    inside.commit(batch).unwrap();
    let mut batch = Batch::new();
    let instance = lab.lab.instance(0);
    batch.delete_table(&Table::new(Family::Ip, format!("shoal_{instance}")));
    lab.lab.hosts[0].commit(batch).unwrap();

    let drift = node.verify().await.unwrap();
    let text = format!("{drift:?}");
    for part in ["missing route 10.0.1.5/32", "missing link up", "changed nftables", "missing nft"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(drift.iter().all(|d| d.repaired), "{text}");
    assert_eq!(node.verify().await.unwrap(), [], "repaired");
    let (by, _) = spread(20, || request(&lab.sandbox("ta"), at(VIP, 80)));
    assert_eq!(by.len(), 2);
    let (by, _) = spread(20, || request(&lab.lab.client, at("198.51.100.1", WEB)));
    assert_eq!(by.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_share_a_host() {
    let lab = Running::new(Cluster::new(1, &[Task::new("ta", 0, 4)])).await;
    lab.serve();
    // Another cluster on the same host: the same subnets and names, another port outside.
    let other = NodeNetwork::open(lab.lab.config(0, 3)).await.unwrap();
    let mut cluster = Cluster::new(1, &[Task::new("tx", 0, 4)]);
    cluster.port = 14_789;
    let mut desired = cluster.desired(0);
    desired.published.iter_mut().for_each(|p| p.port.number = 8092);
    complete(&other.apply(desired).await.unwrap());
    let path = other.sandbox_path(&shoal_network::desired::SandboxId::new("tx"));
    let tx = NetnsHandle::open(&path).unwrap();
    serve(&tx, "tx", 80);
    for _ in 0..5 {
        assert_eq!(request(&lab.sandbox("ta"), at(VIP, 80)).unwrap().0, "ta");
        assert_eq!(request(&tx, at(VIP, 80)).unwrap().0, "tx");
        assert_eq!(request(&lab.lab.client, at("198.51.100.1", WEB)).unwrap().0, "ta");
        assert_eq!(request(&lab.lab.client, at("198.51.100.1", 8092)).unwrap().0, "tx");
    }
    // One goes, the other does not notice.
    let mut talk = Talk::open(&lab.lab.client, at("198.51.100.1", WEB)).unwrap();
    talk.ask().unwrap();
    other.teardown().await.unwrap();
    assert_eq!(talk.ask().unwrap().0, "ta");
    assert_eq!(lab.nodes[0].verify().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_named_and_the_rest_works() {
    let lab = Running::new(Cluster::new(1, &[Task::new("ta", 0, 4)])).await;
    lab.serve();
    let other = NodeNetwork::open(lab.lab.config(0, 3)).await.unwrap();
    // The same VNI on the same UDP port of one host cannot be.
    let applied = other.apply(Cluster::new(1, &[Task::new("tx", 0, 4)]).desired(0)).await.unwrap();
    let error = &applied.networks[&NetworkId::from("mynet1")];
    assert!(error.starts_with("vxlan device refused: "), "{error}");
    assert!(error.contains("SH-NET-003"), "{error}");
    let sandbox = shoal_network::desired::SandboxId::new("tx");
    assert!(applied.sandbox_error(&sandbox).is_some());
    assert_eq!(request(&lab.sandbox("ta"), at(VIP, 80)).unwrap().0, "ta");
    other.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_does_not_start_holds_nobody_up() {
    let lab = Lab::new(1);
    let mut config = lab.config(0, 0);
    let name = format!("shoal-no-resolver-{}", std::process::id());
    let program = std::env::temp_dir().join(name);
    // It runs, and never opens its socket.
    std::fs::write(&program, "#!/bin/sh\nexec sleep 20\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    config.program = Some(program.clone());
    let node = NodeNetwork::open(config).await.unwrap();
    let want = desired(&[Container { name: "a", places: vec![("bridge", "172.17.0.2")] }]);
    let order = Mutex::new(Vec::new());
    let applied = async {
        let applied = node.apply(want).await.unwrap();
        order.lock().unwrap().push("applied");
        applied
    };
    let looked = async {
        let id = SandboxId::new("a");
        let path = node.sandbox_path(&id);
        tokio::task::spawn_blocking(move || {
            wait_for("the namespace", HANG * 10, || shoal_netlink::netns::exists(&path));
        })
        .await
        .unwrap();
        let status = node.status().await;
        order.lock().unwrap().push("looked");
        status
    };
    let (applied, status) = tokio::join!(applied, looked);
    assert_eq!(status.networks.len(), 1);
    assert_eq!(*order.lock().unwrap(), ["looked", "applied"]);
    let error = applied.resolver.unwrap();
    assert!(error.starts_with("resolver failed: hand over the names"), "{error}");
    assert!(applied.sandboxes.is_empty() && applied.networks.is_empty());
    node.teardown().await.unwrap();
    std::fs::remove_file(program).unwrap();
}
