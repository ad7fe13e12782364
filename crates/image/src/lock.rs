//! The lock that keeps a second process out of an open store.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::ImageError;

/// A lock that is held until it is dropped, flock(2).
///
/// It is given up by name, not just closed: a child that another thread is starting at that moment
/// has a copy of the descriptor until its execve(2), and the lock would stay with it.
pub(crate) struct StoreLock(File);

impl StoreLock {
    /// Locks the directory `root`, or fails at once if it is locked. Needs no file, so no space.
    pub(crate) fn take(root: &Path) -> Result<Self, ImageError> {
        let file = File::open(root).map_err(ImageError::files("open", root))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| ImageError::files("lock", root)(error.into()))?;
        Ok(Self(file))
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Ignored because: it cannot fail on an open file, and closing gives it up too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
