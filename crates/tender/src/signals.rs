//! Signals: the request to stop, and (for a process) the guest's faults.
//!
//! Handlers run on a stack of their own, with the guest's registers loaded, and use neither
//! thread-local storage nor the heap.

use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, Ordering, compiler_fence};
use std::io;

use shoal_unikernel_abi::control::ControlPage;

use crate::elf::PAGE;
use crate::error::TenderError;
use crate::sys;

/// Bytes of the handlers' stack: registers with AVX-512 and AMX take up to 12 KiB of it.
const STACK_BYTES: usize = 64 * 1024;
/// Seconds that stand for "without end".
const FOREVER_S: i64 = i32::MAX as i64;

/// 1 once the process was asked to stop.
static STOP: AtomicU32 = AtomicU32::new(0);
/// The page where the guest sees it, once there is one.
static CONTROL: AtomicPtr<ControlPage> = AtomicPtr::new(core::ptr::null_mut());
/// How long the tender is about to sleep, laid out as `timespec`. The handler sets it to zero, so
/// that a signal between the last look at [`STOP`] and the system call is not slept through.
#[repr(C)]
struct Timeout {
    seconds: AtomicI64,
    nanoseconds: AtomicI64,
}

static TIMEOUT: Timeout = Timeout { seconds: AtomicI64::new(0), nanoseconds: AtomicI64::new(0) };

extern "C" fn stop(_signal: i32) {
    STOP.store(1, Ordering::Relaxed);
    let control = CONTROL.load(Ordering::Relaxed);
    if !control.is_null() {
        // SAFETY: set by `show_stop_at` to a page that stays mapped.
        unsafe { (*control).stop_requested.store(1, Ordering::Release) };
    }
    TIMEOUT.seconds.store(0, Ordering::Relaxed);
    TIMEOUT.nanoseconds.store(0, Ordering::Relaxed);
}

/// Whether the process was asked to stop.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed) != 0
}

/// Sleeps until a file is ready, `ns` have passed (`None`: without end), or a signal came.
/// Does not sleep if the process was asked to stop and `stop_seen` is false.
pub(crate) fn sleep(files: &mut [libc::pollfd], ns: Option<u64>, stop_seen: bool) -> isize {
    let (seconds, rest) = match ns {
        Some(ns) => ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64),
        None => (FOREVER_S, 0),
    };
    TIMEOUT.seconds.store(seconds.min(FOREVER_S), Ordering::Relaxed);
    TIMEOUT.nanoseconds.store(rest, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    if stop_requested() && !stop_seen {
        return 0;
    }
    let files_at = files.as_mut_ptr() as usize;
    let timeout_at = (&raw const TIMEOUT) as usize;
    // SAFETY: both pointers are valid for the call; TIMEOUT is laid out as a timespec (two signed
    // 64-bit words), and the kernel may read and write it like a signal handler.
    unsafe { sys::call(libc::SYS_ppoll, [files_at, files.len(), timeout_at, 0, 0, 0]) }
}

/// Where the guest sees the request to stop.
pub(crate) fn show_stop_at(page: *mut ControlPage) {
    CONTROL.store(page, Ordering::Relaxed);
    if stop_requested() {
        // SAFETY: the caller gives a page that stays mapped.
        unsafe { (*page).stop_requested.store(1, Ordering::Release) };
    }
}

/// A handler that gets the signal's information and the interrupted registers.
pub(crate) type FaultHandler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t);

fn failed() -> TenderError {
    TenderError::Jail { action: "installing signal handlers", source: io::Error::last_os_error() }
}

/// Installs the handlers. Faults are the guest's only if there is a handler for them.
pub(crate) fn install(faults: Option<FaultHandler>) -> Result<(), TenderError> {
    own_stack()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        set(signal, stop as *const () as usize, libc::SA_ONSTACK)?;
    }
    set(libc::SIGPIPE, libc::SIG_IGN, 0)?;
    if let Some(handler) = faults {
        let flags = libc::SA_ONSTACK | libc::SA_SIGINFO | libc::SA_NODEFER;
        for signal in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS]
        {
            set(signal, handler as *const () as usize, flags)?;
        }
    }
    // SAFETY: an empty set is valid zeros; whoever started the tender may have blocked signals.
    let answer = unsafe {
        let none: libc::sigset_t = core::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, core::ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(failed()) }
}

fn own_stack() -> Result<(), TenderError> {
    let stack = stack(STACK_BYTES)?;
    let stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the stack stays mapped.
    match unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(failed()),
    }
}

/// Memory for a stack with a guard page below it. Answers its lowest address.
pub(crate) fn stack(bytes: usize) -> Result<*mut u8, TenderError> {
    let guard = PAGE as usize;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses, and its first page.
    unsafe {
        let start = libc::mmap(core::ptr::null_mut(), guard + bytes, prot, flags, -1, 0);
        if start == libc::MAP_FAILED || libc::mprotect(start, guard, libc::PROT_NONE) != 0 {
            return Err(failed());
        }
        Ok(start.cast::<u8>().add(guard))
    }
}

fn set(signal: i32, handler: usize, flags: i32) -> Result<(), TenderError> {
    // SAFETY: the handlers above and of the backends use only what a signal handler may use; a
    // zeroed action has an empty mask.
    let answer = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, core::ptr::null_mut())
    };
    if answer == 0 { Ok(()) } else { Err(failed()) }
}
