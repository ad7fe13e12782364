//! The name resolver: the daemon's side (starts the helper, hands it snapshots) and the helper.
//!
//! Names are answered by a process of its own ([`main`]), so that they resolve while the daemon
//! restarts. The daemon's [`Resolver`] gives it a [`snapshot`]; `lookup` (pure) decides what a
//! question means to the workload that asks, `message` (pure) reads and writes the bytes, `server`
//! holds the sockets inside the workloads' namespaces, `forward` asks outside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::desired::{DesiredNetwork, SandboxId};
use crate::error::NetworkError;

mod control;
mod forward;
mod helper;
mod lookup;
mod message;
mod server;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use helper::main;

use control::{LOG, PROGRAM, Reply, Request, SOCKET, exchange};
use snapshot::{FORMAT, Snapshot};

/// A helper that starts opens its socket within milliseconds; with many workloads to serve again
/// it may take longer.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// A snapshot for some hundreds of new workloads takes about a second.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// Between looks at a socket that is about to appear.
const POLL: Duration = Duration::from_millis(5);
/// Between starts of a helper that ends again and again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// As much of the helper's last words as fits into a message.
const LAST_WORDS_LEN: usize = 500;

/// The daemon's side of the resolver helper.
#[derive(Debug)]
pub struct Resolver {
    inner: Option<Arc<Inner>>,
    watcher: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The helper, if this daemon started it.
    child: Option<Child>,
    /// Connection for requests.
    control: Option<UnixStream>,
    /// Connection that ends when the helper does; closed to end the watcher.
    watch: Option<UnixStream>,
    /// What the helper surely has.
    published: Option<Snapshot>,
    /// Whether somebody is to be served.
    needed: bool,
    /// The daemon's side is about to go.
    closing: bool,
}

impl Resolver {
    /// Adopts the helper that this instance left running, or starts one at the first snapshot.
    /// Without a `program` nothing is ever started.
    ///
    /// # Errors
    /// If the files of the resolver below `exec_root` are unusable.
    pub fn open(program: Option<PathBuf>, exec_root: &Path) -> Result<Self, NetworkError> {
        let Some(program) = program else { return Ok(Self { inner: None, watcher: None }) };
        let dir = exec_root.join("resolver");
        fs::create_dir_all(&dir)
            .map_err(|source| NetworkError::Files { path: dir.clone(), source: source.into() })?;
        let inner = Arc::new(Inner { program, dir, state: Mutex::default() });
        let mine = Arc::clone(&inner);
        let watcher = std::thread::Builder::new()
            .name("resolver-watch".to_owned())
            .spawn(move || mine.watch())
            .map_err(|e| failed("start the thread that watches it", e))?;
        Ok(Self { inner: Some(inner), watcher: Some(watcher) })
    }

    /// Hands the helper the names and the namespaces to serve. Blocks until it has them.
    ///
    /// # Errors
    /// If the helper cannot be started, does not take the snapshot in time, or cannot serve a
    /// namespace.
    pub fn publish(
        &self,
        desired: &DesiredNetwork,
        sandboxes: &BTreeMap<SandboxId, PathBuf>,
    ) -> Result<(), NetworkError> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let snapshot = Snapshot::of(desired, sandboxes);
        let mut state = inner.state();
        state.needed = !snapshot.views.is_empty();
        let reply = if state.published.as_ref() == Some(&snapshot) {
            inner.ask(&mut state, &Request::Check)
        } else if snapshot.views.is_empty() && inner.connect().is_err() {
            // Nobody to serve, and no helper that would have to be told.
            state.published = Some(snapshot);
            return Ok(());
        } else {
            state.published = Some(snapshot.clone());
            inner.ask(&mut state, &Request::Publish(Box::new(snapshot)))
        };
        if reply.as_ref().map_or(true, |reply| reply.error.is_some()) {
            state.published = None;
        }
        drop(state);
        if let Some(watcher) = &self.watcher {
            watcher.thread().unpark();
        }
        let reply = reply?;
        if let Some(error) = reply.error {
            return Err(failed("hand over the snapshot", io::Error::other(error)));
        }
        match reply.failed.into_iter().next() {
            None => Ok(()),
            Some((sandbox, why)) => {
                Err(failed(&format!("serve the sandbox '{sandbox}'"), io::Error::other(why)))
            }
        }
    }

    /// Ends the helper: names no longer resolve.
    pub fn stop(&self) {
        let Some(inner) = &self.inner else { return };
        let mut state = inner.state();
        state.needed = false;
        state.published = None;
        inner.end(&mut state);
    }
}

impl Drop for Resolver {
    /// The helper lives on: names resolve until the next daemon takes over.
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            let mut state = inner.state();
            state.closing = true;
            if let Some(watch) = state.watch.take() {
                // Ignored because: it fails only if the connection is closed already.
                let _ = watch.shutdown(std::net::Shutdown::Both);
            }
        }
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            // Ignored because: a watcher that panicked has nothing left to end.
            let _ = watcher.join();
        }
    }
}

fn failed(what: &str, source: io::Error) -> NetworkError {
    NetworkError::Resolver { what: what.to_owned(), source: source.into() }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic may leave half-done are connections, which are made anew when they fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.dir.join(SOCKET))?;
        stream.set_read_timeout(Some(REPLY_DEADLINE))?;
        stream.set_write_timeout(Some(REPLY_DEADLINE))?;
        Ok(stream)
    }

    /// Asks the helper, starting it if there is none and replacing it if it is of another program.
    fn ask(&self, state: &mut State, request: &Request) -> Result<Reply, NetworkError> {
        match self.ask_running(state, request) {
            Ok(reply) if reply.format == FORMAT && reply.program == PROGRAM => return Ok(reply),
            Ok(_) => self.end(state),
            // Ignored because: a helper that does not answer is replaced.
            Err(_) => self.end(state),
        }
        self.start(state)?;
        // One that was just started knows at most the file's snapshot.
        let whole = match (request, &state.published) {
            (Request::Check, Some(snapshot)) => Some(Request::Publish(Box::new(snapshot.clone()))),
            _ => None,
        };
        self.ask_running(state, whole.as_ref().unwrap_or(request))
            .map_err(|e| failed("hand over the snapshot", e))
    }

    fn ask_running(&self, state: &mut State, request: &Request) -> io::Result<Reply> {
        let mut stream = match state.control.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        let reply = exchange(&mut stream, request)?;
        state.control = Some(stream);
        Ok(reply)
    }

    fn start(&self, state: &mut State) -> Result<(), NetworkError> {
        self.reap(state);
        let path = self.dir.join(LOG);
        let log = File::create(&path)
            .map_err(|source| NetworkError::Files { path: path.clone(), source: source.into() })?;
        let mut child = Command::new(&self.program)
            .arg("resolver")
            .arg("--dir")
            .arg(&self.dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| failed(&format!("start '{}'", self.program.display()), e))?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.connect() {
                Ok(stream) => state.control = Some(stream),
                Err(e) if Instant::now() >= deadline => {
                    // Ignored because: the helper that does not answer may have ended by itself.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed("wait for the helper", e));
                }
                Err(_) => {}
            }
            if state.control.is_some() {
                break;
            }
            if let Ok(Some(status)) = child.try_wait() {
                let words = last_words(&path);
                let text = format!("the helper ended with {status}: {words}");
                return Err(failed("start the helper", io::Error::other(text)));
            }
            std::thread::sleep(POLL);
        }
        state.child = Some(child);
        Ok(())
    }

    /// Ends the helper, whoever started it, and waits for that.
    fn end(&self, state: &mut State) {
        state.control = None;
        if let Ok(mut stream) = self.connect() {
            // Ignored because: it may be ending already; what counts is the wait below.
            let _ = exchange::<Reply>(&mut stream, &Request::Stop);
            let deadline = Instant::now() + START_DEADLINE;
            while self.connect().is_ok() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
        }
        self.reap(state);
    }

    /// Makes sure that the helper which this daemon started is gone.
    fn reap(&self, state: &mut State) {
        state.control = None;
        if let Some(mut child) = state.child.take() {
            // Ignored because: it has ended already as a rule; then both say so.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Restarts a helper that ended although somebody is to be served. Runs on its own thread until
    /// the daemon's side is dropped.
    fn watch(&self) {
        loop {
            let watched = {
                let mut state = self.state();
                if state.closing {
                    return;
                }
                let stream = self.connect().and_then(|stream| {
                    stream.set_read_timeout(None)?;
                    state.watch = Some(stream.try_clone()?);
                    Ok(stream)
                });
                if stream.is_err() && state.needed && self.start(&mut state).is_ok() {
                    continue;
                }
                if stream.is_err() && !state.needed {
                    drop(state);
                    // Until a snapshot needs a helper.
                    std::thread::park();
                    continue;
                }
                stream
            };
            match watched {
                // The helper never speaks unasked: what ends this is its end, or our own.
                Ok(mut stream) => drop(stream.read(&mut [0])),
                Err(_) => std::thread::park_timeout(RESTART_PAUSE),
            }
        }
    }
}

fn last_words(log: &Path) -> String {
    let mut text = String::new();
    // Ignored because: without a log there are no words to repeat.
    let _ = File::open(log).and_then(|f| f.take(LAST_WORDS_LEN as u64).read_to_string(&mut text));
    text.trim().to_owned()
}
