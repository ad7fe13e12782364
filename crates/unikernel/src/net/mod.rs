//! The network: TCP, UDP, and names, over one interface with a static IPv4 address.
//!
//! ```text
//! let listener = net::TcpListener::bind(80, 1024)?;
//! loop {
//!     let stream = listener.accept().await;
//!     unikernel::spawn(serve(stream));
//! }
//! ```
//!
//! The interface is the first network device that the monitor attached; its addresses are part of
//! the boot information. ARP and ping are answered without anybody asking for it, from the first
//! use of a socket on. There is no IPv6 and no DHCP.

mod checksum;
mod device;
mod dns;
mod error;
#[cfg(not(shoal_image))]
#[doc(hidden)]
pub mod fuzz;
mod hash;
mod link;
mod neighbours;
mod stack;
mod tcp;
mod tcp_socket;
mod udp;
mod udp_socket;

#[cfg(test)]
mod tests;

#[cfg(not(shoal_image))]
pub(crate) use device::clear;
pub use device::{address, prefix_len, start};
pub use dns::lookup;
pub use error::Error;
pub use tcp_socket::{TcpListener, TcpStream};
pub use udp_socket::UdpSocket;
