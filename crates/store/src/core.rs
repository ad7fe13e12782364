//! Consensus over one opening of the file. It ends with the file's first failure; another one is
//! then made over the file, opened again: see [`crate::life`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, ServerState, SnapshotPolicy};

use crate::consensus::{NoPeers, Raft};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::log_store::LogStore;
use crate::peer::MemberNode;
use crate::state_machine::{Published, StateMachine};
use crate::store::StoreConfig;

/// Log entries between snapshots. Replaying this many takes well under a second at start, and the
/// log stays within tens of megabytes.
const SNAPSHOT_EVERY: u64 = 5_000;
/// Log entries that stay after a snapshot. They are for members that are only a little behind, of
/// which there are none yet; large ones would keep hundreds of megabytes.
const LOG_KEPT: u64 = 16;
/// Time between the leader's heartbeats, milliseconds.
const HEARTBEAT_MS: u64 = 150;
/// Silence after which a member stands for election, milliseconds: three heartbeats at least, and
/// spread so that two seldom stand at once. A new leader within a second is the aim.
const ELECTION_MS: (u64, u64) = (500, 900);
/// How long opening may go without applying anything before it fails. The log is bounded, see
/// [`SNAPSHOT_EVERY`]; a machine that needs longer for one batch has another trouble.
const OPEN_PROGRESS: Duration = Duration::from_secs(20);
/// How long the library may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Consensus and the file beneath it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Core {
    pub(crate) raft: Raft,
    pub(crate) raft_id: u64,
    disk: Disk,
    last_index: u64,
}

impl Core {
    /// Opens the file and starts consensus on it; what it knows is published.
    pub(crate) async fn start(
        config: &StoreConfig,
        published: &Arc<Published>,
    ) -> Result<Self, StoreError> {
        let (dir, raft_id) = (config.dir.clone(), config.raft_id);
        let publish = Arc::clone(published);
        let (disk, log, machine, last_index) = blocking(config, move || {
            let disk = Disk::open(&dir)?;
            let found = disk.member().raft_id;
            if found != raft_id {
                let path = disk.path().to_owned();
                return Err(StoreError::OtherMember { path, found, expected: raft_id });
            }
            let log = LogStore::new(disk.clone());
            let machine = StateMachine::load(disk.clone(), publish)?;
            let last_index = log.last_index();
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
        match raft {
            Ok(raft) => Ok(Self { raft, raft_id, disk, last_index }),
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
            let members = BTreeMap::from([(self.raft_id, MemberNode::default())]);
            self.raft.initialize(members).await.map_err(|e| self.why(&e))?;
        }
        Ok(())
    }

    /// Whether there is a group.
    pub(crate) async fn is_initialized(&self) -> Result<bool, StoreError> {
        self.raft.is_initialized().await.map_err(|e| self.why(&e))
    }

    /// Waits until this member leads and has applied what its log held. Only true for a group of
    /// one: with more, confirmed entries are known only once a leader says so.
    pub(crate) async fn wait_ready(&self) -> Result<(), StoreError> {
        let mut applied = None;
        loop {
            let wait = self.raft.wait(Some(OPEN_PROGRESS));
            let ready = wait.metrics(
                |m| {
                    m.running_state.is_err()
                        || (m.state == ServerState::Leader
                            && m.current_leader == Some(self.raft_id)
                            && m.last_applied.is_some_and(|id| id.index >= self.last_index)
                            && m.last_applied.map(|id| id.index) == m.last_log_index)
                },
                "everything confirmed is applied",
            );
            let error = match ready.await {
                Ok(metrics) => match metrics.running_state {
                    Ok(()) => return Ok(()),
                    Err(fatal) => return Err(self.why(&fatal)),
                },
                Err(error) => error,
            };
            let now = self.raft.metrics().borrow().last_applied;
            if now == applied {
                return Err(self.why(&error));
            }
            applied = now;
        }
    }

    /// Whether this member leads.
    pub(crate) fn leads(&self) -> bool {
        let metrics = self.raft.metrics();
        let now = metrics.borrow();
        now.running_state.is_ok()
            && now.state == ServerState::Leader
            && now.current_leader == Some(self.raft_id)
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
        // Ignored because: it only fails when the library's task has ended already; one that hangs
        // finds its file closed.
        let _ = tokio::time::timeout(STOP_DEADLINE, self.raft.shutdown()).await;
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
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        // The database library panics on some kinds of damage.
        Err(error) => Err(StoreError::Damaged {
            action: "open",
            path: config.dir.clone(),
            problem: error.to_string(),
        }),
    }
}
