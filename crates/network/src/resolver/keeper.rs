//! The one thread that talks to the helper: hands over what changes, starts it, replaces one that
//! hangs, is of another program, or has ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use super::control::{LOG, PROGRAM, Reply, Request, SOCKET, exchange};
use super::snapshot::{FORMAT, Snapshot};
use super::{Inbox, Shared};
use crate::desired::SandboxId;

/// A helper that starts opens its socket within milliseconds; with many workloads to serve again,
/// or on a slow machine, it may take longer.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// A helper that does not answer for this long hangs.
const REPLY_DEADLINE: Duration = Duration::from_secs(3);
/// Serving a new workload takes a few milliseconds at most.
const REPLY_FOR_EACH: Duration = Duration::from_millis(10);
/// A helper that is told to end, or killed, is gone within this time.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// To connect takes no time, unless the helper hangs and too many wait already.
const CONNECT_DEADLINE_S: i64 = 2;
/// Between looks at a socket that is about to appear or to vanish.
const POLL: Duration = Duration::from_millis(5);
/// Before the next attempt after a failed one.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// As much of the helper's last words as fits into a message.
const LAST_WORDS_LEN: usize = 500;

/// See the module's text.
pub(super) struct Keeper {
    program: PathBuf,
    dir: PathBuf,
    woken: UnixStream,
    /// The helper, if this daemon started it.
    child: Option<Child>,
    /// Connection for requests; the helper never speaks unasked.
    control: Option<UnixStream>,
    /// What the helper surely has, and its number.
    has: Option<(u64, Arc<Snapshot>)>,
    /// It could not serve somebody: it shall look again.
    failing: bool,
    /// Number of the last snapshot or change that was sent.
    serial: u64,
}

impl Keeper {
    pub(super) fn new(program: PathBuf, dir: PathBuf, woken: UnixStream) -> Self {
        // A helper that another daemon told something must not take our numbers for its own.
        let serial = u64::from(rand::random::<u32>()) << 32;
        Self { program, dir, woken, child: None, control: None, has: None, failing: false, serial }
    }

    /// Works until the daemon's side is dropped.
    pub(super) fn run(mut self, shared: &Shared) {
        let mut owed = false;
        loop {
            self.wait(owed.then_some(RETRY_PAUSE));
            let (stop, check, number, wanted) = {
                let inbox = shared.inbox();
                if inbox.closing {
                    break;
                }
                (inbox.stop, inbox.check, inbox.number, inbox.wanted.clone())
            };
            let outcome = match wanted {
                _ if stop => {
                    self.end();
                    Ok(())
                }
                Some(wanted) => self.bring(&wanted, check),
                None => Ok(()),
            };
            owed = outcome.is_err();
            let mut inbox = shared.inbox();
            settle(&mut inbox, stop, check, number, outcome);
            drop(inbox);
            shared.settled.notify_all();
        }
        shared.inbox().ended = true;
        shared.settled.notify_all();
    }

    /// Until somebody wants something, the helper ends, or `limit` is over.
    fn wait(&mut self, limit: Option<Duration>) {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.control.iter().map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)));
        // Ignored because: after a signal there is one look more than needed.
        let _ = poll(&mut fds, timeout);
        let ended = fds.get(1).is_some_and(|fd| fd.any() == Some(true));
        let mut buf = [0; 64];
        while (&self.woken).read(&mut buf).is_ok_and(|len| len > 0) {}
        if ended {
            self.control = None;
            self.has = None;
        }
    }

    /// Makes the helper have `wanted`.
    fn bring(&mut self, wanted: &Arc<Snapshot>, check: bool) -> Result<(), String> {
        let known = self.has.as_ref().filter(|_| self.control.is_some());
        let same = known.is_some_and(|(_, has)| has == wanted);
        let check = check || self.failing;
        if same && !check {
            return Ok(());
        }
        if wanted.views.is_empty() && self.control.is_none() && self.connect().is_err() {
            // Nobody to serve, and no helper that would have to be told.
            return Ok(());
        }
        let mut failed = BTreeMap::new();
        if !same {
            self.serial += 1;
            let request = match known {
                Some((base, has)) => {
                    Request::Change(Box::new(wanted.since(has, *base, self.serial)))
                }
                None => self.whole(wanted),
            };
            failed = self.insist(&request, wanted)?;
            self.has = Some((self.serial, Arc::clone(wanted)));
        }
        if check {
            failed = self.insist(&Request::Check, wanted)?;
            self.has = Some((self.serial, Arc::clone(wanted)));
        }
        self.failing = !failed.is_empty();
        match failed.into_iter().next() {
            None => Ok(()),
            Some((sandbox, why)) => Err(format!("serve the sandbox '{sandbox}': {why}")),
        }
    }

    fn whole(&self, wanted: &Arc<Snapshot>) -> Request {
        Request::Publish { serial: self.serial, snapshot: Box::new(wanted.as_ref().clone()) }
    }

    /// Asks, and if that does not work, tells another helper everything. Returns whom it cannot
    /// serve.
    fn insist(
        &mut self,
        request: &Request,
        wanted: &Arc<Snapshot>,
    ) -> Result<BTreeMap<SandboxId, String>, String> {
        self.has = None;
        let reply = match self.ask(request, wanted) {
            Ok(reply) if reply.error.is_none() => return Ok(reply.failed),
            // It has something else than we thought.
            Ok(_) => self.ask(&self.whole(wanted), wanted),
            // It hangs, has ended, or is of another program.
            Err(error) => {
                if error.kind() == io::ErrorKind::Unsupported {
                    self.end();
                } else {
                    self.kill();
                }
                self.start()?;
                self.ask(&self.whole(wanted), wanted)
            }
        };
        match reply {
            Ok(Reply { error: None, failed, .. }) => Ok(failed),
            Ok(Reply { error: Some(error), .. }) => Err(error),
            Err(error) => Err(text("hand over the snapshot", &error)),
        }
    }

    fn ask(&mut self, request: &Request, wanted: &Snapshot) -> io::Result<Reply> {
        let mut stream = match self.control.take() {
            Some(stream) => stream,
            None => self.connect()?,
        };
        let views = match request {
            Request::Change(change) => change.views.len(),
            _ => wanted.views.len(),
        };
        let each = REPLY_FOR_EACH.saturating_mul(u32::try_from(views).unwrap_or(u32::MAX));
        let deadline = REPLY_DEADLINE + each;
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        let reply: Reply = exchange(&mut stream, request)?;
        self.control = Some(stream);
        if reply.format == FORMAT && reply.program == PROGRAM {
            return Ok(reply);
        }
        Err(io::Error::new(io::ErrorKind::Unsupported, "it is of another program"))
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_DEADLINE_S))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&self.dir.join(SOCKET))?)?;
        Ok(fd.into())
    }

    fn start(&mut self) -> Result<(), String> {
        self.reap();
        // Somebody may have removed it.
        shoal_durable::make_private_dir(&self.dir).map_err(|e| text("make its directory", &e))?;
        let path = self.dir.join(LOG);
        let log = File::create(&path).map_err(|e| text("open its log", &e))?;
        let mut child = Command::new(&self.program)
            .arg("resolver")
            .arg("--dir")
            .arg(&self.dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| text(&format!("start '{}'", self.program.display()), &e))?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.connect() {
                Ok(stream) => {
                    self.control = Some(stream);
                    self.child = Some(child);
                    return Ok(());
                }
                Err(e) if Instant::now() >= deadline => {
                    self.child = Some(child);
                    self.reap();
                    return Err(text("wait for the helper", &e));
                }
                Err(_) => {}
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("the helper ended with {status}: {}", last_words(&path)));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends the helper, whoever started it, and waits for that.
    fn end(&mut self) {
        self.control = None;
        self.has = None;
        if let Ok(mut stream) = self.connect() {
            // Ignored because: it may be ending already; what counts is that it is gone.
            let _ = stream.set_read_timeout(Some(REPLY_DEADLINE));
            let _ = stream.set_write_timeout(Some(REPLY_DEADLINE));
            let _ = exchange::<Reply>(&mut stream, &Request::Stop);
        }
        if !self.is_gone() {
            self.kill();
        }
        self.reap();
    }

    /// Kills the helper, whoever started it.
    fn kill(&mut self) {
        self.control = None;
        self.has = None;
        if let Ok(stream) = self.connect()
            && let Ok(peer) = getsockopt(&stream, sockopt::PeerCredentials)
            && peer.pid() > 0
        {
            // The one who listens lives, so the number is still its own.
            // Ignored because: it can only have ended by itself.
            let _ = kill(Pid::from_raw(peer.pid()), Signal::SIGKILL);
        }
        self.reap();
        self.is_gone();
    }

    /// Waits a moment for the helper's end.
    fn is_gone(&self) -> bool {
        let deadline = Instant::now() + END_DEADLINE;
        while self.connect().is_ok() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Makes sure that the helper which this daemon started is gone.
    fn reap(&mut self) {
        self.control = None;
        if let Some(mut child) = self.child.take() {
            // Ignored because: it has ended already as a rule; then both say so.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn settle(inbox: &mut Inbox, stop: bool, check: bool, number: u64, outcome: Result<(), String>) {
    if stop {
        inbox.stop = false;
        inbox.wanted = None;
    }
    if check {
        inbox.check = false;
    }
    inbox.done = number;
    inbox.error = outcome.err();
}

fn text(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}

fn last_words(log: &Path) -> String {
    let mut text = String::new();
    // Ignored because: without a log there are no words to repeat.
    let _ = File::open(log).and_then(|f| f.take(LAST_WORDS_LEN as u64).read_to_string(&mut text));
    text.trim().to_owned()
}
