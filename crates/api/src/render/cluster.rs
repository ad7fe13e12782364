//! The cluster itself.

use serde_json::{Map, Value, json};
use shoal_model::object::Cluster;

use super::{head, spec_json, tls};

/// `ClusterInfo` of the Engine API, without the join tokens.
#[must_use]
pub fn info(cluster: &Cluster) -> Map<String, Value> {
    let mut out = head(cluster.id.as_str(), cluster.meta);
    out.insert("Spec".into(), spec(cluster));
    out.insert("TLSInfo".into(), tls::info(&cluster.desired_root().cert_pem));
    let rotates = cluster.trust.next.is_some();
    out.insert("RootRotationInProgress".into(), json!(rotates));
    out.insert("DefaultAddrPool".into(), json!(cluster.default_address_pools));
    out.insert("SubnetSize".into(), json!(cluster.subnet_prefix_len));
    out.insert("DataPathPort".into(), json!(cluster.data_path_port));
    // Ours: see docs/operations.md.
    out.insert("Format".into(), json!(cluster.level));
    out
}

/// `Swarm` of the Engine API.
#[must_use]
pub fn swarm(cluster: &Cluster) -> Value {
    let mut out = info(cluster);
    let tokens =
        json!({ "Worker": cluster.join_tokens.worker, "Manager": cluster.join_tokens.manager });
    out.insert("JoinTokens".into(), tokens);
    Value::Object(out)
}

/// The spec with Docker's defaults in the places that clients read without looking.
fn spec(cluster: &Cluster) -> Value {
    let mut spec = spec_json(&cluster.spec);
    let mut fill = |group: &str, key: &str, default: Value, zero_too: bool| {
        let Some(members) = spec.get_mut(group).and_then(Value::as_object_mut) else { return };
        let unset = members.get(key).is_none_or(|have| zero_too && *have == json!(0));
        if unset {
            members.insert(key.to_owned(), default);
        }
    };
    fill("Orchestration", "TaskHistoryRetentionLimit", json!(5), false);
    fill("Raft", "SnapshotInterval", json!(10_000), true);
    fill("Raft", "KeepOldSnapshots", json!(0), false);
    fill("Raft", "LogEntriesForSlowFollowers", json!(500), false);
    fill("Raft", "ElectionTick", json!(10), true);
    fill("Raft", "HeartbeatTick", json!(1), true);
    fill("Dispatcher", "HeartbeatPeriod", json!(1_000_000_000_i64), true);
    fill("CAConfig", "NodeCertExpiry", json!(7_776_000_000_000_000_i64), true);
    if let Some(members) = spec.as_object_mut() {
        if members.get("Name").is_none_or(|name| name == "") {
            members.insert("Name".into(), json!("default"));
        }
        for hidden in ["SigningCAKey", "SigningCACert"] {
            if let Some(ca) = members.get_mut("CAConfig").and_then(Value::as_object_mut) {
                ca.remove(hidden);
            }
        }
    }
    spec
}
