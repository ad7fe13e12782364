//! The state in memory, its publication, and its snapshots on disk.

use std::io::Cursor;
use std::sync::{Arc, PoisonError, RwLock};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder, Snapshot};
use serde::{Deserialize, Serialize};
use shoal_model::change::Object;
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::Revision;
use tokio::sync::{broadcast, watch};

use crate::ceiling::Ceiling;
use crate::consensus::{
    Answer, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, Types, apply_failed,
    read_failed, write_failed,
};
use crate::disk::{Disk, Op};
use crate::error::StoreError;
use crate::log_store::encode;
use crate::record::{HeadRecord, LogIdRecord, RecordError};
use crate::store::ChangeEvent;

/// Bytes of one piece of a snapshot: values far below what the file format allows.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// What readers see.
pub(crate) struct Published {
    pub(crate) state: watch::Sender<Arc<ClusterState>>,
    pub(crate) revision: watch::Sender<Revision>,
    /// `None` once the store has stopped, so that followers come to an end.
    changes: RwLock<Option<broadcast::Sender<ChangeEvent>>>,
}

impl Published {
    /// Nothing yet; followers may be `kept` events behind.
    pub(crate) fn new(kept: usize) -> Self {
        Self {
            state: watch::Sender::default(),
            revision: watch::Sender::default(),
            changes: RwLock::new(Some(broadcast::Sender::new(kept))),
        }
    }

    /// Follows from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<ChangeEvent> {
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        match changes.as_ref() {
            Some(sender) => sender.subscribe(),
            // Its sender is gone at once: the follower sees the end.
            None => broadcast::channel(1).1,
        }
    }

    /// Ends every follower.
    pub(crate) fn end(&self) {
        self.changes.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn tell(&self, event: ChangeEvent) {
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = changes.as_ref() {
            // Ignored because: nobody follows right now.
            let _ = sender.send(event);
        }
    }
}

/// A snapshot's content.
#[derive(Serialize, Deserialize)]
pub(crate) struct Content {
    /// The lowest level that can read it; first, see [`level_of`](crate::record::level_of).
    #[serde(default)]
    pub(crate) level: u32,
    pub(crate) revision: Revision,
    pub(crate) objects: Vec<Object>,
}

impl Content {
    pub(crate) fn of(state: &ClusterState) -> Self {
        Self { level: state.level(), revision: state.revision, objects: state.objects() }
    }
}

/// The state machine.
pub(crate) struct StateMachine {
    disk: Disk,
    published: Arc<Published>,
    ceiling: Arc<Ceiling>,
    state: ClusterState,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl StateMachine {
    /// From the last snapshot on disk, or empty.
    pub(crate) fn load(
        disk: Disk,
        published: Arc<Published>,
        ceiling: Arc<Ceiling>,
    ) -> Result<Self, StoreError> {
        let mut this = Self {
            disk,
            published,
            ceiling,
            state: ClusterState::default(),
            applied: None,
            membership: StoredMembership::default(),
        };
        if let Some((meta, bytes)) = stored_snapshot(&this.disk, this.ceiling.reads())? {
            this.restore(&meta, &bytes)?;
        }
        this.publish();
        Ok(this)
    }

    fn restore(&mut self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<(), StoreError> {
        let content: Content = self.disk.decode("snapshot", bytes)?;
        self.state = ClusterState::restore(content.revision, content.objects);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    /// The state first, then the revision: who wakes at the revision finds at least that state. A
    /// store that was opened again comes from its snapshot: nobody is shown what is older than what
    /// was shown before.
    fn publish(&self) {
        if self.state.revision < *self.published.revision.borrow() {
            return;
        }
        self.published.state.send_replace(Arc::new(self.state.clone()));
        self.published.revision.send_replace(self.state.revision);
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(Answer, Vec<ChangeEvent>), StoreError> {
        let mut events = Vec::new();
        if self.ceiling.is_stopped() {
            return Ok((Answer::new(), events));
        }
        let answer = match entry.payload {
            EntryPayload::Blank => Answer::new(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answer::new()
            }
            EntryPayload::Normal(payload) => {
                let revision = Revision(entry.log_id.index);
                let transactions = match payload.decode(self.ceiling.reads()) {
                    Ok(transactions) => transactions,
                    Err(RecordError::Level { found, reads }) => {
                        self.stop(entry.log_id.index, found, reads);
                        return Ok((Answer::new(), events));
                    }
                    Err(e) => {
                        let what = format!("the log entry {}", entry.log_id.index);
                        return Err(self.disk.unfit("apply the log of", &what, &e));
                    }
                };
                let before = self.state.level();
                let apply = |transaction| self.state.apply(revision, transaction);
                let answer: Answer = transactions.iter().map(apply).collect();
                if self.state.level() > before {
                    let level = self.state.level();
                    tracing::info!(level, "the cluster writes another format from here on");
                }
                events.extend(answer.iter().flatten().map(|changes| ChangeEvent::Applied {
                    revision,
                    changes: Arc::new(changes.clone()),
                }));
                answer
            }
        };
        self.applied = Some(entry.log_id);
        Ok((answer, events))
    }

    /// Applies nothing from the entry `index` on. The library goes on with the log, and is answered
    /// for each entry as if it were applied: what it would wait for it would keep in memory.
    fn stop(&self, index: u64, found: u32, reads: u32) {
        tracing::error!(
            entry = index,
            "upgrade this manager: the cluster writes format {found}, this program reads up to \
             {reads}; nothing is applied here until then"
        );
        self.ceiling.stop(index, found);
    }
}

fn stored_snapshot(disk: &Disk, reads: u32) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
    let Some(stored) = disk.snapshot()? else { return Ok(None) };
    let head: HeadRecord = disk.decode("snapshot's description", &stored.description)?;
    let meta = head
        .meta(reads)
        .map_err(|e| disk.unfit("read the snapshot of", "the snapshot's description", &e))?;
    Ok(Some((meta, stored.content)))
}

async fn store_snapshot(
    disk: &Disk,
    meta: &SnapshotMeta,
    level: u32,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let pieces = bytes.chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect();
    let head = HeadRecord::new(meta, level);
    let description = encode("snapshot's description", &head)?;
    disk.write(vec![Op::PutSnapshot { last: head.last, description, pieces }]).await
}

/// Builds one snapshot of the state as it was when this was made.
pub(crate) struct Builder {
    disk: Disk,
    ceiling: Arc<Ceiling>,
    state: ClusterState,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let last = self.applied.map(LogIdRecord::from);
        if self.ceiling.is_stopped() && self.disk.held().snapshot == last {
            // The library asks again and again, and there is nothing new.
            if let Some(known) = current(&self.disk, self.ceiling.reads()).await? {
                return Ok(known);
            }
        }
        let (state, level) = (self.state.clone(), self.state.level());
        let encoded = self.disk.offload(move || encode("snapshot", &Content::of(&state)));
        let bytes = encoded.await.and_then(|r| r).map_err(|e| write_failed(&e))?;
        let at = self.applied.map_or_else(|| "empty".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            // Two snapshots of one place may differ in bytes (order of maps): tell them apart.
            snapshot_id: format!("{at}-{:016x}", self.disk.outside().random()),
        };
        let stored = store_snapshot(&self.disk, &meta, level, &bytes).await;
        stored.map_err(|e| write_failed(&e))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
    }
}

/// The snapshot that is on disk.
async fn current(disk: &Disk, reads: u32) -> Result<Option<Snapshot<Types>>, StorageError> {
    let stored = disk.clone();
    let read = disk.offload(move || stored_snapshot(&stored, reads));
    let read = read.await.and_then(|r| r).map_err(|e| read_failed(&e))?;
    Ok(read.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) }))
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut answers = Vec::new();
        let mut events = Vec::new();
        let told = *self.published.revision.borrow();
        for entry in entries {
            let at = entry.log_id;
            let applied = self.apply_entry(entry);
            let (answer, mut more) = applied.map_err(|e| apply_failed(at, &e))?;
            answers.push(answer);
            // Who follows has heard of what a store that was opened again goes through once more.
            if self.state.revision > told {
                events.append(&mut more);
            }
        }
        if !events.is_empty() {
            self.publish();
        }
        for event in events {
            self.published.tell(event);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            disk: self.disk.clone(),
            ceiling: Arc::clone(&self.ceiling),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        self.restore(meta, &bytes).map_err(|e| read_failed(&e))?;
        let stored = store_snapshot(&self.disk, meta, self.state.level(), &bytes).await;
        stored.map_err(|e| write_failed(&e))?;
        self.publish();
        self.published.tell(ChangeEvent::Missed { count: 0 });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        current(&self.disk, self.ceiling.reads()).await
    }
}
