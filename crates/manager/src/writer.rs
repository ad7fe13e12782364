//! The one task that writes to the store.
//!
//! A writer is given a computation, not a transaction: it runs it on the newest state, proposes
//! what comes out, and runs it again if somebody else (an earlier proposal whose outcome was
//! unknown) got in between. So no caller ever works with a stale state, and nothing is lost to
//! conflicts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::change::{ApplyError, Change, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::time::Timestamp;
use shoal_store::{PROPOSE_DEADLINE, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clock::SteadyClock;
use crate::error::ControlError;

/// Writes that may wait for their turn: far more than one manager has sources of them.
const QUEUE_MAX: usize = 1024;

/// How long a write may wait for its turn and be under way, if nobody says less. One takes the
/// store five seconds at most; others may be before it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Times that a computation is run again after a conflict. One is enough with a single manager.
const TRIES_MAX: usize = 5;

type Compute = Box<dyn FnMut(&ClusterState, Timestamp) -> Result<Vec<Change>, ControlError> + Send>;

struct Request {
    compute: Compute,
    by: Instant,
    /// How long it is from the question to `by`.
    limit: Duration,
    done: oneshot::Sender<Result<(), ControlError>>,
}

/// Hands computations to the writer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
}

impl Writer {
    /// The handle, and the task to run.
    pub fn new(store: Store, clock: Arc<SteadyClock>) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, run(store, clock, requests))
    }

    /// Runs `compute` on the newest state and writes its changes. Returns its result when they are
    /// applied.
    ///
    /// # Errors
    /// What `compute` says, or why the store did not take the changes.
    pub async fn write<T, F>(&self, compute: F) -> Result<T, ControlError>
    where
        T: Send + 'static,
        F: FnMut(&ClusterState, Timestamp) -> Result<(Vec<Change>, T), ControlError>
            + Send
            + 'static,
    {
        self.write_by(Instant::now() + DEADLINE, compute).await
    }

    /// The same within a time: what has not begun by then never does.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_by<T, F>(&self, by: Instant, mut compute: F) -> Result<T, ControlError>
    where
        T: Send + 'static,
        F: FnMut(&ClusterState, Timestamp) -> Result<(Vec<Change>, T), ControlError>
            + Send
            + 'static,
    {
        let slot = Arc::new(Mutex::new(None));
        let fill = Arc::clone(&slot);
        let compute: Compute = Box::new(move |state, now| {
            let (changes, result) = compute(state, now)?;
            *fill.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            Ok(changes)
        });
        let (done, outcome) = oneshot::channel();
        let limit = by.saturating_duration_since(Instant::now());
        let request = Request { compute, by, limit, done };
        let written = async {
            self.queue.send(request).await.map_err(|_| ControlError::Stopping)?;
            outcome.await.map_err(|_| ControlError::Stopping)?
        };
        let late = |_| StoreError::NoQuorum { after: limit, missing: Vec::new() };
        tokio::time::timeout_at(by, written).await.map_err(late)??;
        let result = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.ok_or(ControlError::Stopping)
    }
}

async fn run(store: Store, clock: Arc<SteadyClock>, mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        // Who has been told that it took too long must not be surprised by it much later.
        let outcome = if Instant::now() >= request.by {
            Err(StoreError::NoQuorum { after: request.limit, missing: Vec::new() }.into())
        } else {
            serve(&store, &clock, request.compute).await
        };
        // Ignored because: who asked may have gone away; the write has happened all the same.
        let _ = request.done.send(outcome);
    }
}

async fn serve(
    store: &Store,
    clock: &SteadyClock,
    mut compute: Compute,
) -> Result<(), ControlError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let state = store.state();
        let at = clock.now();
        // Plans of large clusters take milliseconds: not on the runtime's own threads.
        let run = tokio::task::spawn_blocking(move || {
            let outcome = compute(&state, at);
            (compute, outcome)
        });
        let (back, outcome) = run.await.map_err(|_| ControlError::Stopping)?;
        compute = back;
        let changes = outcome?;
        if changes.is_empty() {
            return Ok(());
        }
        match store.propose(Transaction { changes, at }, Instant::now() + PROPOSE_DEADLINE).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Refused(
                ApplyError::OutOfSequence { .. } | ApplyError::NotUnique { .. },
            )) if tries < TRIES_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
}
