//! Overlay networks over two and three hosts: virtual addresses, published ports, outside reach.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::route::Route;
use shoal_stopwatch::Stopwatch;

fn two_tasks() -> [Task; 2] {
    [Task::new("ta", 0, 4), Task::new("tb", 1, 5)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_address_reaches_every_backend_from_every_node() {
    let lab = Running::new(Cluster::new(2, &two_tasks())).await;
    lab.serve();
    for (from, own) in [("ta", "10.0.1.4"), ("tb", "10.0.1.5")] {
        let ns = lab.sandbox(from);
        let (by, seen) = spread(20, || request(&ns, at(VIP, 80)));
        assert_eq!(by.len(), 2, "{from}: {by:?}");
        // To itself a task is masqueraded as the gateway; the other one sees it as it is.
        assert_eq!(seen, [ip("10.0.1.1"), ip(own)], "{from}");
        let (by, _) = spread(20, || datagram(&ns, at(VIP, 80)));
        assert_eq!(by.len(), 2, "{from}, UDP: {by:?}");
    }
    let (name, seen) = request(&lab.sandbox("ta"), at("10.0.1.5", 80)).unwrap();
    assert_eq!((name.as_str(), seen), ("tb", ip("10.0.1.4")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_answers_on_every_node_and_shows_the_client() {
    let lab = Running::new(Cluster::new(3, &two_tasks())).await;
    lab.serve();
    for host in 1..=3 {
        let to = at(&format!("198.51.100.{host}"), WEB);
        let (by, seen) = spread(20, || request(&lab.lab.client, to));
        assert_eq!((by.len(), seen.as_slice()), (2, &[ip("198.51.100.99")][..]), "{host}: {by:?}");
        let (by, seen) = spread(20, || datagram(&lab.lab.client, to));
        assert_eq!((by.len(), seen.as_slice()), (2, &[ip("198.51.100.99")][..]), "{host}: {by:?}");
        let from_host = spread(20, || request(&lab.lab.hosts[host - 1], to)).0;
        assert_eq!(from_host.len(), 2, "the host to itself: {from_host:?}");
        // By way of loopback, which the daemon's own sockets serve.
        let loopback = at("127.0.0.1", WEB);
        let (by, _) = spread(20, || request(&lab.lab.hosts[host - 1], loopback));
        assert_eq!(by.len(), 2, "the host by loopback: {by:?}");
        let (by, _) = spread(20, || datagram(&lab.lab.hosts[host - 1], loopback));
        assert_eq!(by.len(), 2, "the host by loopback, UDP: {by:?}");
        // A task by way of the port of its own node and of another one.
        let (by, _) = spread(20, || request(&lab.sandbox("ta"), to));
        assert_eq!(by.len(), 2, "from a task: {by:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_backend_the_refusal_is_immediate() {
    let mut lab = Running::new(Cluster::new(2, &two_tasks())).await;
    let client = Task::new("tc", 0, 7);
    lab.change(|cluster| {
        for task in &mut cluster.tasks {
            task.state = shoal_model::assignment::BackendState::Draining;
        }
        cluster.tasks.push(Task { state: cluster.tasks[0].state, ..client });
    })
    .await;
    let ns = lab.sandbox("tc");
    let start = Stopwatch::start();
    for to in [at(VIP, 80), at("10.0.1.77", 80)] {
        assert!(request(&ns, to).is_err());
        assert!(datagram(&ns, to).is_err());
    }
    assert!(request(&lab.lab.client, at("198.51.100.1", WEB)).is_err());
    assert!(datagram(&lab.lab.client, at("198.51.100.2", WEB)).is_err());
    assert!(start.elapsed() < HANG, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_reach_the_outside_and_internal_networks_do_not() {
    let lab = Running::new(Cluster::new(1, &[Task::new("ta", 0, 4)])).await;
    serve(&lab.lab.client, "outside", 7000);
    let to = at("198.51.100.99", 7000);
    let (name, seen) = request(&lab.sandbox("ta"), to).unwrap();
    assert_eq!((name.as_str(), seen), ("outside", ip("198.51.100.1")));
    assert_eq!(datagram(&lab.sandbox("ta"), to).unwrap().0, "outside");

    let mut cluster = Cluster::new(1, &[Task::new("ta", 0, 4)]);
    cluster.internal = true;
    let lab = Running::new(cluster).await;
    let mut only = lab.cluster.desired(0);
    only.networks.remove(&"ingress".into());
    only.published.clear();
    complete(&lab.nodes[0].apply(only).await.unwrap());
    serve(&lab.lab.client, "outside", 7000);
    let start = Stopwatch::start();
    assert!(request(&lab.sandbox("ta"), to).is_err());
    assert!(start.elapsed() < HANG);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_address_is_also_an_overlay_address_is_answered() {
    let lab = Running::new(Cluster::new(2, &two_tasks())).await;
    lab.serve();
    let client = &lab.lab.client;
    client.add_address("eth0", "10.255.0.50/32".parse().unwrap()).unwrap();
    let back = Route::dev("10.255.0.50/32".parse().unwrap(), "eth0");
    lab.lab.hosts[0].add_route(&back).unwrap();
    let mut to = Route::dev("198.51.100.1/32".parse().unwrap(), "eth0");
    to.source = Some(ip("10.255.0.50"));
    client.add_route(&to).unwrap();
    let (by, seen) = spread(20, || request(client, at("198.51.100.1", WEB)));
    assert_eq!((by.len(), seen), (2, vec![ip("10.255.0.50")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lot_of_data_passes_every_way() {
    let lab = Running::new(Cluster::new(2, &two_tasks())).await;
    lab.serve();
    let task = lab.sandbox("ta");
    let ways = [
        (&task, at("10.0.1.5", 80)),
        (&task, at(VIP, 80)),
        (&task, at("198.51.100.2", WEB)),
        (&lab.lab.client, at("198.51.100.1", WEB)),
        (&lab.lab.client, at("198.51.100.2", WEB)),
    ];
    for (ns, to) in ways {
        for _ in 0..4 {
            Talk::open(ns, to).unwrap().send_much(2 << 20).unwrap();
            // Larger than every MTU on the way: it travels in fragments.
            datagram_of(ns, to, 6000).unwrap_or_else(|e| panic!("6000 bytes to {to}: {e}"));
        }
    }
}

/// The kernel keeps what it learns of neighbours in one small table for all namespaces: a thousand
/// tasks that ask each other would overflow it, and then connections hang.
#[tokio::test(flavor = "multi_thread")]
async fn workloads_and_their_network_learn_no_neighbours() {
    let [ta, tb] = two_tasks();
    let lab = Running::new(Cluster::new(2, &[ta, tb, Task::new("tc", 0, 6)])).await;
    lab.serve();
    let client = lab.sandbox("ta");
    for to in [VIP, "10.0.1.5", "10.0.1.6"] {
        request(&client, at(to, 80)).unwrap();
        datagram(&client, at(to, 80)).unwrap();
    }
    let path = lab.lab.config(0, 0).exec_root.join("netns/n-mynet1");
    for ns in [client, lab.sandbox("tc"), NetnsHandle::open(&path).unwrap()] {
        // The link to the host has one neighbour, however many workloads there are.
        for link in ns.links().unwrap().iter().filter(|link| link.name != "up") {
            let learnt = ns.neighbours(&link.name).unwrap();
            assert!(learnt.iter().all(|neighbour| neighbour.permanent), "{learnt:?}");
        }
    }
}
