//! The interface.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::{BasicNode, Config, ServerState, SnapshotPolicy};
use shoal_model::change::{Changed, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::Revision;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use crate::consensus::{NoPeers, Raft};
use crate::disk::{self, Disk};
use crate::error::StoreError;
use crate::log_store::LogStore;
use crate::proposer::{self, PROPOSE_DEADLINE, Proposal};
use crate::state_machine::{Published, StateMachine};

/// Log entries between snapshots. Replaying this many takes well under a second at start, and the
/// log stays within tens of megabytes.
const SNAPSHOT_EVERY: u64 = 5_000;
/// Log entries that stay after a snapshot, for members that are only a little behind.
const LOG_KEPT: u64 = 500;
/// Time between the leader's heartbeats, milliseconds.
const HEARTBEAT_MS: u64 = 150;
/// Silence after which a member stands for election, milliseconds: three heartbeats at least, and
/// spread so that two seldom stand at once. A new leader within a second is the aim.
const ELECTION_MS: (u64, u64) = (500, 900);
/// How long opening may go without applying anything before it fails. The log is bounded, see
/// [`SNAPSHOT_EVERY`]; a machine that needs longer for one batch has another trouble.
const OPEN_PROGRESS: Duration = Duration::from_secs(20);
/// How long a snapshot that was asked for may take.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(30);
/// Events that a slow reader may be behind before it is told to read the state again.
const CHANGES_KEPT: usize = 1024;

/// Where a store lives and which member it is.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The directory; made if it is not there (mode 0700).
    pub dir: PathBuf,
    /// This manager's number in the consensus group; never used twice in a cluster.
    pub raft_id: u64,
}

/// An applied transaction, or the notice that some were missed.
#[derive(Clone, Debug)]
pub enum ChangeEvent {
    /// Applied at `revision`. Several transactions may share one revision.
    Applied {
        /// The revision.
        revision: Revision,
        /// What changed, in order.
        changes: Arc<Vec<Changed>>,
    },
    /// The reader was too slow: read [`Store::state`] again.
    Missed {
        /// How many events, if known.
        count: u64,
    },
}

/// Follows the applied transactions.
#[derive(Debug)]
pub struct Changes(broadcast::Receiver<ChangeEvent>);

impl Changes {
    /// The next event; `None` when the store has stopped.
    pub async fn next(&mut self) -> Option<ChangeEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(ChangeEvent::Missed { count }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("raft_id", &self.0.raft_id).finish_non_exhaustive()
    }
}

struct Inner {
    raft_id: u64,
    path: PathBuf,
    raft: Raft,
    disk: Disk,
    published: Arc<Published>,
    proposals: mpsc::Sender<Proposal>,
    leader: watch::Receiver<bool>,
    /// The proposer and the leader's watcher; they end with the store.
    tasks: Mutex<JoinSet<()>>,
}

impl Store {
    /// Whether `dir` holds a store.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        disk::exists(dir)
    }

    /// Makes a new store with this manager as its only member, and applies `first` to it. After a
    /// crash in the middle it may be called again.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is a store with content already.
    pub async fn bootstrap(config: StoreConfig, first: Transaction) -> Result<Self, StoreError> {
        if !disk::exists(&config.dir) {
            let StoreConfig { dir, raft_id } = config.clone();
            blocking(move || Disk::create(&dir, raft_id)).await?;
        }
        let (store, last_index) = Self::start(config).await?;
        match store.begin(last_index, first).await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        }
    }

    async fn begin(&self, last_index: u64, first: Transaction) -> Result<(), StoreError> {
        let initialized = self.0.raft.is_initialized().await.map_err(|e| stopped(&e))?;
        if !initialized {
            let members = BTreeMap::from([(self.0.raft_id, BasicNode::default())]);
            self.0.raft.initialize(members).await.map_err(|e| stopped(&e))?;
        }
        self.wait_ready(last_index).await?;
        if self.state().revision != Revision::default() {
            return Err(StoreError::Exists { path: self.0.path.clone() });
        }
        self.propose(first).await.map(|_| ())
    }

    /// Opens the store and returns when everything that was ever confirmed is applied.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::Version`],
    /// [`StoreError::Seal`]… name the file or the record.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let (store, last_index) = Self::start(config).await?;
        match store.resume(last_index).await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        }
    }

    async fn resume(&self, last_index: u64) -> Result<(), StoreError> {
        let missing = || StoreError::Missing { path: self.0.path.clone() };
        if !self.0.raft.is_initialized().await.map_err(|e| stopped(&e))? {
            return Err(missing());
        }
        self.wait_ready(last_index).await?;
        // A crash between making the store and its first transaction leaves an empty one.
        if self.state().revision == Revision::default() { Err(missing()) } else { Ok(()) }
    }

    /// Waits until this member leads and has applied what its log held. Only true for a group of
    /// one: with more, confirmed entries are known only once a leader says so.
    async fn wait_ready(&self, last_index: u64) -> Result<(), StoreError> {
        let me = self.0.raft_id;
        let mut applied = None;
        loop {
            let wait = self.0.raft.wait(Some(OPEN_PROGRESS));
            let ready = wait.metrics(
                |m| {
                    m.state == ServerState::Leader
                        && m.current_leader == Some(me)
                        && m.last_applied.is_some_and(|id| id.index >= last_index)
                        && m.last_applied.map(|id| id.index) == m.last_log_index
                },
                "everything confirmed is applied",
            );
            let Err(error) = ready.await else { return Ok(()) };
            let now = self.0.raft.metrics().borrow().last_applied;
            if now == applied {
                return Err(stopped(&error));
            }
            applied = now;
        }
    }

    async fn start(config: StoreConfig) -> Result<(Self, u64), StoreError> {
        let StoreConfig { dir, raft_id } = config;
        let path = dir.clone();
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let publish = Arc::clone(&published);
        let (disk, log, machine, last_index) = blocking(move || {
            let disk = Disk::open(&dir, raft_id)?;
            let log = LogStore::new(disk.clone());
            let machine = StateMachine::load(disk.clone(), publish)?;
            let last_index = log.last_index()?;
            Ok((disk, log, machine, last_index))
        })
        .await?;
        let settings = Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            ..Config::default()
        };
        let settings = settings.validate().map_err(|e| stopped(&e))?;
        let raft = Raft::new(raft_id, Arc::new(settings), NoPeers, log, machine).await;
        let raft = match raft {
            Ok(raft) => raft,
            Err(error) => {
                disk.close().await;
                return Err(stopped(&error));
            }
        };
        let (proposals, queue) = mpsc::channel(proposer::WAITING_MAX);
        let (lead, leader) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(proposer::run(raft.clone(), queue));
        tasks.spawn(watch_leader(raft.clone(), raft_id, lead));
        let tasks = Mutex::new(tasks);
        let inner = Inner { raft_id, path, raft, disk, published, proposals, leader, tasks };
        Ok((Self(Arc::new(inner)), last_index))
    }

    /// The applied state. Taking it is cheap; it never changes under the reader.
    #[must_use]
    pub fn state(&self) -> Arc<ClusterState> {
        self.0.published.state.borrow().clone()
    }

    /// Applies `transaction`, whole or not at all. When it returns `Ok`, the change is on disk,
    /// applied and visible in [`Self::state`].
    ///
    /// # Errors
    /// [`StoreError::Refused`] says why the state refused it; everything else says why the store
    /// could not take it. Only [`StoreError::NoQuorum`] and [`StoreError::Stopped`] leave open
    /// whether it happens.
    pub async fn propose(&self, transaction: Transaction) -> Result<Vec<Changed>, StoreError> {
        if !*self.0.leader.borrow() {
            // A member that has just become one learns of its lead a moment later than the library.
            let mut leader = self.0.leader.clone();
            let wait = tokio::time::timeout(PROPOSE_DEADLINE, leader.wait_for(|lead| *lead));
            match wait.await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Err(stopped(&"it was shut down")),
                Err(_) => {
                    let now = self.0.raft.metrics().borrow().clone();
                    now.running_state.map_err(|e| stopped(&e))?;
                    return Err(StoreError::NotLeader { leader: now.current_leader });
                }
            }
        }
        proposer::propose(&self.0.proposals, transaction).await
    }

    /// Changes with every applied revision. A receiver that wakes finds at least that state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Revision> {
        self.0.published.revision.subscribe()
    }

    /// Every transaction applied from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.0.published.follow())
    }

    /// Whether this manager leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.0.leader.borrow()
    }

    /// Follows [`Self::is_leader`]; ends when the store has stopped.
    #[must_use]
    pub fn leader_changes(&self) -> watch::Receiver<bool> {
        self.0.leader.clone()
    }

    /// Writes a snapshot and drops the log behind it. Happens by itself every few thousand
    /// entries; useful before a backup.
    ///
    /// # Errors
    /// [`StoreError::Stopped`].
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        let applied = self.0.raft.metrics().borrow().last_applied;
        self.0.raft.trigger().snapshot().await.map_err(|e| stopped(&e))?;
        let wait = self.0.raft.wait(Some(SNAPSHOT_DEADLINE));
        let done = wait.metrics(
            |m| m.snapshot.map(|id| id.index) >= applied.map(|id| id.index),
            "the snapshot is written",
        );
        done.await.map(|_| ()).map_err(|e| stopped(&e))
    }

    /// Stops; the file is closed when this returns. Other handles answer [`StoreError::Stopped`].
    pub async fn shutdown(&self) {
        // Ignored because: it only fails when the library's task has ended already.
        let _ = self.0.raft.shutdown().await;
        let mut tasks = {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
        self.0.published.end();
        self.0.disk.close().await;
    }
}

/// Tells the leader's state to everybody who asks.
async fn watch_leader(raft: Raft, me: u64, lead: watch::Sender<bool>) {
    let mut metrics = raft.metrics();
    loop {
        let leads = {
            let now = metrics.borrow_and_update();
            now.running_state.is_ok()
                && now.state == ServerState::Leader
                && now.current_leader == Some(me)
        };
        lead.send_if_modified(|old| std::mem::replace(old, leads) != leads);
        if metrics.changed().await.is_err() {
            lead.send_if_modified(|old| std::mem::replace(old, false));
            return;
        }
    }
}

/// Runs what may block where it may.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        // The database library panics on some kinds of damage.
        Err(error) => Err(StoreError::Disk {
            action: "open",
            problem: format!("the file is damaged ({error})"),
        }),
    }
}

fn stopped(reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Stopped { reason: reason.to_string() }
}
