//! Networks of one node alone: the default network, user networks, ports by hand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use common::bridges::*;
use common::*;
use shoal_model::check::Verdict;
use shoal_network::desired::SandboxId;

#[tokio::test(flavor = "multi_thread")]
async fn containers_without_a_swarm_have_a_network() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let a = Container { name: "a", places: vec![("bridge", "172.17.0.2")] };
    let b =
        Container { name: "b", places: vec![("bridge", "172.17.0.3"), ("other", "172.18.0.2")] };
    let c = Container { name: "c", places: vec![("other", "172.18.0.3")] };
    let mut want = desired(&[a, b, c]);
    lab.hosts[0].add_address("eth0", "198.51.100.77/24".parse().unwrap()).unwrap();
    want.published.extend(publish("bridge", 8080, Some(ip("198.51.100.77")), "172.17.0.2"));
    want.published.extend(publish("other", 8081, None, "172.18.0.2"));
    want.published.extend(publish("other", 8080, Some(ip("198.51.100.1")), "172.18.0.3"));
    complete(&node.apply(want).await.unwrap());
    for name in ["a", "b", "c"] {
        serve(&sandbox(&node, name), name, 80);
    }
    serve(&lab.client, "outside", 7000);

    let (a, c) = (sandbox(&node, "a"), sandbox(&node, "c"));
    let answer = |name: &str, seen: &str| (name.to_owned(), ip(seen));
    assert_eq!(request(&a, at("172.17.0.3", 80)).unwrap(), answer("b", "172.17.0.2"));
    assert_eq!(request(&c, at("172.18.0.2", 80)).unwrap(), answer("b", "172.18.0.3"));
    assert_eq!(request(&a, at("198.51.100.99", 7000)).unwrap().0, "outside");
    // Networks are apart.
    let refused = request(&a, at("172.18.0.3", 80)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // Ports: of a second interface, and one number on two addresses of the host.
    let from = "198.51.100.99";
    for _ in 0..3 {
        let ask = |port| request(&lab.client, at("198.51.100.1", port)).unwrap();
        assert_eq!(ask(8081), answer("b", from));
        assert_eq!(ask(8080), answer("c", from));
        assert_eq!(request(&lab.client, at("198.51.100.77", 8080)).unwrap(), answer("a", from));
        let ask = |port| datagram(&lab.client, at("198.51.100.1", port)).unwrap();
        assert_eq!(ask(8080), answer("c", from));
    }
    // The host reaches containers by address.
    assert_eq!(request(&lab.hosts[0], at("172.17.0.2", 80)).unwrap().0, "a");
    node.teardown().await.unwrap();
    let names: Vec<_> = lab.hosts[0].links().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["lo", "eth0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_come_and_go_quickly_and_others_do_not_notice() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let list = |n: usize| {
        let all = [("a", "172.17.0.2"), ("b", "172.17.0.3"), ("c", "172.17.0.4")];
        let pick = all.iter().take(n);
        desired(
            &pick
                .map(|(name, at)| Container { name, places: vec![("bridge", at)] })
                .collect::<Vec<_>>(),
        )
    };
    complete(&node.apply(list(1)).await.unwrap());
    serve(&sandbox(&node, "a"), "a", 80);
    let mut talk = Talk::open(&lab.hosts[0], at("172.17.0.2", 80)).unwrap();
    let start = Instant::now();
    for _ in 0..10 {
        complete(&node.apply(list(3)).await.unwrap());
        complete(&node.apply(list(1)).await.unwrap());
        talk.ask().unwrap();
    }
    println!("20 applies with 40 ports made and removed: {:?}", start.elapsed());
    assert_eq!(lab.leftovers(0).len(), 2);
    assert_eq!(node.verify().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_without_a_swarm_is_refused_by_name() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let mut want = Cluster::new(1, &[Task::new("ta", 0, 4)]).desired(0);
    want.self_node = None;
    let applied = node.apply(want).await.unwrap();
    let error = applied.sandbox_error(&SandboxId::new("ta")).unwrap();
    assert!(error.starts_with("overlay needs a swarm: "), "{error}");
    node.teardown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_passes_its_checks() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    for check in node.checks() {
        let result = check.run();
        assert_ne!(result.verdict, Verdict::Fail, "{result:?}");
    }
}
