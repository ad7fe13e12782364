//! Who is in the group, and how that is changed: one step at a time, each of which may be asked for
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};

use crate::consensus::Metrics;
use crate::core::{Core, stopped};
use crate::error::StoreError;
use crate::peer::{Member, MemberNode};

/// Entries that a learner may lag when it is made a voter: it has them within moments.
pub const LAG_MAX: u64 = 16;
/// How long a change goes on when nobody waits for it any more.
const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Who is in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Those who count for a majority.
    pub voters: Vec<Member>,
    /// Those who only learn.
    pub learners: Vec<Member>,
    /// On the leader: who answered lately. Else empty.
    pub heard: BTreeSet<u64>,
    /// On the leader: how many entries each of the others lags.
    pub behind: BTreeMap<u64, u64>,
    /// Whether no change is half done.
    pub settled: bool,
}

/// One change of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupStep {
    /// Adds a member that learns and does not vote.
    Learn(Member),
    /// Makes a learner a voter, once it has caught up.
    Promote(u64),
    /// Removes a member, whatever it is.
    Remove(u64),
    /// Finishes a change that somebody left half done.
    Settle,
}

impl Core {
    /// Who is in the group, by `metrics`.
    pub(crate) fn group(&self, metrics: &Metrics) -> Group {
        let members = metrics.membership_config.membership();
        let member = |id: u64| self.member(metrics, id);
        let mut voters: Vec<Member> = members.voter_ids().map(member).collect();
        voters.sort_by_key(|member| member.raft_id);
        voters.dedup();
        Group {
            voters,
            learners: members.learner_ids().map(member).collect(),
            settled: members.get_joint_config().len() < 2,
            ..Group::default()
        }
    }

    /// The member with this number. Our own node's name is always known.
    pub(crate) fn member(&self, metrics: &Metrics, raft_id: u64) -> Member {
        if raft_id == self.raft_id {
            return self.links.own.clone();
        }
        let node = metrics.membership_config.membership().get_node(&raft_id);
        Member { node: node.map(|node| node.node.clone()).unwrap_or_default(), raft_id }
    }

    /// That this member does not lead; which one does, if that is known.
    pub(crate) fn not_leader(&self, leader: Option<u64>) -> StoreError {
        let metrics = self.raft.metrics();
        let leader = leader.map(|id| self.member(&metrics.borrow(), id));
        StoreError::NotLeader { leader }
    }

    /// Does `step`. It may be done already.
    pub(crate) async fn change_group(&self, step: GroupStep) -> Result<(), StoreError> {
        match step {
            GroupStep::Learn(member) => self.learn(member).await,
            GroupStep::Promote(raft_id) => self.promote(raft_id).await,
            GroupStep::Remove(raft_id) => self.remove(raft_id).await,
            GroupStep::Settle => self.settle().await,
        }
    }

    fn group_now(&self) -> Group {
        self.group(&self.raft.metrics().borrow())
    }

    async fn learn(&self, member: Member) -> Result<(), StoreError> {
        if member.node.is_empty() || member.raft_id == 0 {
            return Err(refused("the new member has no node or no number"));
        }
        let group = self.group_now();
        for known in group.voters.iter().chain(&group.learners) {
            if *known == member {
                return Ok(());
            }
            if known.raft_id == member.raft_id || known.node == member.node {
                let problem = format!(
                    "'{}' as number {} does not fit '{}' with number {}",
                    member.node, member.raft_id, known.node, known.raft_id
                );
                return Err(StoreError::Group { problem });
            }
        }
        self.name_self().await?;
        let node = MemberNode { node: member.node };
        self.submit(ChangeMembers::AddNodes(BTreeMap::from([(member.raft_id, node)])), true).await
    }

    /// A store of the first format has no name for its only member; others must know it.
    async fn name_self(&self) -> Result<(), StoreError> {
        let own = self.links.own.clone();
        let named = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let node = metrics.membership_config.membership().get_node(&own.raft_id);
            node.is_some_and(|node| !node.node.is_empty())
        };
        if named {
            return Ok(());
        }
        let node = MemberNode { node: own.node };
        self.submit(ChangeMembers::SetNodes(BTreeMap::from([(own.raft_id, node)])), true).await
    }

    async fn promote(&self, raft_id: u64) -> Result<(), StoreError> {
        let group = self.group_now();
        if group.voters.iter().any(|member| member.raft_id == raft_id) {
            return if group.settled { Ok(()) } else { self.settle().await };
        }
        if !group.learners.iter().any(|member| member.raft_id == raft_id) {
            return Err(StoreError::Group { problem: format!("number {raft_id} is no learner") });
        }
        let caught_up = |metrics: &Metrics| {
            let at = metrics.replication.as_ref().and_then(|all| all.get(&raft_id).copied());
            let at = at.flatten().map(|at| at.index);
            at.is_some_and(|at| at + LAG_MAX >= metrics.last_log_index.unwrap_or_default())
        };
        let mut metrics = self.raft.metrics();
        let seen = metrics.wait_for(|m| m.replication.is_none() || caught_up(m)).await;
        let leads = seen.map(|m| m.replication.is_some()).map_err(|e| self.why(&e))?;
        if !leads {
            return Err(StoreError::NotLeader { leader: None });
        }
        self.submit(ChangeMembers::AddVoterIds(BTreeSet::from([raft_id])), true).await
    }

    async fn remove(&self, raft_id: u64) -> Result<(), StoreError> {
        let one = BTreeSet::from([raft_id]);
        if self.group_now().voters.iter().any(|member| member.raft_id == raft_id) {
            self.submit(ChangeMembers::RemoveVoters(one.clone()), false).await?;
        }
        if self.group_now().learners.iter().any(|member| member.raft_id == raft_id) {
            self.submit(ChangeMembers::RemoveNodes(one), false).await?;
        }
        Ok(())
    }

    async fn settle(&self) -> Result<(), StoreError> {
        if self.group_now().settled {
            return Ok(());
        }
        // Nobody is added to the newer of the two sets: it remains alone. Who is only in the older
        // one leaves the group.
        self.submit(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await
    }

    /// Hands a change to consensus. It goes on when its caller gives up: half a change is worse.
    async fn submit(
        &self,
        changes: ChangeMembers<u64, MemberNode>,
        retain: bool,
    ) -> Result<(), StoreError> {
        let core = self.clone();
        let change = async move {
            let _change = core.elections.change().await;
            let change = core.raft.change_membership(changes, retain);
            match tokio::time::timeout(STEP_DEADLINE, change).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(core.refusal(error)),
                Err(_) => Err(StoreError::NoQuorum { after: STEP_DEADLINE, missing: Vec::new() }),
            }
        };
        tokio::spawn(change).await.map_err(|_| stopped(&"the runtime stops"))?
    }

    fn refusal(&self, error: RaftError<u64, ClientWriteError<u64, MemberNode>>) -> StoreError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                self.not_leader(to.leader_id)
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
                ChangeMembershipError::InProgress(_) => refused("another change is under way"),
                ChangeMembershipError::EmptyMembership(_) => {
                    refused("no voter would be left: the last manager cannot be removed")
                }
                ChangeMembershipError::LearnerNotFound(_) => refused("there is no such member"),
            },
            RaftError::Fatal(error) => self.why(&error),
        }
    }
}

fn refused(problem: &str) -> StoreError {
    StoreError::Group { problem: problem.to_owned() }
}
