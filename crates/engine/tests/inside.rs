//! Streams, execs, files and volumes of containers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;

use bytes::Bytes;
use common::{Daemon, Host, eventually, is_mounted, read_all, within};
use futures::StreamExt;
use serde_json::json;
use shoal_engine::error::EngineError;
use shoal_engine::request::{
    AttachOptions, ExecCreate, ExecStart, PutOptions, RemoveOptions, WaitCondition,
};
use shoal_engine::stream::ByteStream;
use shoal_engine::view::volume::VolumeCreate;
use shoal_model::fault::{Fault, FaultKind};
use shoal_model::filter::Filters;
use shoal_model::spec::container::Words;

const ALL: AttachOptions = AttachOptions {
    logs: false,
    stream: true,
    stdin: true,
    stdout: true,
    stderr: true,
    detach_keys: None,
};

async fn exec(daemon: &Daemon, id: &str, argv: &[&str], input: &str) -> (Option<i64>, String) {
    let cmd = Words::List(argv.iter().map(|w| (*w).to_owned()).collect());
    let body = ExecCreate {
        cmd: Some(cmd),
        attach_stdin: true,
        attach_stdout: true,
        attach_stderr: true,
        ..ExecCreate::default()
    };
    let exec = daemon.engine.exec_create(id, body).await.unwrap();
    let started = within(daemon.engine.exec_start(&exec, ExecStart::default())).await.unwrap();
    let mut session = started.unwrap();
    if let Some(sender) = session.input.take() {
        // Ignored because: a program that reads nothing may be gone already.
        let _ = sender.send(Bytes::from(input.to_owned())).await;
    }
    let (out, err) = read_all(session).await;
    let seen = daemon.engine.exec_inspect(&exec).await.unwrap();
    assert!(!seen.running);
    (seen.exit_code, out + &err)
}

async fn collect(stream: ByteStream) -> Vec<u8> {
    let pieces = within(stream.collect::<Vec<_>>()).await;
    pieces.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat()
}

fn entries(tar: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(tar);
    let entry = |e: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = e.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let text = String::from_utf8_lossy(&content).into_owned();
        (entry.path().unwrap().to_string_lossy().into_owned(), text)
    };
    archive.entries().unwrap().map(entry).collect()
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000);
        // Set raw, so that paths that must be refused can be made.
        let name = header.as_old_mut();
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_client_attached_before_the_start_misses_nothing() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"OpenStdin": true, "StdinOnce": true, "AttachStdin": true});
    let id = daemon.create("cat", &["sh", "-c", "echo first; cat; echo end >&2"], more).await;
    let id = id.unwrap();
    let mut session = daemon.engine.attach(&id, ALL).await.unwrap();
    let ended = daemon.wait(&id, WaitCondition::NextExit).await;
    within(daemon.engine.start(&id)).await.unwrap();
    let input = session.input.take().unwrap();
    input.send(Bytes::from_static(b"typed\n")).await.unwrap();
    drop(input);
    assert_eq!(read_all(session).await, ("first\ntyped\n".into(), "end\n".into()));
    assert_eq!(within(ended.outcome()).await.unwrap().status_code, 0);
    daemon.close().await;
}

#[tokio::test]
async fn detach_keys_leave_a_terminal() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"OpenStdin": true, "Tty": true});
    let id = daemon.start("tty", &["sh", "-c", "stty size; cat"], more).await;
    let mut session = daemon.engine.attach(&id, ALL).await.unwrap();
    assert!(session.tty);
    within(daemon.engine.resize(&id, 40, 100)).await.unwrap();
    let input = session.input.take().unwrap();
    input.send(Bytes::from_static(b"\x10\x11")).await.unwrap();
    read_all(session).await;
    assert_eq!(daemon.phase(&id).await, "running");
    eventually("detach event", || async { daemon.actions().await.contains(&"detach".to_owned()) })
        .await;
    within(daemon.engine.remove(&id, RemoveOptions { force: true, volumes: true })).await.unwrap();
    daemon.close().await;
}

#[tokio::test]
async fn execs_have_input_output_and_a_status() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = daemon.start("host", &["sleep", "1000"], json!({"Env": ["A=1"]})).await;
    let script = ["sh", "-c", "cat; echo $A; echo err >&2; exit 9"];
    assert_eq!(exec(&daemon, &id, &script, "in\n").await, (Some(9), "in\n1\nerr\n".into()));
    let (code, text) = exec(&daemon, &id, &["absent"], "").await;
    assert_eq!(code, Some(127));
    assert!(text.contains("executable file not found in $PATH"), "{text}");
    let (code, text) = exec(&daemon, &id, &["/etc/notexec"], "").await;
    assert_eq!(code, Some(126), "{text}");
    let missing = daemon.engine.exec_inspect("nothing").await.unwrap_err();
    assert_eq!(missing.kind(), FaultKind::NotFound);
    let actions = daemon.actions().await;
    let at = |start: &str| actions.iter().position(|a| a.starts_with(start)).unwrap();
    assert!(at("exec_create: sh") < at("exec_start: sh") && at("exec_start: sh") < at("exec_die"));
    daemon.close().await;
}

#[tokio::test]
async fn health_is_judged_and_published() {
    let host = Host::new();
    let daemon = host.open().await;
    let mut changes = daemon.engine.changes_feed();
    let more = json!({"Healthcheck": {"Test": ["CMD-SHELL", "test -e /sick && exit 3; echo fine"],
        "Interval": 50_000_000, "Timeout": 5_000_000_000_i64, "Retries": 2}});
    let id = daemon.start("well", &["sleep", "1000"], more).await;
    let mut verdict = async |want: &str| {
        let wanted = async { while changes.recv().await.unwrap().health.as_str() != want {} };
        within(wanted).await;
    };
    verdict("starting").await;
    verdict("healthy").await;
    assert_eq!(exec(&daemon, &id, &["touch", "/sick"], "").await.0, Some(0));
    verdict("unhealthy").await;
    let health = daemon.engine.inspect(&id, false).await.unwrap().state.health.unwrap();
    assert!(health.failing_streak >= 2 && health.log.len() <= 5);
    assert!(daemon.actions().await.contains(&"health_status: unhealthy".to_owned()));
    daemon.close().await;
}

#[tokio::test]
async fn files_go_in_and_out_of_running_and_stopped_containers() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = daemon.create("files", &["sleep", "1000"], json!({})).await.unwrap();
    for running in [false, true] {
        if running {
            within(daemon.engine.start(&id)).await.unwrap();
        }
        let put = |path: &'static str, tar: Vec<u8>| {
            let body = Box::new(std::io::Cursor::new(tar));
            daemon.engine.archive_put("files", path, PutOptions::default(), body)
        };
        within(put("/tmp", tar_of(&[("a/b", "bee"), ("c", "sea")]))).await.unwrap();
        let stat = within(daemon.engine.archive_stat(&id, "/tmp/a")).await.unwrap();
        assert_eq!((stat.name.as_str(), stat.mode >> 31), ("a", 1));
        let stat = within(daemon.engine.archive_stat(&id, "/data/link")).await.unwrap();
        assert_eq!(stat.link_target, "/data/seed");
        let (_, stream) = within(daemon.engine.archive_get(&id, "/tmp/a")).await.unwrap();
        let list = entries(&collect(stream).await);
        assert_eq!(list, [("a/".into(), String::new()), ("a/b".into(), "bee".into())]);
        let (_, stream) = within(daemon.engine.archive_get(&id, "/data/.")).await.unwrap();
        let names: Vec<String> =
            entries(&collect(stream).await).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["./", "./link", "./seed"], "running: {running}");
        let missing = within(daemon.engine.archive_stat(&id, "/none")).await.unwrap_err();
        assert_eq!(missing.kind(), FaultKind::NotFound);
        let outside = within(put("/tmp", tar_of(&[("../x", "no")]))).await;
        assert!(matches!(outside, Err(EngineError::Invalid { .. })), "{outside:?}");
    }
    let (_, owner) = exec(&daemon, &id, &["stat", "-c", "%u:%g %a", "/tmp/c"], "").await;
    assert_eq!(owner, "12:34 600\n");
    // Nothing of what is mounted into every container counts as a change of its.
    let names: Vec<String> = within(daemon.engine.fs_changes(&id))
        .await
        .unwrap()
        .into_iter()
        .map(|c| format!("{} {}", c.kind, c.path))
        .collect();
    assert_eq!(names, ["0 /tmp", "1 /tmp/a", "1 /tmp/a/b", "1 /tmp/c"]);
    let tar = collect(within(daemon.engine.export(&id)).await.unwrap()).await;
    assert!(entries(&tar).contains(&("tmp/a/b".into(), "bee".into())));
    daemon.close().await;
}

#[tokio::test]
async fn links_in_a_container_lead_nowhere_else() {
    let host = Host::new();
    let daemon = host.open().await;
    let outside = host.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let make = format!("mkdir -p {0}; ln -s {0} /tmp/way; sleep 1000", outside.display());
    let id = daemon.start("links", &["sh", "-c", &make], json!({})).await;
    eventually("link", || async { daemon.engine.archive_stat(&id, "/tmp/way").await.is_ok() })
        .await;
    let body = Box::new(std::io::Cursor::new(tar_of(&[("way/file", "caught")])));
    within(daemon.engine.archive_put(&id, "/tmp", PutOptions::default(), body)).await.unwrap();
    assert!(std::fs::read_dir(&outside).unwrap().next().is_none(), "written on the host");
    let inside = format!("{}/file", outside.display());
    assert_eq!(exec(&daemon, &id, &["cat", &inside], "").await.1, "caught");
    daemon.close().await;
}

#[tokio::test]
async fn volumes_outlive_containers_and_begin_with_the_images_files() {
    let host = Host::new();
    let daemon = host.open().await;
    let more = json!({"HostConfig": {"Binds": ["store:/data"]}, "Volumes": {"/anon": {}}});
    let id = daemon.start("user", &["sh", "-c", "cat /data/seed; echo new >/data/x"], more).await;
    let ended = daemon.wait(&id, WaitCondition::NotRunning).await;
    within(ended.outcome()).await.unwrap();
    assert_eq!(daemon.log(&id).await, "seeded");
    let busy = daemon.engine.remove_volume("store", false).await.unwrap_err();
    assert_eq!(busy.to_string(), format!("remove store: volume is in use - [{id}]"));
    assert_eq!(daemon.engine.list_volumes(&Filters::default()).await.unwrap().len(), 2);
    within(daemon.engine.remove(&id, RemoveOptions { force: false, volumes: true })).await.unwrap();
    let left = daemon.engine.list_volumes(&Filters::default()).await.unwrap();
    assert_eq!(left.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["store"]);
    let more = json!({"HostConfig": {"Mounts":
        [{"Type": "volume", "Source": "store", "Target": "/s", "ReadOnly": true}]}});
    let (code, text) = daemon.run("next", "cat /s/x; touch /s/y 2>/dev/null", more).await;
    assert_eq!((code, text.as_str()), (1, "new\n"));
    let body = VolumeCreate { name: "store".into(), ..VolumeCreate::default() };
    assert_eq!(daemon.engine.create_volume(body).await.unwrap().name, "store");
    within(daemon.engine.remove_volume("store", false)).await.unwrap();
    assert!(daemon.engine.inspect_volume("store").await.is_err());
    assert!(!is_mounted(&host.dir.path().join("run/mounts")));
    daemon.close().await;
}
