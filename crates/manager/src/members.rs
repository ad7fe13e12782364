//! Brings the consensus group to what the operator wants, one step after the other, and writes into
//! the state who leads and who is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::object::{ManagerStatus, Node, NodeState};
use shoal_model::time::Timestamp;
use shoal_plan::roles::{GroupView, Learned, RoleStep, next_step};
use shoal_store::{Group, GroupStep, LAG_MAX, Member, Store};
use tokio::time::{Instant, sleep, timeout};

use crate::error::ControlError;
use crate::membership::NEVER_CAME;
use crate::tenure::Tenure;

/// How long one step may take.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take until this manager sees a change of the group that it has made.
const SEEN_WITHIN: Duration = Duration::from_millis(100);
/// How long a manager may be down that joined and never came, before its join counts as broken off.
const STRAY_AFTER: Duration = Duration::from_secs(20);
/// How long every voter may take to be heard: longer than silence means anything.
const HEARD_WITHIN: Duration = Duration::from_millis(1_500);
/// How long one that has just begun to learn is waited for, before others are taken out.
const LEARN_WITHIN: Duration = Duration::from_secs(10);
/// Pause after a step that failed, and between looks at members that learn.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs for as long as this manager leads.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    let store = &tenure.shared.store;
    let (mut revision, mut group) = (store.watch(), store.group());
    let mut begun = BTreeMap::new();
    loop {
        revision.mark_unchanged();
        let view = group.borrow_and_update().clone();
        note_learners(&mut begun, &view);
        let step = next_step(&tenure.shared.state(), &seen(&view, store.raft_id(), &begun));
        let done = match (drop_strays(&tenure, &view).await, step) {
            (Ok(false), Some(step)) => {
                let done = carry_out(&tenure, step).await;
                // What it changed is seen in a moment, and need not be asked for twice.
                // Ignored because: late means asking once more; a store that is closed is seen
                // below.
                drop(timeout(SEEN_WITHIN, group.changed()).await);
                done
            }
            (Ok(false), None) => tell(&tenure, &view).await,
            (dropped, _) => dropped,
        };
        match done {
            Ok(true) => continue,
            Ok(false) => {}
            Err(ControlError::Stopping) => return,
            Err(error) => {
                tracing::warn!(
                    cause = report(&error),
                    "the group of managers is not as it should be yet"
                );
            }
        }
        tokio::select! {
            biased;
            changed = revision.changed() => if changed.is_err() { return },
            changed = group.changed() => if changed.is_err() { return },
            () = sleep(PAUSE) => {}
        }
    }
}

/// Waits a moment until every voter is heard: one that has just begun to lead has not heard from
/// everybody yet, and one that is silent is silent for longer.
pub(crate) async fn hear_all(store: &Store) {
    let (own, mut group) = (store.raft_id(), store.group());
    let heard = |group: &Group| {
        let is_heard = |m: &Member| m.raft_id == own || group.heard.contains(&m.raft_id);
        group.voters.iter().all(is_heard)
    };
    // Ignored because: who is not heard by then counts as silent.
    drop(timeout(HEARD_WITHIN, group.wait_for(heard)).await);
}

/// The group as this manager sees it now.
pub(crate) fn group_of(store: &Store) -> GroupView {
    seen(&store.group().borrow(), store.raft_id(), &BTreeMap::new())
}

/// Since when this manager knows of each member that learns.
fn note_learners(begun: &mut BTreeMap<u64, Instant>, group: &Group) {
    begun.retain(|id, _| group.learners.iter().any(|member| member.raft_id == *id));
    for member in &group.learners {
        begun.entry(member.raft_id).or_insert_with(Instant::now);
    }
}

fn seen(group: &Group, own: u64, begun: &BTreeMap<u64, Instant>) -> GroupView {
    let learned = |id: &u64| {
        // In a young cluster even one that never answered lags a few entries only.
        let near = group.behind.get(id).is_some_and(|lag| *lag <= LAG_MAX);
        match begun.get(id) {
            _ if near && group.heard.contains(id) => Learned::Enough,
            Some(since) if since.elapsed() < LEARN_WITHIN => Learned::Soon,
            _ => Learned::Late,
        }
    };
    GroupView {
        own,
        heard: group.heard.iter().copied().chain([own]).collect(),
        voters: group.voters.iter().map(|m| m.raft_id).collect(),
        learners: group.learners.iter().map(|m| (m.raft_id, learned(&m.raft_id))).collect(),
        settled: group.settled,
    }
}

/// Takes one step; whether another one may follow at once.
async fn carry_out(tenure: &Tenure, step: RoleStep) -> Result<bool, ControlError> {
    let (by, store) = (Instant::now() + STEP_DEADLINE, &tenure.shared.store);
    let step = match step {
        RoleStep::Settle => GroupStep::Settle,
        RoleStep::Learn { node, raft_id } => {
            tracing::info!(%node, raft_id, "a manager begins to learn");
            GroupStep::Learn(Member { node: node.to_string(), raft_id })
        }
        RoleStep::Promote(raft_id) => {
            tracing::info!(raft_id, "a manager votes from here on");
            GroupStep::Promote(raft_id)
        }
        RoleStep::Remove(raft_id) => {
            tracing::info!(raft_id, "a manager is taken out");
            GroupStep::Remove(raft_id)
        }
        RoleStep::HandOver => match store.hand_over(None, by).await {
            Ok(next) => {
                tracing::info!(%next, "this manager is to go, and has handed over");
                return Ok(true);
            }
            // Then the others elect one of theirs once this one is out, as if it had died.
            Err(error) => {
                tracing::warn!(cause = report(&error), "this manager goes without handing over");
                GroupStep::Remove(store.raft_id())
            }
        },
        RoleStep::Forget(node) => {
            let forget = move |known: &Node| {
                (known.id == node).then(|| Node { manager: None, ..known.clone() })
            };
            return write(tenure, forget).await;
        }
    };
    store.change_group(step, by).await?;
    Ok(true)
}

/// Drops managers whose join broke off half-way: they have a number and learn, were never heard of,
/// and nobody may know that they exist. Whether there was one.
async fn drop_strays(tenure: &Tenure, group: &Group) -> Result<bool, ControlError> {
    let voters: BTreeSet<u64> = group.voters.iter().map(|m| m.raft_id).collect();
    let is_stray = move |node: &Node, now: Timestamp| {
        let learns = node.manager.as_ref().is_some_and(|m| !voters.contains(&m.raft_id));
        let status = &node.status;
        let silent = status.state == NodeState::Down && status.message == NEVER_CAME;
        learns && silent && status.since.plus(STRAY_AFTER) <= now
    };
    // Nothing is written as a rule, and then nobody need wait for a turn.
    let now = tenure.shared.now();
    if !tenure.shared.state().nodes.values().any(|node| is_stray(node, now)) {
        return Ok(false);
    }
    let drop_them = move |state: &ClusterState, now| {
        let strays = state.nodes.values().filter(|node| is_stray(node, now));
        let changes = strays.map(|node| {
            tracing::warn!(node = %node.id, "a manager that joined never came; it is forgotten");
            let key = ObjectKey::Node(node.id.clone());
            Change::Delete { key, expect: Expect::Version(node.meta.version) }
        });
        Ok((changes.collect(), true))
    };
    tenure.shared.writer.write(drop_them).await
}

/// Writes who leads, who is reached, and where this manager is reached.
async fn tell(tenure: &Tenure, group: &Group) -> Result<bool, ControlError> {
    let own = tenure.shared.store.raft_id();
    let advertise = tenure.shared.advertise.to_string();
    let voters: BTreeSet<u64> = group.voters.iter().map(|m| m.raft_id).collect();
    let heard = group.heard.clone();
    let status = move |known: &ManagerStatus| {
        let (id, leads) = (known.raft_id, known.raft_id == own);
        let reachable = leads || (voters.contains(&id) && heard.contains(&id));
        let addr = if leads { advertise.clone() } else { known.addr.clone() };
        ManagerStatus { raft_id: id, addr, reachable, leader: leads }
    };
    write(tenure, move |node| {
        let next = status(node.manager.as_ref()?);
        (node.manager.as_ref() != Some(&next)).then(|| Node { manager: Some(next), ..node.clone() })
    })
    .await
}

/// Writes what `next` says of each node; whether anything was written.
async fn write(
    tenure: &Tenure,
    next: impl Fn(&Node) -> Option<Node> + Send + 'static,
) -> Result<bool, ControlError> {
    let put = move |node: &Arc<Node>| {
        let expect = Expect::Version(node.meta.version);
        next(node).map(|node| Change::Put { object: Object::Node(Box::new(node)), expect })
    };
    tenure
        .shared
        .writer
        .write(move |state, _| {
            let changes: Vec<Change> = state.nodes.values().filter_map(&put).collect();
            let any = !changes.is_empty();
            Ok((changes, any))
        })
        .await
}
