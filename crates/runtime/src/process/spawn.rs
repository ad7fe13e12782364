//! The shim's side of making a process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::channel::{self, Channel, Heard, Note};
use super::enter::{self, Entry};
use super::init::{self, Stdio};
use super::{During, Step, sys, tender};
use crate::cgroup::Cgroup;
use crate::container_plan::{ContainerPlan, IpcMode, NetworkNamespace, ProcessPlan};
use crate::protocol::{Failure, FailureKind};

/// How long a process may take from its fork to its program. Mounts wait for disks.
const SPAWN_DEADLINE: Duration = Duration::from_secs(50);

/// A running process and the shim's ends of its streams.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    /// A descriptor of the process: its id may be another's as soon as it was reaped.
    pub(crate) pidfd: OwnedFd,
    pub(crate) streams: OwnStreams,
}

/// The shim's ends of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct OwnStreams {
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Which streams a process without a terminal gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) output: bool,
}

/// A process on its way to its program: mounts, and files that the container made, may hold it up,
/// so nobody waits for it ([`Launch::proceed`]).
#[derive(Debug)]
pub(crate) struct Launch {
    /// The process that was forked: the container's first one, or an exec's helper.
    child: u32,
    child_fd: OwnedFd,
    /// An exec's process, once the helper has told of it.
    exec: Option<(u32, OwnedFd)>,
    is_exec: bool,
    channel: Channel,
    streams: OwnStreams,
    deadline: Instant,
}

/// How far a [`Launch`] has come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Its program does not run yet.
    Waiting,
    /// Its program runs, or has ended already.
    Runs(Spawned),
    /// It will not run.
    Failed(Failure),
}

impl Launch {
    /// The process that was forked.
    pub(crate) fn child(&self) -> u32 {
        self.child
    }

    /// Kills what there is of it.
    pub(crate) fn kill(&self) {
        for fd in [Some(&self.child_fd), self.exec.as_ref().map(|(_, fd)| fd)].into_iter().flatten()
        {
            // Ignored because: it has ended, which is what was wanted.
            let _ = sys::signal(fd.as_fd(), libc::SIGKILL);
        }
    }

    /// Takes note of what it has reported; fails when its time is up.
    pub(crate) fn proceed(&mut self, now: Instant) -> Progress {
        let action = "wait for the new process";
        loop {
            match self.channel.next().during(action) {
                Ok(Heard::Nothing) if now < self.deadline => return Progress::Waiting,
                Ok(Heard::Nothing) => {
                    let late = io::Error::from(io::ErrorKind::TimedOut);
                    return self.fail(super::failure(action, &late));
                }
                Ok(Heard::End) => return self.end(),
                Ok(Heard::Note(note, fd)) => {
                    if let Err(failure) = self.note(note, fd) {
                        return self.fail(failure);
                    }
                }
                Err(failure) => return self.fail(failure),
            }
        }
    }

    fn note(&mut self, note: Note, fd: Option<OwnedFd>) -> Step<()> {
        match note {
            Note::Pid(number) => {
                let lost = "the new process came without a descriptor";
                let fd = fd.ok_or_else(|| Failure::new(FailureKind::Internal, lost))?;
                self.exec = Some((number, fd));
                Ok(())
            }
            Note::Terminal => {
                if let Some(fd) = &fd {
                    rustix::io::ioctl_fionbio(fd, true).during("set up the terminal")?;
                }
                self.streams.terminal = fd;
                Ok(())
            }
            Note::Failed(failure) => Err(failure),
        }
    }

    fn end(&mut self) -> Progress {
        let streams = std::mem::take(&mut self.streams);
        if !self.is_exec {
            return match self.child_fd.try_clone().during("keep hold of the new process") {
                Ok(pidfd) => Progress::Runs(Spawned { pid: self.child, pidfd, streams }),
                Err(failure) => self.fail(failure),
            };
        }
        match self.exec.take() {
            Some((pid, pidfd)) => Progress::Runs(Spawned { pid, pidfd, streams }),
            None => {
                let text = "the new process ended before it ran its program";
                Progress::Failed(Failure::new(FailureKind::Internal, text))
            }
        }
    }

    fn fail(&self, failure: Failure) -> Progress {
        self.kill();
        Progress::Failed(failure)
    }
}

impl AsFd for Launch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Begins to make the container of `plan` and to run its program.
pub(crate) fn container(plan: &ContainerPlan, dir: &Path, cgroup: &Cgroup) -> Step<Launch> {
    let place = dir.join("rootfs");
    fs::create_dir_all(&place).during(format!("make '{}'", place.display()))?;
    let wanted = Wanted { stdin: plan.process.open_stdin, output: true };
    let (ours, theirs) = streams(&plan.process, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    let action = "make the container's namespaces";
    match sys::fork_into(namespaces(plan)).during(action)? {
        sys::Forked::Child => {
            drop(near);
            init::run(plan, &place, cgroup.layout(), theirs, far)
        }
        sys::Forked::Parent(child) => {
            drop((far, theirs));
            launch(child, near, ours, false, &plan.process, cgroup)
        }
    }
}

/// Begins to run the tender of a unikernel, told by the file `config`. It makes its jail itself.
pub(crate) fn tender(
    command: &[String],
    config: &Path,
    process: &ProcessPlan,
    cgroup: &Cgroup,
) -> Step<Launch> {
    let wanted = Wanted { stdin: false, output: true };
    let plain = ProcessPlan { tty: false, ..process.clone() };
    let (ours, theirs) = streams(&plain, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    match sys::fork_into(0).during("fork")? {
        sys::Forked::Child => {
            drop(near);
            tender::run(command, config, theirs, far)
        }
        sys::Forked::Parent(child) => {
            drop((far, theirs));
            launch(child, near, ours, false, process, cgroup)
        }
    }
}

/// Begins to run a further process in the container whose first process is behind
/// `entry.container`.
pub(crate) fn exec(entry: &Entry<'_>, wanted: Wanted, cgroup: &Cgroup) -> Step<Launch> {
    let (ours, theirs) = streams(entry.process, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    match sys::fork_into(0).during("fork")? {
        sys::Forked::Child => {
            drop(near);
            enter::run(entry, theirs, far)
        }
        sys::Forked::Parent(child) => {
            drop((far, theirs));
            launch(child, near, ours, true, entry.process, cgroup)
        }
    }
}

/// Puts the new process into its group and lets it go on.
fn launch(
    (child, child_fd): (u32, OwnedFd),
    channel: Channel,
    streams: OwnStreams,
    is_exec: bool,
    process: &ProcessPlan,
    cgroup: &Cgroup,
) -> Step<Launch> {
    let deadline = Instant::now() + SPAWN_DEADLINE;
    let launch = Launch { child, child_fd, exec: None, is_exec, channel, streams, deadline };
    let going = admit(child, process, cgroup)
        .and_then(|()| launch.channel.go().during("let the new process go on"));
    match going {
        Ok(()) => Ok(launch),
        Err(failure) => {
            // It waits for a word and holds nothing, so that it is gone at once.
            launch.kill();
            if let Some(pid) = Pid::from_raw(child.cast_signed()) {
                // Ignored because: nobody else takes its status, and there is no other failure.
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
            Err(failure)
        }
    }
}

fn namespaces(plan: &ContainerPlan) -> libc::c_int {
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
    if !plan.host_pid {
        flags |= libc::CLONE_NEWPID;
    }
    if plan.ipc == IpcMode::Private {
        flags |= libc::CLONE_NEWIPC;
    }
    if plan.network == NetworkNamespace::Private {
        flags |= libc::CLONE_NEWNET;
    }
    flags
}

/// Puts a process that waits into its cgroup and sets its score, before it may do anything.
fn admit(pid: u32, process: &ProcessPlan, cgroup: &Cgroup) -> Step<()> {
    cgroup.add(pid).map_err(|e| Failure {
        kind: FailureKind::Internal,
        chain: shoal_model::fault::chain(&e).split(": ").map(str::to_owned).collect(),
    })?;
    // The shim has made itself hard to kill; its children are not.
    let score = process.oom_score_adj.unwrap_or(0);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
        .during(format!("set the out-of-memory score to {score}"))
}

fn streams(process: &ProcessPlan, wanted: Wanted) -> io::Result<(OwnStreams, Stdio)> {
    let mut ours = OwnStreams::default();
    if process.tty {
        return Ok((ours, None));
    }
    let stdin = if wanted.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(write.as_fd(), true)?;
        ours.stdin = Some(write);
        read
    } else {
        OwnedFd::from(File::open("/dev/null")?)
    };
    let output = || {
        if !wanted.output {
            let null = OpenOptions::new().write(true).open("/dev/null")?;
            return io::Result::Ok((None, OwnedFd::from(null)));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(read.as_fd(), true)?;
        Ok((Some(read), write))
    };
    let (stdout, their_stdout) = output()?;
    let (stderr, their_stderr) = output()?;
    (ours.stdout, ours.stderr) = (stdout, stderr);
    Ok((ours, Some([stdin, their_stdout, their_stderr])))
}
