//! Moves frames between the rings of one interface and its socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::uio::{readv, writev};
use shoal_unikernel_abi::boot::Span;
use shoal_unikernel_abi::ring::{FRAME_BYTES_MAX, RecordHeader};

use crate::ring::{self, Broken, Consumer, Producer};

/// Bytes of `virtio_net_hdr_v1`.
const VNET_BYTES: usize = 12;
/// Bytes of frames that a socket holds: what the kernel gives without privileges.
const SOCKET_BYTES: usize = 212_992;

/// Two connected sockets that keep the borders of messages.
pub(super) fn socket_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (left, right) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for socket in [&left, &right] {
        setsockopt(socket, sockopt::SndBuf, &SOCKET_BYTES)?;
    }
    Ok((left, right))
}

/// One interface, from the monitor's side.
#[derive(Debug)]
pub(super) struct Network {
    socket: OwnedFd,
    to_guest: Producer,
    from_guest: Consumer,
    /// The socket took no more.
    is_full: bool,
    /// The other end is gone or the guest broke a ring: nothing moves any more.
    is_down: bool,
}

fn encode(header: RecordHeader) -> [u8; VNET_BYTES] {
    let mut bytes = [0; VNET_BYTES];
    bytes[0] = header.flags;
    bytes[1] = header.gso_type;
    bytes[2..4].copy_from_slice(&header.hdr_len.to_le_bytes());
    bytes[4..6].copy_from_slice(&header.gso_size.to_le_bytes());
    bytes[6..8].copy_from_slice(&header.csum_start.to_le_bytes());
    bytes[8..10].copy_from_slice(&header.csum_offset.to_le_bytes());
    bytes[10..12].copy_from_slice(&header.num_buffers.to_le_bytes());
    bytes
}

fn decode(bytes: [u8; VNET_BYTES], len: usize) -> RecordHeader {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    RecordHeader {
        len: len as u32,
        flags: bytes[0],
        gso_type: bytes[1],
        hdr_len: word(2),
        gso_size: word(4),
        csum_start: word(6),
        csum_offset: word(8),
        num_buffers: word(10),
    }
}

impl Network {
    /// Takes one end of a socket and the monitor's ends of the rings in `region`.
    pub(super) fn new(socket: OwnedFd, region: Span) -> std::io::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: the region was made for this interface by `net_region`, is never freed, and the
        // guest opens the other ends only.
        let ends = unsafe { ring::open(region.start as *mut u8, region.len, false) };
        let (to_guest, from_guest) =
            ends.ok_or_else(|| std::io::Error::other("a ring's capacity is not possible"))?;
        Ok(Self { socket, to_guest, from_guest, is_full: false, is_down: false })
    }

    /// Moves what can be moved now, both ways.
    pub(super) fn serve(&mut self) {
        if !self.is_down && (self.send().is_err() || self.receive().is_err()) {
            self.is_down = true;
        }
    }

    fn send(&mut self) -> Result<(), Broken> {
        self.is_full = false;
        while let Some((header, frame)) = self.from_guest.front()? {
            let head = encode(header);
            match writev(&self.socket, &[IoSlice::new(&head), IoSlice::new(frame)]) {
                Err(Errno::EAGAIN) => {
                    self.is_full = true;
                    break;
                }
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => self.is_down = true,
                // Ignored because: a network may lose any frame; the protocols above repeat it.
                Ok(_) | Err(_) => {}
            }
            self.from_guest.release();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Broken> {
        while let Some(room) = self.to_guest.reserve(FRAME_BYTES_MAX)? {
            let mut head = [0; VNET_BYTES];
            let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(room)];
            match readv(&self.socket, &mut parts) {
                Ok(0) => {
                    self.is_down = true;
                    break;
                }
                Ok(bytes) if bytes > VNET_BYTES => {
                    self.to_guest.commit(decode(head, bytes - VNET_BYTES));
                }
                // Ignored because: too short to be a frame.
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    self.is_down = true;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether the guest has something to take.
    pub(super) fn has_frames(&self) -> bool {
        !self.to_guest.is_drained()
    }

    /// The socket and whether to wait for room in it, too. `None` once nothing moves any more.
    pub(super) fn waits_for(&self) -> Option<(impl AsFd + '_, bool)> {
        (!self.is_down).then_some((&self.socket, self.is_full))
    }
}
