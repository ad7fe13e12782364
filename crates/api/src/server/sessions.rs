//! Work that outlives its answer: hijacked connections. It has one owner that ends it at shutdown.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owner of hijacked connections. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Sessions {
    /// Runs `work` until it ends or the daemon stops.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Resolves when the daemon stops; streams that never end by themselves end with it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Ends everything, and waits for it at most `patience`.
    pub async fn shutdown(&self, patience: Duration) {
        self.stop.cancel();
        self.tracker.close();
        // Ignored because: dropped at their next await anyway, nothing is left to decide here.
        let _ = tokio::time::timeout(patience, self.tracker.wait()).await;
    }
}
