//! What in the log this program cannot read: entries above the level that it knows.
//!
//! Such an entry is not skipped and not guessed. From there on nothing is applied here, and readers
//! see the state before it. The log and the vote are kept as by any other member, so that the group
//! has its majority; but this member does not stand for election, because it could not lead. The
//! next version of the program finds everything in its place and goes on.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use openraft::EntryPayload;

use crate::consensus::Entry;
use crate::error::StoreError;

/// What is above us, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
struct Above {
    /// The first entry in the log that cannot be read, confirmed or not, and its level.
    logged: Option<(u64, u32)>,
    /// The entry at which applying has stopped, and its level.
    stopped: Option<(u64, u32)>,
    /// The level of a snapshot that came and could not be read.
    snapshot: Option<u32>,
}

/// The highest level that is read here, and what is above it.
#[derive(Debug)]
pub(crate) struct Ceiling {
    reads: u32,
    above: Mutex<Above>,
}

impl Ceiling {
    pub(crate) fn new(reads: u32) -> Self {
        Self { reads, above: Mutex::default() }
    }

    /// The highest level that can be read.
    pub(crate) const fn reads(&self) -> u32 {
        self.reads
    }

    fn with<T>(&self, act: impl FnOnce(&mut Above) -> T) -> T {
        act(&mut self.above.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Entries are in the log.
    pub(crate) fn appended(&self, entries: &[Entry]) {
        for entry in entries {
            if let EntryPayload::Normal(payload) = &entry.payload {
                self.logged(entry.log_id.index, payload.level());
            }
        }
    }

    /// The entry `index`, of `level`, is in the log.
    pub(crate) fn logged(&self, index: u64, level: u32) {
        if level > self.reads {
            self.with(|above| above.logged = above.logged.or(Some((index, level))));
        }
    }

    /// The log ends before `index` now.
    pub(crate) fn truncated(&self, index: u64) {
        self.with(|above| above.logged = above.logged.filter(|(at, _)| *at < index));
    }

    /// Nothing is applied from the entry `index` on, which is of `level`.
    pub(crate) fn stop(&self, index: u64, level: u32) {
        self.with(|above| above.stopped = above.stopped.or(Some((index, level))));
    }

    /// Whether applying has stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.with(|above| above.stopped.is_some())
    }

    /// A snapshot of `level` came and could not be read.
    pub(crate) fn refused(&self, level: u32) {
        self.with(|above| above.snapshot = Some(level));
    }

    /// Whether this member could not lead.
    pub(crate) fn is_barred(&self) -> bool {
        self.level().is_some()
    }

    /// What is applied here, if the library has handed on everything up to `index`.
    pub(crate) fn applied(&self, index: u64) -> u64 {
        match self.with(|above| above.stopped) {
            Some((at, _)) => index.min(at.saturating_sub(1)),
            None => index,
        }
    }

    /// The level that is met and cannot be read.
    fn level(&self) -> Option<u32> {
        self.with(|above| {
            let of = |at: Option<(u64, u32)>| at.map(|(_, level)| level);
            of(above.stopped).max(of(above.logged)).max(above.snapshot)
        })
    }

    /// That this manager has to be upgraded, if it has.
    pub(crate) fn problem(&self, dir: &Path) -> Option<StoreError> {
        let (level, reads) = (self.level()?, self.reads);
        Some(StoreError::NeedsUpgrade {
            action: "apply the log of",
            path: dir.to_owned(),
            problem: format!("the cluster writes format {level}, this program reads up to {reads}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_of_the_log_bars_nobody() {
        let ceiling = Ceiling::new(1);
        ceiling.logged(5, 1);
        assert!(!ceiling.is_barred());
        ceiling.logged(6, 2);
        ceiling.logged(8, 3);
        assert!(ceiling.is_barred());
        assert_eq!(ceiling.applied(9), 9, "nobody has asked to apply it");
        // The leader of a later term has other entries there.
        ceiling.truncated(7);
        assert!(ceiling.is_barred());
        ceiling.truncated(6);
        assert!(!ceiling.is_barred());
        ceiling.stop(6, 2);
        ceiling.stop(7, 4);
        ceiling.truncated(0);
        assert!(ceiling.is_stopped() && ceiling.is_barred());
        assert_eq!((ceiling.applied(4), ceiling.applied(9)), (4, 5));
        let said = ceiling.problem(Path::new("/x")).map(|error| error.to_string());
        assert!(said.is_some_and(|said| said.contains("writes format 2")));
    }
}
