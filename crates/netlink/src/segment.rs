//! One bare TCP segment, sent as if by a connection that nobody here has any more.
//!
//! A peer that receives a segment outside its window answers with an acknowledgment (RFC 9293,
//! section 3.10.7.4). Where the connection is unknown, that answer is met by a reset with exactly
//! the sequence number that the peer expects (RFC 9293, section 3.5.2), so the peer hears of the
//! loss at once instead of when it next sends. A reset of our own making would not do: its sequence
//! number cannot be known, and guesses are answered, not believed (RFC 5961, section 3.2).

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;

const IP_HEADER_BYTES: usize = 20;
const TCP_HEADER_BYTES: usize = 20;
const SEGMENT_BYTES: usize = IP_HEADER_BYTES + TCP_HEADER_BYTES;
const TCP: u8 = 6;
const FLAG_ACK: u8 = 0x10;
const TIME_TO_LIVE: u8 = 64;

impl NetnsHandle {
    /// Makes the owner of each connection ask after it: sends one segment for each pair of
    /// addresses, from the first to the second, out of this namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or has no raw socket. A single address that cannot be
    /// reached is passed over: its connection is as lost as before.
    pub fn provoke(
        &self,
        connections: &[(SocketAddrV4, SocketAddrV4)],
    ) -> Result<(), NetlinkError> {
        let named = |cause: Cause| cause.of("send a segment", self.object("raw socket"));
        let sent = self.run(|| {
            let fd = socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::Raw,
            )
            .map_err(|e| Cause::system("open a raw socket", e))?;
            for (from, to) in connections {
                // Ignored because: a host that cannot be reached has no connection to save, and one
                // whose segment found no room asks by itself, if later.
                let _ = sendto(
                    fd.as_raw_fd(),
                    &segment(*from, *to),
                    &SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0)),
                    MsgFlags::empty(),
                );
            }
            Ok(())
        })?;
        sent.map_err(named)
    }
}

/// An IPv4 packet with an empty segment that only acknowledges. The kernel fills in the packet's
/// length, number and checksum.
fn segment(from: SocketAddrV4, to: SocketAddrV4) -> [u8; SEGMENT_BYTES] {
    let mut packet = [0; SEGMENT_BYTES];
    packet[0] = 0x45;
    packet[8] = TIME_TO_LIVE;
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    let tcp = &mut packet[IP_HEADER_BYTES..];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[12] = (TCP_HEADER_BYTES as u8 / 4) << 4;
    tcp[13] = FLAG_ACK;
    let sum = checksum(&packet);
    packet[IP_HEADER_BYTES + 16..IP_HEADER_BYTES + 18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The segment's checksum with its pseudo header (RFC 9293, section 3.1).
fn checksum(packet: &[u8; SEGMENT_BYTES]) -> u16 {
    let addresses = packet[12..20].chunks_exact(2);
    let body = packet[IP_HEADER_BYTES..].chunks_exact(2);
    let words = addresses.chain(body).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum = words.sum::<u32>() + u32::from(TCP) + TCP_HEADER_BYTES as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_adds_up() {
        let packet =
            segment("192.0.2.1:8091".parse().unwrap(), "198.51.100.9:45000".parse().unwrap());
        // A receiver sums everything, the checksum included, and expects all ones.
        assert_eq!(checksum(&packet), 0);
        assert_eq!(&packet[20..24], &[0x1f, 0x9b, 0xaf, 0xc8]);
    }
}
