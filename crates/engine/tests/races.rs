//! Many containers at once, and many wishes for one container.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{Host, within};
use serde_json::json;
use shoal_engine::request::{Grace, RemoveOptions, StopOptions, WaitCondition};
use shoal_model::fault::{Fault, FaultKind};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_at_once_leave_nothing() {
    let host = Host::new();
    let daemon = Arc::new(host.open().await);
    let mut lives = JoinSet::new();
    for number in 0..24 {
        let daemon = Arc::clone(&daemon);
        lives.spawn(async move {
            let auto_remove = number % 2 == 0;
            let more = json!({"HostConfig": {"AutoRemove": auto_remove}});
            let name = format!("c{number}");
            let id = daemon.create(&name, &["sh", "-c", "echo hi; exit 3"], more).await.unwrap();
            let ended = daemon.wait(&id, WaitCondition::NextExit).await;
            let removed = daemon.wait(&id, WaitCondition::Removed).await;
            within(daemon.engine.start(&id)).await.unwrap();
            assert_eq!(within(ended.outcome()).await.unwrap().status_code, 3);
            if !auto_remove {
                assert_eq!(daemon.log(&id).await, "hi\n");
                within(daemon.engine.remove(&id, RemoveOptions::default())).await.unwrap();
            }
            within(removed.outcome()).await.unwrap();
        });
    }
    while let Some(life) = lives.join_next().await {
        life.unwrap();
    }
    assert!(daemon.engine.statuses().await.is_empty());
    assert!(host.runtime().list().unwrap().is_empty());
    assert_eq!(host.notes.take().iter().filter(|line| *line == "detach").count(), 24);
    within(daemon.engine.shutdown(shoal_engine::request::ShutdownMode::Keep)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contrary_wishes_end_in_a_state_that_is_true() {
    let host = Host::new();
    let daemon = Arc::new(host.open().await);
    let id = daemon.start("racy", &["sleep", "1000"], json!({})).await;
    let mut wishes = JoinSet::new();
    for number in 0..20 {
        let (daemon, id) = (Arc::clone(&daemon), id.clone());
        let now = StopOptions { signal: None, grace: Some(Grace::from_secs(0)) };
        wishes.spawn(async move {
            let engine = &daemon.engine;
            let done = match number % 4 {
                0 => within(engine.start(&id)).await,
                1 => within(engine.kill(&id, None)).await,
                2 => within(engine.restart(&id, now)).await,
                _ => within(engine.stop(&id, now)).await,
            };
            if let Err(error) = done {
                let fine = [FaultKind::NotModified, FaultKind::Conflict];
                assert!(fine.contains(&error.kind()), "{error}");
            }
        });
    }
    while let Some(wish) = wishes.join_next().await {
        wish.unwrap();
    }
    let status = daemon.engine.status(&id).await.unwrap();
    let alive = std::path::Path::new(&format!("/proc/{}/root", status.pid)).exists();
    assert_eq!(status.phase.is_alive(), status.pid != 0 && alive);
    let force = RemoveOptions { force: true, volumes: true };
    within(daemon.engine.remove(&id, force)).await.unwrap();
    assert!(host.runtime().list().unwrap().is_empty());
    within(daemon.engine.shutdown(shoal_engine::request::ShutdownMode::Keep)).await;
}
