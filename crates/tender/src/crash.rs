//! The crash record: one line of JSON on standard error and in the crash file.
//!
//! It is written from a signal handler or with a guest's registers loaded, so nothing here
//! allocates; all text goes through a buffer that is large enough for the longest record.

use core::fmt::{self, Write};

use sha2::{Digest, Sha256};
use shoal_unikernel_abi::boot::Backend;
use shoal_unikernel_abi::call::FRAMES_MAX;

use crate::elf::symbols;
use crate::sys;

/// Version of the record.
pub const FORMAT: u32 = 1;
/// Longest name of a symbol in a record, in bytes. Longer ones (generic Rust functions) end in `…`.
const SYMBOL_BYTES_MAX: usize = 400;
/// Longest record: a message of 4 KiB of control characters (six bytes each), 64 frames with
/// symbols, the registers, and a path of 4 KiB.
const RECORD_BYTES_MAX: usize = 128 * 1024;

/// Registers at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip, rflags.
    pub words: [u64; 18],
}

/// Names of [`Registers::words`].
pub const REGISTER_NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];

impl Registers {
    /// Frame pointer.
    #[must_use]
    pub const fn rbp(&self) -> u64 {
        self.words[6]
    }

    /// Instruction pointer.
    #[must_use]
    pub const fn rip(&self) -> u64 {
        self.words[16]
    }
}

/// What every record of an instance says.
#[derive(Debug)]
pub struct Context {
    /// Where the guest ran.
    pub backend: Backend,
    /// The image file.
    pub image_path: String,
    /// Its bytes.
    pub image: &'static [u8],
    /// Where it lay in the guest.
    pub image_base: u64,
    /// Bytes of it in memory.
    pub image_span: u64,
    /// Descriptor of the crash file, if there is one.
    pub file: Option<i32>,
}

/// What one record says.
#[derive(Debug)]
pub struct Crash<'a> {
    /// `panic`, `fault`, `system-call`, `protocol`, or (not the guest's fault) `device`.
    pub kind: &'static str,
    /// What happened.
    pub message: fmt::Arguments<'a>,
    /// Registers, if the guest did not report by itself.
    pub registers: Option<&'a Registers>,
    /// Address whose access failed.
    pub fault_address: Option<u64>,
    /// Return addresses, innermost first.
    pub frames: &'a [u64],
}

/// Text of bounded length in memory that exists already.
struct Text {
    bytes: &'static mut [u8],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.checked_add(text.len()).ok_or(fmt::Error)?;
        let to = self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?;
        to.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Writes what goes through it as the inside of a JSON string.
struct Escaped<'a>(&'a mut Text);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                char if char < ' ' => write!(self.0, "\\u{:04x}", u32::from(char))?,
                char => self.0.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// The buffer of the only record that a process writes.
static mut RECORD: [u8; RECORD_BYTES_MAX] = [0; RECORD_BYTES_MAX];

impl Context {
    /// Writes the record and ends the process with the status of a crash.
    pub fn end(&self, crash: &Crash<'_>) -> ! {
        let record = (&raw mut RECORD).cast::<u8>();
        // SAFETY: this function does not return and runs on the only thread; a signal that
        // interrupts it and ends here, too, takes the buffer over and never gives it back.
        let bytes = unsafe { core::slice::from_raw_parts_mut(record, RECORD_BYTES_MAX) };
        let mut text = Text { bytes, len: 0 };
        let complete = self.write(&mut text, crash).is_ok();
        let len = text.len;
        let record = text.bytes.get(..len).unwrap_or_default();
        // Ignored because: a record that does not fit cannot be (see RECORD_BYTES_MAX); what there
        // is of it says more than nothing.
        let _ = complete;
        sys::write_all(libc::STDERR_FILENO, record);
        if let Some(file) = self.file {
            sys::write_all(file, record);
        }
        sys::exit(crate::error::STATUS_CRASHED)
    }

    fn write(&self, text: &mut Text, crash: &Crash<'_>) -> fmt::Result {
        let backend = if self.backend == Backend::Kvm { "kvm" } else { "process" };
        write!(text, "{{\"format\":{FORMAT},\"kind\":\"{}\",\"message\":\"", crash.kind)?;
        Escaped(text).write_fmt(crash.message)?;
        write!(text, "\",\"backend\":\"{backend}\",\"image\":\"")?;
        Escaped(text).write_str(&self.image_path)?;
        text.write_str("\",\"image_sha256\":\"")?;
        for byte in Sha256::digest(self.image) {
            write!(text, "{byte:02x}")?;
        }
        write!(text, "\",\"image_base\":\"{:#x}\"", self.image_base)?;
        if let Some(address) = crash.fault_address {
            write!(text, ",\"fault_address\":\"{address:#x}\"")?;
        }
        if let Some(registers) = crash.registers {
            text.write_str(",\"registers\":{")?;
            for (at, (name, word)) in REGISTER_NAMES.iter().zip(registers.words).enumerate() {
                let comma = if at == 0 { "" } else { "," };
                write!(text, "{comma}\"{name}\":\"{word:#x}\"")?;
            }
            text.write_str("}")?;
        }
        self.write_frames(text, crash)?;
        text.write_str("}\n")
    }

    fn write_frames(&self, text: &mut Text, crash: &Crash<'_>) -> fmt::Result {
        let symbols = symbols::table(self.image).unwrap_or_default();
        text.write_str(",\"backtrace\":[")?;
        for (at, frame) in crash.frames.iter().take(FRAMES_MAX).enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(text, "{comma}{{\"address\":\"{frame:#x}\"")?;
            // A return address can be the first byte behind its function.
            let innermost = at == 0 && crash.registers.is_some();
            let inside = if innermost { *frame } else { frame.wrapping_sub(1) };
            let offset = inside.wrapping_sub(self.image_base);
            if offset < self.image_span {
                write!(text, ",\"offset\":\"{offset:#x}\"")?;
                if let Some((name, behind)) = symbols::lookup(symbols, offset) {
                    text.write_str(",\"symbol\":\"")?;
                    Escaped(text).write_str(shorten(name))?;
                    let cut = if name.len() > SYMBOL_BYTES_MAX { "…" } else { "" };
                    write!(text, "{cut}+{behind:#x}\"")?;
                }
            }
            text.write_str("}")?;
        }
        text.write_str("]")
    }
}

fn shorten(name: &str) -> &str {
    let mut end = name.len().min(SYMBOL_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default()
}

/// Follows the frame pointers of a guest; `read` reads a word of its memory.
pub fn walk(
    registers: &Registers,
    frames: &mut [u64; FRAMES_MAX],
    read: impl Fn(u64) -> Option<u64>,
) -> usize {
    frames[0] = registers.rip();
    let mut count = 1;
    let mut frame = registers.rbp();
    while let Some(place) = frames.get_mut(count) {
        let next = read(frame);
        let Some(back) = frame.checked_add(8).and_then(&read).filter(|address| *address != 0)
        else {
            break;
        };
        *place = back;
        count += 1;
        // The stack grows downwards: outer frames are higher. Anything else is not a frame.
        match next {
            Some(next) if next > frame => frame = next,
            _ => break,
        }
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_record_fits_and_is_json() {
        let bytes: &'static mut [u8] = vec![0; RECORD_BYTES_MAX].leak();
        let mut text = Text { bytes, len: 0 };
        let context = Context {
            backend: Backend::Process,
            image_path: "p".repeat(4096),
            image: b"not an image",
            image_base: u64::MAX,
            image_span: u64::MAX,
            file: None,
        };
        let message = "\u{1}".repeat(4096);
        let crash = Crash {
            kind: "panic",
            message: format_args!("{message}"),
            registers: Some(&Registers { words: [u64::MAX; 18] }),
            fault_address: Some(u64::MAX),
            frames: &[u64::MAX; FRAMES_MAX],
        };
        context.write(&mut text, &crash).unwrap();
        let symbols = FRAMES_MAX * (SYMBOL_BYTES_MAX * 2 + 40);
        assert!(text.len + symbols < RECORD_BYTES_MAX, "{}", text.len);
        let record: serde_json::Value = serde_json::from_slice(&text.bytes[..text.len]).unwrap();
        assert_eq!(record["message"].as_str().unwrap(), message);
        assert_eq!(record["backtrace"].as_array().unwrap().len(), FRAMES_MAX);
    }

    #[test]
    fn frames_that_do_not_climb_end_the_walk() {
        let mut registers = Registers::default();
        registers.words[6] = 0x100;
        registers.words[16] = 7;
        let memory = |at: u64| match at {
            0x100 => Some(0x120),
            0x108 => Some(8),
            0x120 => Some(0x110),
            0x128 => Some(9),
            _ => None,
        };
        let mut frames = [0; FRAMES_MAX];
        assert_eq!(walk(&registers, &mut frames, memory), 3);
        assert_eq!(&frames[..3], &[7, 8, 9]);
    }
}
