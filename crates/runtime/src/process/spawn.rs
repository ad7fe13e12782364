//! The shim's side of making a process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::channel::{self, Channel, Note};
use super::enter::{self, Entry};
use super::init::{self, Stdio};
use super::{During, Step, sys, tender};
use crate::cgroup::Cgroup;
use crate::plan::{ContainerPlan, IpcMode, NetworkNamespace, ProcessPlan};
use crate::protocol::{Failure, FailureKind};

/// How long a process may take from its fork to its program. Mounts wait for disks.
const SPAWN_DEADLINE: Duration = Duration::from_secs(50);

/// A running process and the shim's ends of its streams.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    /// A descriptor of the process: a container's first one only.
    pub(crate) pidfd: Option<OwnedFd>,
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

/// Makes the container of `plan` and runs its program.
pub(crate) fn container(plan: &ContainerPlan, dir: &Path, cgroup: &Cgroup) -> Step<Spawned> {
    let place = dir.join("rootfs");
    fs::create_dir_all(&place).during(format!("make '{}'", place.display()))?;
    let wanted = Wanted { stdin: plan.process.open_stdin, output: true };
    let (ours, theirs) = streams(&plan.process, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    let action = "make the container's namespaces";
    match sys::fork_into(namespaces(plan)).during(action)? {
        sys::Forked::Child => {
            drop(near);
            init::run(plan, &place, theirs, far)
        }
        sys::Forked::Parent((pid, pidfd)) => {
            drop((far, theirs));
            let admitted = admit(pid, &plan.process, cgroup);
            let spawned = admitted.and_then(|()| settle(&near, ours));
            match spawned {
                Ok((streams, _)) => Ok(Spawned { pid, pidfd: Some(pidfd), streams }),
                Err(failure) => {
                    bury(pid);
                    Err(failure)
                }
            }
        }
    }
}

/// Runs the tender of a unikernel, told by the file `config`. It makes its jail itself.
pub(crate) fn tender(
    command: &[String],
    config: &Path,
    process: &ProcessPlan,
    cgroup: &Cgroup,
) -> Step<Spawned> {
    let wanted = Wanted { stdin: false, output: true };
    let plain = ProcessPlan { tty: false, ..process.clone() };
    let (ours, theirs) = streams(&plain, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    match sys::fork_into(0).during("fork")? {
        sys::Forked::Child => {
            drop(near);
            tender::run(command, config, theirs, far)
        }
        sys::Forked::Parent((pid, pidfd)) => {
            drop((far, theirs));
            let admitted = admit(pid, process, cgroup);
            match admitted.and_then(|()| settle(&near, ours)) {
                Ok((streams, _)) => Ok(Spawned { pid, pidfd: Some(pidfd), streams }),
                Err(failure) => {
                    bury(pid);
                    Err(failure)
                }
            }
        }
    }
}

/// Runs a further process in the container whose first process is behind `entry.container`.
pub(crate) fn exec(entry: &Entry<'_>, wanted: Wanted, cgroup: &Cgroup) -> Step<Spawned> {
    let (ours, theirs) = streams(entry.process, wanted).during("make the standard streams")?;
    let (near, far) = channel::pair().during("make a channel to the new process")?;
    match sys::fork().during("fork")? {
        sys::Forked::Child => {
            drop(near);
            enter::run(entry, theirs, far)
        }
        sys::Forked::Parent(helper) => {
            drop((far, theirs));
            let admitted = admit(helper, entry.process, cgroup);
            let spawned = admitted.and_then(|()| settle(&near, ours));
            bury(helper);
            match spawned {
                Ok((streams, Some(pid))) => Ok(Spawned { pid, pidfd: None, streams }),
                Ok((_, None)) => {
                    let text = "the new process ended before it ran its program";
                    Err(Failure::new(FailureKind::Internal, text))
                }
                Err(failure) => Err(failure),
            }
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

/// Lets the process go on and collects its reports until its program runs.
fn settle(channel: &Channel, mut streams: OwnStreams) -> Step<(OwnStreams, Option<u32>)> {
    let deadline = Instant::now() + SPAWN_DEADLINE;
    let action = "wait for the new process";
    channel.go().during(action)?;
    let mut pid = None;
    loop {
        match channel.next(deadline).during(action)? {
            None => return Ok((streams, pid)),
            Some((Note::Pid(number), _)) => pid = Some(number),
            Some((Note::Terminal, fd)) => {
                if let Some(fd) = &fd {
                    rustix::io::ioctl_fionbio(fd, true).during("set up the terminal")?;
                }
                streams.terminal = fd;
            }
            Some((Note::Failed(failure), _)) => {
                if let Some(pid) = pid {
                    bury(pid);
                }
                return Err(failure);
            }
        }
    }
}

/// Kills a child and takes its exit status, so that nothing is left of it.
fn bury(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // Ignored because: it may have ended by itself; then there is just its status to take.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
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
