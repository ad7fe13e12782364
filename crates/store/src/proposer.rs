//! Takes proposals and puts those that wait at the same time into one log entry, so that one
//! durable commit serves them all. A few entries are under way at once; what one of them waits for
//! does not hold up who cannot wait any longer.

use std::time::Duration;

use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use shoal_model::change::{ApplyError, Changed, Transaction};
use shoal_model::size::json_len;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::consensus::Types;
use crate::core::{Core, stopped};
use crate::error::StoreError;
use crate::lead::Lead;
use crate::record::Payload;

/// How long a write may wait for a leader and a majority when its caller knows no better. A user
/// waits no longer with patience, and Docker's clients give up after 20 s.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Largest transaction, as JSON. Bounds log entries and what one apply may cost; a thousand tasks
/// of a usual size fit.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Proposals that may wait. A disk that needs a second for each batch still answers all in time.
pub(crate) const WAITING_MAX: usize = 1024;
/// Most transactions in one log entry: bounds the time until the first of them is answered.
const BATCH_MAX: usize = 64;
/// Entries under way: enough that the way to the others is never idle, few enough that a leader
/// without a majority has little in its log that nobody confirmed.
const UNDER_WAY_MAX: usize = 4;
/// Log bytes (as JSON) after which a snapshot is taken, however few entries they are: what is
/// replayed at start stays a matter of a second.
const SNAPSHOT_BYTES: usize = 16 << 20;
/// How long a core that drops an entry may take to say that it has failed.
const CAUSE_DEADLINE: Duration = Duration::from_secs(1);

type Applied = Result<Vec<Changed>, ApplyError>;
type Reply = oneshot::Sender<Result<Applied, StoreError>>;

/// One waiting proposal.
pub(crate) struct Proposal {
    transaction: Transaction,
    bytes: usize,
    reply: Reply,
}

impl Proposal {
    /// Answers that it was not written.
    pub(crate) fn refuse(self, why: StoreError) {
        // Ignored because: who has given up does not want the answer.
        let _ = self.reply.send(Err(why));
    }
}

/// Hands `transaction` to the loop and waits for its answer until `by`.
pub(crate) async fn propose(
    queue: &mpsc::Sender<Proposal>,
    transaction: Transaction,
    by: Instant,
) -> Result<Vec<Changed>, StoreError> {
    let bytes = json_len(&transaction)
        .map_err(|e| StoreError::Disk { action: "write to", problem: e.to_string() })?;
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(StoreError::TooLarge { bytes, limit: TRANSACTION_BYTES_MAX });
    }
    let begun = Instant::now();
    let (reply, answer) = oneshot::channel();
    queue.try_send(Proposal { transaction, bytes, reply }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => StoreError::Busy { waiting: WAITING_MAX },
        mpsc::error::TrySendError::Closed(_) => stopped(&"it was shut down"),
    })?;
    match tokio::time::timeout_at(by, answer).await {
        Ok(Ok(result)) => Ok(result??),
        Ok(Err(_)) => Err(stopped(&"it was shut down")),
        Err(_) => Err(StoreError::NoQuorum { after: begun.elapsed(), missing: Vec::new() }),
    }
}

/// Why what waits is not written while `lead` is so; `None` if it is.
fn hindrance(lead: &Lead) -> Option<StoreError> {
    match lead {
        Lead::Leading { .. } => None,
        Lead::Following { leader, .. } => {
            Some(StoreError::NotLeader { leader: Some(leader.clone()) })
        }
        Lead::Nobody { .. } => Some(StoreError::NotLeader { leader: None }),
        Lead::Closed => Some(stopped(&"it was shut down")),
    }
}

/// The loop's own state.
struct Writer<'a> {
    core: &'a Core,
    queue: &'a mut mpsc::Receiver<Proposal>,
    /// Taken from the queue, but too large for the entry before.
    held: Option<Proposal>,
    under_way: JoinSet<Option<StoreError>>,
    since_snapshot: usize,
}

/// Writes proposals until consensus has failed, and says why; `None` once nobody can propose any
/// more.
pub(crate) async fn run(
    core: &Core,
    queue: &mut mpsc::Receiver<Proposal>,
    mut lead: watch::Receiver<Lead>,
) -> Option<StoreError> {
    let under_way = JoinSet::new();
    let mut writer = Writer { core, queue, held: None, under_way, since_snapshot: 0 };
    let mut hold = core.elections.hold();
    let mut told = None;
    let cause = loop {
        let holds = *hold.borrow_and_update();
        let room = writer.under_way.len() < UNDER_WAY_MAX && holds.is_none();
        let quiet = holds.is_some() && told != holds && writer.under_way.is_empty();
        tokio::select! {
            biased;
            cause = core.failed() => break cause,
            Some(done) = writer.under_way.join_next() => {
                if let Ok(Some(cause)) = done {
                    break cause;
                }
            }
            changed = lead.changed() => {
                let why = changed.ok().and_then(|()| hindrance(&lead.borrow_and_update()));
                if let Some(why) = why {
                    writer.refuse_all(&why);
                }
            }
            // Ignored because: the core has the other end.
            _ = hold.changed() => {}
            () = core.elections.held(), if quiet => told = holds,
            first = next(&mut writer.held, writer.queue), if room => {
                if let Err(cause) = writer.write(first?).await {
                    break cause;
                }
            }
        }
    };
    writer.refuse_all(&cause);
    writer.finish().await;
    Some(cause)
}

async fn next(
    held: &mut Option<Proposal>,
    queue: &mut mpsc::Receiver<Proposal>,
) -> Option<Proposal> {
    match held.take() {
        Some(proposal) => Some(proposal),
        None => queue.recv().await,
    }
}

impl Writer<'_> {
    /// Everybody who waits learns that nothing is written.
    fn refuse_all(&mut self, why: &StoreError) {
        if let Some(proposal) = self.held.take() {
            proposal.refuse(why.clone());
        }
        while let Ok(proposal) = self.queue.try_recv() {
            proposal.refuse(why.clone());
        }
    }

    /// What is under way hears of a failure from consensus, which has ended.
    async fn finish(&mut self) {
        let all = async { while self.under_way.join_next().await.is_some() {} };
        // Ignored because: who is not answered by then sees the channel's end.
        let _ = tokio::time::timeout(CAUSE_DEADLINE * 2, all).await;
    }

    /// Writes `first` and what waits with it as one entry.
    async fn write(&mut self, first: Proposal) -> Result<(), StoreError> {
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            let Ok(next) = self.queue.try_recv() else { break };
            bytes += next.bytes;
            if bytes > TRANSACTION_BYTES_MAX {
                self.held = Some(next);
                break;
            }
            batch.push(next);
        }
        // Who has given up must not be surprised by a write much later.
        batch.retain(|proposal| !proposal.reply.is_closed());
        if batch.is_empty() {
            return Ok(());
        }
        self.since_snapshot += batch.iter().map(|proposal| proposal.bytes).sum::<usize>();
        let (transactions, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|p| (p.transaction, p.reply)).unzip();
        let level = self.core.published.state.borrow().level();
        let payload = match Payload::encode(level, &transactions) {
            Ok(payload) => payload,
            Err(error) => {
                let problem = error.to_string();
                refuse(replies, &StoreError::Disk { action: "write to", problem });
                return Ok(());
            }
        };
        match self.core.raft.client_write_ff(payload).await {
            Ok(written) => {
                let core = self.core.clone();
                self.under_way.spawn(async move { answer(&core, replies, written).await });
            }
            Err(fatal) => {
                let cause = self.core.why(&fatal);
                refuse(replies, &cause);
                return Err(cause);
            }
        }
        if self.since_snapshot > SNAPSHOT_BYTES && self.core.raft.trigger().snapshot().await.is_ok()
        {
            self.since_snapshot = 0;
        }
        Ok(())
    }
}

fn refuse(replies: Vec<Reply>, why: &StoreError) {
    for reply in replies {
        // Ignored because: who has given up does not want the answer.
        let _ = reply.send(Err(why.clone()));
    }
}

/// Waits until an entry is applied and answers everybody; what consensus failed with, if it did.
async fn answer(
    core: &Core,
    replies: Vec<Reply>,
    written: oneshot::Receiver<ClientWriteResult<Types>>,
) -> Option<StoreError> {
    let begun = Instant::now();
    match written.await {
        Ok(Ok(response)) => {
            for (reply, answer) in replies.into_iter().zip(response.data) {
                // Ignored because: who has given up does not want the answer.
                let _ = reply.send(Ok(answer));
            }
            None
        }
        // It may be in the log already: the library says the same of both.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
            refuse(replies, &StoreError::Deposed { after: begun.elapsed() });
            None
        }
        Ok(Err(error)) => {
            refuse(replies, &core.why(&error));
            None
        }
        // It was dropped: consensus has ended, or this member leads no more.
        Err(_) => {
            let failed = tokio::time::timeout(CAUSE_DEADLINE, core.failed()).await.ok();
            let unsure = StoreError::Deposed { after: begun.elapsed() };
            refuse(replies, failed.as_ref().unwrap_or(&unsure));
            failed
        }
    }
}
