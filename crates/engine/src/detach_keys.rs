//! The keys with which a user leaves a terminal without ending what runs in it.

use bytes::{Bytes, BytesMut};

use crate::error::EngineError;

/// Ctrl-P, Ctrl-Q.
const DEFAULT: [u8; 2] = [16, 17];

/// Looks for the keys in what a user types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    /// How many of them were typed last.
    held: usize,
}

/// What becomes of typed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Goes to the process.
    pub pass: Bytes,
    /// The keys were complete.
    pub detached: bool,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`, `a,ctrl-[`…; `None` and empty text mean the default.
    pub fn parse(text: Option<&str>) -> Result<Self, EngineError> {
        let Some(text) = text.filter(|t| !t.is_empty()) else {
            return Ok(Self { keys: DEFAULT.to_vec(), held: 0 });
        };
        let key = |word: &str| -> Option<u8> {
            let mut bytes = word.bytes();
            if let (Some(byte), None) = (bytes.next(), bytes.next()) {
                return Some(byte);
            }
            let mut rest = word.strip_prefix("ctrl-")?.bytes();
            match (rest.next()?, rest.next()) {
                (letter @ b'a'..=b'z', None) => Some(letter - b'a' + 1),
                (b'@', None) => Some(0),
                (b'[', None) => Some(27),
                (b'\\', None) => Some(28),
                (b']', None) => Some(29),
                (b'^', None) => Some(30),
                (b'_', None) => Some(31),
                _ => None,
            }
        };
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        let keys = keys.ok_or_else(|| {
            EngineError::invalid(format!("invalid detach keys ({text}) provided"))
        })?;
        Ok(Self { keys, held: 0 })
    }

    /// Takes typed bytes: keys that may become the sequence are held back until that is clear.
    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut pass = BytesMut::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.held) == Some(byte) {
                self.held += 1;
                if self.held == self.keys.len() {
                    return Typed { pass: pass.freeze(), detached: true };
                }
                continue;
            }
            pass.extend_from_slice(self.keys.get(..self.held).unwrap_or_default());
            self.held = 0;
            if self.keys.first() == Some(byte) {
                self.held = 1;
            } else {
                pass.extend_from_slice(&[*byte]);
            }
        }
        Typed { pass: pass.freeze(), detached: false }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(keys: &str, typed: &[&[u8]], want: &[u8], want_detached: bool) {
        let mut keys = DetachKeys::parse(Some(keys)).unwrap();
        let (mut passed, mut detached) = (Vec::new(), false);
        for bytes in typed {
            let result = keys.typed(bytes);
            passed.extend_from_slice(&result.pass);
            detached |= result.detached;
        }
        assert_eq!((passed.as_slice(), detached), (want, want_detached));
    }

    #[test]
    fn keys_are_found_also_over_several_reads() {
        check("", &[b"ls\n", b"\x10", b"\x11"], b"ls\n", true);
        check("", &[b"\x10x\x11"], b"\x10x\x11", false);
        check("", &[b"\x10\x10\x11"], b"\x10", true);
        check("a,ctrl-c", &[b"ba\x03"], b"b", true);
        assert!(DetachKeys::parse(Some("ctrl-1")).is_err());
        assert!(DetachKeys::parse(Some("ab")).is_err());
    }
}
