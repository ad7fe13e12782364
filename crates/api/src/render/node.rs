//! Nodes.

use serde_json::{Map, Value, json};
use shoal_model::check::{CheckResult, Need, Verdict};
use shoal_model::cluster_state::ClusterState;
use shoal_model::object::Node;

use super::{head, set_text, spec_json, tls};

/// `Node` of the Engine API. What the node tried and found is in `Description.Checks`.
#[must_use]
pub fn node(state: &ClusterState, node: &Node) -> Value {
    let mut out = head(node.id.as_str(), node.meta);
    out.insert("Spec".into(), spec_json(&node.spec));
    out.insert("Description".into(), description(state, node));
    let mut status = Map::new();
    status.insert("State".into(), json!(node.status.state.as_str()));
    set_text(&mut status, "Message", &node.status.message);
    status.insert("Addr".into(), json!(node.status.addr));
    out.insert("Status".into(), Value::Object(status));
    if let Some(manager) = &node.manager {
        let mut part = Map::new();
        if manager.leader {
            part.insert("Leader".into(), json!(true));
        }
        let reach = if manager.reachable { "reachable" } else { "unreachable" };
        part.insert("Reachability".into(), json!(reach));
        part.insert("Addr".into(), json!(manager.addr));
        out.insert("ManagerStatus".into(), Value::Object(part));
    }
    Value::Object(out)
}

fn description(state: &ClusterState, node: &Node) -> Value {
    let about = &node.description;
    let plugins: Vec<Value> = [
        ("Log", "json-file"),
        ("Network", "bridge"),
        ("Network", "host"),
        ("Network", "null"),
        ("Network", "overlay"),
        ("Volume", "local"),
    ]
    .iter()
    .map(|(kind, name)| json!({ "Type": kind, "Name": name }))
    .collect();
    let mut engine = Map::new();
    engine.insert("EngineVersion".into(), json!(engine_version(node)));
    if !about.engine_labels.is_empty() {
        engine.insert("Labels".into(), json!(about.engine_labels));
    }
    engine.insert("Plugins".into(), Value::Array(plugins));
    let tls = state.cluster.as_ref().map_or(json!({}), |c| tls::of_node(c, &node.tls));
    json!({
        "Hostname": about.hostname,
        "Platform": { "Architecture": about.platform.architecture, "OS": about.platform.os },
        "Resources": spec_json(&about.resources),
        "Engine": engine,
        "TLSInfo": tls,
        "Checks": about.checks,
    })
}

/// The engine's version as `node ls` shows it: with what the node cannot do, which has no column
/// of its own there.
fn engine_version(node: &Node) -> String {
    let about = &node.description;
    let failed =
        |check: &&CheckResult| check.verdict == Verdict::Fail && check.needed_for != Need::Nothing;
    let missing: Vec<&str> =
        about.checks.iter().filter(failed).map(|check| check.name.as_str()).collect();
    if missing.is_empty() {
        return about.engine_version.clone();
    }
    format!("{} (missing: {})", about.engine_version, missing.join(", "))
}
