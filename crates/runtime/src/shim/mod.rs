//! The helper process of one container.
//!
//! It has one thread and one loop. It belongs to its own session and survives the daemon; it ends
//! when its container has ended and everybody who waited for that has been told. What happened is
//! then in the exit file of its directory. Should it die before, the kernel kills the container's
//! first process with it, and with that one all others.
//!
//! **Who waits for whom.** The log gets every byte before any client. Each attached client has a
//! buffer of [`CLIENT_BUFFER_BYTES`]; while one is full, the container's output is not read, so
//! that a client that is merely slow loses nothing; a client that takes nothing at all for
//! [`STALL_DEADLINE`] is cut off, and the container goes on.

mod clients;
mod daemon;
mod launches;
mod procs;
mod requests;
mod server;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// What waits for one client at most, in bytes, apart from one piece of output that is added when
/// there is still room.
pub const CLIENT_BUFFER_BYTES: usize = 1 << 20;

/// How long an attached client may take nothing while its buffer is full.
pub const STALL_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the shim whose directory is `dir`, which the daemon has made and put a plan into. Returns
/// in the caller's process when the shim serves or has failed to; the shim itself runs on in the
/// background. Must be called before the program has started a thread.
#[must_use]
pub fn main(dir: &Path) -> ExitCode {
    daemon::run(dir)
}
