//! The process backend: the guest runs as this very process, locked in by the system call filter.
//!
//! The hypercall entry is a function of the tender that changes to the tender's own stack. It runs
//! with the guest's registers, so nothing that it calls uses thread-local storage or the heap.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use shoal_unikernel_abi::features;

use crate::crash::Registers;
use crate::error::TenderError;
use crate::guest::{Call, Guest};
use crate::signals;
use crate::sys;

/// Bytes of the tender's stack in calls: the largest frame holds a crash report and 32 files.
const STACK_BYTES: usize = 64 * 1024;
/// MXCSR as the processor has it after reset: all exceptions masked, round to nearest.
static MXCSR_DEFAULT: u32 = 0x1f80;

static GUEST: AtomicPtr<Guest> = AtomicPtr::new(core::ptr::null_mut());
static STACK_TOP: AtomicUsize = AtomicUsize::new(0);

/// Where a guest begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Address of its first instruction.
    pub entry: u64,
    /// Upper end of its stack.
    pub stack_top: u64,
    /// Address of its boot information.
    pub boot: u64,
}

/// The features that a guest is offered, of those that depend on processor and kernel.
pub(crate) fn features() -> u64 {
    let mut bits = 0;
    if std::is_x86_feature_detected!("avx") {
        bits |= features::AVX;
    }
    // SAFETY: reads a value that the kernel gave at start. Bit 1: the instructions are enabled.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 != 0 {
        bits |= features::FSGSBASE;
    }
    bits
}

/// Address of the hypercall entry.
pub(crate) fn hypercall_address() -> u64 {
    hypercall as *const () as u64
}

/// What the guest calls: `extern "C" fn(number, a, b, c) -> i64`. Changes to the tender's stack, so
/// that a guest needs no room for the tender on its own.
#[unsafe(naked)]
extern "C" fn hypercall() {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "cld",
        "mov rsp, [rip + {stack}]",
        "call {handle}",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
        stack = sym STACK_TOP,
        handle = sym handle,
    )
}

extern "C" fn handle(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let guest = GUEST.load(Ordering::Relaxed);
    // SAFETY: set by `enter` to an instance that lives until the process ends. There is one thread,
    // and the signal handler for faults, which can interrupt this, does not return.
    let guest = unsafe { &mut *guest };
    guest.call(Call { number, a, b, c })
}

/// Makes the process ready to enter the guest: handlers and the stack for calls. The jail comes
/// after this.
pub(crate) fn prepare(guest: &'static mut Guest) -> Result<(), TenderError> {
    let stack = signals::stack(STACK_BYTES)?;
    STACK_TOP.store(stack as usize + STACK_BYTES, Ordering::Relaxed);
    GUEST.store(guest, Ordering::Relaxed);
    signals::install(Some(fault))
}

/// Notes the time and enters the guest. `prepare` was called.
pub(crate) fn enter(start: Start, started_ns: u64) -> ! {
    let guest = GUEST.load(Ordering::Relaxed);
    // SAFETY: set by `prepare`; the guest does not run yet.
    unsafe { (*guest).stats.entered(started_ns) };
    // SAFETY: entry, stack and boot information are the checked image's and were mapped for it. All
    // registers are given up: the guest never returns here.
    unsafe {
        asm!(
            "fninit",
            "ldmxcsr [{mxcsr}]",
            "mov rsp, rsi",
            "push 0",
            "xor ebp, ebp",
            "xor esi, esi",
            "xor edx, edx",
            "xor ebx, ebx",
            "cld",
            "jmp rax",
            mxcsr = in(reg) &raw const MXCSR_DEFAULT,
            in("rax") start.entry,
            in("rsi") start.stack_top,
            in("rdi") start.boot,
            options(noreturn)
        )
    }
}

/// A fault of the guest, or a system call that the filter forbids.
extern "C" fn fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let guest = GUEST.load(Ordering::Relaxed);
    if guest.is_null() || info.is_null() || context.is_null() {
        sys::exit(crate::error::STATUS_CRASHED);
    }
    // SAFETY: the kernel gives valid pointers, and the instance lives until the process ends. If
    // the signal interrupted a call, that call never goes on.
    let (guest, info, context) = unsafe { (&*guest, &*info, &*context) };
    let registers = registers(context);
    let at = registers.rip();
    if signal == libc::SIGSYS {
        let number = registers.words[0];
        let message = format_args!("system call {number} at {at:#x} is not allowed");
        guest.end("system-call", message, Some(&registers), None);
    }
    // SAFETY: these signals have an address when the kernel sent them (positive code).
    let address = (info.si_code > 0).then(|| unsafe { info.si_addr() } as u64);
    let what = match signal {
        libc::SIGSEGV => "memory access",
        libc::SIGBUS => "memory access beyond a file or device",
        libc::SIGILL => "illegal instruction",
        libc::SIGFPE => "arithmetic exception",
        _ => "breakpoint",
    };
    // The kernel has no address for accesses outside of the canonical range.
    let address = address.filter(|_| [libc::SIGSEGV, libc::SIGBUS].contains(&signal));
    match address {
        Some(to) => {
            let message = format_args!("{what} to {to:#x} at {at:#x}");
            guest.end("fault", message, Some(&registers), Some(to));
        }
        None => guest.end("fault", format_args!("{what} at {at:#x}"), Some(&registers), None),
    }
}

fn registers(context: &libc::ucontext_t) -> Registers {
    const ORDER: [i32; 18] = [
        libc::REG_RAX,
        libc::REG_RBX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_RBP,
        libc::REG_RSP,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
        libc::REG_RIP,
        libc::REG_EFL,
    ];
    let mut words = [0; 18];
    for (to, from) in words.iter_mut().zip(ORDER) {
        *to = context.uc_mcontext.gregs.get(from as usize).copied().unwrap_or_default() as u64;
    }
    Registers { words }
}
