//! What a node tries before it runs containers: each thing that the kernel must offer, really done
//! once on a thread that ends right after, so that nothing is left behind.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use shoal_model::check::{Check, CheckResult, Need, Verdict};
use shoal_model::fault::chain;

use crate::cgroup::{Cgroup, CgroupError, DevicePolicy, Layout};
use crate::container_plan::Limits;
use crate::process::{exchange_root, sys};
use crate::{caps, seccomp};

type Attempt = Result<String, Box<dyn Error + Send + Sync>>;

/// Id of the check whether unikernels can run as processes.
pub const UNIKERNEL_PROCESS: &str = "SH-DOC-206";

/// Id of the check whether unikernels can run as virtual machines, and on which flavour of KVM.
pub const UNIKERNEL_KVM: &str = "SH-DOC-207";

struct Probe {
    id: &'static str,
    name: &'static str,
    need: Need,
    /// The verdict if it does not work.
    otherwise: Verdict,
    remedy: &'static str,
    attempt: fn() -> Attempt,
}

/// The runtime's checks, `SH-DOC-201` to `SH-DOC-207`.
#[must_use]
pub fn checks() -> Vec<Box<dyn Check>> {
    let probe = |id, name, need, remedy, attempt| -> Box<dyn Check> {
        Box::new(Probe { id, name, need, otherwise: Verdict::Fail, remedy, attempt })
    };
    let wish = |id, name, remedy, attempt| -> Box<dyn Check> {
        let need = Need::Nothing;
        Box::new(Probe { id, name, need, otherwise: Verdict::Warn, remedy, attempt })
    };
    vec![
        probe(
            "SH-DOC-201",
            "overlay file system",
            Need::Containers,
            "load the kernel module 'overlay', or run a kernel with CONFIG_OVERLAY_FS; run the \
             daemon outside of a chroot",
            overlay,
        ),
        probe(
            "SH-DOC-202",
            "cgroup controllers",
            Need::Limits,
            "boot with the memory, cpu and pids controllers enabled and mounted",
            controllers,
        ),
        probe(
            "SH-DOC-203",
            "cgroup of a container",
            Need::Containers,
            "mount the cgroup hierarchies writable, with the devices controller on version 1",
            group,
        ),
        probe(
            "SH-DOC-204",
            "system call filter",
            Need::Containers,
            "run a kernel with CONFIG_SECCOMP_FILTER, and the daemon with CAP_SYS_ADMIN",
            filter,
        ),
        probe(
            "SH-DOC-205",
            "namespaces",
            Need::Containers,
            "run the daemon as root, on a kernel that has every kind of namespace",
            namespaces,
        ),
        wish(
            UNIKERNEL_PROCESS,
            "unikernels as processes",
            "run the daemon as root, on a kernel with CONFIG_SECCOMP_FILTER",
            jail,
        ),
        wish(
            UNIKERNEL_KVM,
            "unikernels as virtual machines",
            "load the module kvm_intel or kvm_amd, or let unikernels run as processes",
            virtual_machine,
        ),
    ]
}

impl Check for Probe {
    fn run(&self) -> CheckResult {
        let attempt = self.attempt;
        // On a thread of its own: namespaces and filters are a thread's, and end with it.
        let outcome = thread::Builder::new().spawn(attempt).map(thread::JoinHandle::join);
        let (verdict, detail) = match outcome {
            Ok(Ok(Ok(detail))) => (Verdict::Ok, detail),
            Ok(Ok(Err(error))) => (self.otherwise, chain(&*error)),
            Ok(Err(_)) => (Verdict::Fail, "the check itself failed".to_owned()),
            Err(error) => (Verdict::Fail, format!("start a thread: {error}")),
        };
        CheckResult {
            id: self.id.to_owned(),
            name: self.name.to_owned(),
            verdict,
            detail,
            remedy: if verdict == Verdict::Ok { String::new() } else { self.remedy.to_owned() },
            needed_for: self.need,
        }
    }
}

/// In a mount namespace of this thread's own, on a file system in memory: a root file system as
/// containers get it.
fn overlay() -> Attempt {
    sys::unshare(libc::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| io::Error::other(format!("separate the mounts: {e}")))?;
    // Any directory will do as a place; this one is always there.
    let place = "/dev";
    mount("tmpfs", place, "tmpfs", MountFlags::empty(), None)
        .map_err(|e| io::Error::other(format!("mount tmpfs: {e}")))?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(format!("{place}/{name}"))?;
    }
    fs::write(format!("{place}/lower/file"), "below")?;
    let options = c"lowerdir=/dev/lower,upperdir=/dev/upper,workdir=/dev/work";
    mount("overlay", "/dev/merged", "overlay", MountFlags::empty(), options)
        .map_err(|e| io::Error::other(format!("mount overlay: {e}")))?;
    fs::write(format!("{place}/merged/file"), "above")?;
    let (lower, upper) =
        (fs::read(format!("{place}/lower/file"))?, fs::read(format!("{place}/upper/file"))?);
    if (lower.as_slice(), upper.as_slice()) != (b"below", b"above") {
        return Err("a written file did not go to the upper layer".into());
    }
    // As a container's start does: where this fails, none can start.
    exchange_root(Path::new("/dev/merged"))?;
    if fs::read("/file")?.as_slice() != b"above" {
        return Err("the root is not the one that was mounted".into());
    }
    Ok("mounted, written, read, and made a root".to_owned())
}

fn controllers() -> Attempt {
    let layout = Layout::detect()?;
    let missing: Vec<&str> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| layout.root_of(name).is_none())
        .collect();
    let version = if layout.is_v2() { 2 } else { 1 };
    if missing.is_empty() {
        Ok(format!("memory, cpu, pids by cgroup version {version}"))
    } else {
        Err(format!("cgroup version {version} lacks {}", missing.join(", ")).into())
    }
}

fn group() -> Attempt {
    let path = format!("shoal-check-{}/group", std::process::id());
    let cgroup = Cgroup::open(&path)?;
    let made = cgroup.create(&Limits::default(), DevicePolicy::Standard);
    let freezer = cgroup
        .dir("freezer")
        .ok_or(CgroupError::Missing { controller: "freezer", what: "running at all" });
    cgroup.kill_and_remove()?;
    made?;
    freezer?;
    Ok("made with device rules, and removed".to_owned())
}

fn filter() -> Attempt {
    let numbers: Vec<u32> = caps::DEFAULT.iter().filter_map(|name| caps::number(name)).collect();
    for program in seccomp::compile(&numbers)? {
        sys::install_filter(&program)?;
    }
    // Forbidden by the filter, and harmless if it were not: there is nothing to move.
    match rustix::mount::mount_move("/nowhere", "/nowhere") {
        Err(rustix::io::Errno::PERM) => Ok("installed, and it refuses".to_owned()),
        other => Err(format!("installed, but a forbidden call gave {other:?}").into()),
    }
}

/// What a tender does to itself before its guest: an empty root and a filter, on this thread.
fn jail() -> Attempt {
    shoal_tender::jail::empty_root(true, Path::new("/dev"))?;
    rustix::thread::set_no_new_privs(true)?;
    let forbidden = seccomp::compile(&[])?;
    for program in &forbidden {
        sys::install_filter(program)?;
    }
    Ok("an empty root and a system call filter".to_owned())
}

/// Runs a loop in both rings of a virtual machine: where ring 0 is emulated, only a guest in ring 3
/// is fast, as ours are.
fn virtual_machine() -> Attempt {
    Ok(format!("KVM in {}", shoal_tender::kvm::flavour::flavour()?))
}

fn namespaces() -> Attempt {
    for (name, flag) in [
        ("mount", libc::CLONE_NEWNS),
        ("uts", libc::CLONE_NEWUTS),
        ("ipc", libc::CLONE_NEWIPC),
        ("net", libc::CLONE_NEWNET),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("pid", libc::CLONE_NEWPID),
    ] {
        sys::unshare(flag).map_err(|e| format!("make a {name} namespace: {e}"))?;
    }
    Ok("pid, mount, uts, ipc, net, cgroup".to_owned())
}
