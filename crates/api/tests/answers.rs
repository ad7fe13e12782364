//! Answers have Docker's types: the types generated from Docker's own description decode them, and
//! every value that those types know comes back the same.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use bollard_stubs::models as theirs;
use fake::server::Server;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Answers `GET path` as `T`, and checks that nothing that `T` knows changed on the way.
fn check<T: DeserializeOwned + Serialize>(server: &Server, path: &str) -> Value {
    let (status, body) = server.send("GET", path, "");
    assert_eq!(status, 200, "{path}: {body}");
    let ours: Value = serde_json::from_str(&body).unwrap();
    let decoded: T = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}\n{body}"));
    let again = serde_json::to_value(decoded).unwrap();
    let mut wrong = Vec::new();
    compare(&again, &ours, "", &mut wrong);
    assert!(wrong.is_empty(), "{path}: {wrong:?}\n{body}");
    ours
}

fn compare(theirs: &Value, ours: &Value, path: &str, wrong: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, value) in theirs.iter().filter(|(_, value)| !value.is_null()) {
                match ours.get(key) {
                    Some(found) => compare(value, found, &format!("{path}.{key}"), wrong),
                    None => wrong.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (i, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                compare(theirs, ours, &format!("{path}.{i}"), wrong);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (a, b) if a == b => {}
        _ => wrong.push(path.to_owned()),
    }
}

#[test]
fn answers_have_dockers_types() {
    let server = Server::start();
    check::<theirs::SystemInfo>(&server, "/info");
    server.ok(&["swarm", "init"]);
    server.ok(&["network", "create", "-d", "overlay", "--label", "a=b", "front"]);
    server.ok(&[
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "2",
        "--network",
        "front",
        "--publish",
        "8080:80",
        "--env",
        "A=b",
        "--limit-memory",
        "64m",
        "demo",
    ]);
    server.ok(&["service", "update", "-d", "--label-add", "x=y", "web"]);
    let job = ["service", "create", "-d", "--mode", "replicated-job", "--name", "batch", "demo"];
    server.ok(&job);
    check::<theirs::SystemVersion>(&server, "/version");
    let info = check::<theirs::SystemInfo>(&server, "/info");
    assert_eq!(info["Swarm"]["Nodes"], 1);
    let warnings = info["Warnings"].as_array().unwrap();
    assert!(warnings.contains(&"the layer x is gone".into()), "{warnings:?}");
    assert_eq!(info["Swarm"]["Cluster"]["DataPathPort"], 4789);
    let swarm = check::<theirs::Swarm>(&server, "/swarm");
    assert_eq!(swarm["JoinTokens"]["Worker"].as_str().unwrap().len(), 85);
    assert!(swarm["TLSInfo"]["CertIssuerPublicKey"].as_str().unwrap().len() > 100);
    let nodes = check::<Vec<theirs::Node>>(&server, "/nodes");
    assert_eq!(nodes[0]["ManagerStatus"]["Leader"], true);
    assert!(nodes[0]["Spec"]["Labels"].is_object());
    let mut services = check::<Vec<theirs::Service>>(&server, "/services?status=true");
    services.as_array_mut().unwrap().sort_by_key(|service| service["Spec"]["Name"] != "web");
    assert_eq!(services[0]["ServiceStatus"]["RunningTasks"], 2);
    assert_eq!(services[0]["PreviousSpec"]["Labels"], serde_json::json!({}));
    let job = serde_json::json!({ "MaxConcurrent": 1, "TotalCompletions": 1 });
    assert_eq!(services[1]["Spec"]["Mode"]["ReplicatedJob"], job);
    assert_eq!(services[1]["ServiceStatus"]["CompletedTasks"], 1);
    let plain = check::<theirs::Service>(&server, "/services/web");
    assert!(plain["Spec"]["UpdateConfig"].is_null(), "no defaults unless asked for");
    let full = check::<theirs::Service>(&server, "/services/web?insertDefaults=true");
    assert_eq!(full["Spec"]["UpdateConfig"]["Monitor"], 5_000_000_000_i64);
    assert_eq!(
        full["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"],
        10_000_000_000_i64
    );
    let mut tasks = check::<Vec<theirs::Task>>(&server, "/tasks");
    tasks.as_array_mut().unwrap().sort_by_key(|task| task["JobIteration"].is_object());
    assert_eq!(tasks[2]["DesiredState"], "complete");
    assert_eq!(tasks[0]["NetworksAttachments"][0]["Network"]["Spec"]["Name"], "front");
    assert_eq!(tasks[0]["Status"]["ContainerStatus"]["PID"], 77);
    let id = tasks[0]["ID"].as_str().unwrap();
    check::<theirs::Task>(&server, &format!("/tasks/{id}"));
    check::<Vec<theirs::Network>>(&server, "/networks");
    check::<theirs::NetworkInspect>(&server, "/networks/front?verbose=true");
    check::<Vec<theirs::ImageSummary>>(&server, "/images/json");
    let old = check::<theirs::Service>(&server, "/v1.43/services/web");
    assert!(old["Spec"]["Networks"].is_array(), "clients below 1.44 look at the top");
}

#[test]
fn tasks_are_filtered_as_the_cli_asks() {
    let server = Server::start();
    server.ok(&["swarm", "init"]);
    server.ok(&["service", "create", "-d", "--name", "web", "--replicas", "2", "demo"]);
    server.ok(&["service", "create", "-d", "--name", "db", "demo"]);
    let count = |filters: &str| {
        let encoded: String = filters.bytes().map(|b| format!("%{b:02x}")).collect();
        let (status, body) = server.send("GET", &format!("/tasks?filters={encoded}"), "");
        assert_eq!(status, 200, "{filters}: {body}");
        serde_json::from_str::<Vec<Value>>(&body).unwrap().len()
    };
    for (filters, wanted) in [
        (r#"{}"#, 3),
        (r#"{"service":["web"]}"#, 2),
        (r#"{"service":["web"],"_up-to-date":["true"]}"#, 2),
        (r#"{"service":["web"],"_up-to-date":{"false":true}}"#, 0),
        (r#"{"service":["web","db"]}"#, 3),
        (r#"{"service":["nothing"]}"#, 0),
        (r#"{"node":["one"]}"#, 3),
        (r#"{"node":["two"]}"#, 0),
        (r#"{"desired-state":["running"]}"#, 3),
        (r#"{"desired-state":["shutdown"]}"#, 0),
        (r#"{"name":["web.1"]}"#, 1),
        (r#"{"runtime":["container"]}"#, 3),
        (r#"{"label":["a=b"]}"#, 0),
    ] {
        assert_eq!(count(filters), wanted, "{filters}");
    }
    let (status, _) = server.send("GET", "/tasks?filters=%7B%22desired-state%22:[%22up%22]%7D", "");
    assert_eq!(status, 400);
}
