//! How the group of managers comes to be what the operator wants: one step at a time, each worked
//! out from the state and the group as they are now, so that another leader goes on from wherever
//! the last one was stopped.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::object::Node;
use shoal_model::spec::node::NodeRole;

/// Most managers of a cluster. More make every write slower and no failure more survivable.
pub const MANAGERS_MAX: usize = 7;

/// The consensus group as its leader sees it. Members are named by their numbers, which are never
/// used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupView {
    /// The leader itself.
    pub own: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who only learns, and how far that is.
    pub learners: BTreeMap<u64, Learned>,
    /// Who was heard lately, the leader itself among them.
    pub heard: BTreeSet<u64>,
    /// Whether the last change of the group is complete.
    pub settled: bool,
}

/// How far a member is that learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Far enough to vote.
    Enough,
    /// It began a moment ago: it is waited for.
    Soon,
    /// It had time, and is not far enough.
    Late,
}

/// One change of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleStep {
    /// Complete a change that somebody left half done.
    Settle,
    /// Let a manager learn; it does not vote yet.
    Learn {
        /// Its node.
        node: NodeId,
        /// Its number.
        raft_id: u64,
    },
    /// Let a member vote that has learned enough.
    Promote(u64),
    /// Take a member out.
    Remove(u64),
    /// The leader itself is to go: another voter leads first, and takes it out.
    HandOver,
    /// Nothing of it is left in the group: the node is a worker from here on.
    Forget(NodeId),
}

/// The next step towards what the operator wants; `None` if the group is as it should be, or waits
/// for a member that learns.
///
/// Members come before members go, so that a replacement never makes the group smaller than it has
/// to be: who is to go waits for who has just come. The leader goes last, and never without another
/// voter to lead.
#[must_use]
pub fn next_step(state: &ClusterState, group: &GroupView) -> Option<RoleStep> {
    if !group.settled {
        return Some(RoleStep::Settle);
    }
    let managers = state.nodes.values().filter_map(|n| Some((n, n.manager.as_ref()?.raft_id)));
    let (wanted, unwanted): (Vec<_>, Vec<_>) =
        managers.partition(|(node, _)| node.spec.role == NodeRole::Manager);
    let is_member = |id: &u64| group.voters.contains(id) || group.learners.contains_key(id);
    if let Some((node, id)) = wanted.iter().find(|(_, id)| !is_member(id)) {
        return Some(RoleStep::Learn { node: node.id.clone(), raft_id: *id });
    }
    let keep: BTreeSet<u64> = wanted.iter().map(|(_, id)| *id).collect();
    let learners = group.learners.iter().filter(|(id, _)| keep.contains(id));
    let learner = |is: Learned| learners.clone().find(|(_, learned)| **learned == is);
    if let Some((id, _)) = learner(Learned::Enough) {
        return Some(RoleStep::Promote(*id));
    }
    if learner(Learned::Soon).is_some() {
        return None;
    }
    let members = group.voters.iter().chain(group.learners.keys());
    let mut leaving = members.filter(|id| !keep.contains(id) && **id != group.own);
    if let Some(id) = leaving.next() {
        return Some(RoleStep::Remove(*id));
    }
    if let Some((node, _)) = unwanted.iter().find(|(_, id)| !is_member(id)) {
        return Some(RoleStep::Forget(node.id.clone()));
    }
    (!keep.contains(&group.own) && group.voters.len() > 1).then_some(RoleStep::HandOver)
}

/// Whether as many managers as voters need are reached once `leaving` is not one any more.
#[must_use]
pub fn keeps_quorum(voters: &BTreeSet<u64>, reached: &BTreeSet<u64>, leaving: u64) -> bool {
    let rest = voters.iter().filter(|id| **id != leaving);
    let (all, up) =
        rest.fold((0, 0), |(all, up), id| (all + 1, up + usize::from(reached.contains(id))));
    up > all / 2
}

/// What the leader tells a node of its role; `None` while it is on its way out of the group.
#[must_use]
pub fn wish_of(node: &Node) -> Option<(NodeRole, Option<u64>)> {
    match (node.spec.role, &node.manager) {
        (NodeRole::Manager, manager) => {
            Some((NodeRole::Manager, manager.as_ref().map(|manager| manager.raft_id)))
        }
        (NodeRole::Worker, None) => Some((NodeRole::Worker, None)),
        (NodeRole::Worker, Some(_)) => None,
    }
}

/// Whether one more manager fits.
#[must_use]
pub fn has_room(state: &ClusterState) -> bool {
    let is_one = |node: &Node| node.spec.role == NodeRole::Manager || node.manager.is_some();
    state.nodes.values().filter(|node| is_one(node)).count() < MANAGERS_MAX
}
