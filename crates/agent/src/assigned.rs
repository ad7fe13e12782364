//! What managers assigned to this node: in memory, and on the disk for the next daemon.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_model::assignment::{Assignment, AssignmentUpdate};
use shoal_model::id::Revision;
use tokio::sync::watch;

use crate::agent::lock;
use crate::damage::Damage;

/// Longest file that is read: far above what a node can be assigned.
const LEN_MAX: u64 = 256 * 1024 * 1024;
/// Pause before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The assignment of this node.
///
/// It is in force before it is written: the file only matters to the next daemon, and an older one
/// is corrected by its first session. Secrets and configs are never written.
#[derive(Debug)]
pub(crate) struct Assigned {
    now: watch::Sender<Arc<Assignment>>,
    /// Has seen what was read: whatever comes later is to be written.
    read: watch::Receiver<Arc<Assignment>>,
    /// What the parts of an update come to so far, before the last of them is here.
    pending: Mutex<Option<Assignment>>,
    path: PathBuf,
    /// Why the last write failed; empty if it did not.
    problem: Mutex<String>,
}

impl Assigned {
    /// Reads what an earlier daemon had.
    pub(crate) fn open(dir: &Path, damage: &Damage) -> Self {
        let path = dir.join("assignment.json");
        let last: Assignment = damage.read(&path, LEN_MAX, |_| Ok(())).unwrap_or_default();
        let (now, read) = watch::channel(Arc::new(last));
        Self { now, read, pending: Mutex::default(), path, problem: Mutex::default() }
    }

    /// The assignment as it is.
    pub(crate) fn get(&self) -> Arc<Assignment> {
        Arc::clone(&self.now.borrow())
    }

    /// Follows it.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Assignment>> {
        self.now.subscribe()
    }

    /// Replaces it.
    pub(crate) fn set(&self, assignment: Assignment) {
        self.now.send_replace(Arc::new(assignment));
    }

    /// Applies what a manager says, once all parts of it are here; the revision that is there if
    /// it does not fit.
    pub(crate) fn take(&self, update: AssignmentUpdate) -> Result<Taken, Revision> {
        let mut pending = lock(&self.pending);
        let more = update.more;
        let mut next = pending.take().unwrap_or_else(|| (*self.get()).clone());
        if !next.apply(update) {
            return Err(self.get().revision);
        }
        if more {
            *pending = Some(next);
            return Ok(Taken::APart);
        }
        self.now.send_replace(Arc::new(next));
        Ok(Taken::Whole)
    }

    /// Why the file is older than the assignment; empty if it is not.
    pub(crate) fn problem(&self) -> String {
        lock(&self.problem).clone()
    }

    /// Keeps the file up to date for ever: one write at a time, of the latest.
    pub(crate) async fn keep(&self) {
        let mut follow = self.read.clone();
        let mut owed = Owed::Nothing;
        loop {
            let changed = follow.changed();
            match owed {
                Owed::Nothing => {
                    if changed.await.is_err() {
                        return;
                    }
                }
                // Written again after the pause, or at once if there is something newer.
                Owed::AWrite => {
                    if let Ok(Err(_)) = tokio::time::timeout(RETRY, changed).await {
                        return;
                    }
                }
            }
            let latest = Arc::clone(&follow.borrow_and_update());
            owed = self.write(latest).await;
        }
    }

    async fn write(&self, latest: Arc<Assignment>) -> Owed {
        let path = self.path.clone();
        let write = move || shoal_durable::replace_json(&path, &latest.durable());
        let written = match tokio::task::spawn_blocking(write).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let problem = match written {
            Ok(()) => String::new(),
            Err(why) => format!("cannot write '{}': {why}", self.path.display()),
        };
        let mut known = lock(&self.problem);
        if *known != problem && !problem.is_empty() {
            tracing::error!(problem, "the next daemon would begin with an older assignment");
        }
        let owed = if problem.is_empty() { Owed::Nothing } else { Owed::AWrite };
        *known = problem;
        owed
    }
}

/// What has become of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is in force.
    Whole,
    /// It waits for its other parts.
    APart,
}

/// Whether the file is behind.
#[derive(Clone, Copy)]
enum Owed {
    Nothing,
    AWrite,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use shoal_model::assignment::KnownChanges;
    use shoal_model::payload::Payload;
    use shoal_model::spec::payload::PayloadData;

    use super::*;

    fn at(revision: u64) -> Assignment {
        Assignment { revision: Revision(revision), ..Assignment::default() }
    }

    #[test]
    fn a_damaged_file_is_named_kept_and_done_without() {
        for text in ["", "{", "[]", "\u{0}"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("assignment.json"), text).unwrap();
            let damage = Damage::default();
            assert_eq!(*Assigned::open(dir.path(), &damage).get(), Assignment::default());
            assert!(damage.list()[0].contains("assignment.json"), "{:?}", damage.list());
            let kept = std::fs::read_to_string(dir.path().join("assignment.json.damaged"));
            assert_eq!(kept.unwrap(), text);
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_is_owed_until_it_works() {
        let dir = tempfile::tempdir().unwrap();
        // Something that no file can be renamed over stands for a disk without space.
        let path = dir.path().join("assignment.json");
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        let damage = Damage::default();
        let assigned = Arc::new(Assigned::open(dir.path(), &damage));
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        let keeper = Arc::clone(&assigned);
        let keeper = tokio::spawn(async move { keeper.keep().await });
        assigned.set(at(7));
        until(|| assigned.problem().contains("assignment.json")).await;
        std::fs::remove_dir_all(&path).unwrap();
        until(|| assigned.problem().is_empty() && path.exists()).await;
        assert_eq!(Assigned::open(dir.path(), &damage).get().revision, Revision(7));
        keeper.abort();
    }

    async fn until(test: impl Fn() -> bool) {
        let wait = async {
            while !test() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
    }

    #[test]
    fn an_update_that_does_not_fit_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let assigned = Assigned::open(dir.path(), &Damage::default());
        assigned.set(at(3));
        assert_eq!(assigned.take(at(5).full()), Ok(Taken::Whole));
        let delta = at(1).delta_to(&at(6), &KnownChanges::default());
        assert_eq!(assigned.take(delta), Err(Revision(5)));
        assert_eq!(assigned.get().revision, Revision(5));
    }

    #[test]
    fn nothing_of_an_update_is_in_force_before_its_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let assigned = Assigned::open(dir.path(), &Damage::default());
        assigned.set(at(3));
        let payload = || Some(Payload { data: PayloadData::new(vec![7; 900]), template: false });
        let mut next = at(5);
        next.payloads.secrets = ["a", "b", "c"].map(|id| (id.into(), payload())).into();
        let parts = next.full().parts(1_000);
        assert_eq!(parts.len(), 3);
        // A session that ends amid them: the next one begins from nothing.
        assert_eq!(assigned.take(parts[0].clone()), Ok(Taken::APart));
        for (number, part) in parts.into_iter().enumerate() {
            assert_eq!(assigned.get().revision, Revision(3));
            let taken = if number == 2 { Taken::Whole } else { Taken::APart };
            assert_eq!(assigned.take(part), Ok(taken));
        }
        assert_eq!(*assigned.get(), next);
    }
}
