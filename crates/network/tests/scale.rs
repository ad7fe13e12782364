//! A large network: bounds that hold with room to spare, not benchmarks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::*;
use shoal_model::assignment::{Backend, BackendState, EndpointEntry, ServiceEntry};
use shoal_model::id::{NetworkId, ServiceId, TaskId};
use shoal_stopwatch::Stopwatch;

const SERVICES: u8 = 100;
const TASKS: u8 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_services_of_eight_tasks_are_applied_and_changed_quickly() {
    let lab = Running::new(Cluster::new(2, &[Task::new("ta", 0, 4), Task::new("tb", 1, 5)])).await;
    lab.serve();
    let mut desired = lab.cluster.desired(0);
    let id = NetworkId::from("ingress");
    let net = desired.networks.get_mut(&id).unwrap();
    for service in 0..SERVICES {
        let address = |task: u8| ip(&format!("10.255.{}.{}", 100 + service, task + 2));
        let backends = (0..TASKS).map(|task| Backend {
            address: address(task),
            task_id: TaskId::new(format!("t{service}.{task}")),
            state: BackendState::Serving,
        });
        let backends: Vec<_> = backends.collect();
        net.endpoints.extend(backends.iter().map(|b| EndpointEntry {
            task_id: b.task_id.clone(),
            node_id: node_id(1),
            address: b.address,
            names: Vec::new(),
        }));
        net.services.push(ServiceEntry {
            service_id: ServiceId::new(format!("s{service}")),
            vip: Some(address(250)),
            backends,
            ..lab.cluster.desired(0).networks[&NetworkId::from("mynet1")].services[0].clone()
        });
    }
    let start = Stopwatch::start();
    complete(&lab.nodes[0].apply(desired.clone()).await.unwrap());
    let whole = start.elapsed();
    let start = Stopwatch::start();
    let gone = desired.networks.get_mut(&id).unwrap().services[7].backends.remove(3).address;
    desired.networks.get_mut(&id).unwrap().endpoints.retain(|e| e.address != gone);
    complete(&lab.nodes[0].apply(desired.clone()).await.unwrap());
    let one = start.elapsed();
    let start = Stopwatch::start();
    complete(&lab.nodes[0].apply(desired).await.unwrap());
    println!("whole table {whole:?}, one backend less {one:?}, nothing {:?}", start.elapsed());
    assert!(whole < Duration::from_secs(5), "{whole:?}");
    assert!(one < Duration::from_secs(1), "{one:?}");
    let (by, _) = spread(20, || request(&lab.sandbox("ta"), at(VIP, 80)));
    assert_eq!(by.len(), 2);
}
