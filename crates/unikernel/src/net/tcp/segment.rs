//! Segments: taking received ones apart and sending.

use core::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{IpProtocol, TcpOption, TcpPacket};

use crate::net::link::{Full, Link, Transport};
use crate::net::neighbours::Mac;

/// Bytes of a header without options.
pub(crate) const HEADER_BYTES: usize = 20;
/// Where the checksum lies in the header.
const CHECKSUM_AT: usize = 16;
/// Most SACK blocks in one segment (RFC 2018, section 3).
pub(crate) const SACKS_MAX: usize = 3;

/// Flags of a segment (RFC 9293, section 3.1).
pub(crate) mod flag {
    /// No more data.
    pub(crate) const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub(crate) const SYN: u8 = 2;
    /// Reset.
    pub(crate) const RST: u8 = 4;
    /// Push.
    pub(crate) const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub(crate) const ACK: u8 = 16;
}

/// Whether sequence number `a` lies before `b` (RFC 9293, section 3.4).
pub(crate) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A received segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) source_port: u16,
    pub(crate) target_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Largest segment that the peer takes (in a SYN).
    pub(crate) mss: Option<u16>,
    /// Shift of the peer's windows (in a SYN).
    pub(crate) scale: Option<u8>,
    /// Whether the peer takes SACK blocks (in a SYN).
    pub(crate) takes_sack: bool,
    /// Ranges that the peer has beyond the acknowledgement.
    pub(crate) sacks: [Option<(u32, u32)>; SACKS_MAX],
    pub(crate) data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Takes a segment apart. `None`: it is malformed.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        let header_len = usize::from(packet.header_len());
        let mut segment = Segment {
            source_port: packet.src_port(),
            target_port: packet.dst_port(),
            seq: packet.seq_number().0 as u32,
            ack: packet.ack_number().0 as u32,
            flags: *bytes.get(13)?,
            window: packet.window_len(),
            mss: None,
            scale: None,
            takes_sack: false,
            sacks: [None; SACKS_MAX],
            data: bytes.get(header_len..)?,
        };
        segment.parse_options(bytes.get(HEADER_BYTES..header_len)?);
        let ports = segment.source_port != 0 && segment.target_port != 0;
        ports.then_some(segment)
    }

    /// Reads what is understood; what follows a malformed option is ignored.
    fn parse_options(&mut self, mut options: &[u8]) {
        while let Ok((rest, option)) = TcpOption::parse(options) {
            match option {
                TcpOption::EndOfList => break,
                TcpOption::MaxSegmentSize(mss) => self.mss = Some(mss),
                // More than 14 is to be taken for 14 (RFC 7323, section 2.3).
                TcpOption::WindowScale(scale) => self.scale = Some(scale.min(14)),
                TcpOption::SackPermitted => self.takes_sack = true,
                TcpOption::SackRange(ranges) => self.sacks = ranges,
                _ => {}
            }
            options = rest;
            if options.is_empty() {
                break;
            }
        }
    }

    /// Whether a flag is set.
    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that the segment takes.
    pub(crate) const fn len(&self) -> u32 {
        self.data.len() as u32 + self.has(flag::SYN) as u32 + self.has(flag::FIN) as u32
    }
}

/// Options of a segment to send, ready made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    bytes: [u8; 40],
    len: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes: [0; 40], len: 0 }
    }
}

impl Options {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Those of a SYN. `scale` and `sack` are left out in an answer to a peer without them.
    pub(crate) fn syn(mss: u16, scale: Option<u8>, sack: bool) -> Self {
        let mut options = Self::default();
        let [high, low] = mss.to_be_bytes();
        options.push(&[2, 4, high, low]);
        if sack {
            options.push(&[1, 1, 4, 2]);
        }
        if let Some(scale) = scale {
            options.push(&[1, 3, 3, scale]);
        }
        options
    }

    /// SACK blocks, the first [`SACKS_MAX`] of `ranges`.
    pub(crate) fn sack(ranges: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut options = Self::default();
        options.push(&[1, 1, 5, 2]);
        for (start, end) in ranges.take(SACKS_MAX) {
            options.push(&start.to_be_bytes());
            options.push(&end.to_be_bytes());
        }
        options.bytes[3] = (options.len - 2) as u8;
        if options.len == 4 { Self::default() } else { options }
    }

    /// Bytes that they take.
    #[cfg(test)]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A segment to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) source: SocketAddrV4,
    pub(crate) target: SocketAddrV4,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// As it goes on the wire, already scaled.
    pub(crate) window: u16,
    pub(crate) options: Options,
    /// The data, in two pieces.
    pub(crate) data: (&'a [u8], &'a [u8]),
    /// Payload bytes of a segment on the wire; more data than that is cut by somebody else.
    pub(crate) mss: usize,
}

impl Outgoing<'_> {
    /// Sends it.
    pub(crate) fn send(&self, link: &mut Link<'_>, to: Mac) -> Result<(), Full> {
        let header_bytes = HEADER_BYTES + self.options.len;
        let data_bytes = self.data.0.len() + self.data.1.len();
        let transport = Transport {
            protocol: IpProtocol::Tcp,
            source: *self.source.ip(),
            target: *self.target.ip(),
            len: header_bytes + data_bytes,
            checksum_at: Some(CHECKSUM_AT),
            segmented: (data_bytes > self.mss).then_some((header_bytes, self.mss)),
        };
        link.packet(to, &transport, |bytes| self.write(bytes, header_bytes))
    }

    fn write(&self, bytes: &mut [u8], header_bytes: usize) {
        bytes[..2].copy_from_slice(&self.source.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&self.target.port().to_be_bytes());
        bytes[4..8].copy_from_slice(&self.seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.ack.to_be_bytes());
        bytes[12] = ((header_bytes / 4) as u8) << 4;
        bytes[13] = self.flags;
        bytes[14..16].copy_from_slice(&self.window.to_be_bytes());
        bytes[16..HEADER_BYTES].fill(0);
        bytes[HEADER_BYTES..header_bytes].copy_from_slice(&self.options.bytes[..self.options.len]);
        let (first, second) = bytes[header_bytes..].split_at_mut(self.data.0.len());
        first.copy_from_slice(self.data.0);
        second.copy_from_slice(self.data.1);
    }
}

/// Answers a segment that belongs to no connection (RFC 9293, section 3.10.7.1).
pub(crate) fn refuse(
    link: &mut Link<'_>,
    to: Mac,
    segment: &Segment<'_>,
    source: Ipv4Addr,
) -> Result<(), Full> {
    if segment.has(flag::RST) {
        return Ok(());
    }
    let (seq, ack, flags) = if segment.has(flag::ACK) {
        (segment.ack, 0, flag::RST)
    } else {
        (0, segment.seq.wrapping_add(segment.len()), flag::RST | flag::ACK)
    };
    let outgoing = Outgoing {
        source: SocketAddrV4::new(link.interface.address, segment.target_port),
        target: SocketAddrV4::new(source, segment.source_port),
        seq,
        ack,
        flags,
        window: 0,
        options: Options::default(),
        data: (&[], &[]),
        mss: usize::MAX,
    };
    outgoing.send(link, to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequence_numbers_wrap() {
        assert!(before(1, 2) && !before(2, 1) && !before(1, 1));
        assert!(before(u32::MAX, 0) && !before(0, u32::MAX));
    }

    #[test]
    fn options_are_written_as_they_are_read() {
        let syn = Options::syn(1460, Some(7), true);
        assert_eq!(syn.as_bytes(), [2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 7]);
        let sack = Options::sack([(1, 2), (3, 4), (5, 6), (7, 8)].into_iter());
        assert_eq!(sack.len(), 28);
        assert_eq!(sack.as_bytes()[3], 26);
        assert_eq!(Options::sack(core::iter::empty()).len(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            if let Some(segment) = Segment::parse(&bytes) {
                prop_assert!(segment.data.len() + HEADER_BYTES <= bytes.len());
            }
        }
    }
}
