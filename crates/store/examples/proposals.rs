//! Measures confirmed (durable) writes a second: `cargo run --release -p shoal-store --example
//! proposals [directory]`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::id::{NodeId, TaskId};
use shoal_model::object::{Meta, Task, TaskStatus};
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_store::{NoPeers, PROPOSE_DEADLINE, Store, StoreConfig};

const SPAN: Duration = Duration::from_secs(5);

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + PROPOSE_DEADLINE
}

fn put(number: usize) -> Transaction {
    let task = Task {
        id: TaskId::new(format!("task{number:021}")),
        meta: Meta::default(),
        service_id: None,
        service_name: "bench".into(),
        slot: 1,
        node_id: None,
        spec: Default::default(),
        spec_version: 1,
        endpoint_ports: Vec::new(),
        networks: Vec::new(),
        status: TaskStatus::new(Timestamp::ZERO, TaskState::New, "created"),
        desired_state: TaskState::Running,
        not_before: None,
        job_iteration: None,
        assigned_generic_resources: Vec::new(),
        extra: Default::default(),
    };
    let object = Object::Task(Box::new(task));
    Transaction { changes: vec![Change::Put { object, expect: Expect::Any }], at: Timestamp(1) }
}

async fn measure(store: &Store, writers: usize, objects: usize) {
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut number = writer;
            while begin.elapsed() < SPAN {
                let start = Instant::now();
                store.propose(put(number % objects), soon()).await.unwrap();
                latencies.push(start.elapsed());
                number += writers;
            }
            latencies
        });
    }
    let mut latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    latencies.sort_unstable();
    let rate = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "{writers:3} in parallel, {objects:6} objects: {rate:7.0}/s, \
         median {:?}, 99 % {:?}, worst {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

#[tokio::main]
async fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("shoal-proposals-{}", std::process::id()));
    let config = StoreConfig::new(dir.clone(), NodeId::new("node"), Arc::new(NoPeers));
    let store = Store::bootstrap(config.clone(), put(0)).await.unwrap();
    for objects in [100, 10_000] {
        let mut fill = tokio::task::JoinSet::new();
        for writer in 0..64 {
            let store = store.clone();
            fill.spawn(async move {
                for number in (writer..objects).step_by(64) {
                    store.propose(put(number), soon()).await.unwrap();
                }
            });
        }
        fill.join_all().await;
        for writers in [1, 64] {
            measure(&store, writers, objects).await;
        }
    }
    let revision = store.state().revision;
    store.shutdown().await;
    let begin = Instant::now();
    let store = Store::open(config).await.unwrap();
    println!("opened at revision {revision} after {:?}", begin.elapsed());
    store.shutdown().await;
    std::fs::remove_dir_all(&dir).unwrap();
}
