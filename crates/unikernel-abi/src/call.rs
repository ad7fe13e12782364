//! The calls that a guest may make, at the address [`crate::boot::BootInfo::hypercall`] with the C
//! calling convention of x86-64 System V: `number`, then up to three arguments; the answer is in
//! `rax`. Negative answers are [`Refusal`]s. Addresses must lie in the guest's own memory.
//!
//! Calls are for doorbells, sleeping and rare events; data goes through shared memory.

/// Serves every doorbell (all rings of all devices), then sleeps until `a` (monotonic nanoseconds,
/// see [`crate::clock`]; 0: does not sleep; `u64::MAX`: without end), until a device has something
/// for the guest, or until the guest is asked to stop. Answers bits: [`STOP`], or 1 shifted left by
/// the index of a device that has something. A guest that finds rings full or has frames to send
/// calls it, too: one call carries any number of frames.
pub const WAIT: u64 = 1;
/// Writes text (`a`: address, `b`: bytes, at most [`LOG_BYTES_MAX`]) to the task's log; `c` is the
/// stream: 1 standard output, 2 standard error.
pub const LOG: u64 = 2;
/// Ends the instance with exit status `a` (0 to 255). Does not return.
pub const EXIT: u64 = 3;
/// Ends the instance because it panicked: `a` is the address of a [`CrashReport`]. Does not return.
pub const CRASH: u64 = 4;
/// Fills memory (`a`: address, `b`: bytes, at most 256) with random bytes.
pub const ENTROPY: u64 = 5;

/// Bit of the answer to [`WAIT`]: the guest is asked to stop, and will be ended after its grace
/// period.
pub const STOP: u64 = 1 << 62;

/// Most bytes of one [`LOG`].
pub const LOG_BYTES_MAX: u64 = 16 * 1024;
/// Most return addresses in a [`CrashReport`].
pub const FRAMES_MAX: usize = 64;
/// Longest message of a [`CrashReport`] in bytes; longer ones are cut by the guest, visibly.
pub const CRASH_MESSAGE_MAX: u64 = 4096;

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Refusal {
    /// There is no such call.
    UnknownCall = -1,
    /// An argument is not in the guest's memory or out of its range.
    BadArgument = -2,
}

/// What a guest says of its own end.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CrashReport {
    /// UTF-8.
    pub message: crate::boot::Span,
    /// How many of `frames` count.
    pub frame_count: u64,
    /// Return addresses, innermost first, as absolute addresses in the guest.
    pub frames: [u64; FRAMES_MAX],
}
