//! The real docker CLI against the real server over fake backends.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use fake::server::Server;
use serde_json::Value;

#[test]
fn version_and_info_print_without_complaint() {
    let server = Server::start();
    let version = server.ok(&["version", "--format", "{{json .}}"]);
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["Server"]["ApiVersion"], "1.50");
    assert_eq!(version["Server"]["MinAPIVersion"], "1.24");
    assert_eq!(version["Client"]["ApiVersion"], "1.50");
    server.ok(&["version"]);
    let out = server.docker(&["info"]);
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{errors}");
    assert!(!errors.contains("WARNING") && !errors.contains("ERROR"), "{errors}");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("Swarm: inactive"), "{text}");
    assert!(text.contains("Name: one"), "{text}");
}

#[test]
fn swarm_commands_work_as_with_docker() {
    let server = Server::start();
    let refused = server.fails(&["node", "ls"]);
    assert!(refused.contains("This node is not a swarm manager. Use \"docker swarm init\""));
    let joined = server.ok(&["swarm", "init", "--advertise-addr", "10.1.2.3"]);
    assert!(joined.contains(&format!("current node ({}) is now a manager", fake::swarm::NODE)));
    assert!(joined.contains("docker swarm join --token SWMTKN-1-"), "{joined}");
    assert!(joined.contains("10.1.2.3:2377"), "{joined}");
    let again = server.fails(&["swarm", "init"]);
    assert!(again.contains("This node is already part of a swarm"), "{again}");
    let nodes = server.ok(&["node", "ls"]);
    for part in ["one", "Ready", "Active", "Leader", "*", "0.1.0"] {
        assert!(nodes.contains(part), "{nodes}");
    }
    let info = server.ok(&["info"]);
    for part in ["Swarm: active", "Is Manager: true", "Nodes: 1", "Managers: 1", "10.1.2.3:2377"] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let token = server.ok(&["swarm", "join-token", "-q", "worker"]);
    assert!(token.starts_with("SWMTKN-1-"));
    server.ok(&["swarm", "update", "--task-history-limit", "2"]);
    server.ok(&["node", "update", "--availability", "pause", "one"]);
    server.ok(&["node", "inspect", "--pretty", "self"]);
    assert!(server.ok(&["node", "ls"]).contains("Pause"));
    server.ok(&["swarm", "leave", "--force"]);
    assert!(server.ok(&["info"]).contains("Swarm: inactive"));
}

#[test]
fn workers_say_that_they_are_workers() {
    let server = Server::start();
    let joined = server.ok(&["swarm", "join", "--token", "SWMTKN-1-a-b", "10.1.2.3:2377"]);
    assert!(joined.contains("This node joined a swarm as a worker."), "{joined}");
    let refused = server.fails(&["service", "ls"]);
    assert!(refused.contains("Worker nodes can't be used to view or modify cluster state"));
}

#[test]
fn services_are_created_listed_and_inspected() {
    let server = Server::start();
    server.ok(&["swarm", "init"]);
    let net = server.ok(&["network", "create", "-d", "overlay", "mynet1"]);
    assert_eq!(net.trim().len(), 25);
    let create = [
        "service",
        "create",
        "-q",
        "--update-monitor",
        "100ms",
        "--replicas",
        "2",
        "--name",
        "web",
        "--network",
        "mynet1",
        "--publish",
        "8080:80",
        "demo",
    ];
    let id = server.ok(&create);
    assert_eq!(id.trim().len(), 25, "{id}");
    let list = server.ok(&["service", "ls"]);
    for part in ["web", "replicated", "2/2", "demo:latest", "*:8080->80/tcp"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let ps = server.ok(&["service", "ps", "web"]);
    for part in ["web.1", "web.2", "one", "Running"] {
        assert!(ps.contains(part), "{part}: {ps}");
    }
    let inspect = server.ok(&["service", "inspect", "web"]);
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect[0]["Spec"]["UpdateConfig"]["Order"], "stop-first");
    assert_eq!(inspect[0]["Endpoint"]["VirtualIPs"][0]["NetworkID"], net.trim());
    let pretty = server.ok(&["service", "inspect", "--pretty", "web"]);
    assert!(pretty.contains("Service Mode:\tReplicated"), "{pretty}");
    assert!(server.ok(&["node", "ps", "self"]).contains("web.1"));
    server.ok(&["service", "update", "-d", "--env-add", "A=b", "web"]);
    let stale = r#"{"Name":"web"}"#;
    let (status, body) = server.send("POST", "/v1.50/services/web/update?version=1", stale);
    assert_eq!(status, 500);
    assert!(body.contains("update out of sequence"), "{body}");
    let logs = server.docker(&["service", "logs", "web"]);
    let text = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(text.contains("web.1.") && text.contains("@one    | hello from 2"), "{text}");
    let warnings = String::from_utf8_lossy(&logs.stderr).into_owned();
    assert!(warnings.contains("node two is down"), "{warnings}");
    server.ok(&["service", "create", "-d", "demo"]);
    assert!(server.ok(&["service", "ls"]).contains("fresh_0"), "unnamed services get a name");
    server.ok(&["service", "rm", "web"]);
    let missing = server.fails(&["service", "ps", "nothing"]);
    assert!(missing.contains("no such service: nothing"), "{missing}");
}

#[test]
fn jobs_are_shown_as_with_docker() {
    let server = Server::start();
    server.ok(&["swarm", "init"]);
    let create = ["service", "create", "--mode", "replicated-job", "--replicas", "3"];
    let more = ["--max-concurrent", "2", "--name", "batch", "demo"];
    let out = server.ok(&[&create[..], &more[..]].concat());
    assert!(out.contains("job complete"), "{out}");
    let out = server.ok(&["service", "create", "--mode", "global-job", "--name", "scan", "demo"]);
    assert!(out.contains("job complete"), "{out}");
    let list = server.ok(&["service", "ls"]);
    for part in ["replicated job", "0/2 (3/3 completed)", "global job", "0/0 (1/1 completed)"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let only = server.ok(&["service", "ls", "--filter", "mode=global-job", "--format={{.Name}}"]);
    assert_eq!(only.trim(), "scan");
    let format = ["--format", "{{.Name}} {{.DesiredState}} {{.CurrentState}}"];
    let ps = server.ok(&[&["service", "ps", "batch"][..], &format[..]].concat());
    // Docker counts a job's places from 0, and its client shows 0 as the node.
    for part in ["batch.1 Complete Complete", "batch.2 Complete Complete"] {
        assert!(ps.contains(part), "{part}: {ps}");
    }
    assert_eq!(ps.lines().count(), 3, "{ps}");
    let wanted = ["service", "ps", "-q", "--filter", "desired-state=complete", "batch"];
    assert_eq!(server.ok(&wanted).lines().count(), 3);
    let inspect = server.ok(&["service", "inspect", "batch"]);
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect[0]["Spec"]["Mode"]["ReplicatedJob"]["TotalCompletions"], 3);
    assert!(inspect[0]["JobStatus"]["LastExecution"].is_string(), "{inspect}");
    assert!(inspect[0]["Spec"]["UpdateConfig"].is_null(), "{inspect}");
}

#[test]
fn networks_of_node_and_cluster_are_one_list() {
    let server = Server::start();
    let list = server.ok(&["network", "ls"]);
    for part in ["bridge", "host", "none", "null", "local"] {
        assert!(list.contains(part), "{list}");
    }
    assert!(!list.contains("ingress"));
    server.ok(&["swarm", "init"]);
    server.ok(&["network", "create", "-d", "overlay", "front"]);
    let list = server.ok(&["network", "ls", "--filter", "scope=swarm"]);
    assert!(list.contains("ingress") && list.contains("front") && !list.contains("bridge"));
    let inspect = server.ok(&["network", "inspect", "-v", "front"]);
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect[0]["IPAM"]["Config"][0]["Subnet"], "10.0.1.0/24");
    assert_eq!(inspect[0]["Peers"][0]["IP"], "10.1.2.3");
    let twice = server.fails(&["network", "create", "-d", "overlay", "front"]);
    assert!(twice.contains("network with name front already exists"), "{twice}");
    let taken = server.fails(&["network", "create", "host"]);
    assert!(taken.contains("operation is not permitted on predefined host network"), "{taken}");
    let kept = server.fails(&["network", "rm", "bridge"]);
    assert!(kept.contains("bridge is a pre-defined network and cannot be removed"), "{kept}");
}

#[test]
fn run_hijacks_and_passes_half_close_output_and_status() {
    let server = Server::start();
    let out = server.docker_with_input(&["run", "-i", "--name", "echo", "demo"], b"hello there");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hello there");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "done\n");
    assert_eq!(out.status.code(), Some(3));
    let calls = server.containers.calls.lock().unwrap().clone();
    assert_eq!(calls, ["create", "attach", "wait", "start"]);
    let detached = server.ok(&["run", "-d", "demo"]);
    assert_eq!(detached.trim().len(), 64);
    assert!(server.ok(&["ps"]).contains("Up 2 seconds"));
}

#[test]
fn exec_passes_input_output_and_status() {
    let server = Server::start();
    server.ok(&["create", "--name", "c", "demo"]);
    let out = server.docker_with_input(&["exec", "-i", "c", "cat"], b"ping");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "ping");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "done\n");
    assert_eq!(out.status.code(), Some(7));
    let out = server.docker_with_input(&["exec", "-i", "c", "missing"], b"");
    assert_eq!(out.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&out.stdout).contains("executable file not found"));
}

#[test]
fn logs_images_and_errors_reach_the_user() {
    let server = Server::start();
    server.ok(&["create", "--name", "c", "demo"]);
    let logs = server.docker(&["logs", "--timestamps", "c"]);
    assert_eq!(String::from_utf8_lossy(&logs.stdout), "2017-07-14T02:40:00.000000000Z out\n");
    assert_eq!(String::from_utf8_lossy(&logs.stderr), "2017-07-14T02:40:00.000000000Z err\n");
    assert!(server.ok(&["images"]).contains("demo"));
    assert!(server.ok(&["image", "inspect", "team/demo"]).contains("sha256:00"));
    assert!(server.fails(&["pull", "gone"]).contains("manifest unknown"));
    assert!(server.fails(&["pull", "x"]).contains("digest mismatch"));
    let loaded = server.docker_with_input(&["load"], &[7; 100_000]);
    assert_eq!(String::from_utf8_lossy(&loaded.stdout), "Loaded 100000 bytes\n");
    assert!(server.fails(&["run", "--pull=never", "nope"]).contains("No such image: nope"));
    let events = server.ok(&["events", "--since", "1", "--until", "2"]);
    assert!(events.contains("container start"), "{events}");
    assert!(server.ok(&["top", "c"]).contains("CMD"));
    assert!(server.ok(&["system", "df"]).contains("Images"));
    let missing = server.fails(&["inspect", "nothing"]);
    assert!(missing.to_lowercase().contains("no such object: nothing"), "{missing}");
    assert!(server.fails(&["volume", "prune", "-f"]).contains("SH-API-006"));
    assert!(server.fails(&["commit", "c"]).contains("not implemented: making an image"));
}
