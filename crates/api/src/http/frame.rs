//! The frames that carry a container's output where it has no terminal: one byte for the stream,
//! three zero bytes, the length as 32 bits big-endian, then the bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// Which stream a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// A failure of the daemon itself; clients stop with it.
    SystemErr = 3,
}

/// Content type of framed output, from API 1.42 on.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
/// Content type of raw output, and of framed output before API 1.42.
pub const RAW: &str = "application/vnd.docker.raw-stream";

/// Longest payload of one frame. Longer pieces are cut, so that a reader's buffer stays small.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// One piece as frames.
#[must_use]
pub fn encode(channel: Channel, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 8);
    for piece in payload.chunks(PAYLOAD_MAX) {
        out.put_u8(channel as u8);
        out.put_bytes(0, 3);
        // A piece has at most PAYLOAD_MAX bytes, which fits.
        out.put_u32(piece.len() as u32);
        out.put_slice(piece);
    }
    out.freeze()
}

/// The content type of a container's output.
#[must_use]
pub fn content_type(tty: bool, version: crate::http::version::ApiVersion) -> &'static str {
    if !tty && version.at_least(42) { MULTIPLEXED } else { RAW }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::version::ApiVersion;

    #[test]
    fn a_frame_is_header_and_payload() {
        assert_eq!(&encode(Channel::Stderr, b"hi")[..], b"\x02\0\0\0\0\0\0\x02hi");
        assert!(encode(Channel::Stdout, b"").is_empty());
    }

    #[test]
    fn old_clients_and_terminals_get_the_raw_type() {
        assert_eq!(content_type(false, ApiVersion::new(1, 42)), MULTIPLEXED);
        assert_eq!(content_type(false, ApiVersion::new(1, 41)), RAW);
        assert_eq!(content_type(true, ApiVersion::new(1, 50)), RAW);
    }
}
