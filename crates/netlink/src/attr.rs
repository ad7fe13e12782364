//! Netlink messages as bytes: a header, a fixed part, then attributes (length, kind, value) padded
//! to four bytes, possibly nested. Nothing here knows what the attributes mean.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// A message or a fragment of one that is being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writer {
    buf: Vec<u8>,
    /// An attribute outgrew its 16-bit length: the message must not be sent.
    overflow: bool,
}

impl Writer {
    /// A message of type `kind` with the fixed part `body`.
    pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut w = Self { buf: vec![0; HEADER_LEN], overflow: false };
        w.buf[4..6].copy_from_slice(&kind.to_ne_bytes());
        w.buf[6..8].copy_from_slice(&flags.to_ne_bytes());
        w.raw(body);
        w
    }

    /// Attributes without a header.
    pub(crate) fn fragment() -> Self {
        Self::default()
    }

    /// Bytes as they are, padded.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.buf.len().is_multiple_of(4) {
            self.buf.push(0);
        }
    }

    /// One attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.buf.extend_from_slice(value);
        self.close(start);
    }

    /// One attribute with nested ones.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0, 0]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match u16::try_from(self.buf.len() - start) {
            Ok(len) => self.buf[start..start + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.overflow = true,
        }
        self.pad();
    }

    pub(crate) fn attr_u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    /// A number in the machine's byte order, as rtnetlink wants it.
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as netfilter wants it.
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A number in network byte order, as netfilter wants it.
    pub(crate) fn attr_be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A text with its closing zero byte.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.close(start);
    }

    pub(crate) fn append(&mut self, other: &Self) {
        self.buf.extend_from_slice(&other.buf);
        self.overflow |= other.overflow;
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let old = u16::from_ne_bytes([self.buf[6], self.buf[7]]);
        self.buf[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// The whole message with its length and sequence number; nothing if it cannot be expressed.
    pub(crate) fn finish(&mut self, seq: u32) -> Option<&[u8]> {
        if self.overflow {
            return None;
        }
        let len = u32::try_from(self.buf.len()).ok()?;
        self.buf[0..4].copy_from_slice(&len.to_ne_bytes());
        self.buf[8..12].copy_from_slice(&seq.to_ne_bytes());
        Some(&self.buf)
    }
}

/// The attributes in `buf`, kind without flags and value; stops at the first broken one.
pub(crate) fn attrs(buf: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = buf;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    })
}

/// The first attribute of that kind.
pub(crate) fn find(buf: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(buf).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(crate) fn u16_at(buf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(buf.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn be16(buf: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(buf.get(..2)?.try_into().ok()?))
}

pub(crate) fn be32(buf: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(buf.get(..4)?.try_into().ok()?))
}

pub(crate) fn be64(buf: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(buf.get(..8)?.try_into().ok()?))
}

pub(crate) fn text(buf: &[u8]) -> String {
    let end = buf.iter().position(|b| *b == 0).unwrap_or(buf.len());
    String::from_utf8_lossy(&buf[..end]).into_owned()
}

pub(crate) fn ip_bytes(ip: std::net::IpAddr) -> Vec<u8> {
    match ip {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn ip_of(buf: &[u8]) -> Option<std::net::IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(buf) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(buf).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut w = Writer::fragment();
        w.attr_str(1, "lo");
        w.nest(2, |w| w.attr_u32(3, 7));
        w.attr(4, &[9; 5]);
        let all: Vec<_> = attrs(w.bytes()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(text(all[0].1), "lo");
        assert_eq!(u32_at(find(all[1].1, 3).unwrap(), 0), Some(7));
        assert_eq!(all[2], (4, &[9u8; 5][..]));
    }

    #[test]
    fn broken_attributes_end_the_list() {
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attrs(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attrs(&[]).count(), 0);
    }

    #[test]
    fn an_attribute_that_is_too_long_stops_the_message() {
        let mut w = Writer::message(1, 0, &[]);
        w.attr(1, &vec![0; 70_000]);
        assert!(w.finish(1).is_none());
    }
}
