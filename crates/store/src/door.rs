//! What other managers ask of this one.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::Snapshot;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use serde_json::value::RawValue;
use shoal_model::id::NodeId;
use tokio::sync::watch;

use crate::consensus::{SnapshotMeta, Vote};
use crate::core::Core;
use crate::epoch::Epoch;
use crate::error::StoreError;
use crate::peer::Member;
use crate::question::{Ask, Question, Reply, digest, raw};
use crate::record::{HeadRecord, RecordError, VoteRecord};

/// Largest snapshot that is taken: it is in memory while it comes. Far more than a cluster of ten
/// thousand nodes has.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// Answers what other managers ask. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    current: Arc<Mutex<Core>>,
    trouble: watch::Receiver<Option<StoreError>>,
    /// The snapshot that is coming: one at a time, the last that was begun.
    coming: Arc<Mutex<Option<Coming>>>,
}

/// A snapshot of which not everything is here yet.
pub(crate) struct Coming {
    from: u64,
    vote: Vote,
    meta: SnapshotMeta,
    bytes: u64,
    content: Vec<u8>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn new(
        current: Arc<Mutex<Core>>,
        coming: Arc<Mutex<Option<Coming>>>,
        trouble: watch::Receiver<Option<StoreError>>,
    ) -> Self {
        Self(Arc::new(Inner { current, trouble, coming }))
    }

    /// Why the manager `from` cannot be answered, if that is because it goes back to another
    /// beginning of the cluster: a better reason than any other.
    #[must_use]
    pub fn stranger(&self, from: &NodeId, body: &RawValue) -> Option<StoreError> {
        let core = self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let question = serde_json::from_str::<Question>(body.get()).ok()?;
        let own = core.links.epoch().filter(|own| own.id != question.epoch)?;
        Some(stranger(own, from, &question.from))
    }

    /// Answers `body`, which the node `from` sent; who it is must be proven already. On which lane
    /// it came makes no difference.
    ///
    /// # Errors
    /// [`StoreError::Question`] if it cannot be understood or is meant for another member, and
    /// everything that keeps this member from answering.
    pub async fn call(&self, from: &NodeId, body: &RawValue) -> Result<Box<RawValue>, StoreError> {
        if let Some(cause) = self.0.trouble.borrow().clone() {
            return Err(cause);
        }
        let core = self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unfit = |problem: String| StoreError::Question { from: from.to_string(), problem };
        let question: Question =
            serde_json::from_str(body.get()).map_err(|e| unfit(e.to_string()))?;
        core.may_ask(from, &question).map_err(unfit)?;
        core.of_one_epoch(from, &question).await?;
        let reply = core.answer(question, &self.0.coming).await.map_err(|error| match error {
            AnswerError::Unfit(problem) => unfit(problem),
            AnswerError::Store(error) => error,
        })?;
        raw(&reply).map_err(|e| unfit(e.to_string()))
    }
}

impl Core {
    /// Whether asker and asked go back to one beginning of the cluster. Who joins takes that of the
    /// first member who speaks to it.
    async fn of_one_epoch(&self, from: &NodeId, question: &Question) -> Result<(), StoreError> {
        match self.links.epoch() {
            None => self.links.set_epoch(self.disk.join_epoch(question.epoch).await?),
            Some(own) if own.id == question.epoch => {}
            Some(own) => return Err(stranger(own, from, &question.from)),
        }
        Ok(())
    }
}

/// That `from` is of another epoch than `own`.
fn stranger(own: Epoch, from: &NodeId, member: &Member) -> StoreError {
    StoreError::Stranger { from: from.to_string(), left: member.raft_id <= own.since }
}

/// Why there is no answer.
enum AnswerError {
    /// The question cannot be understood.
    Unfit(String),
    /// This member cannot answer.
    Store(StoreError),
}

fn unfit(problem: impl std::fmt::Display) -> AnswerError {
    AnswerError::Unfit(problem.to_string())
}

/// A vote that `from` asks for, or leads by: nobody speaks for another.
fn vote(record: VoteRecord, from: u64) -> Result<Vote, AnswerError> {
    let vote = Vote::try_from(record).map_err(unfit)?;
    if vote.leader_id().voted_for() == Some(from) {
        return Ok(vote);
    }
    Err(unfit(format!("number {from} comes with the vote of another: {vote}")))
}

impl Core {
    /// Asks whether `member` is there.
    pub(crate) async fn ping(&self, member: &Member, limit: Duration) {
        // Anything else is silence.
        if self.links.ping(member, limit).await.is_ok() {
            self.elections.present(member.raft_id);
        }
    }

    /// Whether the node `from` is who the question says, and this member whom it is meant for.
    fn may_ask(&self, from: &NodeId, question: &Question) -> Result<(), String> {
        let Question { from: said, to, .. } = question;
        if said.node != from.as_str() {
            return Err(format!("it was sent in the name of '{}'", said.node));
        }
        if *to != self.raft_id {
            return Err(format!("it is for number {to}, this is number {}", self.raft_id));
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        // One that is not known may have joined a moment ago.
        let known = metrics.membership_config.membership().get_node(&said.raft_id);
        match known {
            Some(node) if !node.node.is_empty() && node.node != said.node => {
                Err(format!("number {} is '{}'", said.raft_id, node.node))
            }
            _ => Ok(()),
        }
    }

    async fn answer(
        &self,
        question: Question,
        coming: &Mutex<Option<Coming>>,
    ) -> Result<Reply, AnswerError> {
        let from = question.from.raft_id;
        match question.ask {
            Ask::Ping {} => Ok(Reply::Pong {}),
            Ask::Reach {} => Ok(Reply::Reach { last: self.disk.last() }),
            Ask::Beat { term, number, mute } => Ok(self.elections.beat(from, term, number, mute)),
            Ask::Probe { term, last } => Ok(self.elections.probed(from, term, last)),
            Ask::Stand { term, last, beat } => {
                self.elections.bidden(from, term, last, beat);
                Ok(Reply::Silent {})
            }
            Ask::Vote { vote: record, last } => {
                let request = VoteRequest::new(vote(record, from)?, last.map(Into::into));
                let answer = self.raft.vote(request).await;
                let answer = answer.map_err(|e| AnswerError::Store(self.why(&e)))?;
                Ok(Reply::Vote {
                    vote: answer.vote.into(),
                    granted: answer.vote_granted,
                    last: answer.last_log_id.map(Into::into),
                })
            }
            Ask::Append { vote: record, prev, entries, commit } => {
                let vote = vote(record, from)?;
                let term = vote.leader_id().term;
                self.elections.appended(from, term);
                let request = AppendEntriesRequest {
                    vote,
                    prev_log_id: prev.map(Into::into),
                    entries: entries.into_iter().map(Into::into).collect(),
                    leader_commit: commit.map(Into::into),
                };
                let answer = self.raft.append_entries(request).await;
                let answer = answer.map_err(|e| AnswerError::Store(self.why(&e)))?;
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    // The library has looked at the clock somewhere in between.
                    self.elections.appended(from, term);
                }
                Ok(match answer {
                    AppendEntriesResponse::Success => Reply::Appended {},
                    AppendEntriesResponse::PartialSuccess(last) => {
                        Reply::AppendedTo { last: last.map(Into::into) }
                    }
                    AppendEntriesResponse::Conflict => Reply::Conflict {},
                    AppendEntriesResponse::HigherVote(vote) => Reply::Higher { vote: vote.into() },
                })
            }
            Ask::Head { vote: record, head, bytes } => {
                let vote = vote(record, from)?;
                self.elections.appended(from, vote.leader_id().term);
                self.begin(coming, from, vote, head, bytes).await
            }
            Ask::Piece { id, offset, data } => take_piece(coming, from, &id, offset, &data),
            Ask::End { id, digest } => self.install(coming, from, &id, &digest).await,
        }
    }

    /// Begins to take a snapshot, if its sender may lead.
    async fn begin(
        &self,
        coming: &Mutex<Option<Coming>>,
        from: u64,
        vote: Vote,
        head: HeadRecord,
        bytes: u64,
    ) -> Result<Reply, AnswerError> {
        if bytes > SNAPSHOT_BYTES_MAX {
            return Err(unfit(format!(
                "a snapshot of {bytes} bytes; at most {SNAPSHOT_BYTES_MAX} are taken"
            )));
        }
        let own = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        let own = own.map_err(|e| AnswerError::Store(self.why(&e)))?;
        if vote < own {
            return Ok(Reply::Installed { vote: own.into() });
        }
        let level = head.level;
        let meta = head.meta(self.ceiling.reads()).map_err(|error| {
            if matches!(error, RecordError::Level { .. }) {
                self.ceiling.refused(level);
            }
            unfit(error)
        })?;
        let next = Coming { from, vote, meta, bytes, content: Vec::new() };
        *coming.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
        Ok(Reply::Next {})
    }

    /// Installs the snapshot that has come.
    async fn install(
        &self,
        coming: &Mutex<Option<Coming>>,
        from: u64,
        id: &str,
        expected: &str,
    ) -> Result<Reply, AnswerError> {
        let whole = coming.lock().unwrap_or_else(PoisonError::into_inner).take();
        let whole = whole.filter(|it| it.from == from && it.meta.snapshot_id == id);
        let Some(Coming { vote, meta, content, .. }) = whole else {
            return Err(unfit("the end of a snapshot that was not begun"));
        };
        let found = digest(&content);
        if found != expected {
            return Err(unfit(format!("a snapshot with digest {expected} came with {found}")));
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(content)) };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await;
        let answer = answer.map_err(|e| AnswerError::Store(self.why(&e)))?;
        Ok(Reply::Installed { vote: answer.vote.into() })
    }
}

/// Takes the next piece of the snapshot that is coming.
fn take_piece(
    coming: &Mutex<Option<Coming>>,
    from: u64,
    id: &str,
    offset: u64,
    piece: &[u8],
) -> Result<Reply, AnswerError> {
    let mut coming = coming.lock().unwrap_or_else(PoisonError::into_inner);
    let known = coming.as_mut().filter(|it| it.from == from && it.meta.snapshot_id == id);
    let Some(Coming { bytes, content, .. }) = known else {
        return Err(unfit("a piece of a snapshot that was not begun"));
    };
    let here = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if offset != here {
        return Err(unfit(format!("a piece from byte {offset}, after {here} bytes")));
    }
    let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
    if here.saturating_add(length) > *bytes {
        return Err(unfit(format!("more than the {bytes} bytes of the snapshot")));
    }
    content.extend_from_slice(piece);
    Ok(Reply::Next {})
}
