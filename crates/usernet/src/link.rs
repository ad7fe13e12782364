//! The side of the frames: messages of a pair of Unix sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::Error;

/// Bytes of `virtio_net_hdr_v1` before each frame.
pub const VNET_HEADER_BYTES: usize = 12;
/// Longest message: header, Ethernet header, and the largest IPv4 packet.
pub const MESSAGE_BYTES_MAX: usize = VNET_HEADER_BYTES + 14 + 65_535;

/// What the kernel may hold for each direction: a burst of a window of data. It gives less if its
/// own limit (`net.core.wmem_max`) is lower.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// The network's end.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What came of an attempt to receive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message of so many bytes.
    Message(usize),
    /// Nothing for now.
    Nothing,
    /// The guest is gone.
    Ended,
}

/// Makes a pair: the guest's end, to be given to a tender or to a hosted guest, and the network's.
/// Both close when another program is started; who passes the guest's end on clears that.
///
/// # Errors
/// [`Error::Host`].
pub fn pair() -> Result<(OwnedFd, Link), Error> {
    let (guest, ours) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::host("make a pair of sockets"))?;
    for end in [&guest, &ours] {
        rustix::net::sockopt::set_socket_send_buffer_size(end, SOCKET_BUFFER_BYTES)
            .map_err(Error::host("enlarge a socket's buffer"))?;
    }
    Ok((guest, Link(ours)))
}

impl Link {
    /// An end that somebody else made: `SOCK_SEQPACKET`, or `SOCK_DGRAM`, whose other end's closing
    /// cannot be noticed.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Receives without waiting.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => Ok(Received::Ended),
            Ok((bytes, _)) => Ok(Received::Message(bytes)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends without waiting. False: there is no room now.
    pub(crate) fn send(&self, message: &[u8]) -> io::Result<bool> {
        match rustix::net::send(&self.0, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
