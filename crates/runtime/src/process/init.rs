//! The first process of a container, between its fork and its program.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::channel::{Channel, Note};
use super::{During, Step, devices, finish, mounts, sys};
use crate::cgroup::Layout;
use crate::container_plan::{ContainerPlan, NetworkNamespace};
use crate::protocol::{Failure, FailureKind};

/// The ends of the standard streams that are the process's; `None` with a terminal.
pub(crate) type Stdio = Option<[OwnedFd; 3]>;

/// Makes the container around this process and runs its program. Never returns.
pub(crate) fn run(
    plan: &ContainerPlan,
    place: &Path,
    layout: &Layout,
    stdio: Stdio,
    channel: Channel,
) -> ! {
    if channel.wait_go().is_err() {
        sys::exit_now(1); // The shim is gone.
    }
    let failure = match prepare(plan, (place, layout), stdio, &channel) {
        Ok(ready) => ready.run(plan.init, channel),
        Err(failure) => {
            // Ignored because: without a shim there is nobody to tell.
            let _ = channel.report(&Note::Failed(failure), None);
            1
        }
    };
    sys::exit_now(failure)
}

fn prepare(
    plan: &ContainerPlan,
    (place, layout): (&Path, &Layout),
    stdio: Stdio,
    channel: &Channel,
) -> Step<finish::Ready> {
    // Nobody in the container may reach this program's own file or memory through /proc.
    let undumpable = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(undumpable).during("hide from the container")?;
    rustix::process::setsid().during("begin a session")?;
    // The shim's own is private; what is made here, the container's users see.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::unshare(libc::CLONE_NEWCGROUP).during("make a cgroup namespace")?;
    join_network(&plan.network)?;
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .during(format!("set the host name '{}'", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes())
            .during(format!("set the domain name '{}'", plan.domainname))?;
    }
    let host_nodes = if plan.privileged { devices::host_nodes() } else { Vec::new() };
    let held = mounts::take_hold(plan)?;
    mounts::enter_root(plan, place)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    mounts::standard(plan, layout)?;
    devices::populate(&host_nodes)?;
    mounts::place(plan, held)?;
    connect(plan, stdio, channel)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    make_workdir(&plan.process.cwd)?;
    set_sysctls(plan)?;
    mounts::protect(plan)?;
    if plan.readonly_rootfs {
        mounts::read_only("/", false)?;
    }
    finish::Ready::new(&plan.process, !plan.privileged, plan.seccomp)
}

fn join_network(network: &NetworkNamespace) -> Step<()> {
    match network {
        NetworkNamespace::Host => Ok(()),
        NetworkNamespace::Private => sys::loopback_up().during("switch the loopback interface on"),
        NetworkNamespace::Path(path) => {
            let action = || format!("join the network namespace '{}'", path.display());
            let file = fs::File::open(path).during(action())?;
            sys::setns(std::os::fd::AsFd::as_fd(&file), libc::CLONE_NEWNET).during(action())
        }
    }
}

fn connect(plan: &ContainerPlan, stdio: Stdio, channel: &Channel) -> Step<()> {
    match stdio {
        Some(ends) => finish::connect(&ends),
        None => {
            let (master, slave) = devices::open_terminal(plan.process.tty_size)?;
            devices::adopt_terminal(&slave, true)?;
            channel.report(&Note::Terminal, Some(&master)).during("hand over the terminal")
        }
    }
}

/// Docker makes a missing working directory, owned by root.
pub(crate) fn make_workdir(cwd: &str) -> Step<()> {
    if cwd.is_empty() {
        return Ok(());
    }
    if !cwd.starts_with('/') {
        let text =
            format!("the working directory '{cwd}' is invalid, it needs to be an absolute path");
        return Err(Failure::new(FailureKind::Invalid, text));
    }
    // Ignored because: a directory that cannot be made here cannot be entered later, and that
    // error is the one that users know.
    let _ = mounts::ensure(Path::new(cwd), true);
    Ok(())
}

/// Each file is looked up once more in what the container may set: a plan on a disk may be
/// anyone's.
fn set_sysctls(plan: &ContainerPlan) -> Step<()> {
    for (file, value) in plan.check_sysctls()? {
        let action = || format!("set the sysctl '{file}' to '{value}'");
        fs::write(Path::new("/proc/sys").join(&file), value).during(action())?;
    }
    Ok(())
}
