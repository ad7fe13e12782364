//! Network namespaces: made, kept alive by a bind mount, entered, deleted.
//!
//! A thread that has entered another namespace is never reused: each entry is a thread of its own
//! that ends with the work. Netlink sockets stay in the namespace where they were opened, so a
//! [`NetnsHandle`] needs such a thread once for each kind of socket, when it is first used.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::SockProtocol;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};

use crate::attr::Writer;
use crate::error::{Cause, NetlinkError};
use crate::socket::{Message, Socket};
use crate::sysctl;

/// The file of the calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// What the kernel copies into a new namespace from the machine's first one (see
/// `devconf_inherit_init_net` in the kernel's `sysctl/net.rst`), at the kernel's own defaults: how
/// a namespace behaves must not depend on what has been set for the machine.
const FRESH: [(&str, &str); 9] = [
    // First: it changes other settings.
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/arp_ignore", "0"),
    ("net/ipv4/conf/default/arp_ignore", "0"),
    ("net/ipv4/conf/all/arp_announce", "0"),
    ("net/ipv4/conf/default/arp_announce", "0"),
    ("net/ipv4/conf/all/arp_filter", "0"),
    ("net/ipv4/conf/default/arp_filter", "0"),
];

/// Makes a namespace, mounts it at `path` and brings its `lo` up. Parent directories are made.
/// Forwarding, source checks and ARP begin at the kernel's defaults, whatever the machine has.
///
/// # Errors
/// The path already holds a namespace (`EEXIST`), or a step failed.
pub fn create(path: &Path) -> Result<(), NetlinkError> {
    create_with(path, &[], &[]).map(drop)
}

/// [`create`] with settings as [`NetnsHandle::set_sysctls`] takes them, and further ones that the
/// kernel need not have; all on one thread, because entering a namespace again and again costs
/// more than making it. Returns it opened.
///
/// # Errors
/// As [`create`], or a needed setting is refused.
pub fn create_with(
    path: &Path,
    needed: &[(&str, &str)],
    optional: &[(&str, &str)],
) -> Result<NetnsHandle, NetlinkError> {
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
        let settled = sysctl::write_all(&FRESH).and_then(|()| sysctl::write_all(needed));
        if let Err((key, cause)) = settled {
            return Ok(Err(cause.of("set the sysctl", key)));
        }
        for one in optional {
            // Ignored because: a kernel without the feature has no such setting, and needs none.
            let _ = sysctl::write_all(std::slice::from_ref(one));
        }
        Ok(Ok(Socket::open(SockProtocol::NetlinkRoute)?))
    });
    let ready = made.map_err(named).and_then(|settled| {
        let route = settled?;
        let handle = NetnsHandle::open(path)?;
        handle.inner.route.put(route);
        handle.set_up("lo")?;
        Ok(handle)
    });
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

fn is_namespace(file: &OwnedFd) -> bool {
    fstatfs(file).is_ok_and(|s| s.filesystem_type() == NSFS_MAGIC)
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
    route: Slot,
    netfilter: Slot,
    diag: Slot,
}

/// A netlink socket that is opened when it is first used.
#[derive(Debug)]
struct Slot {
    protocol: SockProtocol,
    socket: Mutex<Option<Socket>>,
}

impl Slot {
    const fn new(protocol: SockProtocol) -> Self {
        Self { protocol, socket: Mutex::new(None) }
    }

    fn put(&self, socket: Socket) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }
}

/// One of a namespace's netlink sockets, for one request after the other.
pub(crate) struct Line<'a> {
    slot: &'a Slot,
    ns: BorrowedFd<'a>,
}

impl Line<'_> {
    /// Does `work` with the socket, undisturbed by others.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        // A panic while holding the socket leaves at worst unread answers, which are skipped.
        let mut slot = self.slot.socket.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(socket) => work(socket),
            empty => {
                let socket = enter(self.ns, || Socket::open(self.slot.protocol))??;
                work(empty.insert(socket))
            }
        }
    }

    pub(crate) fn request(&self, message: Writer) -> Result<(), Cause> {
        self.with(|socket| socket.request(message))
    }

    pub(crate) fn get(&self, message: Writer) -> Result<Vec<Message>, Cause> {
        self.with(|socket| socket.get(message))
    }

    pub(crate) fn dump(&self, message: Writer) -> Result<Vec<Message>, Cause> {
        self.with(|socket| socket.dump(message))
    }
}

impl NetnsHandle {
    /// Opens the namespace mounted at `path`.
    ///
    /// # Errors
    /// The file is not a namespace.
    pub fn open(path: &Path) -> Result<Self, NetlinkError> {
        Self::build(path, path.to_string_lossy().into_owned(), Some(path.to_owned()))
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// It has no file.
    pub fn current() -> Result<Self, NetlinkError> {
        Self::build(Path::new(OWN), "the host's".to_owned(), None)
    }

    fn build(file: &Path, name: String, path: Option<PathBuf>) -> Result<Self, NetlinkError> {
        let ns = open_file(file).and_then(|ns| {
            if is_namespace(&ns) { Ok(ns) } else { Err(Cause::Malformed("it is no namespace")) }
        });
        let ns = ns.map_err(|cause| cause.of("open the network namespace", &name))?;
        Ok(Self::around(name, path, ns))
    }

    fn around(name: String, path: Option<PathBuf>, ns: OwnedFd) -> Self {
        let inner = Inner {
            name,
            path,
            ns,
            route: Slot::new(SockProtocol::NetlinkRoute),
            netfilter: Slot::new(SockProtocol::NetlinkNetFilter),
            diag: Slot::new(SockProtocol::NetlinkSockDiag),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Closes its sockets; the next request opens what it needs. For namespaces that are held by
    /// the hundred and asked for little.
    pub fn rest(&self) {
        for slot in [&self.inner.route, &self.inner.netfilter, &self.inner.diag] {
            *slot.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
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

    fn line<'a>(&'a self, slot: &'a Slot) -> Line<'a> {
        Line { slot, ns: self.fd() }
    }

    pub(crate) fn route_socket(&self) -> Line<'_> {
        self.line(&self.inner.route)
    }

    pub(crate) fn netfilter_socket(&self) -> Line<'_> {
        self.line(&self.inner.netfilter)
    }

    pub(crate) fn diag_socket(&self) -> Line<'_> {
        self.line(&self.inner.diag)
    }
}
