//! Ending a container whose shim does not answer.

use std::fs::OpenOptions;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Shim;
use crate::error::RuntimeError;
use crate::runtime::LOCK_FILE;

impl Shim {
    /// Ends the container without asking its shim: kills the shim, which takes the container along,
    /// and whatever is left of it. Who waits for its end is told that the shim died.
    ///
    /// # Errors
    /// A process does not end, or the cgroup cannot be removed.
    pub async fn crush(&self) -> Result<(), RuntimeError> {
        let lock = self.dir().join(LOCK_FILE);
        self.blocking("kill", move |cgroup| {
            kill_holder(&lock);
            cgroup.kill_and_remove()
        })
        .await
    }
}

/// Kills the process that holds the lock: a shim, as long as it lives.
fn kill_holder(path: &Path) {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let asked = fcntl(&file, FcntlArg::F_GETLK(&mut lock));
    if asked.is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short && lock.l_pid > 0 {
        // Ignored because: a shim that has just ended needs no signal.
        let _ = kill(Pid::from_raw(lock.l_pid), Signal::SIGKILL);
    }
}
