//! The task's log: lines to standard output and standard error.
//!
//! `println!` and `eprintln!` of this crate write one line each; [`crate::log!`] writes a
//! structured one to standard error: level, message, and `key=value` fields. Each line goes out in
//! one call.

use core::fmt::{self, Write};

use crate::call::{self, Stream};

/// Bytes gathered before they are written; most lines fit.
const GATHER_BYTES: usize = 512;

/// Gathers formatted text and writes it in few calls, without allocating.
#[derive(Debug)]
pub struct Line {
    stream: Stream,
    used: usize,
    gathered: [u8; GATHER_BYTES],
}

impl Line {
    /// An empty line for `stream`.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self { stream, used: 0, gathered: [0; GATHER_BYTES] }
    }

    /// Writes what was gathered.
    fn flush(&mut self) {
        if self.used > 0 {
            call::log(self.stream, &self.gathered[..self.used]);
            self.used = 0;
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.as_bytes().chunks(GATHER_BYTES) {
            if self.used + piece.len() > GATHER_BYTES {
                self.flush();
            }
            self.gathered[self.used..self.used + piece.len()].copy_from_slice(piece);
            self.used += piece.len();
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Writes `text` and a line break to `stream`. For the macros.
#[doc(hidden)]
pub fn write_line(stream: Stream, text: fmt::Arguments<'_>) {
    let mut line = Line::new(stream);
    // Ignored because: `Line` never fails, and a broken `Display` must not end the task.
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
}

/// How important a structured line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed for good.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
}

impl Level {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }
}

/// Writes to standard output and ends the line.
#[macro_export]
macro_rules! println {
    () => { $crate::log::write_line($crate::call::Stream::Out, ::core::format_args!("")) };
    ($($text:tt)*) => {
        $crate::log::write_line($crate::call::Stream::Out, ::core::format_args!($($text)*))
    };
}

/// Writes to standard error and ends the line.
#[macro_export]
macro_rules! eprintln {
    ($($text:tt)*) => {
        $crate::log::write_line($crate::call::Stream::Err, ::core::format_args!($($text)*))
    };
}

/// Writes a structured line: `log!(Warn, "zone refused", name = zone, line = 3)`.
///
/// Fields are written with `Display`.
#[macro_export]
macro_rules! log {
    ($level:ident, $message:expr $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::log::write_line(
            $crate::call::Stream::Err,
            ::core::format_args!(
                ::core::concat!("{} {}" $(, " ", ::core::stringify!($key), "={}")*),
                $crate::log::Level::$level.name(), $message $(, $value)*
            ),
        )
    };
}
