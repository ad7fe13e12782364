//! Signals by name or number.

use nix::sys::signal::Signal;

use crate::error::EngineError;

/// SIGKILL.
pub(crate) const KILL: i32 = 9;
/// SIGTERM.
pub(crate) const TERM: i32 = 15;

/// The first real-time signal that programs may use; the C library keeps two for itself.
const RT_MIN: i32 = 34;
/// The last one.
const RT_MAX: i32 = 64;

/// Reads `KILL`, `SIGKILL`, `9`, `RTMIN+3`…
pub(crate) fn parse(word: &str) -> Result<i32, EngineError> {
    let invalid = || EngineError::invalid(format!("invalid signal: {word}"));
    if let Ok(number) = word.parse::<i32>() {
        return if (1..=RT_MAX).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |rest: &str, base: i32, sign: i32| {
        let offset = match rest {
            "" => 0,
            // Away from the other end, as a number without a further sign.
            _ => {
                i32::from(rest.strip_prefix(if sign > 0 { '+' } else { '-' })?.parse::<u8>().ok()?)
            }
        };
        let number = base + sign * offset;
        (RT_MIN..=RT_MAX).contains(&number).then_some(number)
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(rest, RT_MIN, 1).ok_or_else(invalid);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(rest, RT_MAX, -1).ok_or_else(invalid);
    }
    format!("SIG{name}").parse::<Signal>().map(|signal| signal as i32).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        let cases = [
            ("KILL", 9),
            ("SIGTERM", 15),
            ("hup", 1),
            ("3", 3),
            ("RTMIN+3", 37),
            ("SIGRTMIN+3", 37),
            ("sigrtmax-1", 63),
            ("RTMIN", 34),
            ("SIGRTMAX", 64),
            ("64", 64),
        ];
        for (word, number) in cases {
            assert_eq!(parse(word).unwrap(), number, "{word}");
        }
        for bad in ["", "0", "65", "SIGNAL", "RTMIN+99", "-1", "RTMIN-1", "RTMAX+1", "RTMIN3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
