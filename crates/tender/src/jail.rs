//! Locks the tender in: no files but the open ones, an empty root, no capabilities, another user.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::{Config, JailChoice};
use crate::error::TenderError;
use crate::root::{self, RootError};

/// Highest capability that is tried to be dropped; the kernel says where its own end.
const CAPABILITIES_MAX: i32 = 63;
/// Version of the argument of `capset` that has two words for each set.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn failed(action: &'static str) -> TenderError {
    TenderError::Jail { action, source: io::Error::last_os_error() }
}

fn check(answer: i32, action: &'static str) -> Result<(), TenderError> {
    if answer < 0 { Err(failed(action)) } else { Ok(()) }
}

/// Closes every file but `keep`.
pub(crate) fn close_files(keep: &[i32]) -> Result<(), TenderError> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 0;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), TenderError> {
    // SAFETY: no pointers. Files that Rust values own are in the list of those to keep, or their
    // values are never used again: the process enters the guest after this.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    check(answer as i32, "closing files")
}

/// Takes everything away that the guest does not need. `folder` is any folder; it is hidden below
/// the empty root for a moment.
pub(crate) fn lock_in(config: &Config, folder: &Path) -> Result<(), TenderError> {
    // SAFETY: no pointers.
    let root = unsafe { libc::geteuid() } == 0;
    let mut on_parents_death: libc::c_int = 0;
    // SAFETY: the kernel writes one number there.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut on_parents_death) };
    limits()?;
    match empty_root(root, folder) {
        Err(error) if root || config.jail == JailChoice::Full => return Err(error),
        // Some kernels let ordinary users make no namespaces; the filter, which leaves no call that
        // takes a path, is what holds then.
        Err(error) => warn(&error),
        Ok(()) => {}
    }
    if root {
        drop_bounding_set();
        become_user(config)?;
    }
    // A change of user clears it, and so does a user namespace: who wanted the tender to end with
    // it, still does.
    // SAFETY: no pointers.
    let kept = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, on_parents_death, 0, 0, 0) };
    check(kept, "staying tied to the parent")?;
    drop_capabilities()?;
    // SAFETY: no pointers.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0), "forbidding core dumps")?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbidding new privileges")
    }
}

/// Says on standard error, in one line, what the jail lacks.
fn warn(error: &TenderError) {
    eprintln!(
        "warning: the tender keeps its root folder, because this user may make no namespaces; the \
         system call filter still lets it open nothing: {}",
        error.chain()
    );
}

fn limits() -> Result<(), TenderError> {
    // Not the number of processes: KVM starts a kernel thread on behalf of the process at its first
    // run. The filter has no call that makes one.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }, "setting limits")
}

/// An empty, read-only root in a mount namespace of its own, which for ordinary users (not
/// `privileged`) takes a user namespace.
///
/// # Errors
/// [`TenderError::Jail`], with the step that failed.
pub fn empty_root(privileged: bool, folder: &Path) -> Result<(), TenderError> {
    let users = if privileged { 0 } else { libc::CLONE_NEWUSER };
    let nul = |error: std::ffi::NulError| TenderError::Jail {
        action: "making an empty root",
        source: error.into(),
    };
    let place = folder;
    let folder = CString::new(folder.as_os_str().as_bytes()).map_err(nul)?;
    let none: *const libc::c_char = core::ptr::null();
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all strings are C strings that outlive the calls.
    unsafe {
        let unshared = libc::unshare(libc::CLONE_NEWNS | users);
        check(unshared, "making a mount namespace")?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let made = libc::mount(none, c"/".as_ptr(), none, private, none.cast());
        check(made, "making mounts private")?;
        let name = c"none".as_ptr();
        let made = libc::mount(name, folder.as_ptr(), c"tmpfs".as_ptr(), flags, none.cast());
        check(made, "mounting an empty root")?;
    }
    root::exchange(place)
        .map_err(|RootError { action, source }| TenderError::Jail { action, source })
}

fn drop_bounding_set() {
    for capability in 0..=CAPABILITIES_MAX {
        // SAFETY: no pointers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            // Ignored because: the kernel knows no further ones, or this root may drop none; even
            // then none comes back, because new privileges are forbidden afterwards.
            break;
        }
    }
}

fn become_user(config: &Config) -> Result<(), TenderError> {
    let action = "becoming another user";
    // SAFETY: no pointers but an empty list.
    unsafe {
        if let Some(gid) = config.gid {
            check(libc::setgroups(0, core::ptr::null()), action)?;
            check(libc::setresgid(gid, gid, gid), action)?;
        }
        match config.uid {
            Some(uid) => check(libc::setresuid(uid, uid, uid), action),
            None => Ok(()),
        }
    }
}

fn drop_capabilities() -> Result<(), TenderError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    // Effective, permitted, inheritable, for the lower and the upper 32 capabilities.
    let none = [0_u32; 6];
    // SAFETY: both have the layout of version 3 and outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check(answer as i32, "dropping capabilities")
}
