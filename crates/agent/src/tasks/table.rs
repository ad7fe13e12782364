//! The owners of this node's tasks, and the latest that each must know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use shoal_engine::change::ContainerChange;
use shoal_life::task::Wish;
use shoal_model::id::{ContainerId, TaskId};
use shoal_model::object::Task;
use shoal_model::task_state::TaskState;
use tokio::sync::watch;

use crate::agent::lock;
use crate::damage::Damage;

/// Longest list of stopped tasks that is read: far above what one node runs.
const LEN_MAX: u64 = 16 * 1024 * 1024;

/// What an owner must know of the world.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// What managers want.
    pub wish: Wish,
    /// Its container as the engine last said, if it ever had one.
    pub container: Option<ContainerChange>,
    /// Whether the daemon goes on.
    pub daemon: Daemon,
}

/// Whether the daemon goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    Runs,
    /// It stops, and its containers with it.
    Stops,
}

/// The owners, and the containers of their tasks.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Mutex<Rows>,
    count: watch::Sender<usize>,
    /// Where the tasks are kept whose containers this daemon stops.
    path: PathBuf,
    /// Those that the daemon before has stopped.
    stopped: BTreeSet<TaskId>,
}

#[derive(Debug)]
struct Rows {
    owners: BTreeMap<TaskId, watch::Sender<Inputs>>,
    containers: BTreeMap<TaskId, ContainerChange>,
    daemon: Daemon,
}

impl Table {
    /// Reads which tasks the daemon before has stopped.
    pub(crate) fn open(dir: &Path, damage: &Damage) -> Self {
        let path = dir.join("stopped.json");
        let stopped = damage.read(&path, LEN_MAX, |_| Ok(())).unwrap_or_default();
        let (owners, containers) = (BTreeMap::new(), BTreeMap::new());
        let rows = Mutex::new(Rows { owners, containers, daemon: Daemon::Runs });
        Self { rows, count: watch::Sender::new(0), path, stopped }
    }

    /// Whether the daemon before stopped the task's container.
    pub(crate) fn was_stopped(&self, task: &TaskId) -> bool {
        self.stopped.contains(task)
    }

    /// Says what managers want of a task. One that is new here needs an owner: what it must know.
    pub(crate) fn want(&self, task: &Task) -> Option<watch::Receiver<Inputs>> {
        let wish = wish(task);
        let mut rows = lock(&self.rows);
        if let Some(owner) = rows.owners.get(&task.id) {
            tell(owner, wish);
            return None;
        }
        let container = rows.containers.get(&task.id).cloned();
        let (owner, inputs) = watch::channel(Inputs { wish, container, daemon: rows.daemon });
        rows.owners.insert(task.id.clone(), owner);
        self.count.send_replace(rows.owners.len());
        Some(inputs)
    }

    /// Tells the owners of all other tasks that nothing of them may stay.
    pub(crate) fn end_all_but<T>(&self, assigned: &BTreeMap<TaskId, T>) {
        let rows = lock(&self.rows);
        for (_, owner) in rows.owners.iter().filter(|(id, _)| !assigned.contains_key(id)) {
            tell(owner, Wish::Gone);
        }
    }

    /// Hears what became of a container.
    pub(crate) fn see(&self, change: ContainerChange) {
        let Some(task) = change.task_id.clone() else { return };
        let mut rows = lock(&self.rows);
        if let Some(owner) = rows.owners.get(&task) {
            owner.send_if_modified(|inputs| {
                let news = inputs.container.as_ref() != Some(&change);
                inputs.container = Some(change.clone());
                news
            });
        }
        if change.removed {
            rows.containers.remove(&task);
        } else {
            rows.containers.insert(task, change);
        }
    }

    /// Hears of all containers; one that is not among them is gone.
    pub(crate) fn see_all(&self, changes: Vec<ContainerChange>) {
        let there: BTreeSet<TaskId> = changes.iter().filter_map(|c| c.task_id.clone()).collect();
        let known: Vec<ContainerChange> = lock(&self.rows).containers.values().cloned().collect();
        for change in changes {
            self.see(change);
        }
        for gone in known {
            if gone.task_id.as_ref().is_some_and(|task| !there.contains(task)) {
                self.see(ContainerChange { removed: true, ..gone });
            }
        }
    }

    /// The container of a task, if it has one.
    pub(crate) fn container_of(&self, task: &TaskId) -> Option<ContainerId> {
        lock(&self.rows).containers.get(task).map(|change| change.id.clone())
    }

    /// All tasks that have a container, with it.
    pub(crate) fn containers(&self) -> Vec<(TaskId, ContainerId)> {
        let rows = lock(&self.rows);
        rows.containers.iter().map(|(task, change)| (task.clone(), change.id.clone())).collect()
    }

    /// An owner has ended.
    pub(crate) fn forget(&self, task: &TaskId) {
        let mut rows = lock(&self.rows);
        rows.owners.remove(task);
        self.count.send_replace(rows.owners.len());
    }

    /// An owner has ended, nobody knows which: one that hears nothing any more.
    pub(crate) fn forget_broken(&self) {
        let mut rows = lock(&self.rows);
        rows.owners.retain(|_, owner| owner.receiver_count() > 0);
        self.count.send_replace(rows.owners.len());
    }

    /// How many tasks have an owner.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The daemon stops: tells the owners, and keeps for the next daemon which tasks it stops.
    /// Blocks.
    pub(crate) fn freeze(&self) {
        let stops: BTreeSet<TaskId> = {
            let mut rows = lock(&self.rows);
            rows.daemon = Daemon::Stops;
            for owner in rows.owners.values() {
                owner.send_modify(|inputs| inputs.daemon = Daemon::Stops);
            }
            let alive = rows.containers.iter().filter(|(_, change)| change.phase.is_alive());
            alive.map(|(task, _)| task.clone()).collect()
        };
        if let Err(error) = shoal_durable::replace_json(&self.path, &stops) {
            tracing::error!(cause = %error, path = %self.path.display(),
                "which tasks the daemon stops could not be kept: they will count as ended");
        }
    }
}

fn tell(owner: &watch::Sender<Inputs>, wish: Wish) {
    owner.send_if_modified(|inputs| {
        let news = wish > inputs.wish;
        inputs.wish = inputs.wish.max(wish);
        news
    });
}

fn wish(task: &Task) -> Wish {
    match task.desired_state {
        state if state < TaskState::Running => Wish::Hold,
        TaskState::Running => Wish::Run,
        _ => Wish::Stop,
    }
}
