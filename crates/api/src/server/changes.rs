//! Requests that change something run to their end, whoever still waits for the answer.
//!
//! hyper drops a handler when its client hangs up. What is dropped at some `await` may have made
//! one half of a change. So such a handler is a task of its own, and the connection only waits for
//! it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::image::Progress;
use crate::error::{ApiError, RequestFault};

/// Most changes at a time. Each is a client that waits for, say, the grace of a `docker stop`; more
/// than this many at once are no longer honest, and each holds a body of up to 4 MiB.
pub const CHANGES_MAX: usize = 1024;
/// How long a request waits for its turn before it is refused.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Items of progress that wait for a slow reader.
const PROGRESS_MAX: usize = 64;

/// Owner of the changes that requests began. Clones share it.
#[derive(Clone, Debug)]
pub struct Changes {
    tracker: TaskTracker,
    turns: Arc<Semaphore>,
    cut: CancellationToken,
}

impl Default for Changes {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(CHANGES_MAX));
        Self { tracker: TaskTracker::new(), turns, cut: CancellationToken::new() }
    }
}

impl Changes {
    /// Runs `work` to its end, even if nobody waits for what it gives.
    ///
    /// # Errors
    /// 503 if too many changes run, or the daemon stops.
    pub async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        // A client that leaves while it waits for its turn has changed nothing.
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(turn) = turn else {
            return Err(RequestFault::TooManyChanges { limit: CHANGES_MAX }.into());
        };
        // Closed when the daemon stops.
        let turn = turn.map_err(|_| RequestFault::Stopping)?;
        let cut = self.cut.clone();
        let task = self.tracker.spawn(async move {
            let done = cut.run_until_cancelled(work).await;
            drop(turn);
            done
        });
        match task.await {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err(RequestFault::Stopping.into()),
            // The one fence against panics is around the whole request.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(RequestFault::Stopping.into()),
        }
    }

    /// Reads `progress` to its end, even if nobody reads what is given back: the work behind it is
    /// driven by being read.
    #[must_use]
    pub fn follow(&self, mut progress: Progress) -> Progress {
        let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
        let cut = self.cut.clone();
        self.tracker.spawn(async move {
            let drive = async {
                while let Some(item) = progress.next().await {
                    // Ignored because: a reader that went away changes nothing.
                    let _ = sender.send(item).await;
                }
            };
            cut.run_until_cancelled(drive).await;
        });
        ReceiverStream::new(receiver).boxed()
    }

    /// How many changes run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Takes no more, waits for those that run at most `patience`, and drops what is left: those
    /// who own the changed things see to it that a dropped request leaves nothing half done.
    pub async fn shutdown(&self, patience: Duration) {
        self.turns.close();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.running(), "requests that did not end in time are dropped");
            self.cut.cancel();
            self.tracker.wait().await;
        }
    }
}
