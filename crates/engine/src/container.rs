//! One container in memory: its record, its shim, and everybody who waits for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_life::container::{Event, Work};
use shoal_model::id::ContainerId;
use shoal_runtime::{Shim, Streams};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::change::{ContainerChange, HealthStatus, Phase};
use crate::error::EngineError;
use crate::owner::{INBOX, Message, Turn};
use crate::record::{self, Files, Record};
use crate::request::{InjectedFile, WaitCondition, WaitOutcome};

/// How many clients may wait for, or be about to attach to, one container. Each costs a few hundred
/// bytes; more is a client that loops.
const WAITERS_MAX: usize = 4_096;

/// One container. Shared by everything that looks at it; its life is its owner's alone.
pub(crate) struct Container {
    pub id: ContainerId,
    pub dir: PathBuf,
    /// Its owner's, see [`crate::owner`].
    inbox: mpsc::Sender<Message>,
    record: Mutex<Record>,
    /// Orders writers of the record's file: the last one writes the newest record.
    writing: Mutex<()>,
    live: Mutex<Live>,
    waiters: Mutex<Vec<Waiter>>,
}

/// What exists only while this daemon runs.
#[derive(Default)]
pub(crate) struct Live {
    /// The shim of the current run.
    pub shim: Option<Shim>,
    /// Cancelled when the current run ends.
    pub run: CancellationToken,
    /// Clients that attached before the start.
    pub pending: Vec<PendingAttach>,
    /// Files for its memory file system.
    pub files: Vec<InjectedFile>,
    /// Why work that is owed failed the last time.
    pub problems: BTreeMap<Work, String>,
    /// It is gone; whoever still has the handle stops.
    pub gone: bool,
}

/// A client that attached before the start.
pub(crate) struct PendingAttach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Gets the streams just before the process starts.
    pub ready: oneshot::Sender<Streams>,
}

struct Waiter {
    condition: WaitCondition,
    answer: oneshot::Sender<WaitOutcome>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these, and a half-made change would be visible anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// A container, and the inbox of the owner that it must get.
    pub fn new(
        dir: PathBuf,
        record: Record,
        files: Vec<InjectedFile>,
    ) -> (Self, mpsc::Receiver<Message>) {
        let (inbox, messages) = mpsc::channel(INBOX);
        let container = Self {
            id: record.id.clone(),
            dir,
            inbox,
            record: Mutex::new(record),
            writing: Mutex::default(),
            live: Mutex::new(Live { files, ..Live::default() }),
            waiters: Mutex::default(),
        };
        (container, messages)
    }

    /// Tells the owner; says whether there still is one.
    pub async fn send(&self, message: Message) -> bool {
        self.inbox.send(message).await.is_ok()
    }

    /// Tells the owner that something happened, and waits until it has taken note.
    pub async fn report(&self, event: Event) {
        let (noted, note) = oneshot::channel();
        if self.send(Message::Event(event, noted)).await {
            // Ignored because: an owner that just went away needs no news.
            let _ = note.await;
        }
    }

    /// Waits until nothing of the container's life is under way, and keeps it so.
    ///
    /// # Errors
    /// It is gone.
    pub async fn turn(&self) -> Result<Turn, EngineError> {
        let (turn, taken) = oneshot::channel();
        let gone = || EngineError::NoSuchContainer { word: self.id.to_string() };
        if !self.send(Message::Turn(turn)).await {
            return Err(gone());
        }
        taken.await.map_err(|_| gone())
    }

    /// What is owed, and why it failed the last time.
    pub fn problems(&self) -> Vec<String> {
        let owed = self.read(|record| record.run.life.owed());
        self.live(|live| owed.iter().filter_map(|work| live.problems.get(work).cloned()).collect())
    }

    /// Looks at the record.
    pub fn read<R>(&self, look: impl FnOnce(&Record) -> R) -> R {
        look(&lock(&self.record))
    }

    /// Changes the record in memory; [`Self::persist`] writes it.
    pub fn change<R>(&self, change: impl FnOnce(&mut Record) -> R) -> R {
        change(&mut lock(&self.record))
    }

    /// Looks at or changes what exists only now.
    pub fn live<R>(&self, with: impl FnOnce(&mut Live) -> R) -> R {
        with(&mut lock(&self.live))
    }

    /// Writes the record. Blocks.
    pub fn persist(&self) -> Result<(), EngineError> {
        let _order = lock(&self.writing);
        if self.live(|live| live.gone) {
            return Ok(());
        }
        let record = self.read(Record::clone);
        record::write(&self.dir, &record)
    }

    /// Its name, without a slash.
    pub fn name(&self) -> String {
        self.read(|record| record.name.clone())
    }

    pub fn phase(&self) -> Phase {
        self.read(|record| record.run.phase)
    }

    pub fn files(&self) -> Files<'_> {
        Files(&self.dir)
    }

    /// The shim, if a process lives.
    ///
    /// # Errors
    /// Docker's conflict text.
    pub fn running_shim(&self) -> Result<Shim, EngineError> {
        let shim = self.live(|live| live.shim.clone());
        shim.filter(|_| self.phase().is_alive()).ok_or_else(|| self.not_running())
    }

    pub fn not_running(&self) -> EngineError {
        EngineError::conflict(format!("container {} is not running", self.id))
    }

    /// The facts that followers get.
    pub fn facts(&self, removed: bool) -> ContainerChange {
        self.read(|record| ContainerChange {
            id: record.id.clone(),
            name: record.name.clone(),
            task_id: record.task.as_ref().map(|task| task.task_id.clone()),
            phase: record.run.phase,
            removed,
            pid: record.run.pid,
            exit_code: record.run.exit_code,
            error: record.run.error.clone(),
            oom_killed: record.run.oom_killed,
            health: health_status(record),
        })
    }

    /// Registers a wait; answers at once if the condition holds already.
    pub fn wait(
        &self,
        condition: WaitCondition,
    ) -> Result<oneshot::Receiver<WaitOutcome>, EngineError> {
        let (answer, outcome) = oneshot::channel();
        let mut waiters = lock(&self.waiters);
        let holds = condition == WaitCondition::NotRunning
            && self.read(|record| {
                // Until it is cleaned up the end is not complete.
                let over = !record.run.phase.is_alive() && record.run.phase != Phase::Restarting;
                over && !record.run.life.is_cleaning() && !record.run.life.is_starting()
            });
        if holds || self.live(|live| live.gone) {
            // Ignored because: the receiver is in our hands.
            let _ = answer.send(self.outcome());
            return Ok(outcome);
        }
        waiters.retain(|waiter| !waiter.answer.is_closed());
        if waiters.len() >= WAITERS_MAX {
            return Err(EngineError::conflict(format!(
                "{WAITERS_MAX} clients already wait for container {}",
                self.id
            )));
        }
        waiters.push(Waiter { condition, answer });
        Ok(outcome)
    }

    /// Answers the waiters that `met` chooses.
    pub fn answer(&self, met: impl Fn(WaitCondition) -> bool) {
        let mut waiters = lock(&self.waiters);
        let (answered, kept) = waiters.drain(..).partition(|w: &Waiter| met(w.condition));
        *waiters = kept;
        drop(waiters);
        for waiter in answered {
            // Ignored because: a client that went away wants no answer.
            let _ = waiter.answer.send(self.outcome());
        }
    }

    fn outcome(&self) -> WaitOutcome {
        self.read(|record| WaitOutcome {
            status_code: record.run.exit_code,
            error: Some(record.run.error.clone()).filter(|e| !e.is_empty()),
        })
    }

    /// Registers a client that attached before the start.
    pub fn attach_later(&self, pending: PendingAttach) -> Result<(), EngineError> {
        self.live(|live| {
            live.pending.retain(|p| !p.ready.is_closed());
            if live.pending.len() >= WAITERS_MAX || live.gone {
                return Err(EngineError::conflict(format!(
                    "too many clients are attached to container {}",
                    self.id
                )));
            }
            live.pending.push(pending);
            Ok(())
        })
    }
}

/// The health of a container as followers see it.
pub(crate) fn health_status(record: &Record) -> HealthStatus {
    match record.run.health.as_ref().map(|health| health.status.as_str()) {
        None => HealthStatus::None,
        Some("healthy") => HealthStatus::Healthy,
        Some("unhealthy") => HealthStatus::Unhealthy,
        Some(_) => HealthStatus::Starting,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use shoal_model::spec::container::{ContainerConfig, HostConfig, NetworkingConfig};
    use shoal_model::time::Timestamp;

    use super::*;
    use crate::record::{RECORD_VERSION, RunRecord};
    use crate::unikernel::Workload;

    /// A container that never ran, and that nobody owns.
    pub(crate) fn container() -> Container {
        let record = Record {
            version: RECORD_VERSION,
            id: ContainerId::new("c"),
            name: "c".to_owned(),
            created: Timestamp::ZERO,
            image_id: String::new(),
            image: String::new(),
            config: ContainerConfig::default(),
            host: HostConfig::default(),
            networking: NetworkingConfig::default(),
            mounts: Vec::new(),
            task: None,
            workload: Workload::default(),
            run: RunRecord::default(),
        };
        Container::new(PathBuf::new(), record, Vec::new()).0
    }

    #[test]
    fn clients_that_wait_are_counted() {
        let container = container();
        let wait = || container.wait(WaitCondition::Removed);
        let mut waiting: Vec<_> = (0..WAITERS_MAX).map(|_| wait().unwrap()).collect();
        assert!(matches!(wait(), Err(EngineError::Conflict { .. })));
        // Who goes away makes room.
        waiting.truncate(1);
        assert!(wait().is_ok());
    }

    #[test]
    fn clients_that_attach_before_the_start_are_counted() {
        let container = container();
        let attach = || {
            let (ready, streams) = oneshot::channel();
            let pending = PendingAttach { stdin: false, stdout: true, stderr: true, ready };
            container.attach_later(pending).map(|()| streams)
        };
        let mut attached: Vec<_> = (0..WAITERS_MAX).map(|_| attach().unwrap()).collect();
        assert!(matches!(attach(), Err(EngineError::Conflict { .. })));
        attached.truncate(1);
        assert!(attach().is_ok());
    }
}
