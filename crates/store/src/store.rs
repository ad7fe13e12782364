//! The interface.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::change::{Changed, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::Revision;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use crate::core::{Core, blocking, stopped};
use crate::disk::{self, Disk};
use crate::error::StoreError;
use crate::life::Life;
use crate::peer::Member;
use crate::proposer::{self, PROPOSE_DEADLINE, Proposal};
use crate::state_machine::Published;

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
    published: Arc<Published>,
    proposals: mpsc::Sender<Proposal>,
    leads: watch::Receiver<bool>,
    trouble: watch::Receiver<Option<StoreError>>,
    /// The running consensus; another one after each failure of the disk.
    current: Arc<Mutex<Core>>,
    stop: watch::Sender<bool>,
    /// The store's life, which closes the file. It ends when `stop` says so, or is gone.
    life: Mutex<Option<JoinHandle<()>>>,
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
            let member = Member { node: String::new(), raft_id };
            blocking(&config, move || Disk::create(&dir, &member)).await?;
        }
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let core = Core::start(&config, &published).await?;
        let begun = async {
            core.initialize().await?;
            core.wait_ready().await?;
            if *published.revision.borrow() == Revision::default() {
                return Ok(());
            }
            Err(StoreError::Exists { path: config.dir.clone() })
        };
        let store = match begun.await {
            Ok(()) => Self::live(config, core, published),
            Err(error) => {
                core.stop().await;
                return Err(error);
            }
        };
        match store.propose(first).await {
            Ok(_) => Ok(store),
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        }
    }

    /// Opens the store and returns when everything that was ever confirmed is applied.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::Version`],
    /// [`StoreError::Damaged`], [`StoreError::Seal`]… name the file or the record.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let core = Core::start(&config, &published).await?;
        let resumed = async {
            let missing = || StoreError::Missing { path: config.dir.clone() };
            if !core.is_initialized().await? {
                return Err(missing());
            }
            core.wait_ready().await?;
            // A crash between making the store and its first transaction leaves an empty one.
            let empty = *published.revision.borrow() == Revision::default();
            if empty { Err(missing()) } else { Ok(()) }
        };
        match resumed.await {
            Ok(()) => Ok(Self::live(config, core, published)),
            Err(error) => {
                core.stop().await;
                Err(error)
            }
        }
    }

    /// The store over `core`, which leads.
    fn live(config: StoreConfig, core: Core, published: Arc<Published>) -> Self {
        let (proposals, queue) = mpsc::channel(proposer::WAITING_MAX);
        let (lead, leads) = watch::channel(core.leads());
        let (tell, trouble) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let current = Arc::new(Mutex::new(core.clone()));
        let inner = Inner {
            raft_id: config.raft_id,
            published: Arc::clone(&published),
            proposals,
            leads,
            trouble,
            current: Arc::clone(&current),
            stop,
            life: Mutex::default(),
        };
        let life = Life {
            config,
            published,
            proposals: queue,
            leads: lead,
            trouble: tell,
            current,
            stop: stopping,
        };
        *inner.life.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(tokio::spawn(life.run(core)));
        Self(Arc::new(inner))
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
    /// could not take it. Only [`StoreError::NoQuorum`], [`StoreError::Stopped`] and, when the disk
    /// failed during just this write, [`StoreError::Full`] and [`StoreError::Failing`] leave open
    /// whether it happens.
    pub async fn propose(&self, transaction: Transaction) -> Result<Vec<Changed>, StoreError> {
        self.health()?;
        if !*self.0.leads.borrow() {
            self.wait_to_lead().await?;
        }
        match proposer::propose(&self.0.proposals, transaction).await {
            // The writer is gone: with the disk, or for good.
            Err(StoreError::Stopped { reason }) => {
                self.health()?;
                Err(StoreError::Stopped { reason })
            }
            answer => answer,
        }
    }

    /// A member that has just become one learns of its lead a moment later than the library.
    async fn wait_to_lead(&self) -> Result<(), StoreError> {
        let (mut leads, mut trouble) = (self.0.leads.clone(), self.0.trouble.clone());
        let wait = async {
            tokio::select! {
                leads = leads.wait_for(|leads| *leads) => leads.is_ok(),
                _ = trouble.wait_for(Option::is_some) => true,
            }
        };
        match tokio::time::timeout(PROPOSE_DEADLINE, wait).await {
            Ok(true) => self.health(),
            Ok(false) => Err(stopped(&"it was shut down")),
            Err(_) => {
                let leader = self.core().raft.metrics().borrow().current_leader;
                Err(StoreError::NotLeader { leader })
            }
        }
    }

    fn core(&self) -> Core {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the store can write. If not, it is being opened again; what it holds can be read all
    /// the same.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Failing`], [`StoreError::Damaged`]… say what is wrong.
    pub fn health(&self) -> Result<(), StoreError> {
        self.0.trouble.borrow().clone().map_or(Ok(()), Err)
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
        *self.0.leads.borrow()
    }

    /// Follows [`Self::is_leader`]; ends when the store has stopped.
    #[must_use]
    pub fn leader_changes(&self) -> watch::Receiver<bool> {
        self.0.leads.clone()
    }

    /// Writes a snapshot and drops the log behind it. Happens by itself every few thousand
    /// entries; useful before a backup.
    ///
    /// # Errors
    /// [`StoreError::Stopped`], or why the disk did not take it.
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        let core = self.core();
        let applied = core.raft.metrics().borrow().last_applied;
        core.raft.trigger().snapshot().await.map_err(|e| core.why(&e))?;
        let wait = core.raft.wait(Some(SNAPSHOT_DEADLINE));
        let done = wait.metrics(
            |m| {
                m.running_state.is_err()
                    || m.snapshot.map(|id| id.index) >= applied.map(|id| id.index)
            },
            "the snapshot is written",
        );
        let metrics = done.await.map_err(|e| core.why(&e))?;
        metrics.running_state.map_err(|e| core.why(&e))
    }

    /// Stops; the file is closed when this returns. Other handles answer [`StoreError::Stopped`].
    pub async fn shutdown(&self) {
        self.0.stop.send_replace(true);
        let life = self.0.life.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(life) = life
            && let Err(error) = life.await
        {
            tracing::error!(cause = %error, "the store's own task ended early");
        }
    }
}
