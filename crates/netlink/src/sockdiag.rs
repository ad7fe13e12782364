//! Sockets of a namespace: listed, and destroyed so that their owner sees an error at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::attr::{Writer, be16, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Length of `struct inet_diag_sockid`: ports, addresses, link, cookie.
const ID_LEN: usize = 48;
const ALL_STATES: u32 = u32::MAX;

/// Which sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// TCP state of a socket that listens.
pub const STATE_LISTEN: u8 = 10;
/// TCP state of a socket whose connection stands.
pub const STATE_ESTABLISHED: u8 = 1;

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketInfo {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its own address; IPv4 also if an IPv6 socket has it mapped.
    pub local: SocketAddr,
    /// Its peer's; unspecified and port 0 if it has none.
    pub remote: SocketAddr,
    /// The kernel's TCP state number.
    pub state: u8,
    /// Number of the socket file, as `/proc/<pid>/fd` shows it; 0 if nobody has it open.
    pub inode: u32,
    family: u8,
    id: [u8; ID_LEN],
}

impl Transport {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// `struct inet_diag_req_v2`.
fn request(kind: u16, family: u8, transport: Transport, id: &[u8; ID_LEN]) -> Writer {
    let mut body = vec![family, transport.number(), 0, 0];
    body.extend_from_slice(&ALL_STATES.to_ne_bytes());
    body.extend_from_slice(id);
    Writer::message(kind, 0, &body)
}

impl NetnsHandle {
    /// All sockets of a transport, of both families.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn sockets(&self, transport: Transport) -> Result<Vec<SocketInfo>, NetlinkError> {
        let mut all = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let request = request(SOCK_DIAG_BY_FAMILY, family, transport, &[0; ID_LEN]);
            let answers = self
                .diag_socket()
                .dump(request)
                .map_err(|c| c.of("list the sockets", self.object("all")))?;
            all.extend(answers.iter().filter_map(|m| parse(transport, &m.payload)));
        }
        Ok(all)
    }

    /// Destroys a socket: its owner's next call fails with `ECONNABORTED`, the peer of a TCP
    /// connection gets a reset. Says whether it was still there.
    ///
    /// # Errors
    /// The kernel refuses or lacks it (`CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy_socket(&self, socket: &SocketInfo) -> Result<bool, NetlinkError> {
        let message = request(SOCK_DESTROY, socket.family, socket.transport, &socket.id);
        match self.diag_socket().request(message) {
            Ok(()) => Ok(true),
            Err(Cause::Kernel { errno: libc::ENOENT | libc::ESTALE, .. }) => Ok(false),
            Err(cause) => {
                let object = format!("{} to {}", socket.local, socket.remote);
                Err(cause.of("destroy the socket", self.object(&object)))
            }
        }
    }

    /// Destroys all sockets that `wanted` picks and returns those that were still there.
    ///
    /// # Errors
    /// The kernel refuses; some may be destroyed already.
    pub fn destroy_sockets(
        &self,
        transport: Transport,
        wanted: impl Fn(&SocketInfo) -> bool,
    ) -> Result<Vec<SocketInfo>, NetlinkError> {
        let mut destroyed = Vec::new();
        for socket in self.sockets(transport)? {
            if wanted(&socket) && self.destroy_socket(&socket)? {
                destroyed.push(socket);
            }
        }
        Ok(destroyed)
    }
}

/// `struct inet_diag_msg`.
fn parse(transport: Transport, payload: &[u8]) -> Option<SocketInfo> {
    let family = *payload.first()?;
    let id: [u8; ID_LEN] = payload.get(4..4 + ID_LEN)?.try_into().ok()?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        let [a, b, c, d, ..] = bytes;
        Some(if i32::from(family) == libc::AF_INET {
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(bytes).to_canonical()
        })
    };
    Some(SocketInfo {
        transport,
        local: SocketAddr::new(address(4)?, be16(&id)?),
        remote: SocketAddr::new(address(20)?, be16(&id[2..])?),
        state: *payload.get(1)?,
        inode: u32_at(payload, 68)?,
        family,
        id,
    })
}
