//! Moves tasks to nodes that came, or came back: for services that ask for it by a label, so many a
//! minute as it says, one at a time, and only where that makes the service's tasks lie more evenly.
//!
//! A move is made like any other replacement: the new task starts on its node, and once it is
//! healthy the old one stops. What was moved when is read off the tasks, so a new leader goes on
//! likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::{NodeId, TaskId};
use shoal_model::object::{Node, NodeState, Service, Task, UpdateState};
use shoal_model::spec::StringMap;
use shoal_model::spec::node::Availability;
use shoal_model::task_state::TaskState;

use crate::filter::fits;
use crate::orchestrate::{Start, create};
use crate::restart::{self, Condition};
use crate::schedule::{Load, Loads, gather, preference_path};
use crate::slots::{SlotKey, collect};
use crate::vacate::leaves_its_node;
use crate::work::Work;

/// The label of a service that asks for it; its value is how many moves a minute it may take.
pub const LABEL: &str = "shoal.rebalance";

/// Most moves of a service in a minute.
pub const MOVES_PER_MINUTE_MAX: u32 = 60;

/// A place is moved only from where there are so many tasks more: a smaller difference would only
/// change sides.
const DIFFERENCE_MIN: u64 = 2;

/// How many moves a minute the labels of a service ask for.
///
/// # Errors
/// What is wrong with the label.
pub fn moves_per_minute(labels: &StringMap) -> Result<Option<u32>, String> {
    let Some(text) = labels.get(LABEL) else { return Ok(None) };
    match text.parse::<u32>() {
        Ok(0) => Ok(None),
        Ok(moves) if moves <= MOVES_PER_MINUTE_MAX => Ok(Some(moves)),
        _ => Err(format!(
            "invalid label {LABEL}={text}: expected the moves a minute, from 0 to \
             {MOVES_PER_MINUTE_MAX}"
        )),
    }
}

/// Begins the moves whose time has come.
pub(crate) fn services(work: &mut Work<'_>) {
    let asks = |service: &Arc<Service>| {
        service.spec.replicas()?;
        // A label from before they were checked asks for nothing.
        let moves = moves_per_minute(&service.spec.labels).ok().flatten()?;
        Some((service.clone(), Duration::from_secs(60) / moves))
    };
    let asking: Vec<(Arc<Service>, Duration)> = work.services.values().filter_map(asks).collect();
    if asking.is_empty() {
        return;
    }
    let loads = gather(work);
    for (service, pause) in asking {
        if !work.has_room() {
            return;
        }
        let Some(tasks) = settled(work, &service) else { continue };
        let Some((task, target)) = better_place(work, &loads, &tasks) else { continue };
        // Whatever was begun last, for whichever reason: one thing at a time.
        let last = work.tasks_of(&service.id).iter().map(|t| t.meta.created_at).max();
        if last.is_some_and(|at| !work.due(at.plus(pause))) {
            continue;
        }
        let spec = restart::spec_for(work, &service, Some(&task));
        let fresh = create(work, &service, &SlotKey::Number(task.slot), spec, Start::Now);
        send_to(work, &fresh.id, &target);
    }
}

/// From its making on, the task belongs to that node. The scheduler ends it if it does not fit.
fn send_to(work: &mut Work<'_>, task: &TaskId, node: &NodeId) {
    work.edit_task(task, |task| task.node_id = Some(node.clone()));
}

/// The tasks of a service in which nothing else is going on: each place has one, and it runs.
fn settled(work: &Work<'_>, service: &Service) -> Option<Vec<Arc<Task>>> {
    let state = service.update_status.as_ref().map(|status| status.state);
    let rests =
        matches!(state, None | Some(UpdateState::Completed | UpdateState::RollbackCompleted));
    let policy = service.spec.task_template.restart_policy.as_ref();
    if !rests || restart::condition(policy) == Condition::None {
        return None;
    }
    let slots = collect(work, service);
    if slots.len() as u64 != service.spec.replicas()? {
        return None;
    }
    let mut tasks = Vec::new();
    for slot in slots.values() {
        let mut live = slot.live();
        let task = live.next()?;
        let well = task.status.state == TaskState::Running
            && task.spec_version == service.spec_version
            && !leaves_its_node(work, task)
            && !work.node_is_lost(task);
        if !well || live.next().is_some() {
            return None;
        }
        tasks.push(task.clone());
    }
    Some(tasks)
}

/// How many tasks of a service are where a node is.
struct Crowd<'a> {
    node: &'a Arc<Node>,
    load: &'a Load,
    /// The groups of the placement preferences that it belongs to, outermost first.
    groups: Vec<String>,
    /// Tasks in each of these groups, and last on the node itself.
    counts: Vec<u64>,
}

/// A task that would lie better on another node, and that node.
fn better_place<'a>(
    work: &Work<'a>,
    loads: &Loads,
    tasks: &[Arc<Task>],
) -> Option<(Arc<Task>, NodeId)> {
    let any = tasks.first()?;
    let crowds = crowds(work, loads, any);
    let mut last_on: BTreeMap<&NodeId, &Arc<Task>> = BTreeMap::new();
    for task in tasks {
        let node = task.node_id.as_ref()?;
        let known = last_on.entry(node).or_insert(task);
        if known.slot < task.slot {
            *known = task;
        }
    }
    let is_source = |crowd: &&Crowd<'_>| {
        let node = crowd.node;
        // A paused node is left alone, and of one that is away nothing is known.
        node.status.state == NodeState::Ready
            && node.spec.availability == Availability::Active
            && last_on.contains_key(&node.id)
    };
    let mut sources: Vec<&Crowd<'_>> = crowds.iter().filter(is_source).collect();
    sources.sort_by(|a, b| b.counts.cmp(&a.counts));
    let takes = |crowd: &&Crowd<'_>, task: &Task| {
        crowd.load.faults_of(any.service_id.as_ref()) == 0
            && fits(crowd.node, crowd.load, task).is_ok()
    };
    let rank = |crowd: &Crowd<'_>| (crowd.counts.clone(), crowd.load.tasks(), crowd.node.index);
    let mut targets: Vec<&Crowd<'_>> = crowds.iter().filter(|crowd| takes(crowd, any)).collect();
    targets.sort_by_cached_key(|crowd| rank(crowd));
    // Of each group, the emptiest node: the others of it are no better.
    let mut seen: BTreeSet<&[String]> = BTreeSet::new();
    targets.retain(|crowd| seen.insert(crowd.groups.as_slice()));
    for source in sources {
        let Some(task) = last_on.get(&source.node.id) else { continue };
        let better = |target: &&&Crowd<'_>| is_better(source, target) && takes(target, task);
        if let Some(target) = targets.iter().find(better) {
            return Some(((*task).clone(), target.node.id.clone()));
        }
    }
    None
}

/// Whether a task lies better on `target`. What counts is the first level at which the two differ:
/// an outer group of the preferences before what is within it.
fn is_better(source: &Crowd<'_>, target: &Crowd<'_>) -> bool {
    let same = source.groups.iter().zip(&target.groups).take_while(|(a, b)| a == b).count();
    match (source.counts.get(same), target.counts.get(same)) {
        (Some(here), Some(there)) => *here >= there + DIFFERENCE_MIN,
        _ => false,
    }
}

fn crowds<'w, 'l>(work: &Work<'w>, loads: &'l Loads, task: &Task) -> Vec<Crowd<'l>>
where
    'w: 'l,
{
    let service = task.service_id.as_ref();
    let mut crowds: Vec<Crowd<'l>> = Vec::new();
    let mut totals: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for node in work.base().nodes.values() {
        let Some(load) = loads.get(&node.id) else { continue };
        let groups = preference_path(node, task);
        for depth in 1..=groups.len() {
            let group = groups.iter().take(depth).cloned().collect();
            *totals.entry(group).or_default() += load.of_service(service);
        }
        crowds.push(Crowd { node, load, groups, counts: Vec::new() });
    }
    for crowd in &mut crowds {
        let group = |depth: usize| {
            let name: Vec<String> = crowd.groups.iter().take(depth).cloned().collect();
            totals.get(&name).copied().unwrap_or(0)
        };
        crowd.counts = (1..=crowd.groups.len()).map(group).collect();
        crowd.counts.push(crowd.load.of_service(service));
    }
    crowds
}
