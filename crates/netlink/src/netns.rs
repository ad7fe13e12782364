//! Network namespaces: made, kept alive by a bind mount, entered, deleted.
//!
//! A thread that has entered another namespace is never reused: each entry is a thread of its own
//! that ends with the work. Netlink sockets stay in the namespace where they were opened, so a
//! [`NetnsHandle`] needs such a thread only once.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::SockProtocol;
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::error::{Cause, NetlinkError};
use crate::socket::Socket;

/// The file of the calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Makes a namespace, mounts it at `path` and brings its `lo` up. Parent directories are made.
///
/// # Errors
/// The path already holds a namespace (`EEXIST`), or a step failed.
pub fn create(path: &Path) -> Result<(), NetlinkError> {
    let named = |cause: Cause| cause.of("create the network namespace", path.to_string_lossy());
    if exists(path) {
        return Err(named(Cause::errno(libc::EEXIST)));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .map_err(|e| named(Cause::system("make the directory for it", e)))?;
    }
    File::create(path).map_err(|e| named(Cause::system("make the file to mount it on", e)))?;
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Cause::system("unshare", e))?;
        mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| Cause::system("mount it", e))?;
        Ok(())
    });
    let ready = made.map_err(named).and_then(|()| NetnsHandle::open(path)?.set_up("lo"));
    if ready.is_err() {
        // Ignored because: the first failure is the one to report.
        let _ = delete(path);
    }
    ready
}

/// Unmounts the namespace and removes its file; succeeds if there is none. The kernel destroys the
/// namespace, with everything in it, when no process and no socket is left inside.
///
/// # Errors
/// The file could not be unmounted or removed.
pub fn delete(path: &Path) -> Result<(), NetlinkError> {
    let named = |cause: Cause| cause.of("delete the network namespace", path.to_string_lossy());
    while exists(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(|e| named(Cause::system("unmount it", e)))?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(named(Cause::system("remove its file", e)))
        }
        _ => Ok(()),
    }
}

/// Whether a namespace is mounted at `path`.
#[must_use]
pub fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
}

/// Runs `work` on a thread of its own inside the namespace at `path`.
///
/// # Errors
/// The namespace could not be entered.
///
/// # Panics
/// If `work` panics.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetlinkError> {
    let named = |cause: Cause| cause.of("enter the network namespace", path.to_string_lossy());
    let file = open_file(path).map_err(named)?;
    enter(file.as_fd(), work).map_err(named)
}

fn open_file(path: &Path) -> Result<OwnedFd, Cause> {
    File::open(path).map(Into::into).map_err(|e| Cause::system("open its file", e))
}

fn enter<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Cause> {
    on_thread(move || {
        setns(ns, CloneFlags::CLONE_NEWNET).map_err(|e| Cause::system("setns", e))?;
        Ok(work())
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Cause> + Send) -> Result<T, Cause> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| Cause::system("start a thread", e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A namespace together with netlink sockets inside it. Cheap to clone; its methods (one module
/// per kind of object) take turns.
#[derive(Clone, Debug)]
pub struct NetnsHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    path: Option<PathBuf>,
    ns: OwnedFd,
    route: Mutex<Socket>,
    netfilter: Mutex<Socket>,
    diag: Mutex<Socket>,
}

impl NetnsHandle {
    /// Opens the namespace mounted at `path`.
    ///
    /// # Errors
    /// The file is not a namespace, or it cannot be entered.
    pub fn open(path: &Path) -> Result<Self, NetlinkError> {
        Self::build(path, path.to_string_lossy().into_owned(), Some(path.to_owned()))
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// A socket could not be opened.
    pub fn current() -> Result<Self, NetlinkError> {
        Self::build(Path::new(OWN), "the host's".to_owned(), None)
    }

    fn build(file: &Path, name: String, path: Option<PathBuf>) -> Result<Self, NetlinkError> {
        let open = || {
            let ns = open_file(file)?;
            let (route, netfilter, diag) = enter(ns.as_fd(), || {
                Ok((
                    Socket::open(SockProtocol::NetlinkRoute)?,
                    Socket::open(SockProtocol::NetlinkNetFilter)?,
                    Socket::open(SockProtocol::NetlinkSockDiag)?,
                ))
            })??;
            Ok((ns, route, netfilter, diag))
        };
        let (ns, route, netfilter, diag) =
            open().map_err(|cause: Cause| cause.of("open the network namespace", &name))?;
        let inner = Inner {
            name,
            path,
            ns,
            route: Mutex::new(route),
            netfilter: Mutex::new(netfilter),
            diag: Mutex::new(diag),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where it is mounted; nothing for the namespace that the program itself is in.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The open namespace file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.ns.as_fd()
    }

    /// Runs `work` on a thread of its own inside the namespace.
    ///
    /// # Errors
    /// The namespace could not be entered.
    ///
    /// # Panics
    /// If `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetlinkError> {
        enter(self.fd(), work).map_err(|c| c.of("enter the network namespace", &self.inner.name))
    }

    /// `name`, and in which namespace: for error messages.
    pub(crate) fn object(&self, name: &str) -> String {
        format!("{name}' in '{}", self.inner.name)
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.inner.ns.as_raw_fd()
    }

    pub(crate) fn route_socket(&self) -> MutexGuard<'_, Socket> {
        // A panic while holding the socket leaves at worst unread answers, which are skipped.
        self.inner.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn netfilter_socket(&self) -> MutexGuard<'_, Socket> {
        self.inner.netfilter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn diag_socket(&self) -> MutexGuard<'_, Socket> {
        self.inner.diag.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
