//! How results are printed: for people on a terminal, as JSON for programs.

use std::io::IsTerminal;

/// Whether colours make sense: a terminal, and nobody said no (<https://no-color.org>).
#[must_use]
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `text` in a colour, if colours make sense.
#[must_use]
pub fn paint(code: u8, text: &str) -> String {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Green.
pub const GOOD: u8 = 32;
/// Red.
pub const BAD: u8 = 31;

/// Columns of the terminal; without one, what a mail can hold.
#[must_use]
pub fn width() -> usize {
    const WITHOUT_TERMINAL: usize = 100;
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => WITHOUT_TERMINAL,
    }
}
