//! Takes proposals and puts those that wait at the same time into one log entry, so that one
//! durable commit serves them all.

use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use shoal_model::change::{ApplyError, Changed, Transaction};
use shoal_model::size::json_len;
use tokio::sync::{mpsc, oneshot};

use crate::core::{Core, stopped};
use crate::error::StoreError;
use crate::record::Payload;

/// How long a write may wait for a leader and a majority. A user waits no longer with patience, and
/// Docker's clients give up after 20 s.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Largest transaction, as JSON. Bounds log entries and what one apply may cost; a thousand tasks
/// of a usual size fit.
pub const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Proposals that may wait. A disk that needs a second for each batch still answers all in time.
pub(crate) const WAITING_MAX: usize = 1024;
/// Most transactions in one log entry: bounds the time until the first of them is answered.
const BATCH_MAX: usize = 64;
/// Log bytes (as JSON) after which a snapshot is taken, however few entries they are: what is
/// replayed at start stays a matter of a second.
const SNAPSHOT_BYTES: usize = 16 << 20;

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

/// Hands `transaction` to the loop and waits for its answer.
pub(crate) async fn propose(
    queue: &mpsc::Sender<Proposal>,
    transaction: Transaction,
) -> Result<Vec<Changed>, StoreError> {
    let bytes = json_len(&transaction)
        .map_err(|e| StoreError::Disk { action: "write to", problem: e.to_string() })?;
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(StoreError::TooLarge { bytes, limit: TRANSACTION_BYTES_MAX });
    }
    let (reply, answer) = oneshot::channel();
    queue.try_send(Proposal { transaction, bytes, reply }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => StoreError::Busy { waiting: WAITING_MAX },
        mpsc::error::TrySendError::Closed(_) => stopped(&"it was shut down"),
    })?;
    match tokio::time::timeout(PROPOSE_DEADLINE, answer).await {
        Ok(Ok(result)) => Ok(result??),
        Ok(Err(_)) => Err(stopped(&"it was shut down")),
        Err(_) => Err(StoreError::NoQuorum { after: PROPOSE_DEADLINE }),
    }
}

/// Writes proposals until consensus has failed, and says why; `None` once nobody can propose any
/// more.
pub(crate) async fn run(core: &Core, queue: &mut mpsc::Receiver<Proposal>) -> Option<StoreError> {
    let mut held: Option<Proposal> = None;
    let mut since_snapshot = 0;
    loop {
        let first = match held.take() {
            Some(proposal) => proposal,
            None => tokio::select! {
                next = queue.recv() => next?,
                cause = core.failed() => return Some(cause),
            },
        };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.bytes;
            if bytes > TRANSACTION_BYTES_MAX {
                held = Some(next);
                break;
            }
            batch.push(next);
        }
        // Who has given up must not be surprised by a write much later.
        batch.retain(|proposal| !proposal.reply.is_closed());
        if batch.is_empty() {
            continue;
        }
        since_snapshot += batch.iter().map(|proposal| proposal.bytes).sum::<usize>();
        if let Err(cause) = write(core, batch).await {
            if let Some(proposal) = held {
                proposal.refuse(cause.clone());
            }
            return Some(cause);
        }
        if since_snapshot > SNAPSHOT_BYTES && core.raft.trigger().snapshot().await.is_ok() {
            since_snapshot = 0;
        }
    }
}

/// Writes what waits as one entry and answers everybody.
async fn write(core: &Core, batch: Vec<Proposal>) -> Result<(), StoreError> {
    let (transactions, replies): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|p| (p.transaction, p.reply)).unzip();
    let payload = match Payload::encode(&transactions) {
        Ok(payload) => payload,
        Err(error) => {
            let why = StoreError::Disk { action: "write to", problem: error.to_string() };
            for reply in replies {
                // Ignored because: who has given up does not want the answer.
                let _ = reply.send(Err(why.clone()));
            }
            return Ok(());
        }
    };
    let written = core.raft.client_write(payload).await;
    let (answers, outcome) = match written {
        Ok(response) => (response.data.into_iter().map(Ok).collect::<Vec<_>>(), Ok(())),
        Err(error) => {
            let (why, outcome) = match &error {
                RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                    (StoreError::NotLeader { leader: to.leader_id }, Ok(()))
                }
                RaftError::APIError(_) => (core.why(&error), Ok(())),
                RaftError::Fatal(_) => (core.why(&error), Err(core.why(&error))),
            };
            (replies.iter().map(|_| Err(why.clone())).collect(), outcome)
        }
    };
    for (reply, answer) in replies.into_iter().zip(answers) {
        // Ignored because: who has given up does not want the answer.
        let _ = reply.send(answer);
    }
    outcome
}
