//! Reads that everybody would agree on: the leader asks a majority whether it still leads. Who asks
//! at the same time shares one question.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use shoal_model::id::Revision;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::core::Core;
use crate::error::StoreError;

/// Pause before a majority is asked again that did not answer in time.
const PAUSE: Duration = Duration::from_millis(20);

/// The rounds of questions so far.
#[derive(Default)]
pub(crate) struct Reads {
    begun: AtomicU64,
    /// The last round that succeeded, and what it said.
    last: Mutex<(u64, Revision)>,
}

impl Reads {
    /// The last entry that is confirmed, as of a moment after this was called.
    pub(crate) async fn index(&self, core: &Core) -> Result<Revision, StoreError> {
        // Only what begins later proves anything about now.
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.0 > before {
            return Ok(last.1);
        }
        loop {
            let round = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            match core.raft.get_read_log_id().await {
                Ok((at, _)) => {
                    *last = (round, Revision(at.map_or(0, |at| at.index)));
                    return Ok(last.1);
                }
                // The library waits for a moment only, which a busy machine may need.
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                    sleep(PAUSE).await;
                }
                Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                    return Err(core.not_leader(to.leader_id));
                }
                Err(RaftError::Fatal(error)) => return Err(core.why(&error)),
            }
        }
    }
}
