//! The name resolver: the daemon's side (starts the helper, hands it snapshots) and the helper.
//!
//! Names are answered by a process of its own ([`main`]), so that they resolve while the daemon
//! restarts. The daemon's [`Resolver`] gives it a [`snapshot`], and then what changes; `keeper` is
//! the one thread that talks to the helper, starts it and replaces it; `lookup` (pure) decides what
//! a question means to the workload that asks, `message` (pure) reads and writes the bytes,
//! `server` holds the sockets inside the workloads' namespaces, `forward` asks outside.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::NetworkError;

mod control;
mod forward;
mod helper;
mod keeper;
mod lookup;
mod message;
mod server;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use helper::main;

use keeper::Keeper;
use snapshot::Snapshot;

/// How long a publication waits for the helper. One that hangs is found out and replaced within
/// this time; one that cannot be started is tried again without anybody waiting.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);
/// How long the end of the daemon's side waits for its thread.
const END_WAIT: Duration = Duration::from_secs(2);

/// The daemon's side of the resolver helper.
#[derive(Debug)]
pub struct Resolver {
    /// Absent: nothing is ever started.
    shared: Option<Arc<Shared>>,
}

/// What callers and the keeper share.
#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    /// Something in the inbox was settled.
    settled: Condvar,
    /// A byte in here makes the keeper look.
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct Inbox {
    /// The newest snapshot, and its number.
    wanted: Option<Arc<Snapshot>>,
    number: u64,
    /// The helper shall look at every namespace again.
    check: bool,
    /// The helper shall end.
    stop: bool,
    /// The daemon's side is about to go.
    closing: bool,
    /// The keeper has gone.
    ended: bool,
    /// The number that was dealt with last, and what came of it.
    done: u64,
    error: Option<String>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Every change of the inbox is one assignment after the other: nothing is half done.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Ignored because: a full pipe wakes the keeper just as well.
        let _ = (&self.wake).write(&[0]);
    }

    /// Waits until `done`, at most `limit`; then says what the last failure was. Nothing if it did
    /// not come to that.
    fn wait(&self, limit: Duration, done: impl Fn(&Inbox) -> bool) -> Option<Option<String>> {
        let end = Instant::now() + limit;
        let mut inbox = self.inbox();
        while !done(&inbox) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            inbox =
                self.settled.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(inbox.error.clone())
    }
}

impl Resolver {
    /// Adopts the helper that this instance left running, or starts one at the first snapshot.
    /// Without a `program` nothing is ever started.
    ///
    /// # Errors
    /// If the files of the resolver below `exec_root` are unusable.
    pub fn open(program: Option<PathBuf>, exec_root: &Path) -> Result<Self, NetworkError> {
        let Some(program) = program else { return Ok(Self { shared: None }) };
        let dir = exec_root.join("resolver");
        let unusable =
            |source: io::Error| NetworkError::Files { path: dir.clone(), source: source.into() };
        fs::create_dir_all(exec_root).map_err(unusable)?;
        shoal_durable::make_private_dir(&dir).map_err(unusable)?;
        let pair = UnixStream::pair().and_then(|(wake, woken)| {
            wake.set_nonblocking(true)?;
            woken.set_nonblocking(true)?;
            Ok((wake, woken))
        });
        let (wake, woken) = pair.map_err(|e| failed("make the thread that keeps it", e))?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), settled: Condvar::new(), wake });
        let keeper = Keeper::new(program, dir, woken);
        let mine = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(move || keeper.run(&mine))
            .map_err(|e| failed("start the thread that keeps it", e))?;
        Ok(Self { shared: Some(shared) })
    }

    /// Hands the helper the names and the namespaces to serve, and waits until it has them, for a
    /// few seconds at most. Of several snapshots the one with the highest `number` counts. With
    /// `check`, the helper looks again whether every namespace is served.
    ///
    /// # Errors
    /// If the helper cannot be started, does not take the snapshot in time, or cannot serve a
    /// namespace. It is tried again all the same.
    pub fn publish(
        &self,
        number: u64,
        snapshot: Snapshot,
        check: bool,
    ) -> Result<(), NetworkError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let mut inbox = shared.inbox();
        if number > inbox.number {
            inbox.number = number;
            inbox.wanted = Some(Arc::new(snapshot));
        }
        inbox.check |= check;
        drop(inbox);
        self.settle(shared, number)
    }

    /// Lets the helper look at every namespace again.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn check(&self) -> Result<(), NetworkError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let mut inbox = shared.inbox();
        let number = inbox.number;
        inbox.check = true;
        drop(inbox);
        self.settle(shared, number)
    }

    fn settle(&self, shared: &Shared, number: u64) -> Result<(), NetworkError> {
        shared.wake();
        let done = |inbox: &Inbox| inbox.ended || (inbox.done >= number && !inbox.check);
        match shared.wait(PUBLISH_WAIT, done) {
            Some(None) => Ok(()),
            Some(Some(text)) => Err(failed("hand over the names", io::Error::other(text))),
            None => {
                let text = format!("no answer within {} s", PUBLISH_WAIT.as_secs());
                Err(failed("hand over the names", io::Error::other(text)))
            }
        }
    }

    /// Ends the helper: names no longer resolve. Waits for that, a few seconds at most.
    pub fn stop(&self) {
        let Some(shared) = &self.shared else { return };
        shared.inbox().stop = true;
        shared.wake();
        if shared.wait(PUBLISH_WAIT, |inbox| inbox.ended || !inbox.stop).is_none() {
            // Its keeper goes on to kill it, as long as this daemon lives.
            tracing::warn!(seconds = PUBLISH_WAIT.as_secs(), "the resolver did not end in time");
        }
    }
}

impl Drop for Resolver {
    /// The helper lives on: names resolve until the next daemon takes over.
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.inbox().closing = true;
        shared.wake();
        // Ignored because: the thread ends by itself when its present attempt does.
        let _ = shared.wait(END_WAIT, |inbox| inbox.ended);
    }
}

fn failed(what: &str, source: io::Error) -> NetworkError {
    NetworkError::Resolver { what: what.to_owned(), source: source.into() }
}
