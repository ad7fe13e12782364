//! The end of an instance that panicked: message and backtrace go to the monitor.

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use shoal_unikernel_abi::boot::Span;
use shoal_unikernel_abi::call::{CRASH_MESSAGE_MAX, CrashReport, FRAMES_MAX};

use crate::{boot, call};

/// Longest message, with room for the mark that it was cut.
const MESSAGE_BYTES: usize = CRASH_MESSAGE_MAX as usize;
/// What ends a message that was cut.
const CUT: &str = " [cut]";

/// The message, built without allocating: the heap may be what failed.
struct Message {
    bytes: [u8; MESSAGE_BYTES],
    used: usize,
    is_cut: bool,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MESSAGE_BYTES - CUT.len() - self.used;
        let mut count = text.len().min(room);
        while !text.is_char_boundary(count) {
            count -= 1;
        }
        self.bytes[self.used..self.used + count].copy_from_slice(&text.as_bytes()[..count]);
        self.used += count;
        self.is_cut |= count < text.len();
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut message = Message { bytes: [0; MESSAGE_BYTES], used: 0, is_cut: false };
    // Ignored because: the error says that the message was cut, which it says itself.
    let _ = write!(message, "{info}");
    if message.is_cut {
        let end = message.used + CUT.len();
        message.bytes[message.used..end].copy_from_slice(CUT.as_bytes());
        message.used = end;
    }
    let mut frames = [0; FRAMES_MAX];
    let frame_count = backtrace(&mut frames);
    call::crash(&CrashReport {
        message: Span { start: message.bytes.as_ptr() as u64, len: message.used as u64 },
        frame_count: frame_count as u64,
        frames,
    })
}

/// Follows the chain of frame pointers from here, as far as it stays inside of the stack.
fn backtrace(frames: &mut [u64; FRAMES_MAX]) -> usize {
    let Some(stack) = boot::info().map(|boot| boot.stack) else { return 0 };
    let mut frame: u64;
    // SAFETY: only reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    let mut count = 0;
    let mut floor = stack.start;
    while count < FRAMES_MAX
        && frame >= floor
        && frame.is_multiple_of(8)
        && frame + 16 <= stack.start + stack.len
    {
        // SAFETY: checked just now that both words lie inside of the stack.
        let (next, back) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if back == 0 {
            break;
        }
        frames[count] = back;
        count += 1;
        // Callers lie above: whatever does not is no chain.
        floor = frame + 16;
        frame = next;
    }
    count
}
