//! Sockets in the namespace that plays the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use shoal_netlink::netns;

/// Connections that wait to be accepted: a burst of clients on loopback.
const BACKLOG: i32 = 1024;

/// The namespace that plays the host; nothing: the one that this process is in.
#[derive(Debug)]
pub(super) struct HostNetns(pub(super) Option<PathBuf>);

impl HostNetns {
    /// Runs `work` there. Blocks for its time.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match &self.0 {
            None => Ok(work()),
            Some(path) => netns::run_in(path, work).map_err(io::Error::other),
        }
    }
}

/// Listens at the address, or at all addresses of both families.
pub(super) fn listen_tcp(ip: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let fd = bound(ip, port, SockType::Stream)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}

/// Binds a UDP socket to the address, or to all addresses of both families.
pub(super) fn bind_udp(ip: Option<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    Ok(bound(ip, port, SockType::Datagram)?.into())
}

fn bound(ip: Option<IpAddr>, port: u16, kind: SockType) -> io::Result<OwnedFd> {
    match ip {
        Some(ip) => bound_at(SocketAddr::new(ip, port), kind),
        None => match bound_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), kind) {
            // A host without IPv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                bound_at(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), kind)
            }
            other => other,
        },
    }
    .map_err(Into::into)
}

fn bound_at(at: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None)?;
    if at.is_ipv6() {
        // One socket for both families, whatever the host's default is.
        setsockopt(&fd, sockopt::Ipv6V6Only, &!at.ip().is_unspecified())?;
    }
    if kind == SockType::Stream {
        // Connections of an earlier life that are still closing do not count as taken.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    Ok(fd)
}
