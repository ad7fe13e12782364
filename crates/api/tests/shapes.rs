//! Nothing that a client sends is lost: bodies recorded from docker CLI 28.2.2 are decoded and
//! written again, and every value must still be there. The generated types of bollard-stubs are
//! the oracle for which names exist.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shoal_api::backend::container::{ExecCreate, ExecStart, VolumeCreate};
use shoal_api::backend::swarm::{InitRequest, JoinRequest};
use shoal_api::decode::{Shape, canonical, containers, networks, parse, services, swarm};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::container::ContainerCreate;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::spec::service::ServiceSpec;

fn body(name: &str) -> String {
    let path = format!("{}/tests/bodies/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => o.values().any(says_something),
        _ => true,
    }
}

/// Paths of everything in `sent` that is missing or different in `kept`.
fn lost(sent: &Value, kept: &Value, path: &str, out: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (key, value) in sent.iter().filter(|(_, value)| says_something(value)) {
                let found = kept.get(key).or_else(|| {
                    kept.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v)
                });
                let path = format!("{path}.{key}");
                match found {
                    Some(found) => lost(value, found, &path, out),
                    None => out.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) if sent.len() == kept.len() => {
            for (i, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                lost(sent, kept, &format!("{path}.{i}"), out);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (sent, kept) if sent == kept => {}
        _ => out.push(path.to_owned()),
    }
}

fn check<T: DeserializeOwned + Serialize>(name: &str, shape: &Shape) {
    let text = body(name);
    let ours: T = parse(text.as_bytes(), shape).unwrap_or_else(|e| panic!("{name}: {}", e.message));
    let mut missing = Vec::new();
    let sent: Value = serde_json::from_str(&text).unwrap();
    let kept = serde_json::to_value(ours).unwrap();
    lost(&sent, &kept, "", &mut missing);
    assert!(missing.is_empty(), "{name}: lost {missing:?}");
    // The same body with every known name in lower case means the same.
    let shouted = canonical(lower(sent), shape).unwrap();
    let again: T = serde_json::from_value(shouted).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), kept, "{name} in lower case");
}

/// Lower-cases every key that is not a user's: those have a capital first letter in these bodies.
fn lower(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| {
                let ours = key.chars().next().is_some_and(char::is_uppercase);
                (if ours { key.to_lowercase() } else { key }, lower(value))
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(lower).collect(),
        other => other,
    }
}

#[test]
fn nothing_of_a_recorded_body_is_lost() {
    for name in [
        "service_create_full",
        "service_create_global",
        "service_create_global_job",
        "service_create_replicated_job",
    ] {
        check::<ServiceSpec>(name, &services::SERVICE_SPEC);
    }
    check::<NetworkSpec>("network_create_overlay", &networks::NETWORK);
    check::<NetworkSpec>("network_create_bridge", &networks::NETWORK);
    check::<ContainerCreate>("container_create", &containers::CREATE);
    check::<InitRequest>("swarm_init", &swarm::INIT);
    check::<JoinRequest>("swarm_join", &swarm::JOIN);
    check::<ClusterSpec>("swarm_update", &swarm::CLUSTER_SPEC);
    check::<NodeSpec>("node_update", &swarm::NODE_SPEC);
    check::<ExecCreate>("exec_create", &containers::EXEC_CREATE);
    check::<ExecStart>("exec_start", &containers::EXEC_START);
    check::<VolumeCreate>("volume_create", &containers::VOLUME);
    check::<Value>("container_update", &containers::UPDATE);
}

/// Every name in `sample`, a body that the oracle wrote, must be known to the shape: lower-casing
/// it and canonicalising must give it back.
fn oracle<T: DeserializeOwned + Serialize>(name: &str, shape: &Shape) {
    let text = body(name);
    let sent: Value = serde_json::from_str(&text).unwrap();
    let theirs: T = serde_json::from_value(sent).unwrap_or_else(|e| panic!("{name}: {e}"));
    let written = serde_json::to_value(theirs).unwrap();
    let ours = canonical(lower(written.clone()), shape).unwrap();
    let mut missing = Vec::new();
    lost(&written, &ours, "", &mut missing);
    assert!(missing.is_empty(), "{name}: {missing:?}");
}

#[test]
fn the_generated_types_know_nothing_that_the_shapes_do_not() {
    use bollard_stubs::models as theirs;
    oracle::<theirs::ServiceSpec>("service_create_full", &services::SERVICE_SPEC);
    oracle::<theirs::NetworkCreateRequest>("network_create_overlay", &networks::NETWORK);
    oracle::<theirs::ContainerCreateBody>("container_create", &containers::CREATE);
    oracle::<theirs::SwarmInitRequest>("swarm_init", &swarm::INIT);
    oracle::<theirs::SwarmSpec>("swarm_update", &swarm::CLUSTER_SPEC);
    oracle::<theirs::NodeSpec>("node_update", &swarm::NODE_SPEC);
    oracle::<theirs::ExecConfig>("exec_create", &containers::EXEC_CREATE);
}

#[test]
fn bad_bodies_name_the_field() {
    let cases: &[(&str, &str)] = &[
        (r#"{"Name": 7}"#, "'Name': expected a text, found the number 7"),
        (r#"{"TaskTemplate": []}"#, "'TaskTemplate': expected an object, found a list"),
        (
            r#"{"TaskTemplate": {"ContainerSpec": {"Env": {"A": "b"}}}}"#,
            "'TaskTemplate.ContainerSpec.Env': expected a list, found an object",
        ),
        (
            r#"{"EndpointSpec": {"Ports": [{"TargetPort": 70000}]}}"#,
            "'EndpointSpec.Ports.0.TargetPort': expected a whole number from 0 to 65535",
        ),
        (r#"{"EndpointSpec": {"Mode": "round"}}"#, "expected one of 'vip', 'dnsrr'"),
        (r#"{"Mode": {"Replicated": {"Replicas": -1}}}"#, "'Mode.Replicated.Replicas'"),
        (r#"{"Name": "a""#, "invalid JSON: EOF"),
        (r"[]", "(the whole body)"),
        ("", "got EOF"),
        ("{} x", "trailing characters"),
    ];
    for (text, part) in cases {
        let error = parse::<ServiceSpec>(text.as_bytes(), &services::SERVICE_SPEC).unwrap_err();
        assert_eq!(error.status, 400, "{text}");
        assert!(error.message.contains(part), "{text}: {}", error.message);
    }
}
