//! The calls to the monitor: the only way out of an instance but its rings.

use shoal_unikernel_abi::boot::BootInfo;
use shoal_unikernel_abi::call;

use crate::boot;

/// The monitor's entry: number and up to three arguments.
type Entry = extern "C" fn(u64, u64, u64, u64) -> i64;

/// Calls the monitor of `boot`.
fn raw(boot: &BootInfo, number: u64, a: u64, b: u64, c: u64) -> i64 {
    // SAFETY: the monitor states the address of a function with exactly this signature.
    let entry = unsafe { core::mem::transmute::<usize, Entry>(boot.hypercall as usize) };
    entry(number, a, b, c)
}

/// Serves all rings, then sleeps until `deadline_ns` (monotonic; 0: not at all), a device has
/// something, or the instance shall stop. Answers [`call::STOP`] and the bits of devices.
pub fn wait(deadline_ns: u64) -> u64 {
    boot::info().map_or(0, |boot| raw(boot, call::WAIT, deadline_ns, 0, 0).max(0) as u64)
}

/// Which of the task's log streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out = 1,
    /// Standard error.
    Err = 2,
}

/// Writes `text` to the task's log, in as many calls as its length needs.
pub fn log(stream: Stream, text: &[u8]) {
    let Some(boot) = boot::info() else { return };
    for piece in text.chunks(call::LOG_BYTES_MAX as usize) {
        raw(boot, call::LOG, piece.as_ptr() as u64, piece.len() as u64, stream as u64);
    }
}

/// Ends the instance with `status`.
pub fn exit(status: u8) -> ! {
    if let Some(boot) = boot::info() {
        raw(boot, call::EXIT, u64::from(status), 0, 0);
    }
    halt()
}

/// Ends the instance with a crash report.
#[cfg(shoal_image)]
pub(crate) fn crash(report: &call::CrashReport) -> ! {
    if let Some(boot) = boot::info() {
        raw(boot, call::CRASH, core::ptr::from_ref(report) as u64, 0, 0);
    }
    halt()
}

/// Fills `to` with random bytes of the host, 256 at a time. False if the monitor refused.
pub fn entropy(to: &mut [u8]) -> bool {
    let Some(boot) = boot::info() else { return false };
    to.chunks_mut(256).all(|piece| {
        raw(boot, call::ENTROPY, piece.as_mut_ptr() as u64, piece.len() as u64, 0) >= 0
    })
}

/// Where an instance without a monitor ends up.
fn halt() -> ! {
    #[cfg(shoal_image)]
    loop {
        // SAFETY: an undefined instruction ends the instance, which has nobody left to call.
        unsafe { core::arch::asm!("ud2") }
    }
    #[cfg(not(shoal_image))]
    std::process::abort()
}
