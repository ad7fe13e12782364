//! The store's life: serves while consensus runs, and when the disk has failed opens the file again
//! until that succeeds. Handles, followers and the published state outlive every failure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::core::Core;
use crate::error::StoreError;
use crate::lead::{self, Lead, Signs};
use crate::proposer::{self, Proposal};
use crate::state_machine::Published;
use crate::store::StoreConfig;

/// First pause before the file is opened again.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: how long a store may still be closed once there is space again, and how often a
/// full disk costs the reading of the whole file.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the store's handles share with its life.
pub(crate) struct Life {
    pub(crate) config: StoreConfig,
    pub(crate) published: Arc<Published>,
    pub(crate) proposals: mpsc::Receiver<Proposal>,
    pub(crate) signs: Signs,
    /// Why the store cannot write; `None` while it can.
    pub(crate) trouble: watch::Sender<Option<StoreError>>,
    /// The running consensus.
    pub(crate) current: Arc<Mutex<Core>>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// How a stretch of serving ended.
enum End {
    Failed(StoreError),
    Stopped,
}

impl Life {
    /// Serves until the store is stopped.
    pub(crate) async fn run(mut self, mut core: Core) {
        loop {
            let end = self.serve(&core).await;
            self.signs.fail();
            if let End::Failed(cause) = &end {
                tracing::error!(
                    dir = %self.config.dir.display(),
                    cause = %cause,
                    "the store failed; it is opened again as soon as that is possible"
                );
                self.trouble.send_replace(Some(cause.clone()));
            }
            core.stop().await;
            if matches!(end, End::Stopped) {
                break;
            }
            match self.reopen().await {
                Some(next) => core = next,
                None => break,
            }
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = core.clone();
            self.signs.begin();
            self.trouble.send_replace(None);
            tracing::info!(dir = %self.config.dir.display(), "the store is open again");
        }
        self.signs.lead.send_replace(Lead::Closed);
        self.published.end();
    }

    async fn serve(&mut self, core: &Core) -> End {
        let stop = self.stop.clone();
        let (signs, proposals) = (&self.signs, &mut self.proposals);
        let lead = signs.lead.subscribe();
        tokio::select! {
            biased;
            () = told(stop) => End::Stopped,
            cause = proposer::run(core, proposals, lead) => cause.map_or(End::Stopped, End::Failed),
            () = lead::observe(core, signs) => End::Stopped,
        }
    }

    /// Opens the file again, however long it takes; `None` when the store is stopped meanwhile.
    async fn reopen(&mut self) -> Option<Core> {
        let mut pause = PAUSE_FIRST;
        loop {
            let attempt = attempt(&self.config, &self.published, pause, self.stop.clone());
            tokio::pin!(attempt);
            let opened = loop {
                tokio::select! {
                    biased;
                    opened = &mut attempt => break opened,
                    // Who asked before the failure was known; later ones learn it at once.
                    Some(proposal) = self.proposals.recv() => {
                        if let Some(cause) = &*self.trouble.borrow() {
                            proposal.refuse(cause.clone());
                        }
                    }
                }
            };
            match opened {
                Ok(core) => return core,
                Err(cause) => {
                    let known = self.trouble.borrow().as_ref().map(ToString::to_string);
                    if known != Some(cause.to_string()) {
                        tracing::error!(cause = %cause, "the store cannot be opened again yet");
                        self.trouble.send_replace(Some(cause));
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

/// One attempt at opening, after `pause`. The disk takes writes when this returns.
async fn attempt(
    config: &StoreConfig,
    published: &Arc<Published>,
    pause: Duration,
    stop: watch::Receiver<bool>,
) -> Result<Option<Core>, StoreError> {
    tokio::select! {
        biased;
        () = told(stop.clone()) => return Ok(None),
        () = tokio::time::sleep(pause) => {}
    }
    let core = Core::start(config, None, published).await?;
    let ready = tokio::select! {
        biased;
        () = told(stop) => Ok(None),
        ready = core.wait_usable() => ready.map(|()| Some(core.clone())),
    };
    if !matches!(ready, Ok(Some(_))) {
        core.stop().await;
    }
    ready
}

/// Returns when the store is stopped, or has no handle any more.
async fn told(mut stop: watch::Receiver<bool>) {
    // Ignored because: both mean the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
