//! The loop of a shim.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, wait};
use shoal_model::time::Timestamp;

use super::clients::{Client, Role, Target};
use super::launches::Pending;
use super::procs::{Channel, Got, Proc};
use crate::cgroup::Cgroup;
use crate::container_plan::ContainerPlan;
use crate::json_log::{JsonLog, Source};
use crate::protocol::{ExecState, ExitStatus, ProcessPhase, Reply, ShimState};
use crate::runtime::{EXIT_FILE, SOCKET_FILE};

/// How often the loop looks at deadlines while one runs.
const TICK: Duration = Duration::from_millis(50);

/// How long an ended shim stays for clients that still read.
const LINGER: Duration = Duration::from_secs(10);

/// Connections at once; more wait in the socket's queue. A daemon needs a handful for each attached
/// client.
const CLIENTS_MAX: usize = 256;

/// Ended execs that are remembered.
const ENDED_EXECS_MAX: usize = 64;

/// An exec, running or ended.
#[derive(Debug)]
pub(super) enum Exec {
    Running(Box<Proc>),
    Ended(ExitStatus),
}

/// What the loop woke up for.
#[derive(Clone, Debug)]
enum Token {
    Listener,
    Signals,
    Client(u64),
    Output(Target, Channel),
    Input(Target),
    /// Something is told of a process on its way; [`Server::settle_launches`] hears it.
    Launch,
}

/// A shim's whole state.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) dir: PathBuf,
    pub(super) plan: ContainerPlan,
    pub(super) cgroup: Cgroup,
    listener: UnixListener,
    /// Held as long as the process lives.
    _lock: File,
    signals: SignalFd,
    pub(super) clients: BTreeMap<u64, Client>,
    next_client: u64,
    pub(super) phase: ProcessPhase,
    pub(super) main: Option<Proc>,
    pub(super) execs: BTreeMap<String, Exec>,
    ended_execs: VecDeque<String>,
    pub(super) launches: Vec<Pending>,
    /// Ends of processes that may turn out to be one that is launched.
    pub(super) strangers: BTreeMap<u32, ExitStatus>,
    log: JsonLog,
    pub(super) started_at: Option<Timestamp>,
    exit: Option<ExitStatus>,
    pub(super) shutting_down: bool,
    leave_at: Option<Instant>,
}

/// The wall clock.
pub(super) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

impl Server {
    pub(super) fn new(
        dir: PathBuf,
        plan: ContainerPlan,
        cgroup: Cgroup,
        listener: UnixListener,
        lock: File,
    ) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [NixSignal::SIGCHLD, NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGHUP]
        {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let log = JsonLog::new(plan.log.clone());
        Ok(Self {
            dir,
            plan,
            cgroup,
            listener,
            _lock: lock,
            signals,
            clients: BTreeMap::new(),
            next_client: 0,
            phase: ProcessPhase::Created,
            main: None,
            execs: BTreeMap::new(),
            ended_execs: VecDeque::new(),
            launches: Vec::new(),
            strangers: BTreeMap::new(),
            log,
            started_at: None,
            exit: None,
            shutting_down: false,
            leave_at: None,
        })
    }

    /// Serves until the container has ended and nobody is left to tell.
    pub(super) fn run(&mut self) -> i32 {
        while !self.is_over() {
            for (token, flags) in self.wait() {
                self.handle(token, flags);
            }
            self.settle(Instant::now());
        }
        // Ignored because: the directory's removal takes it along.
        let _ = fs::remove_file(self.dir.join(SOCKET_FILE));
        0
    }

    fn is_over(&self) -> bool {
        let unstarted =
            self.shutting_down && self.phase == ProcessPhase::Created && self.launches.is_empty();
        let told = self.clients.is_empty() || self.shutting_down;
        let flushed = self.clients.values().all(|client| !client.has_output());
        let late = self.leave_at.is_some_and(|at| Instant::now() >= at);
        (unstarted && flushed)
            || (self.phase == ProcessPhase::Exited && ((told && flushed) || late))
    }

    /// Waits for something to do. Never busy: a stream whose client has no room is not looked at.
    fn wait(&self) -> Vec<(Token, PollFlags)> {
        let mut tokens = vec![Token::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.clients.len() < CLIENTS_MAX {
            tokens.push(Token::Listener);
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for (id, client) in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, self.may_send(client));
            flags.set(PollFlags::OUT, client.has_output());
            if !flags.is_empty() {
                tokens.push(Token::Client(*id));
                fds.push(PollFd::new(&client.stream, flags));
            }
        }
        let mut ticking = self.leave_at.is_some() || !self.launches.is_empty();
        for launch in self.launches.iter().filter(|launch| !launch.has_failed()) {
            tokens.push(Token::Launch);
            fds.push(PollFd::new(launch, PollFlags::IN));
        }
        for (target, proc) in self.procs() {
            ticking |= proc.has_ended();
            let room = self.has_room(&target);
            ticking |= !room;
            for (channel, fd) in proc.outputs().filter(|_| room) {
                tokens.push(Token::Output(target.clone(), channel));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
            if let Some(fd) = proc.input() {
                tokens.push(Token::Input(target.clone()));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
        }
        let limit = if ticking { Timespec::try_from(TICK).ok() } else { None };
        // Ignored because: the only failure is an interruption, and then nothing is ready.
        let _ = poll(&mut fds, limit.as_ref());
        let ready = tokens.into_iter().zip(fds.iter().map(PollFd::revents));
        ready.filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn procs(&self) -> impl Iterator<Item = (Target, &Proc)> {
        let execs = self.execs.iter().filter_map(|(id, exec)| match exec {
            Exec::Running(proc) => Some((Target::Exec(id.clone()), &**proc)),
            Exec::Ended(_) => None,
        });
        self.main.as_ref().map(|proc| (Target::Main, proc)).into_iter().chain(execs)
    }

    pub(super) fn proc(&mut self, target: &Target) -> Option<&mut Proc> {
        match target {
            Target::Main => self.main.as_mut(),
            Target::Exec(id) => match self.execs.get_mut(id)? {
                Exec::Running(proc) => Some(proc),
                Exec::Ended(_) => None,
            },
        }
    }

    fn has_room(&self, target: &Target) -> bool {
        self.clients.values().all(|client| !client.streams(target) || client.has_room())
    }

    /// A client whose input the process does not take yet is not read.
    fn may_send(&self, client: &Client) -> bool {
        if client.awaits_launch {
            return false;
        }
        let Role::Stream { target, stdin: true, .. } = &client.role else { return !client.closing };
        let proc = match target {
            Target::Main => self.main.as_ref(),
            Target::Exec(id) => match self.execs.get(id) {
                Some(Exec::Running(proc)) => Some(&**proc),
                _ => None,
            },
        };
        // Before the start nothing is read, so that nothing is lost.
        match proc {
            Some(proc) => proc.takes_input(),
            None => self.phase == ProcessPhase::Exited,
        }
    }

    fn handle(&mut self, token: Token, flags: PollFlags) {
        match token {
            Token::Launch => {}
            Token::Listener => self.accept(),
            Token::Signals => self.take_signals(),
            Token::Input(target) => {
                if let Some(proc) = self.proc(&target) {
                    proc.flush_stdin();
                }
            }
            Token::Output(target, channel) => self.forward(&target, channel),
            Token::Client(id) => {
                let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
                if let Some(client) =
                    self.clients.get_mut(&id).filter(|_| flags.intersects(readable))
                {
                    client.read();
                    self.serve(id);
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // The directory is root's alone; this holds where somebody opened it up.
            let own = rustix::process::geteuid();
            let same = rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|c| c.uid == own);
            let client = Client::new(self.next_client, stream);
            if let Some(client) = client.ok().filter(|_| same) {
                self.clients.insert(self.next_client, client);
                self.next_client += 1;
            }
        }
    }

    /// Answers what client `id` has sent.
    pub(super) fn serve(&mut self, id: u64) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.awaits_launch {
                return;
            }
            match client.frame() {
                Ok(Some((kind, payload))) => {
                    // The request may change the other clients; this one is out meanwhile.
                    if let Some(mut client) = self.clients.remove(&id) {
                        self.answer(&mut client, kind, &payload);
                        self.clients.insert(id, client);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    client.finish(super::requests::refusal(&error));
                    client.role = Role::Control;
                    return;
                }
            }
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo.cast_signed() != libc::SIGCHLD
                && signal.ssi_signo.cast_signed() != libc::SIGHUP
            {
                self.kill_main();
                self.shutting_down = true;
            }
        }
        let now = Instant::now();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().cast_unsigned();
            let signal = status.terminating_signal();
            let code = status.exit_status().or(signal.map(|s| 128 + s)).unwrap_or(255);
            let mut exit =
                ExitStatus { code, signal, oom_killed: false, finished_at: wall_clock() };
            let target = self.procs().find(|(_, proc)| proc.pid == pid).map(|(target, _)| target);
            let Some(target) = target else {
                self.remember(pid, exit);
                continue;
            };
            let (oom_kills, init) = (self.cgroup.oom_kills(), self.plan.init);
            if let Some(proc) = self.proc(&target) {
                exit.oom_killed = proc.ended_by_oom(&exit, oom_kills, init);
                proc.end(exit, now);
            }
        }
    }

    /// Kills the container's first process, and with it all others.
    pub(super) fn kill_main(&mut self) {
        if let Some(main) = &mut self.main {
            // Ignored because: it may have ended just now, which is what was wanted.
            let _ = main.signal(libc::SIGKILL);
        }
        self.kill_pending_main();
        if self.phase == ProcessPhase::Paused && self.cgroup.freeze(false).is_ok() {
            self.phase = ProcessPhase::Running;
        }
    }

    /// Passes one piece of output on: to the log first, then to every client that wants it.
    fn forward(&mut self, target: &Target, channel: Channel) {
        let Some(Got::Bytes(bytes)) = self.proc(target).map(|proc| proc.read(channel)) else {
            return;
        };
        if *target == Target::Main {
            let source = if channel == Channel::Stderr { Source::Stderr } else { Source::Stdout };
            self.log.take(source, &bytes, wall_clock());
        }
        for client in self.clients.values_mut().filter(|client| client.streams(target)) {
            let wanted = match client.role {
                Role::Stream { stderr, .. } if channel == Channel::Stderr => stderr,
                Role::Stream { stdout, .. } => stdout,
                _ => false,
            };
            if wanted && !client.closing {
                client.send(channel.frame_kind(), &bytes);
            }
        }
    }

    /// What follows from what has happened: ends, lost clients, output to write.
    fn settle(&mut self, now: Instant) {
        self.settle_launches(now);
        let held: Vec<Target> =
            self.procs().map(|(t, _)| t).filter(|target| !self.has_room(target)).collect();
        for target in held {
            if let Some(proc) = self.proc(&target) {
                proc.hold(now);
            }
        }
        if let Some(status) = self.main.as_ref().and_then(|proc| proc.finished(now)) {
            self.end_main(status, now);
        }
        let ended: Vec<(String, ExitStatus)> = self
            .execs
            .iter()
            .filter_map(|(id, exec)| match exec {
                Exec::Running(proc) => Some((id.clone(), proc.finished(now)?)),
                Exec::Ended(_) => None,
            })
            .collect();
        for (id, status) in ended {
            self.end_exec(id, status);
        }
        let mut lost = Vec::new();
        for (id, client) in &mut self.clients {
            client.write(now);
            client.check_stall(now);
            if client.gone {
                lost.push(*id);
            }
        }
        for client in lost.iter().filter_map(|id| self.clients.remove(id)).collect::<Vec<_>>() {
            self.forget(&client);
        }
    }

    /// A client that fed standard input has gone.
    fn forget(&mut self, client: &Client) {
        let Role::Stream { target, stdin: true, .. } = &client.role else { return };
        let once = *target != Target::Main || self.plan.stdin_once;
        if let Some(proc) = self.proc(target).filter(|_| once) {
            proc.end_stdin();
        }
    }

    fn end_main(&mut self, status: ExitStatus, now: Instant) {
        self.log.finish(status.finished_at);
        self.main = None;
        self.phase = ProcessPhase::Exited;
        self.exit = Some(status);
        self.leave_at = Some(now + LINGER);
        // Ignored because: whoever deletes the container tries again and is told what stands in
        // the way.
        let _ = self.cgroup.kill_and_remove();
        if let Err(error) = self.record() {
            // To the shim's own error file, whose owner finds no exit file and looks here.
            eprintln!("record the exit status {}: {error}", status.code);
        }
        self.tell(&Target::Main, status);
    }

    fn end_exec(&mut self, id: String, status: ExitStatus) {
        self.tell(&Target::Exec(id.clone()), status);
        self.execs.insert(id.clone(), Exec::Ended(status));
        self.ended_execs.push_back(id);
        while self.ended_execs.len() > ENDED_EXECS_MAX {
            if let Some(oldest) = self.ended_execs.pop_front() {
                self.execs.remove(&oldest);
            }
        }
    }

    /// Tells everybody who waits for a process, or streams it, how it ended.
    fn tell(&mut self, of: &Target, status: ExitStatus) {
        for client in self.clients.values_mut() {
            let waits = matches!(&client.role, Role::Waiting(target) if target == of);
            if (waits || client.streams(of)) && !client.closing {
                client.finish(Reply::Exited(status));
            }
        }
    }

    /// Writes the exit file, whole or not at all.
    fn record(&self) -> io::Result<()> {
        shoal_durable::replace_json(&self.dir.join(EXIT_FILE), &self.state())
    }

    pub(super) fn state(&self) -> ShimState {
        let exec = |(id, exec): (&String, &Exec)| match exec {
            Exec::Running(proc) => ExecState { id: id.clone(), pid: proc.pid, exit: None },
            Exec::Ended(status) => ExecState { id: id.clone(), pid: 0, exit: Some(*status) },
        };
        ShimState {
            phase: self.phase,
            pid: self.main.as_ref().map_or(0, |proc| proc.pid),
            shim_pid: std::process::id(),
            started_at: self.started_at,
            exit: self.exit,
            log: self.log.state().clone(),
            execs: self.execs.iter().map(exec).collect(),
        }
    }

    pub(super) fn exit(&self) -> Option<ExitStatus> {
        self.exit
    }

    /// Descriptor of the container's first process.
    pub(super) fn container(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.main.as_ref().map(|main| main.pidfd.as_fd())
    }
}
