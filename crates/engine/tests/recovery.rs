//! Daemons end, in every way; containers do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Daemon, Host, eventually, within};
use serde_json::json;
use shoal_engine::request::{RemoveOptions, ShutdownMode, WaitCondition};

const FORCE: RemoveOptions = RemoveOptions { force: true, volumes: true };

/// Runs `work` in a daemon that then ends without any warning, as by kill -9: every task of it
/// stops where it is.
fn doomed<T>(host: &Host, work: impl AsyncFnOnce(&Daemon) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let daemon = host.open().await;
        work(&daemon).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

fn next<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn a_killed_daemon_stops_no_container() {
    let host = Host::new();
    let (id, pid) = doomed(&host, async |daemon| {
        let script = "while true; do test -e /end && exit 6; echo on; sleep 0.05; done";
        let id = daemon.start("on", &["sh", "-c", script], json!({})).await;
        let pid = daemon.engine.status(&id).await.unwrap().pid;
        (id, pid)
    });
    host.notes.take();
    next(async {
        let daemon = host.open().await;
        assert_eq!(host.notes.take(), ["readopt on"]);
        let seen = daemon.engine.status(&id).await.unwrap();
        assert_eq!((seen.phase.as_str(), seen.pid), ("running", pid));
        let before = daemon.log(&id).await.len();
        eventually("goes on", || async { daemon.log(&id).await.len() > before }).await;
        let ended = daemon.wait(&id, WaitCondition::NotRunning).await;
        std::fs::write(format!("/proc/{pid}/root/end"), "").unwrap();
        assert_eq!(within(ended.outcome()).await.unwrap().status_code, 6);
        daemon.close().await;
    });
}

#[test]
fn ends_without_a_daemon_are_found_and_policies_resume() {
    let host = Host::new();
    let pids = doomed(&host, async |daemon| {
        // Ends once when told to; the next run finds no `/end` and stays.
        let wait = ["sh", "-c", "while test ! -e /end; do sleep 0.02; done; rm /end; exit 8"];
        let policy = |name: &str| json!({"HostConfig": {"RestartPolicy": {"Name": name}}});
        let mut pids = Vec::new();
        for (name, more) in [
            ("plain", json!({})),
            ("back", policy("unless-stopped")),
            ("gone", json!({"HostConfig": {"AutoRemove": true}})),
        ] {
            let id = daemon.start(name, &wait, more).await;
            pids.push(daemon.engine.status(&id).await.unwrap().pid);
        }
        daemon.start("halted", &["sleep", "1000"], policy("unless-stopped")).await;
        daemon.engine.kill("halted", None).await.unwrap();
        pids
    });
    for pid in &pids {
        std::fs::write(format!("/proc/{pid}/root/end"), "").unwrap();
    }
    next(async {
        eventually("all ended", || async {
            pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        })
        .await;
        let daemon = host.open().await;
        let plain = daemon.engine.status("plain").await.unwrap();
        assert_eq!((plain.phase.as_str(), plain.exit_code), ("exited", 8));
        eventually("back", || async { daemon.phase("back").await == "running" }).await;
        eventually("gone", || async { daemon.engine.status("gone").await.is_err() }).await;
        assert_eq!(daemon.phase("halted").await, "exited");
        within(daemon.engine.remove("back", FORCE)).await.unwrap();
        daemon.close().await;
    });
}

#[test]
fn a_dead_shim_takes_its_container_down_and_is_reported() {
    let host = Host::new();
    next(async {
        let daemon = host.open().await;
        let id = daemon.start("victim", &["sleep", "1000"], json!({})).await;
        let shim = host.runtime().connect(&id.as_str().into()).await.unwrap();
        let pid = shim.state().await.unwrap().shim_pid;
        let ended = daemon.wait(&id, WaitCondition::NotRunning).await;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        let outcome = within(ended.outcome()).await.unwrap();
        assert_eq!(outcome.status_code, 137);
        assert!(outcome.error.unwrap().contains("died"));
        within(daemon.engine.start(&id)).await.unwrap();
        within(daemon.engine.remove(&id, FORCE)).await.unwrap();
        daemon.close().await;
    });
}

#[test]
fn a_shim_that_is_stuck_keeps_no_container_from_being_killed() {
    let host = Host::new();
    next(async {
        let daemon = host.open().await;
        let id = daemon.start("stuck", &["sleep", "1000"], json!({})).await;
        let pid = daemon.engine.status(&id).await.unwrap().pid;
        let shim = host.runtime().connect(&id.as_str().into()).await.unwrap();
        let shim_pid = shim.state().await.unwrap().shim_pid;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(shim_pid.cast_signed()),
            nix::sys::signal::Signal::SIGSTOP,
        )
        .unwrap();
        within(daemon.engine.kill(&id, None)).await.unwrap();
        assert_eq!(daemon.phase(&id).await, "exited");
        assert!(!std::path::Path::new(&format!("/proc/{pid}/root")).exists());
        within(daemon.engine.remove(&id, FORCE)).await.unwrap();
        assert!(host.runtime().list().unwrap().is_empty());
        daemon.close().await;
    });
}

#[test]
fn an_orderly_shutdown_stops_and_damage_is_named() {
    let host = Host::new();
    next(async {
        let daemon = host.open().await;
        let policy = json!({"HostConfig": {"RestartPolicy": {"Name": "always"}}});
        let id = daemon.start("svc", &["sleep", "1000"], policy).await;
        daemon.create("broken", &["true"], json!({})).await.unwrap();
        let broken = daemon.engine.inspect("broken", false).await.unwrap().id;
        let mode = ShutdownMode::Stop(Duration::from_millis(200));
        within(daemon.engine.shutdown(mode)).await;
        drop(daemon);
        assert!(host.runtime().list().unwrap().is_empty());
        let containers = host.dir.path().join("data/containers");
        std::fs::write(containers.join(&broken).join("record.json"), "{").unwrap();
        let daemon = host.open().await;
        assert_eq!(daemon.engine.damaged().len(), 1);
        eventually("started again", || async { daemon.phase(&id).await == "running" }).await;
        within(daemon.engine.remove(&id, FORCE)).await.unwrap();
        daemon.close().await;
    });
}
