//! Clients that go away: what they asked for is done as if they had stayed, and nothing is left
//! half done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Daemon, Host, body, eventually, within};
use serde_json::json;
use shoal_engine::request::{CreateOptions, Grace, RemoveOptions, StopOptions};

const FORCE: RemoveOptions = RemoveOptions { force: true, volumes: true };

/// After how many milliseconds clients go away. 0 is after the request was read, and nothing more.
const CUTS: [u64; 12] = [0, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 160];

/// Runs `request` for so many milliseconds and drops it, as a server does whose client hangs up.
async fn cut<T>(millis: u64, request: impl Future<Output = T>) {
    // Ignored because: whether it was done in time does not matter.
    let _ = tokio::time::timeout(Duration::from_millis(millis), request).await;
}

fn grace(millis: u64) -> StopOptions {
    StopOptions { signal: None, grace: Some(Grace::Limit(Duration::from_millis(millis))) }
}

/// Whether the record says that it runs, and a process does.
async fn runs(daemon: &Daemon, id: &str) -> Option<u32> {
    let status = daemon.engine.status(id).await.unwrap();
    let there = Path::new(&format!("/proc/{}/root", status.pid)).exists();
    (status.phase.as_str() == "running" && status.pid != 0 && there).then_some(status.pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_whose_client_leaves_takes_no_name_for_ever() {
    let host = Host::new();
    let daemon = host.open().await;
    for (number, millis) in CUTS.into_iter().enumerate() {
        let name = format!("made{number}");
        let volume = json!({"HostConfig": {"Mounts": [{"Type": "volume", "Target": "/data"}]}});
        let options = CreateOptions { name: Some(name.clone()), ..CreateOptions::default() };
        cut(millis, daemon.engine.create(body(&["true"], volume), options)).await;
        // What was begun is done, and then it is a container like any other.
        eventually("the creation is done", || async {
            daemon.engine.inspect(&name, false).await.is_ok()
        })
        .await;
        within(daemon.engine.remove(&name, FORCE)).await.unwrap();
        daemon.create(&name, &["true"], json!({})).await.unwrap();
        within(daemon.engine.remove(&name, FORCE)).await.unwrap();
    }
    let left = std::fs::read_dir(host.dir.path().join("data/containers")).unwrap().count();
    assert_eq!(left, 0);
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_creation_whose_client_leaves_gives_its_name_back() {
    let host = Host::new();
    let daemon = host.open().await;
    for millis in CUTS {
        let nowhere = body(&["true"], json!({"HostConfig": {"NetworkMode": "nowhere"}}));
        let options = CreateOptions { name: Some("taken".into()), ..CreateOptions::default() };
        cut(millis, daemon.engine.create(nowhere, options)).await;
        eventually("the name is free", || async {
            daemon.create("taken", &["true"], json!({})).await.is_ok()
        })
        .await;
        within(daemon.engine.remove("taken", FORCE)).await.unwrap();
    }
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_client_leaves_starts() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = daemon.create("started", &["sleep", "1000"], json!({})).await.unwrap();
    for millis in CUTS {
        cut(millis, daemon.engine.start(&id)).await;
        eventually("it runs", || async { runs(&daemon, &id).await.is_some() }).await;
        within(daemon.engine.kill(&id, None)).await.unwrap();
    }
    assert!(host.runtime().list().unwrap().is_empty());
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_whose_client_leaves_starts_again() {
    let host = Host::new();
    let daemon = host.open().await;
    let mut id = daemon.start("restarted", &["sleep", "1000"], json!({})).await;
    for millis in CUTS {
        let before = runs(&daemon, &id).await.unwrap();
        cut(millis, daemon.engine.restart(&id, grace(10))).await;
        eventually("another process runs", || async {
            runs(&daemon, &id).await.is_some_and(|pid| pid != before)
        })
        .await;
    }
    // The same without anybody looking at the first part: the second is asked for meanwhile.
    cut(0, daemon.engine.restart(&id, grace(10))).await;
    cut(0, daemon.engine.stop(&id, grace(10))).await;
    eventually("the last word holds", || async { daemon.phase(&id).await == "exited" }).await;
    within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    id = daemon.start("restarted", &["true"], json!({})).await;
    within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_whose_client_leaves_kills_after_its_grace() {
    let host = Host::new();
    let daemon = host.open().await;
    // A first process without a handler does not hear SIGTERM at all.
    let id = daemon.start("deaf", &["sleep", "1000"], json!({})).await;
    for millis in [0, 1, 10, 100] {
        cut(millis, daemon.engine.stop(&id, grace(300))).await;
        eventually("it was killed", || async { daemon.phase(&id).await == "exited" }).await;
        assert_eq!(daemon.engine.status(&id).await.unwrap().exit_code, 137);
        within(daemon.engine.start(&id)).await.unwrap();
    }
    // Removals and kills as well.
    cut(0, daemon.engine.kill(&id, None)).await;
    eventually("it was killed", || async { daemon.phase(&id).await == "exited" }).await;
    cut(0, daemon.engine.remove(&id, FORCE)).await;
    eventually("it is gone", || async { daemon.engine.status(&id).await.is_err() }).await;
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_does_not_wait_for_a_grace() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = daemon.start("patient", &["sleep", "1000"], json!({})).await;
    let stop = daemon.engine.stop(&id, StopOptions { signal: None, grace: Some(Grace::Forever) });
    let kill = async {
        eventually("the signal was sent", || async {
            daemon.actions().await.iter().any(|action| action == "kill")
        })
        .await;
        within(daemon.engine.kill(&id, None)).await
    };
    let (stopped, killed) = within(async { tokio::join!(stop, kill) }).await;
    stopped.unwrap();
    killed.unwrap();
    assert_eq!(daemon.phase(&id).await, "exited");
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stop_signal_is_accepted_and_the_kill_follows() {
    let host = Host::new();
    let daemon = host.open().await;
    for (number, signal) in ["SIGRTMIN+3", "RTMIN+3", "37", "64", "RTMAX-1"].iter().enumerate() {
        let name = format!("init{number}");
        let id = daemon.start(&name, &["sleep", "1000"], json!({"StopSignal": signal})).await;
        within(daemon.engine.stop(&id, grace(50))).await.unwrap();
        assert_eq!(daemon.engine.status(&id).await.unwrap().exit_code, 137, "{signal}");
        within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    }
    daemon.close().await;
}
