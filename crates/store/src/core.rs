//! Consensus over one opening of the file. It ends with the file's first failure; another one is
//! then made over the file, opened again: see [`crate::life`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::time::timeout;

use crate::ceiling::Ceiling;
use crate::consensus::{Metrics, Raft};
use crate::disk::{Disk, Op};
use crate::error::StoreError;
use crate::leadership::Elections;
use crate::links::Links;
use crate::log_store::LogStore;
use crate::network::Network;
use crate::outside::offloaded;
use crate::peer::{Member, MemberNode};
use crate::state_machine::{Published, StateMachine};
use crate::store::StoreConfig;

/// Log entries between snapshots. Replaying this many takes well under a second at start, and the
/// log stays within tens of megabytes.
const SNAPSHOT_EVERY: u64 = 5_000;
/// Log entries that stay after a snapshot, for members that are only a little behind; large ones
/// would keep hundreds of megabytes.
const LOG_KEPT: u64 = 16;
/// The library's deadline for one append, milliseconds; what takes longer goes on, see
/// [`crate::network`]. Its heartbeats come every one and a half of this, and only renew the others'
/// lease: signs of life are beats, see [`crate::leadership`].
const HEARTBEAT_MS: u64 = 500;
/// How long a vote may take, and for how long after an append a member refuses its own (its lease),
/// milliseconds. The library asks that they are this long and differ; it does not stand by itself.
const ELECTION_MS: (u64, u64) = (501, 502);
/// How long opening may go without applying anything before it fails. The log is bounded, see
/// [`SNAPSHOT_EVERY`]; a machine that needs longer for one batch has another trouble.
const OPEN_PROGRESS: Duration = Duration::from_secs(20);
/// How long the library may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// A record that shows whether the disk takes anything, and its size: more than the file has free
/// by chance.
const TRIAL_RECORD: (&str, usize) = ("trial", 64 << 10);

/// Consensus and the file beneath it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) raft: Raft,
    pub(crate) raft_id: u64,
    pub(crate) links: Arc<Links>,
    pub(crate) disk: Disk,
    pub(crate) elections: Arc<Elections>,
    pub(crate) ceiling: Arc<Ceiling>,
    pub(crate) published: Arc<Published>,
    /// The last entry in the log when it was opened, and the term then.
    last_index: u64,
    first_term: u64,
}

impl Core {
    /// Opens the file, which must be that of member `expected` if one is given, and starts
    /// consensus on it; what it knows is published.
    pub(crate) async fn start(
        config: &StoreConfig,
        expected: Option<u64>,
        published: &Arc<Published>,
    ) -> Result<Self, StoreError> {
        let (dir, medium) = (config.dir.clone(), config.medium.clone());
        let (keyring, outside) = (config.keyring.clone(), Arc::clone(&config.outside));
        let publish = Arc::clone(published);
        let ceiling = Arc::new(Ceiling::new(config.reads));
        let above = Arc::clone(&ceiling);
        let (disk, log, machine, last_index, epoch) = blocking(config, move || {
            let disk = Disk::open(&dir, &keyring, medium.as_ref(), &outside)?;
            let found = disk.member().raft_id;
            if let Some(expected) = expected
                && found != expected
            {
                let path = disk.path().to_owned();
                return Err(StoreError::OtherMember { path, found, expected });
            }
            let log = LogStore::new(disk.clone(), Arc::clone(&above));
            log.look_above()?;
            let machine = StateMachine::load(disk.clone(), publish, above)?;
            let last_index = log.last_index();
            let epoch = disk.epoch()?;
            Ok((disk, log, machine, last_index, epoch))
        })
        .await?;
        let settings = Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            enable_elect: false,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            max_in_snapshot_log_to_keep: LOG_KEPT,
            ..Config::default()
        };
        let settings = settings.validate().map_err(|e| stopped(&e))?;
        let raft_id = disk.member().raft_id;
        let own = Member { node: config.node.to_string(), raft_id };
        let links = Arc::new(Links::new(own, Arc::clone(&config.peers), epoch));
        let network = Network::new(Arc::clone(&links));
        let started = Raft::new(raft_id, Arc::new(settings), network, log, machine).await;
        let started = match started {
            Ok(raft) => {
                let term = raft.with_raft_state(|state| state.vote_ref().leader_id.term).await;
                term.map(|term| (raft, term))
            }
            Err(error) => Err(error),
        };
        match started {
            Ok((raft, first_term)) => {
                let (of, to) = (raft.clone(), Arc::clone(&links));
                let elections = Elections::new(of, to, disk.clone(), Arc::clone(&ceiling));
                let published = Arc::clone(published);
                let this = Self {
                    raft,
                    raft_id,
                    links,
                    disk,
                    elections,
                    ceiling,
                    published,
                    last_index,
                    first_term,
                };
                Ok(this)
            }
            Err(error) => {
                let why = disk.failure().unwrap_or_else(|| stopped(&error));
                disk.close().await;
                Err(why)
            }
        }
    }

    /// Makes this member the only one of a new group, if there is none yet.
    pub(crate) async fn initialize(&self) -> Result<(), StoreError> {
        if !self.is_initialized().await? {
            let node = MemberNode { node: self.links.own.node.clone() };
            let members = BTreeMap::from([(self.raft_id, node)]);
            self.raft.initialize(members).await.map_err(|e| self.why(&e))?;
        }
        Ok(())
    }

    /// Whether there is a group.
    pub(crate) async fn is_initialized(&self) -> Result<bool, StoreError> {
        self.raft.is_initialized().await.map_err(|e| self.why(&e))
    }

    /// Whether this member is the only voter: then whatever is in its log is confirmed.
    pub(crate) async fn is_alone(&self) -> Result<bool, StoreError> {
        let own = self.raft_id;
        let alone = self.raft.with_raft_state(move |state| {
            let group = state.membership_state.effective();
            group.membership().voter_ids().all(|id| id == own)
                && group.membership().voter_ids().next().is_some()
        });
        alone.await.map_err(|e| self.why(&e))
    }

    /// Whether a leader by `metrics` has applied everything of earlier terms, and of this one what
    /// its log held when it was opened.
    pub(crate) fn has_applied(&self, metrics: &Metrics) -> bool {
        metrics.last_applied.is_some_and(|at| {
            at.leader_id.term == metrics.current_term
                && (metrics.current_term > self.first_term || at.index >= self.last_index)
        })
    }

    /// Waits until this member leads and has applied what its log held. Only true for a group of
    /// one: with more, confirmed entries are known only once a leader says so.
    pub(crate) async fn wait_ready(&self) -> Result<(), StoreError> {
        let mut applied = None;
        loop {
            // Nobody else has to be asked. Of one that leads already it is ignored.
            self.raft.trigger().elect().await.map_err(|e| self.why(&e))?;
            let ready = self.shows(|m| {
                m.state == ServerState::Leader
                    && m.current_leader == Some(self.raft_id)
                    && m.last_applied.is_some_and(|id| id.index >= self.last_index)
                    && m.last_applied.map(|id| id.index) == m.last_log_index
            });
            if let Ok(ready) = timeout(OPEN_PROGRESS, ready).await {
                return ready;
            }
            let now = self.raft.metrics().borrow().last_applied;
            if now == applied {
                return Err(self.why(&"nothing that is confirmed was applied for too long"));
            }
            applied = now;
        }
    }

    /// Waits until everything can be read that is known to be confirmed, and the disk takes writes.
    pub(crate) async fn wait_usable(&self) -> Result<(), StoreError> {
        if self.is_alone().await? {
            return self.wait_ready().await;
        }
        let (name, bytes) = TRIAL_RECORD;
        self.disk.write(vec![Op::PutMeta(name, vec![0; bytes])]).await?;
        self.disk.write(vec![Op::PutMeta(name, Vec::new())]).await
    }

    /// Returns once what the library says of itself is as `holds` wants it, or that it has failed.
    pub(crate) async fn shows(&self, holds: impl Fn(&Metrics) -> bool) -> Result<(), StoreError> {
        let mut metrics = self.raft.metrics();
        let shown = metrics.wait_for(|m| m.running_state.is_err() || holds(m)).await;
        match shown {
            Ok(metrics) => match &metrics.running_state {
                Ok(()) => Ok(()),
                Err(fatal) => Err(self.why(fatal)),
            },
            Err(_) => Err(self.why(&"consensus has ended")),
        }
    }

    /// Returns once it has failed, and why.
    pub(crate) async fn failed(&self) -> StoreError {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return self.why(fatal);
            }
            if metrics.changed().await.is_err() {
                return self.why(&"consensus has ended");
            }
        }
    }

    /// The cause of a failure: the file's, if it has one.
    pub(crate) fn why(&self, reason: &dyn std::fmt::Display) -> StoreError {
        match self.disk.failure() {
            Some(StoreError::Disk { problem, .. }) => StoreError::Failing { problem },
            Some(cause) => cause,
            None => stopped(reason),
        }
    }

    /// Stops; the file is closed when this returns.
    pub(crate) async fn stop(&self) {
        self.elections.end();
        // Ignored because: it only fails when the library's task has ended already; one that hangs
        // finds its file closed.
        let _ = timeout(STOP_DEADLINE, self.raft.shutdown()).await;
        self.disk.close().await;
    }
}

pub(crate) fn stopped(reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Stopped { reason: reason.to_string() }
}

/// Runs what may block where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    config: &StoreConfig,
    f: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match offloaded(&*config.outside, f).await {
        Ok(result) => result,
        // The database library panics on some kinds of damage.
        Err(error) => Err(StoreError::Damaged {
            action: "open",
            path: config.dir.clone(),
            problem: error.to_string(),
        }),
    }
}
