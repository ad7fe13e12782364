//! Keeps the places of services filled: which places there are, and what happens within one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::{Revision, ServiceId, TaskId};
use shoal_model::object::{Meta, NodeState, Service, Task, TaskStatus};
use shoal_model::spec::Extra;
use shoal_model::spec::node::Availability;
use shoal_model::spec::task::TaskSpec;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;

use crate::constraint;
use crate::restart::{self, Verdict};
use crate::slots::{Slot, SlotKey, collect};
use crate::work::Work;
use crate::{jobs, surplus, update, vacate};

/// How long a replacement waits for the end of a task that was told to stop, beyond that task's
/// grace period. Then it starts anyway: its node may hang.
const OLD_TASK_PATIENCE: Duration = Duration::from_secs(60);

/// Brings every service nearer to what it should be.
pub(crate) fn services(work: &mut Work<'_>) {
    let ids: Vec<ServiceId> = work.services.keys().cloned().collect();
    for id in ids {
        if !work.has_room() {
            return;
        }
        one_service(work, &id);
    }
}

fn one_service(work: &mut Work<'_>, id: &ServiceId) {
    let Some(service) = work.services.get(id).cloned() else { return };
    if service.spec.is_job() {
        jobs::run(work, &service);
        return;
    }
    let mut slots = collect(work, &service);
    let wanted = if service.spec.is_global() {
        global_slots(work, &service, &slots)
    } else {
        replicated_slots(work, &service, &slots)
    };
    let mut turns = vacate::turns(work, &service, &slots);
    for key in &wanted {
        if !work.has_room() {
            return;
        }
        settle(work, &service, key, slots.remove(key).unwrap_or_default(), &mut turns);
    }
    update::supervise(work, id, &wanted);
}

/// Chooses the places of a replicated service and marks the others for removal.
fn replicated_slots(
    work: &mut Work<'_>,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot>,
) -> Vec<SlotKey> {
    let replicas = usize::try_from(service.spec.replicas().unwrap_or(0)).unwrap_or(usize::MAX);
    let mut filled: Vec<(&SlotKey, &Slot)> =
        slots.iter().filter(|(key, _)| matches!(key, SlotKey::Number(_))).collect();
    let surplus = filled.len().saturating_sub(replicas);
    if surplus > 0 {
        let given_up = surplus::choose(&filled, surplus);
        for slot in given_up.iter().filter_map(|key| slots.get(key)) {
            for task in &slot.tasks {
                work.want(&task.id, TaskState::Remove);
            }
        }
        filled.retain(|(key, _)| !given_up.contains(*key));
    }
    let taken: BTreeSet<SlotKey> = filled.iter().map(|(key, _)| (*key).clone()).collect();
    let missing = replicas.saturating_sub(taken.len());
    let fresh = (1..=u32::MAX).map(SlotKey::Number).filter(|key| !taken.contains(key));
    // More than fit one transaction come with the next pass.
    let fresh: Vec<SlotKey> = fresh.take(missing.min(shoal_model::change::CHANGES_MAX)).collect();
    taken.into_iter().chain(fresh).collect()
}

/// Chooses the places of a global service and stops the tasks of the others.
fn global_slots(
    work: &mut Work<'_>,
    service: &Service,
    slots: &BTreeMap<SlotKey, Slot>,
) -> Vec<SlotKey> {
    let runs = |key: &SlotKey| slots.get(key).is_some_and(|slot| slot.live().next().is_some());
    let wanted = open_nodes(work, service, runs);
    for (_, slot) in slots.iter().filter(|(key, _)| !wanted.contains(key)) {
        for task in slot.tasks.iter().filter(|t| t.desired_state <= TaskState::Running) {
            work.want(&task.id, TaskState::Shutdown);
        }
    }
    wanted
}

/// The nodes on which a service has a place: those that it suits and that take tasks, or that keep
/// the one they have.
pub(crate) fn open_nodes(
    work: &Work<'_>,
    service: &Service,
    runs: impl Fn(&SlotKey) -> bool,
) -> Vec<SlotKey> {
    let placement = service.spec.task_template.placement.as_ref();
    let mut open = Vec::new();
    for node in work.base().nodes.values() {
        let key = SlotKey::Node(node.id.clone());
        let takes = match (node.status.state, node.spec.availability) {
            (NodeState::Ready, Availability::Active) => true,
            (NodeState::Ready | NodeState::Unknown, Availability::Active | Availability::Pause) => {
                runs(&key)
            }
            _ => false,
        };
        if takes && constraint::node_suits(node, placement) {
            open.push(key);
        }
    }
    open
}

/// Everything that happens within one place, except updates.
fn settle(
    work: &mut Work<'_>,
    service: &Service,
    key: &SlotKey,
    mut slot: Slot,
    turns: &mut usize,
) {
    for task in &slot.tasks {
        if task.status.state.is_terminal() {
            work.want(&task.id, TaskState::Shutdown);
        }
    }
    vacate::place(work, service, key, &mut slot, turns);
    slot.refresh(work);
    if slot.live().next().is_none() {
        refill(work, service, key, &slot);
        return;
    }
    retire_older(work, &slot);
    release_hold(work, &slot);
}

/// Puts a task into a place that has none.
fn refill(work: &mut Work<'_>, service: &Service, key: &SlotKey, slot: &Slot) {
    let Some(last) = slot.newest().cloned() else {
        let spec = restart::spec_for(work, service, None);
        create(work, service, key, spec, Start::Now);
        return;
    };
    let spec = restart::spec_for(work, service, Some(&last));
    // The service has changed since the last task: it gets its chance whatever became of the old.
    let outdated = last.spec_version != spec.1;
    let start_at = match restart::judge(slot, &last, work.now) {
        Verdict::Leave if !outdated => return,
        Verdict::Leave => work.now,
        Verdict::Replace(at) => at,
    };
    let start = if start_at > work.now {
        Start::NotBefore(start_at)
    } else if waits_for_predecessor(work, slot) {
        Start::Held
    } else {
        Start::Now
    };
    create(work, service, key, spec, start);
}

/// Stops the older tasks of a place once the newest one runs.
fn retire_older(work: &mut Work<'_>, slot: &Slot) {
    let Some(primary) = slot.primary() else { return };
    if primary.status.state != TaskState::Running {
        return;
    }
    for task in slot.live().filter(|t| t.id != primary.id) {
        work.want(&task.id, TaskState::Shutdown);
    }
}

/// Lets a prepared task start when its time has come and its place is free.
pub(crate) fn release_hold(work: &mut Work<'_>, slot: &Slot) {
    let held: Vec<_> = slot.live().filter(|t| t.desired_state < TaskState::Running).collect();
    for task in held {
        if task.not_before.is_some_and(|at| !work.due(at)) {
            continue;
        }
        if !waits_for_predecessor(work, slot) {
            work.want(&task.id, TaskState::Running);
        }
    }
}

/// Whether a task of the place that was told to stop may still be running.
pub(crate) fn waits_for_predecessor(work: &mut Work<'_>, slot: &Slot) -> bool {
    let mut waits = false;
    for old in &slot.tasks {
        let stopping = old.desired_state > TaskState::Running && !old.status.state.is_terminal();
        if !stopping || old.status.state < TaskState::Assigned || work.node_is_lost(old) {
            continue;
        }
        let grace = old.spec.container_spec.as_ref().map(|c| c.stop_grace_period());
        let patience = grace.unwrap_or_default() + OLD_TASK_PATIENCE;
        let before = work.base().tasks.get(&old.id);
        let told_before = before.is_some_and(|t| t.desired_state > TaskState::Running);
        let told_at = if told_before { old.meta.updated_at } else { work.now };
        waits |= !work.due(told_at.plus(patience));
    }
    waits
}

/// When a new task may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At once.
    Now,
    /// It is prepared at once and starts when its predecessor has ended.
    Held,
    /// It gets its node no earlier than this.
    NotBefore(Timestamp),
}

/// Makes a task.
pub(crate) fn create(
    work: &mut Work<'_>,
    service: &Service,
    key: &SlotKey,
    (spec, spec_version): (Arc<TaskSpec>, u64),
    start: Start,
) -> Arc<Task> {
    let now = work.now;
    let (slot, node_id) = match key {
        SlotKey::Number(number) => (*number, None),
        SlotKey::Node(node) => (0, Some(node.clone())),
    };
    let (desired_state, not_before) = match start {
        Start::Now => (TaskState::Running, None),
        Start::Held => (TaskState::Ready, None),
        Start::NotBefore(at) => {
            work.wake(at);
            (TaskState::Ready, Some(at))
        }
    };
    let task = Task {
        id: TaskId::generate(work.ids),
        meta: Meta {
            created: Revision::UNWRITTEN,
            created_at: now,
            updated_at: now,
            ..Meta::default()
        },
        service_id: Some(service.id.clone()),
        service_name: service.spec.name.clone(),
        slot,
        node_id,
        spec,
        spec_version,
        endpoint_ports: Vec::new(),
        networks: Vec::new(),
        status: TaskStatus::new(now, TaskState::New, "created"),
        desired_state,
        not_before,
        job_iteration: service.job_status().map(|status| status.iteration),
        assigned_generic_resources: Vec::new(),
        extra: Extra::new(),
    };
    work.add_task(task)
}
