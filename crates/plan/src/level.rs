//! When the cluster's level may be raised, and who is too old for it: see
//! [`shoal_model::level`].

use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::level::WRITES;
use shoal_model::object::{Cluster, Node, NodeDescription, NodeState};
use shoal_model::spec::node::NodeRole;

/// The next level, once everybody can read it who is meant to: every manager, which has to be here
/// and say so, and every other node that is not down. One that was down, and comes back too old, is
/// not let in until it is upgraded.
#[must_use]
pub fn next(state: &ClusterState) -> Option<u32> {
    let next = state.level() + 1;
    (next <= WRITES && !state.nodes.is_empty() && all_read(state, next)).then_some(next)
}

fn all_read(state: &ClusterState, level: u32) -> bool {
    let reads = |node: &Node| node.description.reads() >= level;
    state.nodes.values().all(|node| {
        if node.manager.is_some() || node.spec.role == NodeRole::Manager {
            return node.status.state == NodeState::Ready && reads(node);
        }
        matches!(node.status.state, NodeState::Down | NodeState::Disconnected) || reads(node)
    })
}

/// Whether a node that describes itself so can read what is written.
#[must_use]
pub fn fits(state: &ClusterState, description: &NodeDescription) -> bool {
    description.reads() >= state.level()
}

/// Members that have to be upgraded.
pub fn too_old(state: &ClusterState) -> impl Iterator<Item = &Node> {
    state.nodes.values().map(AsRef::as_ref).filter(|node| !fits(state, &node.description))
}

/// The change that raises the level, if it is time.
pub(crate) fn raise(state: &ClusterState) -> Option<Change> {
    let cluster = state.cluster.as_ref()?;
    to(cluster, next(state)?)
}

pub(crate) fn to(cluster: &Cluster, level: u32) -> Option<Change> {
    let expect = Expect::Version(cluster.meta.version);
    let object = Object::Cluster(Box::new(Cluster { level, ..cluster.clone() }));
    Some(Change::Put { object, expect })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;
    use shoal_model::id::Revision;

    use super::*;

    fn node(id: &str, role: &str, state: &str, reads: u32) -> Object {
        let at = "1970-01-01T00:00:01Z";
        let meta = json!({"version": 0, "created_at": at, "updated_at": at});
        let text = json!({
            "id": id, "meta": meta, "index": id[1..].parse::<u16>().unwrap(),
            "data_path_addr": null, "manager": null,
            "spec": {"Role": role, "Availability": "active", "Labels": {}},
            "description": {"hostname": id, "reads": reads},
            "status": {"state": state, "message": "", "addr": "", "since": at},
        });
        Object::Node(Box::new(serde_json::from_value(text).unwrap()))
    }

    fn state(nodes: Vec<Object>) -> ClusterState {
        ClusterState::restore(Revision(1), nodes)
    }

    #[test]
    fn all_managers_have_to_say_so_and_all_nodes_that_are_not_down() {
        let managers = |second: &str, reads: u32| {
            vec![node("n1", "manager", "ready", 3), node("n2", "manager", second, reads)]
        };
        let all = |more: Vec<Object>| {
            let all: Vec<Object> = managers("ready", 2).into_iter().chain(more).collect();
            all_read(&state(all), 2)
        };
        assert!(all(Vec::new()));
        assert!(all(vec![node("n3", "worker", "ready", 2)]));
        assert!(!all(vec![node("n3", "worker", "ready", 1)]));
        assert!(!all(vec![node("n3", "worker", "ready", 0)]), "one that says nothing");
        assert!(!all(vec![node("n3", "worker", "unknown", 1)]), "one that is awaited");
        assert!(all(vec![node("n3", "worker", "down", 1)]));
        assert!(all(vec![node("n3", "worker", "disconnected", 1)]));
        assert!(!all_read(&state(managers("ready", 1)), 2));
        // What a manager that is away will be when it comes back, nobody knows.
        assert!(!all_read(&state(managers("down", 2)), 2));
        assert_eq!(next(&state(managers("ready", 9))).is_some(), WRITES > state(vec![]).level());
        assert_eq!(next(&state(Vec::new())), None);
    }
}
