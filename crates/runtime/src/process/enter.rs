//! A further process of a running container, between its fork and its program.

use std::os::fd::BorrowedFd;

use super::channel::{Channel, Note};
use super::init::Stdio;
use super::{During, Step, devices, finish, sys};
use crate::container_plan::{ProcessPlan, SeccompMode};

/// What an exec is made from.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// The container's first process.
    pub(crate) container: BorrowedFd<'a>,
    pub(crate) process: &'a ProcessPlan,
    pub(crate) seccomp: SeccompMode,
    pub(crate) filtered: bool,
}

/// Joins the container's namespaces, forks into its process namespace and runs the program there,
/// as a child of the shim. Never returns.
pub(crate) fn run(entry: &Entry<'_>, stdio: Stdio, channel: Channel) -> ! {
    if channel.wait_go().is_err() {
        sys::exit_now(1); // The shim is gone.
    }
    let code = match join(entry).and_then(|()| sys::fork_sibling().during("fork in the container"))
    {
        Ok(sys::Forked::Parent((pid, pidfd))) => {
            // Ignored because: a shim that is gone takes everything down anyway.
            let _ = channel.report(&Note::Pid(pid), Some(&pidfd));
            0
        }
        Ok(sys::Forked::Child) => match prepare(entry, stdio, &channel) {
            Ok(ready) => ready.run(false, channel),
            Err(failure) => fail(&channel, failure),
        },
        Err(failure) => fail(&channel, failure),
    };
    sys::exit_now(code)
}

fn fail(channel: &Channel, failure: crate::protocol::Failure) -> i32 {
    // Ignored because: without a shim there is nobody to tell.
    let _ = channel.report(&Note::Failed(failure), None);
    1
}

fn join(entry: &Entry<'_>) -> Step<()> {
    let undumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(undumpable).during("hide from the container")?;
    let kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    sys::setns(entry.container, kinds).during("join the container's namespaces")?;
    std::env::set_current_dir("/").during("enter the container's root")
}

fn prepare(entry: &Entry<'_>, stdio: Stdio, channel: &Channel) -> Step<finish::Ready> {
    rustix::process::setsid().during("begin a session")?;
    match stdio {
        Some(ends) => finish::connect(&ends)?,
        None => {
            let (master, slave) = devices::open_terminal(entry.process.tty_size)?;
            devices::adopt_terminal(&slave, false)?;
            channel.report(&Note::Terminal, Some(&master)).during("hand over the terminal")?;
        }
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    finish::Ready::new(entry.process, entry.filtered, entry.seccomp)
}
