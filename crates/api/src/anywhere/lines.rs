//! Output on its way from a node to a client, and the one line that says why it has ended early.

use bytes::Bytes;

use crate::http::frame::{self, Channel, MULTIPLEXED, RAW};
use crate::http::version::ApiVersion;

/// Bytes of a frame's head.
const HEAD: usize = 8;

/// How a client reads what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// In frames.
    Framed,
    /// As it comes, to a terminal.
    Raw,
    /// As something else, in which a line of ours has no place.
    Other,
}

impl Shape {
    /// By the content type of the node's answer. Before API 1.42 framed output was said to be raw,
    /// too: which it is cannot be told then.
    pub(super) fn of(content_type: &str, version: ApiVersion) -> Self {
        match content_type {
            MULTIPLEXED => Self::Framed,
            RAW if version.at_least(42) => Self::Raw,
            _ => Self::Other,
        }
    }
}

/// Follows output, so that a last line can be said where a client reads it as one.
#[derive(Debug)]
pub(super) struct Follow {
    shape: Shape,
    head: Vec<u8>,
    /// Bytes of the current frame that are still to come.
    left: usize,
}

impl Follow {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, head: Vec::with_capacity(HEAD), left: 0 }
    }

    /// `bytes` have gone to the client.
    pub(super) fn passed(&mut self, mut bytes: &[u8]) {
        if self.shape != Shape::Framed {
            return;
        }
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = (HEAD - self.head.len()).min(bytes.len());
            if self.left == 0 {
                let (more, rest) = bytes.split_at(wanted);
                self.head.extend_from_slice(more);
                bytes = rest;
            }
            if let [_, _, _, _, size @ ..] = self.head.as_slice()
                && let Ok(size) = <[u8; 4]>::try_from(size)
            {
                self.left = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
                self.head.clear();
            }
        }
    }

    /// `text` as the last thing that the client reads; `None` where it would be read as something
    /// else.
    pub(super) fn last(&self, text: &str) -> Option<Bytes> {
        match self.shape {
            Shape::Framed if self.left == 0 && self.head.is_empty() => {
                Some(frame::encode(Channel::SystemErr, text.as_bytes()))
            }
            Shape::Raw => Some(Bytes::from(format!("\r\n{text}\r\n"))),
            Shape::Framed | Shape::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_line_stands_between_frames_and_never_within_one() {
        let two = [frame::encode(Channel::Stdout, b"hello"), frame::encode(Channel::Stderr, b"x")];
        let two = two.concat();
        for pieces in 1..=two.len() {
            let mut follow = Follow::new(Shape::Framed);
            let mut passed = 0;
            for piece in two.chunks(pieces) {
                follow.passed(piece);
                passed += piece.len();
                let between = passed == 13 || passed == two.len();
                let said = follow.last("gone");
                assert_eq!(said.is_some(), between, "{passed} of {} in {pieces}s", two.len());
            }
        }
        let said = Follow::new(Shape::Framed).last("gone");
        assert_eq!(said.as_deref(), Some(&b"\x03\0\0\0\0\0\0\x04gone"[..]));
    }

    #[test]
    fn a_terminal_gets_a_line_and_other_content_none() {
        let of = |kind, minor| Shape::of(kind, ApiVersion::new(1, minor));
        let raw = Follow::new(of(RAW, 42)).last("gone");
        assert_eq!(raw.as_deref(), Some(&b"\r\ngone\r\n"[..]));
        assert_eq!(Follow::new(of(RAW, 41)).last("gone"), None);
        assert_eq!(Follow::new(of("application/json", 50)).last("gone"), None);
    }
}
