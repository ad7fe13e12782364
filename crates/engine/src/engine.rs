//! The engine's handle, and how it finds its containers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use shoal_image::store::ImageStore;
use shoal_life::container::{Command, Stopper};
use shoal_model::fault::{self, Fault as _, FaultKind};
use shoal_model::filter::Filters;
use shoal_model::id::ContainerId;
use shoal_model::name::{Lookup, resolve};
use shoal_model::time::Timestamp;
use shoal_runtime::ContainerRuntime;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attacher::Attacher;
use crate::change::ContainerChange;
use crate::config::{Clock, EngineConfig};
use crate::container::Container;
use crate::error::EngineError;
use crate::events::EventHub;
use crate::exec::Execs;
use crate::owner::Message;
use crate::recover::Damage;
use crate::request::WaitOutcome;
use crate::volumes::Volumes;

/// How far a follower of state changes may fall behind before it has to read everything again.
const CHANGES_LEN: usize = 1_024;

/// The containers, volumes and execs of one node. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: EngineConfig,
    pub clock: Clock,
    pub events: EventHub,
    pub images: ImageStore,
    pub runtime: ContainerRuntime,
    pub attacher: Arc<dyn Attacher>,
    pub volumes: Volumes,
    pub execs: Execs,
    pub changes: broadcast::Sender<ContainerChange>,
    /// Every background task belongs to this tracker and ends when `closing` is cancelled.
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
    /// Cancelled when containers are being stopped for good: nothing starts any more.
    pub stopping: CancellationToken,
    /// Whether restart policies may act, see [`Engine::resume`].
    pub resumed: watch::Sender<bool>,
    /// Bounds threads that read or write containers' roots.
    pub roots: Arc<tokio::sync::Semaphore>,
    /// What could not be read at the start.
    pub damage: Damage,
    /// When the engine was opened, by both clocks.
    opened: (Timestamp, Instant),
    table: Mutex<Table>,
}

/// Containers by id and by name. A name is reserved before its container is complete.
#[derive(Default)]
struct Table {
    by_id: BTreeMap<ContainerId, Arc<Container>>,
    names: BTreeMap<String, ContainerId>,
}

/// Which containers a list has, and what it says of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Also those that do not run.
    pub all: bool,
    /// At most so many of the newest, running or not.
    pub limit: Option<usize>,
    /// With sizes.
    pub size: bool,
    /// Docker's filters.
    pub filters: Filters,
}

/// A registered wait: the answer comes later, but no end after the registration is missed.
#[derive(Debug)]
pub struct WaitHandle {
    pub(crate) outcome: oneshot::Receiver<WaitOutcome>,
}

impl WaitHandle {
    /// Waits for the end.
    ///
    /// # Errors
    /// The engine shut down before.
    pub async fn outcome(self) -> Result<WaitOutcome, EngineError> {
        self.outcome.await.map_err(|_| EngineError::ShuttingDown)
    }
}

/// The parts that an engine is made of.
pub(crate) struct Parts {
    pub config: EngineConfig,
    pub clock: Clock,
    pub images: ImageStore,
    pub runtime: ContainerRuntime,
    pub attacher: Arc<dyn Attacher>,
    pub volumes: Volumes,
    pub damage: Damage,
}

impl Engine {
    pub(crate) fn new(parts: Parts) -> Self {
        let opened = ((parts.clock)(), Instant::now());
        Self {
            inner: Arc::new(Inner {
                opened,
                events: EventHub::new(Arc::clone(&parts.clock)),
                config: parts.config,
                clock: parts.clock,
                images: parts.images,
                runtime: parts.runtime,
                attacher: parts.attacher,
                volumes: parts.volumes,
                execs: Execs::default(),
                changes: broadcast::channel(CHANGES_LEN).0,
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
                stopping: CancellationToken::new(),
                resumed: watch::Sender::new(false),
                roots: Arc::new(tokio::sync::Semaphore::new(crate::root::ROOTS_MAX)),
                damage: parts.damage,
                table: Mutex::default(),
            }),
        }
    }

    /// Events of this node; others may publish theirs in it.
    #[must_use]
    pub fn events(&self) -> &EventHub {
        &self.inner.events
    }

    /// Every later change of a container's state. A receiver that lags reads
    /// [`Self::statuses`] again.
    #[must_use]
    pub fn changes_feed(&self) -> broadcast::Receiver<ContainerChange> {
        self.inner.changes.subscribe()
    }

    /// The facts that changes carry, of one container.
    ///
    /// # Errors
    /// No such container.
    pub async fn status(&self, word: &str) -> Result<ContainerChange, EngineError> {
        Ok(self.find(word)?.facts(false))
    }

    /// The facts that changes carry, of all containers.
    pub async fn statuses(&self) -> Vec<ContainerChange> {
        self.all().iter().map(|container| container.facts(false)).collect()
    }

    /// What could not be read when the engine was opened: each names the file and the reason.
    #[must_use]
    pub fn damaged(&self) -> &[EngineError] {
        &self.inner.damage.errors
    }

    /// What is wrong now: damage that was found when the engine was opened, and work for containers
    /// that failed and is tried again. One line each, for `info`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let damaged = self.inner.damage.errors.iter().filter(|error| match error {
            // What was mended or removed meanwhile is no longer worth a word.
            EngineError::Record { path, .. } | EngineError::Io { path, .. } => path.exists(),
            _ => true,
        });
        let mut lines: Vec<String> =
            damaged.map(|error| format!("DAMAGED: {}", fault::report(error))).collect();
        for container in self.all() {
            for text in container.problems() {
                lines.push(format!("OWED: container {}: {text}", container.name()));
            }
        }
        lines
    }

    /// Whether the last end of a container was the daemon's own stop: neither its program's nor
    /// anybody's wish, so no completion of what it is for.
    ///
    /// # Errors
    /// No such container.
    pub fn stopped_by_daemon(&self, word: &str) -> Result<bool, EngineError> {
        let stopper = self.find(word)?.read(|record| record.run.life.stopper);
        Ok(stopper == Stopper::Daemon)
    }

    /// Whether `word` means a container of this node, or several.
    #[must_use]
    pub fn knows(&self, word: &str) -> bool {
        !self.find(word).is_err_and(|error| error.kind() == FaultKind::NotFound)
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.inner.clock)()
    }

    /// The wall clock as it was when the engine was opened, and the time since: never goes back.
    pub(crate) fn steady(&self) -> Timestamp {
        let (wall, instant) = self.inner.opened;
        wall.plus(instant.elapsed())
    }

    /// Does something that its caller cannot cut off: a client that goes away, and with it the
    /// future that waits here, changes nothing.
    pub(crate) async fn owned<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.spawn(async move {
            // Ignored because: who went away does not need to know.
            let _ = answer.send(work.await);
        });
        answered.await.unwrap_or_else(|_| Err(self.cut_off()))
    }

    /// Sends a command to a container's owner, and waits for the answer.
    pub(crate) async fn command(
        &self,
        container: &Container,
        command: Command,
    ) -> Result<(), EngineError> {
        let (answer, answered) = oneshot::channel();
        if container.send(Message::Command(command, answer)).await
            && let Ok(answer) = answered.await
        {
            return answer;
        }
        if self.inner.closing.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        Err(EngineError::NoSuchContainer { word: container.id.to_string() })
    }

    fn cut_off(&self) -> EngineError {
        if self.inner.closing.is_cancelled() {
            return EngineError::ShuttingDown;
        }
        EngineError::Worker { action: "work for a container" }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All containers, by id.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.table().by_id.values().cloned().collect()
    }

    /// Finds a container by id, name or unique beginning of an id.
    pub(crate) fn find(&self, word: &str) -> Result<Arc<Container>, EngineError> {
        let word = word.strip_prefix('/').unwrap_or(word);
        let table = self.table();
        // What is whole is found at once; only a beginning of an id takes a look at all.
        let exact = table.by_id.get(&ContainerId::new(word)).or_else(|| {
            let id = table.names.get(word)?;
            table.by_id.get(id)
        });
        if let Some(container) = exact {
            return Ok(Arc::clone(container));
        }
        let pairs = table.names.iter().filter_map(|(name, id)| {
            let container = table.by_id.get(id)?;
            Some((id.as_str(), name.as_str(), container))
        });
        match resolve(word, pairs) {
            Lookup::Found(container) => Ok(Arc::clone(container)),
            Lookup::Missing => Err(EngineError::NoSuchContainer { word: word.to_owned() }),
            Lookup::Ambiguous { .. } => Err(EngineError::Ambiguous { word: word.to_owned() }),
        }
    }

    /// Takes a name for a container that is being made.
    pub(crate) fn reserve(&self, name: &str, id: &ContainerId) -> Result<(), EngineError> {
        let mut table = self.table();
        if let Some(holder) = table.names.get(name) {
            let id = holder.to_string();
            return Err(EngineError::NameTaken { name: name.to_owned(), id });
        }
        table.names.insert(name.to_owned(), id.clone());
        Ok(())
    }

    /// Gives a reserved name back.
    pub(crate) fn release_name(&self, name: &str, id: &ContainerId) {
        let mut table = self.table();
        if table.names.get(name) == Some(id) {
            table.names.remove(name);
        }
    }

    /// Adds a container whose name is reserved.
    pub(crate) fn insert(&self, container: Arc<Container>) {
        self.table().by_id.insert(container.id.clone(), container);
    }

    /// Forgets a container and its name.
    pub(crate) fn forget(&self, container: &Container) {
        let mut table = self.table();
        table.by_id.remove(&container.id);
        table.names.retain(|_, id| *id != container.id);
    }

    /// Writes a container's record. Its owner does so whenever something has changed.
    pub(crate) async fn save(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let container = Arc::clone(container);
        brief("write a record", move || container.persist()).await
    }

    /// Tells the followers.
    pub(crate) fn publish(&self, container: &Container, removed: bool) {
        // Ignored because: nobody needs to follow.
        let _ = self.inner.changes.send(container.facts(removed));
    }

    /// Runs a task that ends with the engine.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.inner.closing.clone();
        self.inner.tasks.spawn(async move {
            closing.run_until_cancelled(task).await;
        });
    }
}

/// How many pieces of brief blocking work run at once. They wait for the disk, so more would not be
/// faster; each of hundreds of threads would keep a stack and an arena of the allocator.
const BRIEF_MAX: usize = 16;

static BRIEF: Semaphore = Semaphore::const_new(BRIEF_MAX);

/// Runs blocking work that every container needs and that takes milliseconds.
pub(crate) async fn brief<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    // Ignored because: nobody closes it.
    let _permit = BRIEF.acquire().await;
    blocking(action, work).await
}

/// Runs blocking work on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(EngineError::Worker { action }))
}
