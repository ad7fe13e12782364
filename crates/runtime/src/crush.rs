//! Ending a container whose shim does not answer.

use std::path::Path;

use crate::client::{Shim, lock_holder};
use crate::error::RuntimeError;
use crate::process::sys;

impl Shim {
    /// Ends the container without asking its shim: kills the shim, which takes the container along,
    /// and whatever is left of it. Who waits for its end is told that the shim died.
    ///
    /// # Errors
    /// A process does not end, or the cgroup cannot be removed.
    pub async fn crush(&self) -> Result<(), RuntimeError> {
        let dir = self.dir().to_path_buf();
        self.blocking("kill", move |cgroup| {
            kill_holder(&dir);
            cgroup.kill_and_remove()
        })
        .await
    }
}

/// Kills the process that holds the lock of `dir`: a shim, as long as it lives.
fn kill_holder(dir: &Path) {
    if let Some(holder) = lock_holder(dir) {
        // Ignored because: a shim that has just ended needs no signal.
        let _ = sys::kill(holder, libc::SIGKILL);
    }
}
