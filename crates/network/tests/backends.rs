//! Backends that go: nobody hangs, lost connections are reset, draining ones live on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::*;
use shoal_model::assignment::BackendState;
use shoal_model::id::NetworkId;
use shoal_netlink::link::LinkChange;
use shoal_stopwatch::Stopwatch;

fn three_tasks() -> [Task; 3] {
    [Task::new("ta", 0, 4), Task::new("tb", 1, 5), Task::new("tc", 0, 6)]
}

/// A connection from `ns` that `backend` answers.
fn talk_to(
    ns: &shoal_netlink::netns::NetnsHandle,
    to: std::net::SocketAddr,
    backend: &str,
) -> Talk {
    for _ in 0..200 {
        let mut talk = Talk::open(ns, to).unwrap();
        if talk.ask().unwrap().0 == backend {
            return talk;
        }
    }
    panic!("200 connections and none to {backend}");
}

/// Makes a task silent, as a node without power: its interface goes down inside.
fn silence(lab: &Running, task: &str) {
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    lab.sandbox(task).set_link("eth0", &down).unwrap();
    lab.sandbox(task).set_link("eth1", &down).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_backend_hangs_nobody() {
    let mut lab = Running::new(Cluster::new(2, &three_tasks())).await;
    lab.serve();
    let ns = lab.sandbox("ta");
    let outside = at("198.51.100.1", WEB);
    let mut idle = talk_to(&ns, at(VIP, 80), "tb");
    let mut mesh = talk_to(&lab.lab.client, outside, "tb");
    let mut own = talk_to(&lab.lab.hosts[0], outside, "tb");
    let mut kept = talk_to(&ns, at(VIP, 80), "tc");
    silence(&lab, "tb");

    // Whoever connects now may be unlucky; removal must rescue everybody.
    let start = Stopwatch::start();
    let unlucky: Vec<_> = (0..20)
        .map(|n| {
            let (ns, client) = (ns.clone(), lab.lab.client.clone());
            std::thread::spawn(move || {
                let begin = Stopwatch::start();
                let done =
                    if n % 2 == 0 { request(&ns, at(VIP, 80)) } else { request(&client, outside) };
                (done, begin.elapsed())
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    lab.change(|cluster| cluster.tasks[1].alive = false).await;

    // A client that only waits is woken up.
    assert!(idle.read().is_err());
    assert!(own.read().is_err());
    assert!(start.elapsed() < HANG, "{:?}", start.elapsed());
    // One elsewhere is reset as soon as it says something.
    assert!(mesh.ask().is_err());
    assert!(start.elapsed() < HANG, "{:?}", start.elapsed());
    for thread in unlucky {
        let (done, took) = thread.join().unwrap();
        assert!(done.is_ok(), "{done:?} after {took:?}");
        assert!(took < HANG, "{took:?}");
    }
    assert_eq!(kept.ask().unwrap().0, "tc");
    let (by, _) = spread(20, || request(&ns, at(VIP, 80)));
    assert!(!by.contains_key("tb"), "{by:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_syn_finds_another_backend_by_itself() {
    let lab = Running::new(Cluster::new(2, &three_tasks())).await;
    lab.serve();
    let ns = lab.sandbox("ta");
    silence(&lab, "tb");
    // Nobody tells the balancer. One in three attempts begins badly.
    let results: Vec<_> = (0..12)
        .map(|_| {
            let ns = ns.clone();
            std::thread::spawn(move || request(&ns, at(VIP, 80)))
        })
        .collect();
    let answered = results.into_iter().filter_map(|t| t.join().unwrap().ok()).count();
    assert!(answered >= 11, "{answered} of 12");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_backend_keeps_its_connections_and_gets_no_new_ones() {
    let mut lab = Running::new(Cluster::new(2, &three_tasks())).await;
    lab.serve();
    let ns = lab.sandbox("ta");
    let mut talk = talk_to(&ns, at(VIP, 80), "tb");
    let mut mesh = talk_to(&lab.lab.client, at("198.51.100.1", WEB), "tb");
    lab.change(|cluster| cluster.tasks[1].state = BackendState::Draining).await;
    assert_eq!(talk.ask().unwrap().0, "tb");
    assert_eq!(mesh.ask().unwrap().0, "tb");
    let (by, _) = spread(20, || request(&ns, at(VIP, 80)));
    assert!(!by.contains_key("tb"), "{by:?}");
    let (by, _) = spread(20, || request(&lab.lab.client, at("198.51.100.2", WEB)));
    assert!(!by.contains_key("tb"), "{by:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn udp_flows_leave_a_draining_backend() {
    let mut lab = Running::new(Cluster::new(2, &three_tasks())).await;
    lab.serve();
    let socket =
        lab.sandbox("ta").run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let ask = || {
        socket.send_to(b"who", at(VIP, 80)).unwrap();
        let mut buf = [0; 256];
        let len = socket.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..len]).split(' ').next().unwrap().to_owned()
    };
    let first = ask();
    assert_eq!(ask(), first, "a flow stays with its backend");
    lab.change(|cluster| {
        let task = cluster.tasks.iter_mut().find(|t| t.name == first).unwrap();
        task.state = BackendState::Draining;
    })
    .await;
    assert_ne!(ask(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_a_backend_out_on_its_own_evidence() {
    let mut lab = Running::new(Cluster::new(2, &three_tasks())).await;
    lab.serve();
    let ns = lab.sandbox("ta");
    let mut talk = talk_to(&ns, at(VIP, 80), "tc");
    let (mynet, ingress) = (NetworkId::from("mynet1"), NetworkId::from("ingress"));
    let node = lab.nodes[0].clone();
    node.backend_lost(&mynet, ip("10.0.1.6")).await.unwrap();
    node.backend_lost(&ingress, ip("10.255.0.6")).await.unwrap();
    assert!(talk.read().is_err());
    let (by, _) = spread(20, || request(&ns, at(VIP, 80)));
    assert!(!by.contains_key("tc"), "{by:?}");
    // The same tables again change nothing; newer ones are believed.
    complete(&node.apply(lab.cluster.desired(0)).await.unwrap());
    let (by, _) = spread(20, || request(&lab.lab.client, at("198.51.100.1", WEB)));
    assert!(!by.contains_key("tc"), "{by:?}");
    lab.change(|_| {}).await;
    let (by, _) = spread(60, || request(&ns, at(VIP, 80)));
    assert!(by.contains_key("tc"), "{by:?}");
}
