//! Ordinary sockets of the host, without waiting.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// What came of moving bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The host's side has sent everything.
    End,
    /// Not now.
    Blocked,
    /// The connection is broken.
    Broken,
}

/// Begins a connection; the socket is writable when it is made or has failed.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Whether a connection that was begun is made. False: it failed.
pub(crate) fn is_connected(socket: &TcpStream) -> bool {
    matches!(socket.take_error(), Ok(None)) && socket.peer_addr().is_ok()
}

/// Reads what is there.
pub(crate) fn read(socket: &TcpStream, buffer: &mut [u8]) -> Moved {
    loop {
        match rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Moved::End,
            Ok((bytes, _)) => return Moved::Bytes(bytes),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Moved::Blocked,
            Err(_) => return Moved::Broken,
        }
    }
}

/// Writes what the kernel takes.
pub(crate) fn write(socket: &TcpStream, bytes: &[u8]) -> Moved {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(0) | Err(Errno::AGAIN) => return Moved::Blocked,
            Ok(written) => return Moved::Bytes(written),
            Err(Errno::INTR) => {}
            Err(_) => return Moved::Broken,
        }
    }
}

/// Closes so that the peer sees a reset, as the guest asked for.
pub(crate) fn reset(socket: TcpStream) {
    // Ignored because: a socket that is broken already needs no reset.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}
