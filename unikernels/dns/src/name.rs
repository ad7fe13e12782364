//! Domain names in wire form.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// Longest name in wire form, in bytes (RFC 1035, section 3.1).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest label in bytes (RFC 1035, section 3.1).
pub const LABEL_BYTES_MAX: usize = 63;

/// An absolute domain name in wire form; upper and lower case as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Box<[u8]>);

/// Why a text is not a domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots in a row, or one at the beginning.
    #[error("a name has no empty label: remove the extra dot")]
    EmptyLabel,
    /// More than [`LABEL_BYTES_MAX`].
    #[error("a label has at most 63 bytes")]
    LabelTooLong,
    /// More than [`NAME_BYTES_MAX`].
    #[error("a name has at most 255 bytes in all")]
    NameTooLong,
    /// A backslash without a character or three digits up to 255 after it.
    #[error("a backslash stands before one character or three digits up to 255")]
    BadEscape,
    /// Relative, and nothing says to what.
    #[error("a relative name needs a '$ORIGIN' before it")]
    NoOrigin,
}

impl Name {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// The name whose labels are `wire`, which must be well formed.
    pub(crate) fn from_wire(wire: &[u8]) -> Self {
        debug_assert_eq!(wire_len(wire), Some(wire.len()));
        Self(wire.into())
    }

    /// Reads a name as zone files write it. `@` is `origin`; one without a final dot is relative.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &[u8], origin: Option<&Self>) -> Result<Self, NameError> {
        if text == b"@" {
            return origin.cloned().ok_or(NameError::NoOrigin);
        }
        if text == b"." {
            return Ok(Self::root());
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut at = 0;
        let mut absolute = false;
        while at < text.len() {
            let (label_at, label_end) = (wire.len(), at);
            wire.push(0);
            absolute = false;
            while at < text.len() {
                let (byte, used) = unescape(&text[at..]).ok_or(NameError::BadEscape)?;
                at += used;
                if used == 1 && byte == b'.' {
                    absolute = true;
                    break;
                }
                wire.push(byte);
            }
            let len = wire.len() - label_at - 1;
            if len == 0 {
                debug_assert!(at > label_end);
                return Err(NameError::EmptyLabel);
            }
            wire[label_at] = u8::try_from(len)
                .ok()
                .filter(|len| usize::from(*len) <= LABEL_BYTES_MAX)
                .ok_or(NameError::LabelTooLong)?;
        }
        if absolute {
            wire.push(0);
        } else {
            wire.extend_from_slice(&origin.ok_or(NameError::NoOrigin)?.0);
        }
        if wire.len() > NAME_BYTES_MAX {
            return Err(NameError::NameTooLong);
        }
        Ok(Self(wire.into()))
    }

    /// Wire form, with the root's zero byte at the end.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is `other` or below it.
    #[must_use]
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        let Some(at) = self.0.len().checked_sub(other.0.len()) else { return false };
        self.0[at..].eq_ignore_ascii_case(&other.0) && suffixes(&self.0).any(|start| start == at)
    }

    /// Sort key: canonical order (RFC 4034, section 6.1), and the key of a name begins with the
    /// keys of the names above it.
    #[must_use]
    pub fn key(&self) -> Key {
        let starts: Vec<usize> = suffixes(&self.0).collect();
        let mut key = Vec::with_capacity(self.0.len());
        // The last start is the root's.
        for start in starts.iter().rev().skip(1) {
            let len = usize::from(self.0[*start]);
            for byte in &self.0[start + 1..start + 1 + len] {
                match byte {
                    0 => key.extend_from_slice(&[1, 1]),
                    1 => key.extend_from_slice(&[1, 2]),
                    other => key.push(other.to_ascii_lowercase()),
                }
            }
            key.push(0);
        }
        Key(key.into())
    }
}

/// See [`Name::key`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Whether this is `other` or below it.
    #[must_use]
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

/// Takes one character of a zone file's text: its value and how many bytes it took.
pub(crate) fn unescape(text: &[u8]) -> Option<(u8, usize)> {
    match text {
        [b'\\', a @ b'0'..=b'9', rest @ ..] => {
            let [b @ b'0'..=b'9', c @ b'0'..=b'9', ..] = rest else { return None };
            let value = u32::from(a - b'0') * 100 + u32::from(b - b'0') * 10 + u32::from(c - b'0');
            Some((u8::try_from(value).ok()?, 4))
        }
        [b'\\', other, ..] => Some((*other, 2)),
        [b'\\'] | [] => None,
        [byte, ..] => Some((*byte, 1)),
    }
}

/// Length of the uncompressed name at the beginning of `bytes`; nothing if it is not well formed.
#[must_use]
pub fn wire_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let len = usize::from(*bytes.get(at)?);
        if len == 0 {
            return (at < NAME_BYTES_MAX).then_some(at + 1);
        }
        if len > LABEL_BYTES_MAX || at + len + 1 >= NAME_BYTES_MAX {
            return None;
        }
        at += len + 1;
    }
}

/// Where the name and each name above it begin in `wire`, the root last.
pub(crate) fn suffixes(wire: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut next = Some(0);
    core::iter::from_fn(move || {
        let at = next?;
        let len = usize::from(*wire.get(at)?);
        next = (len != 0).then_some(at + len + 1);
        Some(at)
    })
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for start in suffixes(&self.0) {
            let len = usize::from(self.0[start]);
            if len == 0 {
                break;
            }
            for byte in &self.0[start + 1..start + 1 + len] {
                match byte {
                    b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(*byte))?;
                    }
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    other => write!(f, "\\{other:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use alloc::string::ToString;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes(), None).unwrap()
    }

    #[test]
    fn names_are_read_and_written() {
        let origin = name("example.org.");
        let cases: &[(&str, Result<&str, NameError>)] = &[
            ("www", Ok("www.example.org.")),
            ("@", Ok("example.org.")),
            (".", Ok(".")),
            ("WWW.example.com.", Ok("WWW.example.com.")),
            (r"a\.b", Ok(r"a\.b.example.org.")),
            (r"a\046b", Ok(r"a\.b.example.org.")),
            (r"\032x.", Ok(r"\032x.")),
            ("a..b", Err(NameError::EmptyLabel)),
            (".a", Err(NameError::EmptyLabel)),
            ("", Ok("example.org.")),
            (r"a\", Err(NameError::BadEscape)),
            (r"a\25", Err(NameError::BadEscape)),
            (r"a\256", Err(NameError::BadEscape)),
        ];
        for (text, expected) in cases {
            let read = Name::parse(text.as_bytes(), Some(&origin)).map(|name| name.to_string());
            assert_eq!(read, expected.map(ToString::to_string), "{text}");
        }
        assert_eq!(Name::parse(b"www", None), Err(NameError::NoOrigin));
    }

    #[test]
    fn lengths_are_bounded() {
        let label = "a".repeat(63);
        let longest = alloc::format!("{label}.{label}.{label}.{}.", "b".repeat(61));
        assert_eq!(name(&longest).wire().len(), NAME_BYTES_MAX);
        let longer = alloc::format!("{label}.{label}.{label}.{}.", "b".repeat(62));
        assert_eq!(Name::parse(longer.as_bytes(), None), Err(NameError::NameTooLong));
        let wide = "a".repeat(64) + ".";
        assert_eq!(Name::parse(wide.as_bytes(), None), Err(NameError::LabelTooLong));
        assert_eq!(wire_len(name(&longest).wire()), Some(NAME_BYTES_MAX));
        let mut too_long = name(&longest).wire().to_vec();
        too_long.splice(0..0, [1, b'x']);
        assert_eq!(wire_len(&too_long), None);
        assert_eq!(wire_len(&[3, b'a']), None);
        assert_eq!(wire_len(&[0xc0, 0]), None);
    }

    #[test]
    fn keys_order_names_below_each_other() {
        // The order of RFC 4034, section 6.1, without its last name.
        let order = [
            "example.",
            "a.example.",
            "yljkjljk.a.example.",
            "Z.a.example.",
            "zABC.a.EXAMPLE.",
            "z.example.",
            r"\001.z.example.",
            "*.z.example.",
            r"\200.z.example.",
        ];
        for pair in order.windows(2) {
            assert!(name(pair[0]).key() < name(pair[1]).key(), "{pair:?}");
        }
        assert!(name("b.a.").key().is_at_or_below(&name("a.").key()));
        assert!(!name("ba.").key().is_at_or_below(&name("a.").key()));
        assert!(name("b.A.").is_at_or_below(&name("a.")));
        assert!(name("b.A.").is_at_or_below(&Name::root()));
        assert!(!name("ba.").is_at_or_below(&name("a.")));
        assert!(!name("a.").is_at_or_below(&name("b.a.")));
    }
}
