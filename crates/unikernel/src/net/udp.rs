//! UDP (RFC 768): sockets by port, each with a bounded queue of datagrams.

use alloc::collections::VecDeque;
use core::net::SocketAddrV4;
use core::task::Waker;

use hashbrown::HashMap;
use smoltcp::wire::{IpProtocol, UdpPacket};

use super::Error;
use super::hash::Keyed;
use super::link::{Full, Link, Route, TRANSPORT_OFFSET, Transport};

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 8;
/// Where the checksum lies in the header.
const CHECKSUM_AT: usize = 6;
/// Most bytes that wait in one socket. What does not fit is dropped, as everywhere.
const QUEUE_BYTES: usize = 256 * 1024;
/// Most datagrams that wait in one socket.
const QUEUE_DATAGRAMS: usize = 2048;
/// First port that is given to a socket without one.
const EPHEMERAL_FIRST: u16 = 49_152;

/// One socket.
#[derive(Debug, Default)]
pub(crate) struct Socket {
    /// Sender and length of each datagram whose bytes lie in `bytes`, one after the other.
    datagrams: VecDeque<(SocketAddrV4, u32)>,
    bytes: VecDeque<u8>,
    waker: Option<Waker>,
}

impl Socket {
    fn push(&mut self, from: SocketAddrV4, data: &[u8]) {
        let room =
            self.datagrams.len() < QUEUE_DATAGRAMS && self.bytes.len() + data.len() <= QUEUE_BYTES;
        if room {
            self.datagrams.push_back((from, data.len() as u32));
            self.bytes.extend(data);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes the next datagram; what does not fit into `to` is lost. Else wakes `waker` later.
    pub(crate) fn take(
        &mut self,
        to: &mut [u8],
        waker: Option<&Waker>,
    ) -> Option<(usize, SocketAddrV4)> {
        let Some((from, len)) = self.datagrams.pop_front() else {
            self.waker = waker.cloned();
            return None;
        };
        let len = len as usize;
        let count = len.min(to.len());
        let (first, second) = self.bytes.as_slices();
        let split = count.min(first.len());
        to[..split].copy_from_slice(&first[..split]);
        to[split..count].copy_from_slice(&second[..count - split]);
        if len == self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..len);
        }
        Some((count, from))
    }
}

/// All sockets.
#[derive(Debug)]
pub(crate) struct Table {
    sockets: HashMap<u16, Socket, Keyed>,
}

impl Table {
    pub(crate) fn new(keyed: Keyed) -> Self {
        Self { sockets: HashMap::with_hasher(keyed) }
    }

    /// Binds `port`; 0: any free one, beginning to search at a place given by `random`.
    pub(crate) fn bind(&mut self, port: u16, random: u16) -> Result<u16, Error> {
        let port = if port == 0 {
            let count = u16::MAX - EPHEMERAL_FIRST;
            (0..count)
                .map(|add| EPHEMERAL_FIRST + (random % count + add) % count)
                .find(|port| !self.sockets.contains_key(port))
                .ok_or(Error::NoFreePort)?
        } else if self.sockets.contains_key(&port) {
            return Err(Error::PortInUse { port });
        } else {
            port
        };
        self.sockets.insert(port, Socket::default());
        Ok(port)
    }

    /// The socket of a port.
    pub(crate) fn get(&mut self, port: u16) -> Option<&mut Socket> {
        self.sockets.get_mut(&port)
    }

    /// Closes the socket of a port.
    pub(crate) fn close(&mut self, port: u16) {
        self.sockets.remove(&port);
    }

    /// Takes a datagram in. False: nobody is bound to its port.
    pub(crate) fn take(&mut self, bytes: &[u8], from: core::net::Ipv4Addr) -> bool {
        // Cannot fail: the caller has checked the packet.
        let Ok(packet) = UdpPacket::new_checked(bytes) else { return true };
        let Some(socket) = self.sockets.get_mut(&packet.dst_port()) else { return false };
        socket.push(SocketAddrV4::new(from, packet.src_port()), packet.payload());
        true
    }
}

/// Sends a datagram.
pub(crate) fn send(
    link: &mut Link<'_>,
    port: u16,
    to: SocketAddrV4,
    data: &[u8],
) -> Result<Result<(), Full>, Error> {
    if TRANSPORT_OFFSET - 14 + HEADER_BYTES + data.len() > link.interface.mtu {
        return Err(Error::TooLong { bytes: data.len() });
    }
    let transport = Transport {
        protocol: IpProtocol::Udp,
        source: link.interface.address,
        target: *to.ip(),
        len: HEADER_BYTES + data.len(),
        checksum_at: Some(CHECKSUM_AT),
        segmented: None,
    };
    let fill = |bytes: &mut [u8]| {
        let (header, payload) = bytes.split_at_mut(HEADER_BYTES);
        header[..2].copy_from_slice(&port.to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[4..6].copy_from_slice(&(transport.len as u16).to_be_bytes());
        header[6..].fill(0);
        payload.copy_from_slice(data);
    };
    match link.route(*to.ip()) {
        Route::Mac(mac) => Ok(link.packet(mac, &transport, fill)),
        Route::Unresolved(hop) => {
            link.packet_later(hop, &transport, fill);
            Ok(Ok(()))
        }
        Route::None => Err(Error::Unreachable),
    }
}
