//! The mount tree of a container. Everything happens in the container's own mount namespace, so
//! nothing is left behind when its last process has ended. Host directories are taken hold of
//! first; then the root is exchanged; every path after that is looked up inside the container's
//! root, so that no link in an image can lead out of it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};

use super::{During, Step, overlay, sys};
use crate::cgroup::Layout;
use crate::container_plan::{ContainerPlan, MountKind, MountPlan, Propagation, Rootfs};
use crate::protocol::{Failure, FailureKind};

/// Deepest chain of links that is followed to a mount's target; the kernel's own bound.
const LINKS_MAX: usize = 40;

/// A host tree that will be mounted.
#[derive(Debug)]
pub(crate) struct Held {
    target: PathBuf,
    tree: OwnedFd,
    is_dir: bool,
}

/// Takes hold of every host directory and file that the container shows. To be called while the
/// host's mounts still propagate as they do there.
pub(crate) fn take_hold(plan: &ContainerPlan) -> Step<Vec<Held>> {
    let mut held = Vec::new();
    for mount in sorted(&plan.mounts) {
        if let MountKind::Bind { source, recursive, propagation } = &mount.kind {
            held.push(hold(source, &mount.target, mount.read_only, *recursive, *propagation)?);
        }
    }
    let files = [
        (&plan.resolv_conf_file, "/etc/resolv.conf"),
        (&plan.hostname_file, "/etc/hostname"),
        (&plan.hosts_file, "/etc/hosts"),
    ];
    for (source, target) in files {
        let taken = plan.mounts.iter().any(|m| m.target == Path::new(target));
        if let Some(source) = source.as_ref().filter(|_| !taken) {
            let read_only = plan.readonly_rootfs;
            let private = Propagation::Rprivate;
            held.push(hold(source, Path::new(target), read_only, false, private)?);
        }
    }
    Ok(held)
}

fn sorted(mounts: &[MountPlan]) -> Vec<&MountPlan> {
    let mut mounts: Vec<&MountPlan> = mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    mounts
}

fn hold(
    source: &Path,
    target: &Path,
    read_only: bool,
    recursive: bool,
    propagation: Propagation,
) -> Step<Held> {
    let action = || format!("bind mount '{}' to '{}'", source.display(), target.display());
    let is_dir = match fs::metadata(source) {
        Ok(metadata) => metadata.is_dir(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = format!("bind source path does not exist: {}", source.display());
            return Err(Failure::new(FailureKind::Invalid, text));
        }
        Err(e) => return Err(e).during(action()),
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, source, flags).during(action())?;
    let (all, kind) = match propagation {
        Propagation::Rprivate => (true, libc::MS_PRIVATE),
        Propagation::Private => (false, libc::MS_PRIVATE),
        Propagation::Rslave => (true, libc::MS_SLAVE),
        Propagation::Slave => (false, libc::MS_SLAVE),
        Propagation::Rshared => (true, libc::MS_SHARED),
        Propagation::Shared => (false, libc::MS_SHARED),
    };
    sys::mount_setattr(tree.as_fd(), all, 0, kind).during(action())?;
    if read_only {
        let set = libc::MOUNT_ATTR_RDONLY;
        sys::mount_setattr(tree.as_fd(), true, set, 0).during(action())?;
    }
    Ok(Held { target: target.to_owned(), tree, is_dir })
}

/// Mounts the root file system and makes it this process's root.
pub(crate) fn enter_root(plan: &ContainerPlan, place: &Path) -> Step<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).during("separate the mounts from the host's")?;
    match &plan.rootfs {
        Rootfs::Overlay { lower, upper, work } => {
            for dir in [upper, work] {
                let action = || format!("make the directory '{}'", dir.display());
                fs::create_dir_all(dir).during(action())?;
            }
            let action = || format!("mount the overlay of {} layers", lower.len());
            let options = overlay::options(lower, upper, work).during(action())?;
            let text = CString::new(options.text).map_err(io::Error::other).during(action())?;
            mount("overlay", place, "overlay", MountFlags::empty(), text.as_c_str())
                .during(action())?;
            drop(options.held);
        }
        Rootfs::Directory(source) => {
            rustix::mount::mount_bind_recursive(source, place)
                .during(format!("bind the root file system '{}'", source.display()))?;
        }
    }
    exchange_root(place)?;
    mount_change("/", private).during("make the root private")
}

/// Makes what is mounted on `place` this process's root.
pub(crate) fn exchange_root(place: &Path) -> Step<()> {
    let exchanged = shoal_tender::root::exchange(place);
    exchanged.map_err(|error| super::failure(error.action, &error.source))
}

/// The file systems that every container has.
/// `layout` is the host's, which can no longer be seen here.
pub(crate) fn standard(plan: &ContainerPlan, layout: &Layout) -> Step<()> {
    const STRICT: MountFlags =
        MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
    for name in ["/proc", "/sys", "/dev"] {
        // A link here would put everything below somewhere else than it seems.
        if fs::symlink_metadata(name).is_ok_and(|m| m.file_type().is_symlink()) {
            let text = format!("'{name}' in the image is a symbolic link");
            return Err(Failure::new(FailureKind::Invalid, text));
        }
    }
    let strict_time = MountFlags::NOSUID | MountFlags::STRICTATIME;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    let pts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    let shm = format!("mode=1777,size={}", plan.shm_bytes);
    fresh("/proc", "proc", STRICT, "")?;
    fresh("/dev", "tmpfs", strict_time, "mode=755,size=65536k")?;
    fresh("/dev/pts", "devpts", quiet, pts)?;
    fresh("/sys", "sysfs", STRICT, "")?;
    cgroups(plan, layout)?;
    fresh("/dev/mqueue", "mqueue", STRICT, "")?;
    fresh("/dev/shm", "tmpfs", STRICT, &shm)?;
    if !plan.privileged {
        read_only("/sys", false)?;
    }
    Ok(())
}

fn fresh(target: &str, kind: &str, flags: MountFlags, options: &str) -> Step<()> {
    let action = || format!("mount {kind} on '{target}'");
    ensure(Path::new(target), true).during(action())?;
    let options = CString::new(options).map_err(io::Error::other).during(action())?;
    mount(kind, target, kind, flags, options.as_c_str()).during(action())
}

fn cgroups(plan: &ContainerPlan, layout: &Layout) -> Step<()> {
    const ROOT: &str = "/sys/fs/cgroup";
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if layout.is_v2() {
        fresh(ROOT, "cgroup2", flags, "")?;
        return if plan.privileged { Ok(()) } else { read_only(ROOT, false) };
    }
    fresh(ROOT, "tmpfs", flags, "mode=755")?;
    for (point, options) in layout.v1_mounts() {
        let Some(name) = point.file_name().and_then(|name| name.to_str()) else { continue };
        let target = format!("{ROOT}/{name}");
        fresh(&target, "cgroup", flags, &options)?;
        for alias in options.split(',').filter(|alias| *alias != name && !alias.contains('=')) {
            let action = || format!("link '{ROOT}/{alias}'");
            std::os::unix::fs::symlink(name, format!("{ROOT}/{alias}")).during(action())?;
        }
        if !plan.privileged {
            read_only(&target, false)?;
        }
    }
    if plan.privileged { Ok(()) } else { read_only(ROOT, false) }
}

/// Puts what [`take_hold`] holds, and the plan's tmpfs mounts, into their places.
pub(crate) fn place(plan: &ContainerPlan, held: Vec<Held>) -> Step<()> {
    let mut held: Vec<Option<Held>> = held.into_iter().map(Some).collect();
    let mut binds = 0;
    for mount in sorted(&plan.mounts) {
        match &mount.kind {
            MountKind::Bind { .. } => {
                if let Some(one) = held.get_mut(binds).and_then(Option::take) {
                    attach(one)?;
                }
                binds += 1;
            }
            MountKind::Tmpfs { size_bytes, mode, options } => {
                tmpfs(mount, *size_bytes, *mode, options)?;
            }
        }
    }
    held.into_iter().flatten().try_for_each(attach)
}

fn attach(held: Held) -> Step<()> {
    let action = || format!("mount on '{}'", held.target.display());
    ensure(&held.target, held.is_dir).during(action())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(&held.tree, "", CWD, &held.target, flags).during(action())
}

fn tmpfs(mount: &MountPlan, size: Option<u64>, mode: u32, options: &[String]) -> Step<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut data = vec![format!("mode={mode:o}")];
    data.extend(size.map(|bytes| format!("size={bytes}")));
    let mut readonly = mount.read_only;
    for option in options {
        match option.as_str() {
            "exec" => flags.remove(MountFlags::NOEXEC),
            "suid" => flags.remove(MountFlags::NOSUID),
            "dev" => flags.remove(MountFlags::NODEV),
            "noexec" | "nosuid" | "nodev" | "rw" | "defaults" => {}
            "ro" => readonly = true,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            other => data.push(other.to_owned()),
        }
    }
    let target = mount.target.to_string_lossy();
    fresh(&target, "tmpfs", flags, &data.join(","))?;
    if readonly { read_only(&target, false) } else { Ok(()) }
}

/// Hides paths, and lets others only be read. Those that do not exist need neither.
pub(crate) fn protect(plan: &ContainerPlan) -> Step<()> {
    if plan.privileged {
        return Ok(());
    }
    for path in plan.readonly_paths.iter().filter(|path| Path::new(path).exists()) {
        let action = || format!("make '{path}' read-only");
        rustix::mount::mount_bind_recursive(path.as_str(), path.as_str()).during(action())?;
        read_only(path, true)?;
    }
    for path in &plan.masked_paths {
        let action = || format!("mask '{path}'");
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).during(action()),
            Ok(metadata) if metadata.is_dir() => {
                let none = CString::default();
                mount("tmpfs", path.as_str(), "tmpfs", MountFlags::RDONLY, none.as_c_str())
                    .during(action())?;
            }
            Ok(_) => {
                rustix::mount::mount_bind("/dev/null", path.as_str()).during(action())?;
            }
        }
    }
    Ok(())
}

/// Lets the mount at `path` only be read.
pub(crate) fn read_only(path: &str, recursive: bool) -> Step<()> {
    let action = || format!("make '{path}' read-only");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).during(action())?;
    sys::mount_setattr(fd.as_fd(), recursive, libc::MOUNT_ATTR_RDONLY, 0).during(action())
}

/// Makes a directory or an empty file to mount on, and what is above it, unless it is there. Links
/// are followed, inside this process's root.
pub(crate) fn ensure(path: &Path, is_dir: bool) -> io::Result<()> {
    ensure_within(path, is_dir, LINKS_MAX)
}

fn ensure_within(path: &Path, is_dir: bool, links_left: usize) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if links_left == 0 {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    if let Ok(link) = fs::read_link(path) {
        return ensure_within(&normal(&parent.join(link)), is_dir, links_left - 1);
    }
    ensure_within(parent, true, links_left - 1)?;
    if is_dir {
        return match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        };
    }
    let mode = Mode::from_raw_mode(0o644);
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, mode)?;
    Ok(())
}

/// Without `.` and `..`; nothing is above the root.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// Whether `path` is a character device, not following a last link.
pub(crate) fn is_char_device(path: &str) -> bool {
    let file = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    file.is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_char_device())
}
