//! Networks, nodes and the cluster's settings: what a request changes.

use shoal_identity::authority::digest_of_pem;
use shoal_identity::token::JoinToken;
use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NetworkId, NodeId, Revision};
use shoal_model::object::{Meta, Network, NodeState, UnlockSecret};
use shoal_model::spec::Extra;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::time::Timestamp;
use shoal_plan::roles::GroupView;
use shoal_plan::validate;
use shoal_store::UnlockKey;

use crate::control::{Rotation, in_sequence, missing};
use crate::error::ControlError;
use crate::requests::{Outcome, done};
use crate::shared::cluster;
use crate::trust;

pub(crate) fn create_network(state: &ClusterState, id: &NetworkId, spec: &NetworkSpec) -> Outcome {
    if state.networks.contains_key(id) {
        return done(Vec::new());
    }
    validate::new_network(state, spec)?;
    let plan = shoal_plan::network::allocate(state, spec)?;
    let network = Network {
        id: id.clone(),
        meta: Meta::default(),
        spec: spec.clone(),
        vni: plan.vni,
        subnets: plan.subnets,
        mtu: plan.mtu,
        extra: Extra::new(),
    };
    let object = Object::Network(Box::new(network));
    done(vec![Change::Put { object, expect: Expect::Absent }])
}

pub(crate) fn remove_network(state: &ClusterState, id: &NetworkId) -> Outcome {
    let network = state.networks.get(id).ok_or_else(|| missing("network", id))?;
    validate::removable_network(state, network)?;
    let expect = Expect::Version(network.meta.version);
    done(vec![Change::Delete { key: ObjectKey::Network(id.clone()), expect }])
}

pub(crate) fn update_node(
    state: &ClusterState,
    group: &GroupView,
    (id, version): (&NodeId, Revision),
    spec: &NodeSpec,
) -> Outcome {
    let known = state.nodes.get(id).ok_or_else(|| missing("node", id))?;
    in_sequence(known.meta, version)?;
    validate::changed_node(state, group, known, spec)?;
    let mut node = (**known).clone();
    node.spec = spec.clone();
    let expect = Expect::Version(known.meta.version);
    done(vec![Change::Put { object: Object::Node(Box::new(node)), expect }])
}

pub(crate) fn remove_node(
    state: &ClusterState,
    group: &GroupView,
    id: &NodeId,
    force: bool,
) -> Outcome {
    let node = state.nodes.get(id).ok_or_else(|| missing("node", id))?;
    if force && node.status.state == NodeState::Down {
        // A manager that does not come back: the group goes on without it, if it can.
        validate::removable_manager(state, group, node)?;
    } else if node.manager.is_some() {
        return Err(ControlError::Precondition {
            message: format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be \
                 demoted to worker before removal"
            ),
        });
    }
    if !force && node.status.state == NodeState::Ready {
        return Err(ControlError::Precondition {
            message: format!("node {id} is not down and can't be removed"),
        });
    }
    let expect = Expect::Version(node.meta.version);
    // Its session ends with the next round of assignments.
    done(vec![Change::Delete { key: ObjectKey::Node(id.clone()), expect }])
}

pub(crate) fn update_cluster(
    state: &ClusterState,
    now: Timestamp,
    version: Revision,
    (spec, rotation): (&ClusterSpec, Rotation),
) -> Outcome {
    let known = cluster(state)?;
    in_sequence(known.meta, version)?;
    validate::changed_cluster(spec)?;
    let mut next = (**known).clone();
    next.spec = spec.clone();
    if next.spec.name.is_empty() {
        next.spec.name = known.spec.name.clone();
    }
    trust::apply(&mut next, now)?;
    let digest = digest_of_pem(&next.root_ca.cert_pem)?;
    if rotation.worker_token {
        next.join_tokens.worker = JoinToken::generate(digest.clone()).to_string();
    }
    if rotation.manager_token {
        next.join_tokens.manager = JoinToken::generate(digest).to_string();
    }
    next.unlock = unlock(known.unlock.as_ref(), &next.spec, rotation.unlock_key);
    let expect = Expect::Version(known.meta.version);
    done(vec![Change::Put { object: Object::Cluster(Box::new(next)), expect }])
}

/// What unlocks managers under `spec`, which had `known`: as in Docker, turning the lock on makes a
/// key, turning it off drops it, and a rotation without a lock changes nothing.
fn unlock(known: Option<&UnlockSecret>, spec: &ClusterSpec, rotate: bool) -> Option<UnlockSecret> {
    if !spec.encryption_config.auto_lock_managers {
        return None;
    }
    let fresh = || UnlockSecret(UnlockKey::generate().to_string());
    Some(known.filter(|_| !rotate).cloned().unwrap_or_else(fresh))
}
