//! A container's life: made, started, stopped, removed; what it sees and what it leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use shoal_model::filter::Filters;
use std::time::Duration;

use common::{Host, eventually, within};
use serde_json::json;
use shoal_engine::engine::ListOptions;
use shoal_engine::error::EngineError;
use shoal_engine::request::{
    CreateOptions, Grace, RemoveOptions, StopOptions, UpdateRequest, WaitCondition,
};
use shoal_model::fault::{Fault, FaultKind};
use shoal_model::log::LogSelection;

const FORCE: RemoveOptions = RemoveOptions { force: true, volumes: true };

fn grace(millis: u64) -> StopOptions {
    StopOptions { signal: None, grace: Some(Grace::Limit(Duration::from_millis(millis))) }
}

#[tokio::test]
async fn a_container_runs_with_what_image_and_client_say() {
    let host = Host::new();
    let daemon = host.open().await;
    let script = "echo $FROM $OWN $HOSTNAME; pwd; cat /etc/hostname; \
                  grep box /etc/hosts; cat /etc/resolv.conf; exit 7";
    let more = json!({"Env": ["OWN=client"], "WorkingDir": "/tmp", "Hostname": "boxhost",
                      "HostConfig": {"Tmpfs": {"/tmp": "size=1m"}}});
    let (code, log) = daemon.run("all", script, more).await;
    let want = "image client boxhost\n/tmp\nboxhost\n10.1.2.3\tboxhost\nnameserver 127.0.0.11\n";
    assert_eq!((code, log.as_str()), (7, want));
    assert_eq!(host.notes.take(), ["attach all", "detach"]);
    let actions = daemon.actions().await;
    let order = ["create", "network connect", "start", "die", "network disconnect", "destroy"];
    assert_eq!(actions, order);
    assert!(std::fs::read_dir(host.dir.path().join("data/containers")).unwrap().next().is_none());
    assert!(host.runtime().list().unwrap().is_empty());
    daemon.close().await;
}

#[tokio::test]
async fn stop_asks_then_kills_and_restart_starts_again() {
    let host = Host::new();
    let daemon = host.open().await;
    let polite = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done";
    let id = daemon.start("polite", &["sh", "-c", polite], json!({})).await;
    eventually("up", || async { daemon.log(&id).await == "up\n" }).await;
    assert!(matches!(daemon.engine.start(&id).await, Err(EngineError::NotModified { .. })));
    within(daemon.engine.stop(&id, StopOptions::default())).await.unwrap();
    let seen = daemon.engine.inspect("polite", false).await.unwrap();
    assert_eq!((seen.state.status.as_str(), seen.state.exit_code), ("exited", 3));
    assert_eq!(daemon.log(&id).await, "up\nbye\n");
    let again = daemon.engine.stop(&id, StopOptions::default()).await;
    assert_eq!(again.unwrap_err().kind(), FaultKind::NotModified);
    let deaf = daemon.start("deaf", &["sh", "-c", "trap '' TERM; sleep 1000"], json!({})).await;
    within(daemon.engine.stop(&deaf, grace(200))).await.unwrap();
    assert_eq!(daemon.engine.status("deaf").await.unwrap().exit_code, 137);
    within(daemon.engine.restart(&deaf, grace(200))).await.unwrap();
    assert_eq!(daemon.phase("deaf").await, "running");
    let actions = daemon.actions().await;
    let tail: Vec<&str> = actions.iter().rev().take(3).rev().map(String::as_str).collect();
    assert_eq!(tail, ["network connect", "start", "restart"]);
    let refused = daemon.engine.remove(&deaf, RemoveOptions::default()).await.unwrap_err();
    assert!(refused.to_string().contains("container is running: stop the container before"));
    within(daemon.engine.remove(&deaf, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test]
async fn names_are_unique_and_lookups_follow_docker() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = daemon.create("web", &["true"], json!({})).await.unwrap();
    let taken = daemon.create("web", &["true"], json!({})).await.unwrap_err();
    let text = format!("The container name \"/web\" is already in use by container \"{id}\".");
    assert!(taken.to_string().contains(&text) && taken.kind() == FaultKind::Conflict);
    for word in [id.as_str(), &id[..12], "web", "/web"] {
        assert_eq!(daemon.engine.inspect(word, false).await.unwrap().id, id);
    }
    let missing = daemon.engine.inspect("nobody", false).await.unwrap_err();
    assert_eq!(missing.to_string(), "No such container: nobody");
    let body = common::body(&["true"], json!({"Image": "absent"}));
    let missing = daemon.engine.create(body, CreateOptions::default()).await.unwrap_err();
    let found = (missing.to_string(), missing.kind());
    assert_eq!(found, ("No such image: absent:latest".into(), FaultKind::NotFound));
    let nowhere = json!({"HostConfig": {"NetworkMode": "nowhere"}});
    let refused = daemon.create("lost", &["true"], nowhere).await.unwrap_err();
    assert_eq!(refused.kind(), FaultKind::NotFound);
    within(daemon.engine.rename("web", "site")).await.unwrap();
    assert_eq!(daemon.engine.inspect("site", false).await.unwrap().name, "/site");
    daemon.create("web", &["true"], json!({})).await.unwrap();
    assert!(daemon.engine.rename("site", "web").await.is_err());
    daemon.close().await;
}

#[tokio::test]
async fn failed_starts_leave_nothing_and_say_what_clients_match() {
    let host = Host::new();
    let daemon = host.open().await;
    let cases = [
        (vec!["absent"], 127, "executable file not found in $PATH"),
        (vec!["/etc/notexec"], 126, "permission denied"),
    ];
    for (number, (argv, code, text)) in cases.into_iter().enumerate() {
        let name = format!("bad{number}");
        let id = daemon.create(&name, &argv, json!({})).await.unwrap();
        let error = within(daemon.engine.start(&id)).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        let seen = daemon.engine.inspect(&id, false).await.unwrap();
        assert_eq!((seen.state.status.as_str(), seen.state.exit_code), ("created", code));
        assert!(!seen.state.error.is_empty());
    }
    assert_eq!(host.notes.take().iter().filter(|line| *line == "detach").count(), 2);
    let refusal = shoal_engine::attacher::AttachError::new(FaultKind::Conflict, "port in use");
    *host.notes.refuse.lock().unwrap() = Some(refusal);
    let id = daemon.create("ports", &["true"], json!({})).await.unwrap();
    let error = within(daemon.engine.start(&id)).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Conflict);
    within(daemon.engine.start(&id)).await.unwrap();
    assert!(host.runtime().list().unwrap().len() <= 1);
    daemon.close().await;
}

#[tokio::test]
async fn waits_are_answered_at_the_right_moment() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"HostConfig": {"AutoRemove": true}});
    let id = daemon.create("once", &["sh", "-c", "exit 4"], more).await.unwrap();
    let now = daemon.wait(&id, WaitCondition::NotRunning).await;
    assert_eq!(within(now.outcome()).await.unwrap().status_code, 0);
    let next = daemon.wait(&id, WaitCondition::NextExit).await;
    let removed = daemon.wait(&id, WaitCondition::Removed).await;
    within(daemon.engine.start(&id)).await.unwrap();
    assert_eq!(within(next.outcome()).await.unwrap().status_code, 4);
    assert_eq!(within(removed.outcome()).await.unwrap().status_code, 4);
    assert!(daemon.engine.inspect(&id, false).await.is_err());
    assert_eq!(daemon.actions().await.last().unwrap(), "destroy");
    daemon.close().await;
}

#[tokio::test]
async fn restart_policies_start_again_and_give_up() {
    let host = Host::new();
    let daemon = host.open().await;
    let policy = json!({"HostConfig": {"RestartPolicy":
        {"Name": "on-failure", "MaximumRetryCount": 2}}});
    let id = daemon.start("fails", &["sh", "-c", "echo try; exit 5"], policy).await;
    eventually("gave up", || async {
        let seen = daemon.engine.inspect(&id, false).await.unwrap();
        seen.state.status == "exited" && seen.restart_count == 2
    })
    .await;
    assert_eq!(daemon.log(&id).await, "try\ntry\ntry\n");
    let always = json!({"HostConfig": {"RestartPolicy": {"Name": "always"}}});
    let id = daemon.start("always", &["sleep", "1000"], always).await;
    within(daemon.engine.kill(&id, None)).await.unwrap();
    assert_eq!(daemon.phase(&id).await, "exited");
    within(daemon.engine.start(&id)).await.unwrap();
    let pid = daemon.engine.status(&id).await.unwrap().pid;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("another process", || async {
        let now = daemon.engine.status(&id).await.unwrap().pid;
        now != 0 && now != pid
    })
    .await;
    within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test]
async fn limits_pause_and_listing() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"Labels": {"tier": "db"}, "HostConfig": {"Memory": 33_554_432}});
    let id = daemon.start("db", &["sleep", "1000"], more).await;
    let other = daemon.create("idle", &["true"], json!({})).await.unwrap();
    let names = |filters: Filters, all: bool| {
        let engine = daemon.engine.clone();
        async move {
            let options = ListOptions { all, filters, ..ListOptions::default() };
            let list = engine.list(options).await.unwrap();
            list.iter().map(|c| c.names.concat()).collect::<Vec<_>>()
        }
    };
    let by = |name: &str, value: &str| Filters::default().with(name, value);
    assert_eq!(names(Filters::default(), false).await, ["/db"]);
    assert_eq!(names(Filters::default(), true).await, ["/idle", "/db"]);
    assert_eq!(names(by("label", "tier=db"), true).await, ["/db"]);
    assert_eq!(names(by("status", "created"), false).await, ["/idle"]);
    assert_eq!(names(by("ancestor", common::IMAGE), true).await.len(), 2);
    assert_eq!(names(by("network", "front"), true).await, ["/db"]);
    assert_eq!(names(by("before", "idle"), true).await, ["/db"]);
    let update = UpdateRequest { memory: Some(67_108_864), ..UpdateRequest::default() };
    within(daemon.engine.update(&id, update)).await.unwrap();
    let stats = within(daemon.engine.stats(&id)).await.unwrap();
    assert_eq!(stats.memory_stats.limit, 67_108_864);
    assert_eq!(stats.pids_stats.current, Some(1));
    let top = within(daemon.engine.top(&id, None)).await.unwrap();
    assert_eq!(top.processes.len(), 1);
    assert!(top.processes[0].last().unwrap().contains("sleep 1000"));
    within(daemon.engine.pause(&id)).await.unwrap();
    assert_eq!(daemon.phase(&id).await, "paused");
    assert!(daemon.engine.pause(&id).await.is_err());
    within(daemon.engine.unpause(&id)).await.unwrap();
    within(daemon.engine.pause(&id)).await.unwrap();
    within(daemon.engine.stop(&id, grace(100))).await.unwrap();
    let pruned = within(daemon.engine.prune_containers(&Filters::default())).await.unwrap();
    assert_eq!(pruned.containers_deleted.len(), 2);
    assert!(pruned.containers_deleted.contains(&other));
    daemon.close().await;
}

#[tokio::test]
async fn logs_are_cut_followed_and_rotated() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"HostConfig": {"LogConfig":
        {"Type": "json-file", "Config": {"max-size": "2k", "max-file": "3"}}}});
    let script = "seq 1 40; echo oops >&2; while test ! -e /go; do sleep 0.05; done; echo last";
    let id = daemon.start("log", &["sh", "-c", script], more).await;
    eventually("written", || async { daemon.log(&id).await.ends_with("oops\n") }).await;
    let both = LogSelection::default();
    let tail = LogSelection { tail: Some(2), ..both.clone() };
    assert_eq!(daemon.log_of(&id, tail.clone()).await, "40\noops\n");
    let only = LogSelection { stdout: false, ..LogSelection::default() };
    assert_eq!(daemon.log_of(&id, only).await, "oops\n");
    let log = host.dir.path().join(format!("data/containers/{id}/{id}-json.log.1"));
    assert!(log.exists(), "the log was rotated");
    let pid = daemon.engine.status(&id).await.unwrap().pid;
    let follow = daemon.log_of(&id, LogSelection { follow: true, ..tail });
    let go = async { std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap() };
    let (text, ()) = tokio::join!(follow, go);
    assert_eq!(text, "40\noops\nlast\n");
    daemon.close().await;
}
