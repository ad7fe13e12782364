//! What a change costs: as much as has changed, however much is there. Counted in messages to the
//! kernel and bytes from it, not in time. One test, because the count is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use common::bridges::*;
use common::*;
use shoal_netlink::traffic::{self, Traffic};

const MANY: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn a_container_more_costs_the_same_among_many_as_among_few() {
    let lab = Lab::new(1);
    let node = node(&lab).await;
    let names: Vec<&'static str> =
        (0..MANY).map(|n| &*Box::leak(format!("c{n}").into_boxed_str())).collect();
    let addresses: Vec<&'static str> = (0..MANY)
        .map(|n| &*Box::leak(format!("172.17.{}.{}", n / 200, n % 200 + 2).into_boxed_str()))
        .collect();
    let first = |count: usize| {
        let place = |n: usize| Container { name: names[n], places: vec![("bridge", addresses[n])] };
        desired(&(0..count).map(place).collect::<Vec<_>>())
    };
    let mut costs: Vec<Traffic> = Vec::new();
    let start = Instant::now();
    for count in 1..=MANY {
        let before = traffic::so_far();
        complete(&node.apply(first(count)).await.unwrap());
        let after = traffic::so_far();
        costs.push(Traffic {
            sent: after.sent - before.sent,
            received_bytes: after.received_bytes - before.received_bytes,
        });
    }
    let few = costs[3];
    let many = costs[MANY - 1];
    println!("{MANY} one by one in {:?}; the 4th cost {few:?}, the last {many:?}", start.elapsed());
    assert!(many.sent <= few.sent, "{few:?} {many:?}");
    assert!(many.received_bytes <= few.received_bytes * 2, "{few:?} {many:?}");

    // The same again costs nothing, and several at once cost no more than one by one.
    let before = traffic::so_far();
    complete(&node.apply(first(MANY)).await.unwrap());
    assert_eq!(traffic::so_far(), before);
    complete(&node.apply(first(MANY - 10)).await.unwrap());
    let before = traffic::so_far().sent;
    complete(&node.apply(first(MANY)).await.unwrap());
    let ten = traffic::so_far().sent - before;
    assert!(ten <= 10 * many.sent, "{ten} for ten, {many:?} for one");
    assert_eq!(node.verify().await.unwrap(), []);
    node.teardown().await.unwrap();
}
