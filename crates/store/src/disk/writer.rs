//! The task that writes: batches of writes in one commit each, and the file anew under another
//! key.

use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::{mpsc, oneshot};

use super::{Inner, Op, Open, closed};
use crate::commit::commit;
use crate::error::StoreError;
use crate::failure::{DiskFailure as _, io_failure};
use crate::outside::offloaded;
use crate::reseal;
use crate::unlock::UnlockKey;

pub(super) type Done = oneshot::Sender<Result<(), StoreError>>;

/// A step of changing the key.
pub(crate) enum KeyStep {
    /// Seal the file with a key of which only what is given, or nothing at all, wraps it, as the
    /// cluster asked at this revision.
    Renew(Option<UnlockKey>, u64),
    /// Drop the keys of before.
    Retire,
}

pub(super) enum Job {
    Write { ops: Vec<Op>, done: Done },
    Keys { step: KeyStep, done: Done },
    Close,
}

impl Inner {
    /// One commit for all of `ops`.
    fn commit<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Result<(), StoreError> {
        let held = self.known.borrow().held;
        let committed = *self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Open { database, sealer, .. } = open.as_ref().ok_or_else(closed)?;
        let held = commit(database, sealer, held, committed, ops)
            .map_err(|e| self.note(e.at("write to", &self.path)))?;
        self.known.send_modify(|known| known.held = held);
        Ok(())
    }

    /// A step of changing the key. A failure leaves the store as good as it was.
    fn keys(&self, step: &KeyStep) -> Result<(), StoreError> {
        match step {
            KeyStep::Renew(wrap, revision) => {
                self.keyring.renew(wrap.as_ref(), *revision)?;
                self.reseal()
            }
            KeyStep::Retire => {
                self.reseal()?;
                self.keyring.retire()
            }
        }
    }

    /// Sees to it that the file is sealed with the newest key, and stays so.
    fn reseal(&self) -> Result<(), StoreError> {
        let keys = self.keyring.load()?;
        let newest = keys.newest();
        let renewed = {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            let open = open.as_ref().ok_or_else(closed)?;
            if open.generation == newest {
                None
            } else {
                let sealer = keys.sealer(newest).ok_or_else(|| self.keyring.lost(newest))?;
                let (from, to) = ((&open.database, &*open.sealer), (newest, &sealer));
                let database = reseal::rewrite(from, &self.path, self.medium.as_ref(), to)?;
                Some(Open { database, sealer: Arc::new(sealer), generation: newest })
            }
        };
        if let Some(renewed) = renewed {
            let before = self.open.write().unwrap_or_else(PoisonError::into_inner).replace(renewed);
            drop(before);
        }
        // Each time: whoever retires the key of before relies on it.
        let dir = self.path.parent().unwrap_or(&self.path);
        shoal_durable::sync_dir(dir).map_err(|e| io_failure("seal anew", &e))
    }
}

/// What comes after a batch of writes.
enum Then {
    Close,
    Keys(KeyStep, Done),
}

/// Writes what comes until the file is closed.
pub(super) async fn write_loop(disk: Weak<Inner>, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.recv().await {
        let mut waiting = Vec::new();
        let mut then = None;
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write { ops, done } => waiting.push((ops, done)),
                Job::Close => then = Some(Then::Close),
                Job::Keys { step, done } => then = Some(Then::Keys(step, done)),
            }
            next = if then.is_none() { queue.try_recv().ok() } else { None };
        }
        let Some(inner) = disk.upgrade() else { return };
        let closes = matches!(then, Some(Then::Close));
        if !waiting.is_empty() || (closes && inner.unwritten().is_some()) {
            let (outside, inner) = (Arc::clone(&inner.outside), Arc::clone(&inner));
            let commit = offloaded(&*outside, move || {
                let result = inner.commit(waiting.iter().flat_map(|(ops, _)| ops));
                (result, waiting)
            });
            // Who waits sees the channel's end: the database library panics on some damage.
            let Ok((result, waiting)) = commit.await else { return };
            for (_, done) in waiting {
                // Ignored because: who does not wait any more does not want the answer.
                let _ = done.send(result.clone());
            }
        }
        match then {
            None => {}
            Some(Then::Close) => return,
            Some(Then::Keys(step, done)) => {
                let outside = Arc::clone(&inner.outside);
                // Who waits sees the channel's end, as above.
                let Ok(result) = offloaded(&*outside, move || inner.keys(&step)).await else {
                    return;
                };
                // Ignored because: as above.
                let _ = done.send(result);
            }
        }
    }
}
