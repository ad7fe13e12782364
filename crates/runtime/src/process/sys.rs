//! System calls that neither the standard library nor rustix offers safely.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The kernel's highest signal number.
pub(crate) const SIGNAL_MAX: libc::c_int = 64;

/// What a fork returned.
#[derive(Debug)]
pub(crate) enum Forked<T> {
    /// In the parent.
    Parent(T),
    /// In the new process.
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ordinary fork; the parent gets the child's id.
pub(crate) fn fork() -> io::Result<Forked<u32>> {
    // SAFETY: callers have a single thread (the shim's main invariant), so the child may go on with
    // a consistent heap and without a lock held by a vanished thread.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(number(pid)) })
}

fn number(pid: libc::c_long) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// A fork into new namespaces; the parent gets the child's id and a descriptor of it.
pub(crate) fn fork_into(namespaces: libc::c_int) -> io::Result<Forked<(u32, OwnedFd)>> {
    clone3(namespaces, libc::SIGCHLD)
}

fn clone3(flags: libc::c_int, exit_signal: libc::c_int) -> io::Result<Forked<(u32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    let flags = flags | libc::CLONE_PIDFD;
    // SAFETY: all-zero is a valid value: no stack of its own means fork's behaviour.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(exit_signal.cast_unsigned());
    // SAFETY: the arguments outlive the call, their size is theirs; single thread as in `fork`.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent((number(pid), pidfd)))
}

/// A fork whose child becomes the caller's sibling: its parent is the caller's parent. The caller
/// gets its id and a descriptor of it.
pub(crate) fn fork_sibling() -> io::Result<Forked<(u32, OwnedFd)>> {
    // With CLONE_PARENT the signal is the parent's own and must not be given.
    clone3(libc::CLONE_PARENT, 0)
}

/// Ends this process at once, without running anything of the parent's that was copied into it.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Joins namespaces of the process behind `pidfd`, or the one namespace behind `fd`.
pub(crate) fn setns(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain system call on a descriptor that lives through it.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kinds) }))?;
    Ok(())
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain system call; the caller has one thread, or this thread uses nothing that the
    // others share by way of the namespace.
    check(libc::c_long::from(unsafe { libc::unshare(kinds) }))?;
    Ok(())
}

/// Changes a mount, or a whole tree of them.
pub(crate) fn mount_setattr(
    fd: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: u64,
) -> io::Result<()> {
    let recurse = if recursive { libc::AT_RECURSIVE } else { 0 };
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a constant C string, `attr` outlives the call and its size is its own.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recurse,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Installs a system call filter for this thread and its children. Needs `CAP_SYS_ADMIN`, because
/// it does not give up gaining privileges (no-new-privileges) for it.
pub(crate) fn install_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `sock_filter` has the kernel's layout, `len` counts its elements, and the kernel
    // copies them without writing.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })?;
    Ok(())
}

/// Sends signal `number`, also one without a name (a real-time signal), to the process behind
/// `pidfd`: never to another one that got its id.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, number: libc::c_int) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: plain system call on a descriptor that lives through it; no information is given.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, none, 0)
    })?;
    Ok(())
}

/// Sends signal `number` to the process `pid`.
pub(crate) fn kill(pid: u32, number: libc::c_int) -> io::Result<()> {
    // Zero and what is negative as a number would be groups of processes.
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: plain system call without memory.
    check(libc::c_long::from(unsafe { libc::kill(pid, number) }))?;
    Ok(())
}

/// Lets all threads share at most `count` heaps.
pub(crate) fn limit_heaps(count: libc::c_int) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the C library; no thread but this one runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives free pages of all heaps back.
pub(crate) fn trim_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the heaps' own locks, touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of a private mapping of a file, which must be unwritten: what was written to
/// them would be lost.
pub(crate) fn forget_pages(range: std::ops::Range<usize>) {
    let len = range.end.saturating_sub(range.start);
    let start = range.start as *mut libc::c_void;
    // SAFETY: the pages are the file's own, unwritten: whoever touches them next gets the same
    // bytes again.
    // Ignored because: pages that stay mapped cost memory, nothing else.
    let _ = unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) };
}

/// Every signal back to its default and none blocked: both are inherited through exec otherwise.
pub(crate) fn reset_signals() {
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: the default action is no function of ours. The two signals whose action cannot
        // be changed are refused, which changes nothing.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is made empty before use; both outlive the calls.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Lets every descriptor from `first` on be closed by the next exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: only sets a flag; closes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    Ok(())
}

/// Closes every descriptor from `first` on; for a process that uses none of them any more.
pub(crate) fn close_from(first: u32) {
    // SAFETY: the caller goes on without touching a descriptor or an object that owns one.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Makes `fd` the standard stream `number`.
pub(crate) fn become_stdio(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: replaces one of 0, 1, 2, which nothing in this process owns as an object.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) }))?;
    Ok(())
}

/// Runs a program in place of this one; returns only an error.
pub(crate) fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays are null-terminated and every text lives until the call ends.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Switches the loopback interface of this network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain system call; the result is checked before it is owned.
    let fd = check(libc::c_long::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) };
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request outlives the call and is of the type that this ioctl reads.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

/// Waits for the next of all signals; returns its number.
pub(crate) fn wait_signal() -> libc::c_int {
    let mut signal = 0;
    // SAFETY: the set is filled before use; `signal` outlives the call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwait(&raw const all, &raw mut signal);
    }
    signal
}

/// Blocks every signal, to be taken by [`wait_signal`].
pub(crate) fn block_signals() {
    // SAFETY: the set is filled before use and outlives the call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}
