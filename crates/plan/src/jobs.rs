//! Jobs: services whose tasks run to completion, each place once in each iteration.
//!
//! Every change of a job's tasks begins its next iteration; tasks of the one before that still run
//! are told to stop, ended ones stay as history. A place is *done* once a task of this iteration
//! has ended well there. One that failed is tried again as the restart policy says, where `any`
//! means `on-failure`: what has ended well is never repeated.

use std::collections::BTreeSet;

use shoal_model::object::{Service, Task};
use shoal_model::spec::service::ReplicatedJob;
use shoal_model::task_state::TaskState;

use crate::orchestrate::{self, Start, create, release_hold};
use crate::restart::{self, Verdict};
use crate::slots::{Slot, SlotKey, collect};
use crate::vacate::leaves_its_node;
use crate::work::Work;

/// Brings a job nearer to its end.
pub(crate) fn run(work: &mut Work<'_>, service: &Service) {
    note_iteration(work, service);
    let mut slots = collect(work, service);
    let job = service.spec.replicated_job();
    let wanted: BTreeSet<SlotKey> = match job {
        Some(job) => numbers(job),
        None => {
            let runs = |key: &SlotKey| slots.get(key).is_some_and(|s| runs_now(service, s));
            orchestrate::open_nodes(work, service, runs).into_iter().collect()
        }
    };
    for (key, slot) in &slots {
        for task in &slot.tasks {
            settle(work, service, wanted.contains(key), key, task);
        }
    }
    let most = job.map_or(usize::MAX, |job| count(job.max_concurrent()));
    let room = most.saturating_sub(busy(work, service));
    let mut begins = Vec::new();
    for key in &wanted {
        if !work.has_room() {
            return;
        }
        let known = slots.remove(key);
        if known.is_none() && begins.len() >= room {
            // It would not have its turn: there may be thousands of them.
            continue;
        }
        let mut slot = known.unwrap_or_default();
        slot.refresh(work);
        if slot.live().next().is_some() {
            release_hold(work, &slot);
        } else if let Some((is_first, start)) = next_attempt(work, service, &slot) {
            begins.push((is_first, key, start));
        }
    }
    // What was begun goes on before anything new begins.
    begins.sort_by_key(|(is_first, key, _)| (*is_first, *key));
    for (_, key, start) in begins.into_iter().take(room) {
        if !work.has_room() {
            return;
        }
        let spec = restart::spec_for(work, service, None);
        create(work, service, key, spec, start);
    }
}

/// Writes down when the iteration began. A job has no update that could go on or end.
fn note_iteration(work: &mut Work<'_>, service: &Service) {
    let status = service.job_status();
    if service.job_status != status || service.update_status.is_some() {
        work.edit_service(&service.id, |service| {
            service.job_status = status;
            service.update_status = None;
        });
    }
}

fn numbers(job: &ReplicatedJob) -> BTreeSet<SlotKey> {
    let total = u32::try_from(job.total_completions()).unwrap_or(u32::MAX);
    (1..=total).map(SlotKey::Number).collect()
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn is_current(service: &Service, task: &Task) -> bool {
    task.spec_version == service.spec_version
}

fn runs_now(service: &Service, slot: &Slot) -> bool {
    slot.live().any(|task| is_current(service, task))
}

/// What is wanted of a task that there is. One that has ended well stays as it is.
fn settle(work: &mut Work<'_>, service: &Service, kept: bool, key: &SlotKey, task: &Task) {
    if !kept && matches!(key, SlotKey::Number(_)) {
        work.want(&task.id, TaskState::Remove);
        return;
    }
    let current = is_current(service, task);
    let failed = task.status.state.is_terminal() && !task.is_done();
    // A task that must leave its node begins anew elsewhere: two of them at a time would do the
    // work twice.
    let moves = task.is_live() && (!kept || leaves_its_node(work, task));
    if !current || failed || moves {
        work.want(&task.id, TaskState::Shutdown);
    }
}

/// When the next attempt at a place without a live task starts, and whether it is the first. `None`
/// if the place is done, or given up.
fn next_attempt(work: &mut Work<'_>, service: &Service, slot: &Slot) -> Option<(bool, Start)> {
    let mut attempts = slot.tasks.iter().filter(|task| is_current(service, task));
    if attempts.clone().any(|task| task.is_done()) {
        return None;
    }
    let last = attempts.next_back().cloned();
    let at = match &last {
        None => work.now,
        Some(last) => match restart::judge(slot, last, work.now) {
            Verdict::Leave => return None,
            Verdict::Replace(at) => at,
        },
    };
    let start = if at > work.now {
        Start::NotBefore(at)
    } else if orchestrate::waits_for_predecessor(work, slot) {
        Start::Held
    } else {
        Start::Now
    };
    Some((last.is_none(), start))
}

/// How many tasks run or are about to, of whichever iteration.
fn busy(work: &Work<'_>, service: &Service) -> usize {
    let counts = |task: &Task| {
        let placed = task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
        (task.is_live() || placed) && !work.node_is_lost(task)
    };
    work.tasks_of(&service.id).iter().filter(|task| counts(task)).count()
}
