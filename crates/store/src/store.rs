//! The interface.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::change::{Changed, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NodeId, Revision};
use shoal_model::level;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::consensus::Metrics;
use crate::core::{Core, blocking, stopped};
use crate::disk::{self, Disk, KeyStep};
use crate::door::{Coming, Door};
use crate::epoch::Epoch;
use crate::error::StoreError;
use crate::group::{Group, GroupStep};
use crate::keyring::Keyring;
use crate::lead::{Lead, SILENCE, Signs};
use crate::life::Life;
use crate::medium::OpenMedium;
use crate::outside::{Machine, Outside};
use crate::peer::{Member, Peers};
use crate::proposer::{self, PROPOSE_DEADLINE, Proposal};
use crate::reach::LogEnd;
use crate::read::Reads;
use crate::state_machine::Published;
use crate::unlock::UnlockKey;

/// How long a snapshot that was asked for may take.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(30);
/// Events that a slow reader may be behind before it is told to read the state again.
const CHANGES_KEPT: usize = 1024;
/// The first manager's number in the group.
pub const FIRST_RAFT_ID: u64 = 1;

/// Where a store lives, on which node, and how it reaches other members of its group.
#[derive(Clone)]
pub struct StoreConfig {
    /// The directory; made if it is not there (mode 0700).
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// The way to the other managers.
    pub peers: Arc<dyn Peers>,
    /// What the file is sealed with, and who gave the key to that.
    pub keyring: Keyring,
    /// What lies in place of the file, once it is made; tests say so.
    pub medium: Option<OpenMedium>,
    /// Where what may block is done, and chance.
    pub outside: Arc<dyn Outside>,
    /// The highest level that is read: the program's, unless tests say otherwise.
    pub reads: u32,
}

impl StoreConfig {
    /// A store in files below `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, node: NodeId, peers: Arc<dyn Peers>) -> Self {
        let keyring = Keyring::of(&dir);
        let outside: Arc<dyn Outside> = Arc::new(Machine);
        Self { dir, node, peers, keyring, medium: None, outside, reads: level::READS }
    }
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dir, node, .. } = self;
        f.debug_struct("StoreConfig").field("dir", dir).field("node", node).finish_non_exhaustive()
    }
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
    keyring: Keyring,
    dir: PathBuf,
    published: Arc<Published>,
    proposals: mpsc::Sender<Proposal>,
    lead: watch::Receiver<Lead>,
    group: watch::Receiver<Group>,
    led: watch::Receiver<Instant>,
    applied: watch::Receiver<u64>,
    trouble: watch::Receiver<Option<StoreError>>,
    reads: Reads,
    coming: Arc<Mutex<Option<Coming>>>,
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

    /// Makes a new store with this manager as its only member, and applies `first` to it. It leads
    /// when this returns. After a crash in the middle it may be called again.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is a store with content already.
    pub async fn bootstrap(config: StoreConfig, first: Transaction) -> Result<Self, StoreError> {
        create(&config, FIRST_RAFT_ID, Some(Epoch::begin(0, config.outside.random()))).await?;
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let core = Core::start(&config, None, &published).await?;
        let exists = || StoreError::Exists { path: config.dir.clone() };
        let begun = async {
            if core.raft_id != FIRST_RAFT_ID {
                return Err(exists());
            }
            core.initialize().await?;
            if !core.is_alone().await? {
                return Err(exists());
            }
            core.wait_ready().await?;
            let empty = *published.revision.borrow() == Revision::default();
            if empty { Ok(()) } else { Err(exists()) }
        };
        let store = match begun.await {
            Ok(()) => Self::live(config, core, published),
            Err(error) => {
                core.stop().await;
                return Err(error);
            }
        };
        match store.propose(first, Instant::now() + PROPOSE_DEADLINE).await {
            Ok(_) => Ok(store),
            Err(error) => {
                store.shutdown().await;
                Err(error)
            }
        }
    }

    /// Makes a new, empty store for member `raft_id` of a group that exists, and waits for that
    /// group's leader to add it: see [`Self::door`]. After a crash it may be called again.
    ///
    /// # Errors
    /// [`StoreError::OtherMember`] if there is a store of another member.
    pub async fn join(config: StoreConfig, raft_id: u64) -> Result<Self, StoreError> {
        if raft_id <= FIRST_RAFT_ID {
            let problem = format!("number {raft_id} is not one of a member that joins");
            return Err(StoreError::Group { problem });
        }
        create(&config, raft_id, None).await?;
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let core = Core::start(&config, Some(raft_id), &published).await?;
        Ok(Self::live(config, core, published))
    }

    /// Opens the store and returns when it can be read: everything is applied that is known here to
    /// be confirmed. Does not wait for a leader, so it needs nobody else.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::Version`],
    /// [`StoreError::Damaged`], [`StoreError::Seal`]… name the file or the record.
    pub async fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let published = Arc::new(Published::new(CHANGES_KEPT));
        let core = Core::start(&config, None, &published).await?;
        let resumed = async {
            let missing = || StoreError::Missing { path: config.dir.clone() };
            if core.is_alone().await? {
                // It is its own majority: all that it holds is confirmed.
                core.wait_ready().await?;
                // A crash between making the store and its first transaction leaves an empty one.
                let empty = *published.revision.borrow() == Revision::default();
                return if empty { Err(missing()) } else { Ok(()) };
            }
            // One that joined may be empty still.
            let known = core.raft_id != FIRST_RAFT_ID || core.is_initialized().await?;
            if known { Ok(()) } else { Err(missing()) }
        };
        match resumed.await {
            Ok(()) => Ok(Self::live(config, core, published)),
            Err(error) => {
                core.stop().await;
                Err(error)
            }
        }
    }

    /// The store over `core`.
    fn live(config: StoreConfig, core: Core, published: Arc<Published>) -> Self {
        let (proposals, queue) = mpsc::channel(proposer::WAITING_MAX);
        let signs = Signs::new();
        let (tell, trouble) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let current = Arc::new(Mutex::new(core.clone()));
        let inner = Inner {
            raft_id: core.raft_id,
            keyring: config.keyring.clone(),
            dir: config.dir.clone(),
            published: Arc::clone(&published),
            proposals,
            lead: signs.lead.subscribe(),
            group: signs.group.subscribe(),
            led: signs.led.subscribe(),
            applied: signs.applied.subscribe(),
            trouble,
            reads: Reads::default(),
            coming: Arc::default(),
            current: Arc::clone(&current),
            stop,
            life: Mutex::default(),
        };
        let life = Life {
            config,
            published,
            proposals: queue,
            signs,
            trouble: tell,
            current,
            stop: stopping,
        };
        *inner.life.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(tokio::spawn(life.run(core)));
        Self(Arc::new(inner))
    }

    /// This manager's number in the group.
    #[must_use]
    pub fn raft_id(&self) -> u64 {
        self.0.raft_id
    }

    /// What its file is sealed with.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    /// Which beginning of the cluster this store goes back to; unknown while it joins.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.core().links.epoch()
    }

    /// What another manager says that takes this one for a stranger: the cluster was recovered
    /// without it, as a rule, or it was removed while it was away.
    #[must_use]
    pub fn stranger(&self) -> Option<String> {
        self.core().links.stranger()
    }

    /// What answers other managers.
    #[must_use]
    pub fn door(&self) -> Door {
        let (current, coming) = (Arc::clone(&self.0.current), Arc::clone(&self.0.coming));
        Door::new(current, coming, self.0.trouble.clone())
    }

    /// Who leads; [`Lead::Closed`] at last.
    #[must_use]
    pub fn lead(&self) -> watch::Receiver<Lead> {
        self.0.lead.clone()
    }

    /// Who is in the group.
    #[must_use]
    pub fn group(&self) -> watch::Receiver<Group> {
        self.0.group.clone()
    }

    /// The applied state. Taking it is cheap; it never changes under the reader.
    #[must_use]
    pub fn state(&self) -> Arc<ClusterState> {
        self.0.published.state.borrow().clone()
    }

    /// Applies `what`, whole or not at all. When it returns `Ok`, the change is confirmed by a
    /// majority, on their disks, applied here and visible in [`Self::state`]. Answers until `by`;
    /// at once when nobody has led for a second.
    ///
    /// # Errors
    /// [`StoreError::Refused`] says why the state refused it; everything else says why the store
    /// could not take it. Only [`StoreError::NoQuorum`], [`StoreError::Deposed`],
    /// [`StoreError::Stopped`] and, when the disk failed during just this write,
    /// [`StoreError::Full`] and [`StoreError::Failing`] leave open whether it happens.
    pub async fn propose(
        &self,
        what: Transaction,
        by: Instant,
    ) -> Result<Vec<Changed>, StoreError> {
        self.lead_until(by).await?;
        match proposer::propose(&self.0.proposals, what, by).await {
            // The writer is gone: with the disk, or for good.
            Err(StoreError::Stopped { reason }) => {
                self.health()?;
                Err(StoreError::Stopped { reason })
            }
            Err(StoreError::NoQuorum { after, .. }) => {
                Err(StoreError::NoQuorum { after, missing: self.missing() })
            }
            answer => answer,
        }
    }

    /// The last entry that was confirmed when this was called: a majority said just now that this
    /// member leads. Who has applied that much ([`Self::applied`]) reads what everybody agrees on.
    ///
    /// # Errors
    /// [`StoreError::NotLeader`] and [`StoreError::NoLeader`]; [`StoreError::NoQuorum`] if the
    /// majority did not answer until `by`.
    pub async fn read_index(&self, by: Instant) -> Result<Revision, StoreError> {
        self.lead_until(by).await?;
        let begun = Instant::now();
        let core = self.core();
        match timeout_at(by, self.0.reads.index(&core)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(begun)),
        }
    }

    /// Waits until entry `at_least` is applied here.
    ///
    /// # Errors
    /// [`StoreError::Behind`] if it is not until `by`.
    pub async fn applied(&self, at_least: Revision, by: Instant) -> Result<(), StoreError> {
        let begun = Instant::now();
        let mut applied = self.0.applied.clone();
        match timeout_at(by, applied.wait_for(|now| *now >= at_least.0)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(stopped(&"it was shut down")),
            Err(_) => {
                let now = *self.0.applied.borrow();
                let after = begun.elapsed();
                Err(StoreError::Behind { after, wanted: at_least.0, applied: now })
            }
        }
    }

    /// Does one step of a change of the group. It may be done already. A step whose time is over
    /// may go on all the same: look at [`Self::group`].
    ///
    /// # Errors
    /// [`StoreError::Group`] says why it does not fit; everything else why it could not be written.
    pub async fn change_group(&self, step: GroupStep, by: Instant) -> Result<(), StoreError> {
        self.lead_until(by).await?;
        let begun = Instant::now();
        let core = self.core();
        match timeout_at(by, core.change_group(step)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.late(begun)),
        }
    }

    /// Gives the leadership to the voter `to`, or to the best one, and returns who has it once it
    /// leads. Meanwhile proposals wait; those that wait still are refused as by any member that
    /// does not lead. This member leads again if nobody takes it.
    ///
    /// # Errors
    /// [`StoreError::HandOver`] says why it stays, [`StoreError::NotLeader`] that this member does
    /// not lead anyway.
    pub async fn hand_over(&self, to: Option<u64>, by: Instant) -> Result<Member, StoreError> {
        self.lead_until(by).await?;
        let begun = Instant::now();
        let core = self.core();
        match timeout_at(by, core.elections.hand_over(to)).await {
            Ok(Ok(leader)) => Ok(core.member(&core.raft.metrics().borrow(), leader)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let after = begun.elapsed().as_millis();
                let problem = format!("nobody took it within {after} ms");
                Err(StoreError::HandOver { problem })
            }
        }
    }

    /// Where the logs of this member and of the others end, as far as these answer within `limit`.
    /// Of members without a majority only the one whose log ends last has for certain all that was
    /// acknowledged of what any of them has.
    pub async fn reach(&self, limit: Duration) -> Vec<(Member, LogEnd)> {
        self.core().reach(limit).await
    }

    fn late(&self, begun: Instant) -> StoreError {
        StoreError::NoQuorum { after: begun.elapsed(), missing: self.missing() }
    }

    /// Voters that were not heard lately, as far as this member knows.
    fn missing(&self) -> Vec<Member> {
        if let Lead::Nobody { missing, .. } = &*self.0.lead.borrow() {
            return missing.clone();
        }
        let group = self.0.group.borrow();
        // Only a leader knows.
        if group.heard.is_empty() && group.behind.is_empty() {
            return Vec::new();
        }
        let silent = |member: &&Member| {
            member.raft_id != self.0.raft_id && !group.heard.contains(&member.raft_id)
        };
        group.voters.iter().filter(silent).cloned().collect()
    }

    /// Returns when this member leads, waiting for an election that is due. Fails when another one
    /// leads, and when nobody has led for too long.
    async fn lead_until(&self, by: Instant) -> Result<(), StoreError> {
        let (mut lead, mut trouble) = (self.0.lead.clone(), self.0.trouble.clone());
        loop {
            self.health()?;
            let end = *self.0.led.borrow() + SILENCE;
            let now = Instant::now();
            match &*lead.borrow_and_update() {
                Lead::Leading { .. } => return Ok(()),
                Lead::Following { leader, .. } => {
                    return Err(StoreError::NotLeader { leader: Some(leader.clone()) });
                }
                Lead::Nobody { missing, .. } if now >= end || now >= by => {
                    let after = SILENCE.saturating_sub(end.saturating_duration_since(now));
                    return Err(StoreError::NoLeader { after, missing: missing.clone() });
                }
                Lead::Nobody { .. } => {}
                Lead::Closed => return Err(stopped(&"it was shut down")),
            }
            tokio::select! {
                biased;
                // Ignored because: the life says Closed before it drops these.
                _ = lead.changed() => {}
                _ = trouble.changed() => {}
                () = sleep_until(end.min(by)) => {}
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
    /// [`StoreError::Full`], [`StoreError::Failing`], [`StoreError::Damaged`]… say what is wrong;
    /// [`StoreError::NeedsUpgrade`] that the cluster writes what this program cannot read: what
    /// came before that can be read.
    pub fn health(&self) -> Result<(), StoreError> {
        self.0.trouble.borrow().clone().map_or(Ok(()), Err)?;
        self.needs_upgrade().map_or(Ok(()), Err)
    }

    /// That this manager has to be upgraded, if it has: see [`Self::health`].
    #[must_use]
    pub fn needs_upgrade(&self) -> Option<StoreError> {
        self.core().ceiling.problem(&self.0.dir)
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

    /// Writes a snapshot and drops the log behind it. Happens by itself every few thousand
    /// entries; useful before a backup.
    ///
    /// # Errors
    /// [`StoreError::Stopped`], or why the disk did not take it.
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        let core = self.core();
        let applied = core.raft.metrics().borrow().last_applied;
        core.raft.trigger().snapshot().await.map_err(|e| core.why(&e))?;
        let written = |m: &Metrics| m.snapshot.map(|id| id.index) >= applied.map(|id| id.index);
        match timeout(SNAPSHOT_DEADLINE, core.shows(written)).await {
            Ok(shown) => shown,
            Err(_) => Err(core.why(&"the snapshot was not written in time")),
        }
    }

    /// Has the file sealed with a key that nobody had, and that key wrapped by `unlock`, or by
    /// nothing, as the cluster asked for at `revision`: all is on the disk when this returns, and
    /// reading and writing go on meanwhile. The keys of before stay in the key file, for what else
    /// is sealed with them, until [`Self::retire_keys`]. Does nothing if all is so, or if a later
    /// revision asked for what is.
    ///
    /// # Errors
    /// Why the disk did not take it. The store opens with the unlock key of before or with this
    /// one; asked again, it goes on.
    pub async fn renew_keys(
        &self,
        unlock: Option<UnlockKey>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.core().disk.keys(KeyStep::Renew(unlock, revision.0)).await
    }

    /// Drops all keys but the one that the file is sealed with.
    ///
    /// # Errors
    /// As of [`Self::renew_keys`].
    pub async fn retire_keys(&self) -> Result<(), StoreError> {
        self.core().disk.keys(KeyStep::Retire).await
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

/// Makes the file for member `raft_id`, if there is none.
async fn create(
    config: &StoreConfig,
    raft_id: u64,
    epoch: Option<Epoch>,
) -> Result<(), StoreError> {
    if disk::exists(&config.dir) {
        return Ok(());
    }
    let (dir, keyring) = (config.dir.clone(), config.keyring.clone());
    let member = Member { node: config.node.to_string(), raft_id };
    blocking(config, move || Disk::create(&dir, &keyring, &member, epoch)).await
}
