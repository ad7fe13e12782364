//! The group of managers, step by step: whatever the operator wants and wherever it was stopped, it
//! gets there, and never has fewer voters on the way than at both ends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeSet;

use cluster::FakeCluster;
use proptest::prelude::*;
use shoal_model::id::NodeId;
use shoal_model::object::ManagerStatus;
use shoal_model::spec::node::NodeRole;
use shoal_model::spec::node::NodeSpec;
use shoal_plan::roles::{GroupView, Learned, MANAGERS_MAX, RoleStep, keeps_quorum, next_step};
use shoal_plan::validate::{SpecError, changed_node};

const OWN: u64 = 1;

/// What a node is at first: its wish, and its number if it has one.
#[derive(Clone, Copy, Debug)]
struct Seat {
    wanted: bool,
    numbered: bool,
    member: Member,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Member {
    None,
    Learner(Learned),
    Voter,
}

fn seats() -> impl Strategy<Value = Vec<Seat>> {
    let member = prop_oneof![
        Just(Member::None),
        prop_oneof![Just(Learned::Enough), Just(Learned::Soon), Just(Learned::Late)]
            .prop_map(Member::Learner),
        Just(Member::Voter)
    ];
    let seat = (any::<bool>(), any::<bool>(), member).prop_map(|(wanted, numbered, member)| Seat {
        wanted,
        numbered,
        member,
    });
    prop::collection::vec(seat, 1..7)
}

fn node(index: usize) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

fn build(seats: &[Seat], settled: bool) -> (FakeCluster, GroupView) {
    let mut cluster = FakeCluster::new(u16::try_from(seats.len()).unwrap());
    let mut group = GroupView { own: OWN, settled, ..GroupView::default() };
    for (at, seat) in seats.iter().enumerate() {
        let (index, raft_id) = (at + 1, u64::try_from(at).unwrap() + 1);
        // The leader is a voter with a number, whatever else it is.
        let first = index == 1;
        cluster.edit_node(&node(index), |n| {
            n.spec.role = if seat.wanted { NodeRole::Manager } else { NodeRole::Worker };
            let addr = format!("192.0.2.{index}:2377");
            n.manager = (first || seat.numbered || seat.wanted).then_some(ManagerStatus {
                raft_id,
                addr,
                reachable: true,
                leader: first,
            });
        });
        match seat.member {
            _ if first => drop(group.voters.insert(raft_id)),
            Member::None => {}
            Member::Learner(learned) => drop(group.learners.insert(raft_id, learned)),
            Member::Voter => drop(group.voters.insert(raft_id)),
        }
    }
    (cluster, group)
}

fn carry_out(cluster: &mut FakeCluster, group: &mut GroupView, step: RoleStep) {
    match step {
        RoleStep::Settle => group.settled = true,
        RoleStep::Learn { raft_id, .. } => drop(group.learners.insert(raft_id, Learned::Soon)),
        RoleStep::Promote(id) => {
            let learned = group.learners.remove(&id);
            assert_eq!(learned, Some(Learned::Enough));
            group.voters.insert(id);
        }
        RoleStep::Remove(id) => {
            assert!(group.voters.remove(&id) | group.learners.remove(&id).is_some());
        }
        RoleStep::HandOver => {
            let own = group.own;
            group.own = *group.voters.iter().find(|id| **id != own).unwrap();
        }
        RoleStep::Forget(id) => {
            let raft_id = cluster.state.nodes[&id].manager.as_ref().unwrap().raft_id;
            assert!(!group.voters.contains(&raft_id) && !group.learners.contains_key(&raft_id));
            cluster.edit_node(&id, |n| n.manager = None);
        }
    }
}

proptest! {
    #[test]
    fn the_group_becomes_what_is_wanted(seats in seats(), settled in any::<bool>()) {
        let (mut cluster, mut group) = build(&seats, settled);
        let wanted: BTreeSet<u64> = (1..).zip(&seats).filter(|(_, s)| s.wanted)
            .map(|(id, _)| id).collect();
        // The guard keeps one: see below.
        prop_assume!(!wanted.is_empty());
        let before = group.voters.len();
        let mut least = before;
        for _ in 0..100 {
            // Whoever learns has learned enough before the next step.
            group.learners.values_mut().for_each(|learned| *learned = Learned::Enough);
            let Some(step) = next_step(&cluster.state, &group) else { break };
            carry_out(&mut cluster, &mut group, step);
            least = least.min(group.voters.len());
        }
        prop_assert_eq!(next_step(&cluster.state, &group), None);
        prop_assert_eq!(&group.voters, &wanted);
        prop_assert!(group.learners.is_empty());
        prop_assert!(least >= before.min(wanted.len()), "{least} voters on the way");
        for (id, seat) in (1..).zip(&seats) {
            let known = cluster.state.nodes[&node(id)].manager.is_some();
            prop_assert_eq!(known, seat.wanted);
        }
    }
}

/// `node promote` of one and `node demote` of another at once make no group smaller on the way; one
/// that never learns enough holds up no removal.
#[test]
fn who_goes_waits_for_who_has_just_come() {
    let voter = Seat { wanted: true, numbered: true, member: Member::Voter };
    let leaves = Seat { wanted: false, ..voter };
    for (learned, step) in [
        (Learned::Soon, None),
        (Learned::Enough, Some(RoleStep::Promote(4))),
        (Learned::Late, Some(RoleStep::Remove(3))),
    ] {
        let comes = Seat { member: Member::Learner(learned), ..voter };
        let (cluster, group) = build(&[voter, voter, leaves, comes], true);
        assert_eq!(next_step(&cluster.state, &group), step);
    }
    // The leader itself waits, too; and nobody for one that is not wanted.
    let comes = Seat { member: Member::Learner(Learned::Soon), ..voter };
    let (cluster, group) = build(&[leaves, voter, comes], true);
    assert_eq!(next_step(&cluster.state, &group), None);
    let (cluster, group) = build(&[leaves, voter, Seat { wanted: false, ..comes }], true);
    assert_eq!(next_step(&cluster.state, &group), Some(RoleStep::Remove(3)));
}

#[test]
fn a_demotion_may_not_take_the_majority_away() {
    let ids = |list: &[u64]| list.iter().copied().collect::<BTreeSet<u64>>();
    assert!(keeps_quorum(&ids(&[1, 2, 3]), &ids(&[1, 2, 3]), 3));
    assert!(keeps_quorum(&ids(&[1, 2, 3]), &ids(&[1, 2]), 3));
    // Of the two that remain only one is reached.
    assert!(!keeps_quorum(&ids(&[1, 2, 3]), &ids(&[1, 3]), 3));
    assert!(keeps_quorum(&ids(&[1, 2]), &ids(&[1]), 2));
    assert!(!keeps_quorum(&ids(&[1]), &ids(&[1]), 1));
    assert!(!keeps_quorum(&ids(&[1, 2, 3, 4, 5]), &ids(&[1, 2, 5]), 5));
    assert!(keeps_quorum(&ids(&[1, 2, 3, 4, 5]), &ids(&[1, 2, 3, 5]), 5));
}

/// A cluster of `count` managers that vote, of which `heard` are heard; the first leads.
fn voting(count: u16, heard: &BTreeSet<u64>) -> (FakeCluster, GroupView) {
    let seat = Seat { wanted: true, numbered: true, member: Member::Voter };
    let (cluster, group) = build(&vec![seat; usize::from(count)], true);
    (cluster, GroupView { heard: heard.clone(), ..group })
}

fn demote(cluster: &FakeCluster, group: &GroupView, index: usize) -> Result<(), SpecError> {
    let node = &cluster.state.nodes[&node(index)];
    let spec = NodeSpec { role: NodeRole::Worker, ..node.spec.clone() };
    changed_node(&cluster.state, group, node, &spec)
}

#[test]
fn the_guard_knows_every_group_and_who_is_heard() {
    for count in 1..=MANAGERS_MAX {
        let ids: Vec<u64> = (1..=u64::try_from(count).unwrap()).collect();
        // The leader hears itself; the others are heard or not.
        for chosen in 0..1_u32 << (count - 1) {
            let heard: BTreeSet<u64> =
                ids.iter().copied().filter(|id| *id == 1 || chosen >> (id - 2) & 1 == 1).collect();
            let (cluster, group) = voting(u16::try_from(count).unwrap(), &heard);
            for index in 1..=count {
                let leaving = u64::try_from(index).unwrap();
                let up = heard.iter().filter(|id| **id != leaving).count();
                let allowed = count > 1 && up > (count - 1) / 2;
                let said = demote(&cluster, &group, index);
                assert_eq!(said.is_ok(), allowed, "{count} {heard:?} {index}: {said:?}");
            }
        }
    }
    let (cluster, group) = voting(1, &BTreeSet::from([1]));
    let said = demote(&cluster, &group, 1).unwrap_err().to_string();
    assert_eq!(said, "attempting to demote the last manager of the swarm");
    let (cluster, group) = voting(3, &BTreeSet::from([1, 2]));
    let said = demote(&cluster, &group, 2).unwrap_err().to_string();
    assert!(said.contains("of the 2 managers that would remain only 1 can be reached"), "{said}");
}

#[test]
fn two_demotions_at_once_leave_a_manager_and_a_learner_is_no_voter() {
    let (mut cluster, group) = voting(3, &BTreeSet::from([1, 2, 3]));
    cluster.edit_node(&node(2), |n| n.spec.role = NodeRole::Worker);
    demote(&cluster, &group, 3).unwrap();
    cluster.edit_node(&node(3), |n| n.spec.role = NodeRole::Worker);
    demote(&cluster, &group, 1).unwrap_err();
    // Somebody that joined and never came does not count, and may always go.
    let (cluster, mut group) = voting(2, &BTreeSet::from([1]));
    group.voters.remove(&2);
    group.learners.insert(2, Learned::Late);
    demote(&cluster, &group, 1).unwrap_err();
    demote(&cluster, &group, 2).unwrap();
}

#[test]
fn the_eighth_manager_is_refused() {
    let (mut cluster, group) = voting(7, &BTreeSet::from([1]));
    let worker = cluster.add_node(8);
    let promote = |cluster: &FakeCluster| {
        let node = &cluster.state.nodes[&worker];
        let spec = NodeSpec { role: NodeRole::Manager, ..node.spec.clone() };
        changed_node(&cluster.state, &group, node, &spec)
    };
    let said = promote(&cluster).unwrap_err().to_string();
    assert!(said.contains("the swarm has 7 managers"), "{said}");
    cluster.edit_node(&node(7), |n| {
        n.spec.role = NodeRole::Worker;
        n.manager = None;
    });
    promote(&cluster).unwrap();
}
