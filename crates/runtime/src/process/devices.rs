//! `/dev` of a container, and terminals.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, makedev, mknodat};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};

use super::mounts::{ensure, is_char_device};
use super::{During, Step, sys};
use crate::container_plan::TtySize;
use crate::protocol::{Failure, FailureKind};

/// The nodes that every container has, all of memory's or the terminal's driver.
const NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A device node of the host.
#[derive(Debug)]
pub(crate) struct HostNode {
    path: String,
    kind: FileType,
    device: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Every device node of the host, for privileged containers. To be called in the host's view.
pub(crate) fn host_nodes() -> Vec<HostNode> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found);
    found
}

fn collect(dir: &Path, found: &mut Vec<HostNode>) {
    // These have file systems of their own in a container, or belong to the host's terminal.
    const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", "console"];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            collect(&entry.path(), found);
            continue;
        } else if kind.is_char_device() {
            FileType::CharacterDevice
        } else if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            continue;
        };
        found.push(HostNode {
            path: entry.path().to_string_lossy().into_owned(),
            kind,
            device: metadata.rdev(),
            mode: metadata.mode() & 0o777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
}

/// Makes the nodes and links of `/dev`.
pub(crate) fn populate(extra: &[HostNode]) -> Step<()> {
    for (path, major, minor) in NODES {
        let device = makedev(major, minor);
        node(path, FileType::CharacterDevice, device, 0o666, 0, 0)?;
    }
    // A kernel without /proc/kcore has no use for the link to it.
    let there = |target: &str| target != "/proc/kcore" || Path::new(target).exists();
    for (target, path) in LINKS.into_iter().filter(|(target, _)| there(target)) {
        symlink(target, path).during(format!("link '{path}'"))?;
    }
    let standard = |path: &str| NODES.iter().any(|(known, ..)| *known == path);
    let taken = |path: &str| standard(path) || LINKS.iter().any(|(_, link)| *link == path);
    for host in extra.iter().filter(|host| !taken(&host.path)) {
        if let Some(parent) = Path::new(&host.path).parent() {
            ensure(parent, true).during(format!("make '{}'", parent.display()))?;
        }
        node(&host.path, host.kind, host.device, host.mode, host.uid, host.gid)?;
    }
    Ok(())
}

fn node(path: &str, kind: FileType, device: u64, mode: u32, uid: u32, gid: u32) -> Step<()> {
    let action = || format!("make the device node '{path}'");
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device).during(action())?;
    // The umask may have taken bits away.
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).during(action())?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chown(path, Some(uid), Some(gid)).during(action())
}

/// A new terminal in this container: the controlling side, and the side of the process.
pub(crate) fn open_terminal(size: Option<TtySize>) -> Step<(OwnedFd, OwnedFd)> {
    let action = "open a terminal";
    let ptmx = "/dev/pts/ptmx";
    if !is_char_device(ptmx) {
        let text = format!("open a terminal: '{ptmx}' is not a device");
        return Err(Failure::new(FailureKind::Internal, text));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(CWD, ptmx, flags, Mode::empty()).during(action)?;
    rustix::pty::unlockpt(&master).during(action)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).during(action)?;
    if let Some(size) = size {
        set_size(&master, size).during("set the size of the terminal")?;
    }
    Ok((master, slave))
}

/// Changes the size of a terminal.
pub(crate) fn set_size(terminal: impl AsFd, size: TtySize) -> rustix::io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size)
}

/// Makes the terminal this session's, its standard streams', and (for a container's first process)
/// `/dev/console`.
pub(crate) fn adopt_terminal(slave: &OwnedFd, console: bool) -> Step<()> {
    if console {
        let action = "make '/dev/console'";
        ensure(Path::new("/dev/console"), false).during(action)?;
        let name = rustix::termios::ttyname(slave, Vec::new()).during(action)?;
        rustix::mount::mount_bind(name.as_c_str(), "/dev/console").during(action)?;
    }
    rustix::process::ioctl_tiocsctty(slave).during("take the terminal as the controlling one")?;
    for number in 0..3 {
        sys::become_stdio(slave.as_fd(), number).during("connect the terminal")?;
    }
    Ok(())
}
