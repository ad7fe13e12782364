//! Containers of tasks on another node, through a manager: the real docker CLI, the real server on
//! both sides, fakes behind them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::sync::Arc;

use fake::containers::Containers;
use fake::server::{Server, elsewhere};
use fake::swarm::OTHER_NODE;
use serde_json::{Value, json};
use shoal_api::backend::container::{ContainerBackend, CreateBy};
use shoal_model::spec::container::{ContainerConfig, ContainerCreate};

/// A manager whose service's task runs on the other node, and the task's name.
fn manager() -> (Server, Arc<Containers>, String) {
    let server = Server::start();
    server.ok(&["swarm", "init"]);
    server.ok(&["service", "create", "-q", "-d", "--name", "web", "demo"]);
    let there = Arc::new(Containers::default());
    make(&server, &there, "task", Some("t1"));
    make(&server, &there, "byhand", None);
    let list = server.block_on(there.inspect("task", false)).unwrap();
    let container = list["Id"].as_str().unwrap().to_owned();
    let task = server.swarm.move_task(&container);
    *server.swarm.elsewhere.lock().unwrap() = Some(elsewhere(there.clone()));
    (server, there, format!("web.1.{task}"))
}

/// Makes a running container that echoes.
fn make(server: &Server, on: &Containers, name: &str, task: Option<&str>) {
    let labels = task.map(|id| [("com.docker.swarm.task.id".to_owned(), id.to_owned())].into());
    let config = ContainerConfig {
        image: Some("demo".into()),
        labels,
        attach_stdin: Some(true),
        ..ContainerConfig::default()
    };
    let spec = ContainerCreate { config, ..ContainerCreate::default() };
    let by = CreateBy { name: Some(name.into()), platform: None };
    server.block_on(on.create(spec, by)).unwrap();
    server.block_on(on.start(name)).unwrap();
}

#[test]
fn the_client_finds_everything_as_if_it_were_here() {
    let (server, there, name) = manager();
    let out = server.docker_with_input(&["exec", "-i", &name, "cat"], b"hi\n");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hi\n");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "done\n");
    assert_eq!(out.status.code(), Some(7));
    // Why a process does not start is its output, as in Docker.
    let missing = server.docker(&["exec", &name, "missing"]);
    let said = String::from_utf8_lossy(&missing.stdout).into_owned();
    assert!(said.contains("executable file not found"), "{said}");
    assert_eq!(missing.status.code(), Some(127));
    let out = server.docker_with_input(&["attach", &name], b"typed\n");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "typed\n");
    assert_eq!(out.status.code(), Some(3));
    let calls = there.calls.lock().unwrap().clone();
    assert!(["attach", "wait"].iter().all(|call| calls.iter().any(|c| c == call)), "{calls:?}");
    let out = server.docker(&["logs", &name]);
    assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(server.ok(&["top", &name]).contains("sh"));
    assert_eq!(server.ok(&["diff", &name]), "");
    assert_eq!(server.ok(&["export", &name]), "tar");
    let (status, body) = server.send("GET", &format!("/containers/{name}/archive?path=/etc"), "");
    assert!(status == 200 && body.contains("tar"), "{status}: {body}");
    let seen = server.ok(&["container", "inspect", &name]);
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen[0]["Name"], "/task");
    assert_eq!(seen[0]["ExecIDs"], json!([format!("e1.{OTHER_NODE}")]));
    assert_eq!(server.ok(&["ps", "-q"]), "");
}

#[test]
fn a_tasks_id_shows_the_container_and_the_task_or_the_task_alone() {
    let (server, _there, name) = manager();
    let task = name.rsplit('.').next().unwrap();
    let both: Value = serde_json::from_str(&server.ok(&["inspect", task])).unwrap();
    assert_eq!(both[0]["Name"], "/task");
    assert_eq!(both[0]["Status"]["State"], "running");
    assert_eq!(server.ok(&["inspect", "-f", "{{.NodeID}}", task]).trim(), OTHER_NODE);
    *server.swarm.elsewhere.lock().unwrap() = None;
    let alone: Value = serde_json::from_str(&server.ok(&["inspect", task])).unwrap();
    assert_eq!((&alone[0]["ID"], &alone[0]["Name"]), (&json!(task), &Value::Null));
    for command in ["exec", "top", "logs"] {
        let args: &[&str] =
            if command == "exec" { &["exec", &name, "x"] } else { &[command, &name] };
        let said = server.fails(args);
        assert!(said.contains("reach node 'two': it is off"), "{said}");
    }
}

#[test]
fn managers_reach_tasks_containers_and_nothing_else() {
    let (server, there, name) = manager();
    // Its life is not theirs, here …
    for args in [&["stop", &name][..], &["kill", &name], &["rm", &name], &["pause", &name]] {
        assert!(server.fails(args).contains("No such container"), "{args:?}");
    }
    // … and not there, whatever a manager sends.
    let ask = |method: &str, path: String| {
        let state = elsewhere(there.clone());
        server.block_on(async move {
            let (mut ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(shoal_api::anywhere::serve(state, theirs));
            let request = format!("{method} {path} HTTP/1.1\r\nhost: node\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut ours, request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut ours, &mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().to_owned()
        })
    };
    assert_eq!(ask("GET", "/containers/task/json".into()), "200");
    assert_eq!(ask("GET", "/containers/byhand/json".into()), "404");
    assert_eq!(ask("GET", "/exec/e9/json".into()), "404");
    for (method, path) in [
        ("POST", "/containers/task/stop"),
        ("DELETE", "/containers/task?force=1"),
        ("POST", "/containers/create"),
        ("GET", "/containers/json"),
        ("GET", "/images/json"),
        ("GET", "/info"),
        ("POST", "/swarm/leave?force=1"),
    ] {
        assert_eq!(ask(method, path.into()), "403", "{method} {path}");
    }
}

#[test]
fn a_container_of_this_node_wins() {
    let (server, _there, name) = manager();
    server.ok(&["create", "--name", &name, "demo"]);
    let seen: Value = serde_json::from_str(&server.ok(&["container", "inspect", &name])).unwrap();
    assert_eq!(seen[0]["Name"], format!("/{name}"));
    let unknown = server.fails(&["logs", "nobody-has-this"]);
    assert!(unknown.contains("No such container: nobody-has-this"), "{unknown}");
}
