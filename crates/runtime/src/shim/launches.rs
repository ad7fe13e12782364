//! Processes that are on their way to their programs. What holds one up (a mount of a dead disk, a
//! file that the container made) holds up nothing else.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::clients::{Role, Target};
use super::procs::Proc;
use super::server::{Exec, Server, wall_clock};
use crate::process::spawn::{Launch, Progress, Spawned};
use crate::protocol::{ExitStatus, Failure, ProcessPhase, Reply};

/// How long a killed process may take to be gone before its failure is told anyhow: one in an
/// uninterruptible wait for a dead disk may take for ever.
const DYING_DEADLINE: Duration = Duration::from_secs(10);

/// Most ends of unknown processes that are remembered while something is launched. An exec's
/// process may end before its helper has told its id.
const STRANGERS_MAX: usize = 256;

/// One of them.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) target: Target,
    launch: Launch,
    /// Who gets the answer.
    client: u64,
    /// Whether an exec's client feeds it, and gets its output.
    stdin: bool,
    output: bool,
    /// How often the kernel had killed for want of memory before.
    oom_kills: u64,
    /// It failed; what is left of it must be gone before that is told, or until then.
    failed: Option<(Failure, Instant)>,
}

impl Pending {
    /// The container's first process.
    pub(super) fn main(launch: Launch, client: u64, oom_kills: u64) -> Self {
        let (target, stdin, output) = (Target::Main, false, false);
        Self { target, launch, client, stdin, output, oom_kills, failed: None }
    }

    /// Whether it will not run: then nothing more is heard of it, only its end is waited for.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// An exec.
    pub(super) fn exec(
        id: &str,
        launch: Launch,
        client: u64,
        (stdin, output): (bool, bool),
        oom_kills: u64,
    ) -> Self {
        let target = Target::Exec(id.to_owned());
        Self { target, launch, client, stdin, output, oom_kills, failed: None }
    }
}

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.launch.as_fd()
    }
}

impl Server {
    /// Whether this one is on its way.
    pub(super) fn is_pending(&self, target: &Target) -> bool {
        self.launches.iter().any(|pending| pending.target == *target)
    }

    /// Kills the container's first process if it is on its way.
    pub(super) fn kill_pending_main(&self) {
        let main = self.launches.iter().filter(|pending| pending.target == Target::Main);
        main.for_each(|pending| pending.launch.kill());
    }

    /// Remembers the end of a process that nobody knows yet.
    pub(super) fn remember(&mut self, pid: u32, exit: ExitStatus) {
        if !self.launches.is_empty() && self.strangers.len() < STRANGERS_MAX {
            self.strangers.insert(pid, exit);
        }
    }

    /// Looks how far each has come.
    pub(super) fn settle_launches(&mut self, now: Instant) {
        for mut pending in std::mem::take(&mut self.launches) {
            if pending.failed.is_none() {
                match pending.launch.proceed(now) {
                    Progress::Waiting => {}
                    Progress::Runs(spawned) => {
                        self.runs(pending, spawned, now);
                        continue;
                    }
                    Progress::Failed(failure) => {
                        pending.failed = Some((failure, now + DYING_DEADLINE));
                    }
                }
            }
            let gone = self.strangers.contains_key(&pending.launch.child());
            match pending.failed.take() {
                Some((failure, until)) if gone || now >= until => self.give_up(&pending, failure),
                failed => {
                    pending.failed = failed;
                    self.launches.push(pending);
                }
            }
        }
        if self.launches.is_empty() {
            self.strangers.clear();
        }
    }

    fn runs(&mut self, pending: Pending, spawned: Spawned, now: Instant) {
        let (pid, at) = (spawned.pid, wall_clock());
        let mut proc = Proc::new(spawned, pending.oom_kills);
        if let Some(mut exit) = self.strangers.remove(&pid) {
            let oom_kills = self.cgroup.oom_kills();
            exit.oom_killed = proc.ended_by_oom(&exit, oom_kills, self.plan.init);
            proc.end(exit, now);
        }
        let mut role = None;
        match &pending.target {
            Target::Main => {
                self.main = Some(proc);
                self.phase = ProcessPhase::Running;
                self.started_at = Some(at);
            }
            Target::Exec(id) => {
                self.execs.insert(id.clone(), Exec::Running(Box::new(proc)));
                role = Some(Role::Stream {
                    target: pending.target.clone(),
                    stdin: pending.stdin,
                    stdout: pending.output,
                    stderr: pending.output,
                });
            }
        }
        let is_exec = role.is_some();
        let told = self.answer_late(pending.client, role, Reply::Started { pid, at });
        if !told
            && is_exec
            && let Some(proc) = self.proc(&pending.target)
        {
            // The client that would have fed it has gone.
            proc.end_stdin();
        }
    }

    fn give_up(&mut self, pending: &Pending, failure: Failure) {
        if pending.target == Target::Main {
            // Ignored because: the failure of the start says more, and deletion tries again.
            let _ = self.cgroup.kill_and_remove();
        }
        self.answer_late(pending.client, None, Reply::Failed(failure));
    }

    /// Answers a client that has waited, and goes on with what it has sent since.
    fn answer_late(&mut self, client: u64, role: Option<Role>, reply: Reply) -> bool {
        let Some(waiting) = self.clients.get_mut(&client) else { return false };
        if let Some(role) = role {
            waiting.role = role;
        }
        waiting.awaits_launch = false;
        waiting.reply(reply);
        self.serve(client);
        true
    }
}
