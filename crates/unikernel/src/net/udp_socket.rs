//! UDP sockets for applications.

use core::future::poll_fn;
use core::net::SocketAddrV4;
use core::task::{Context, Poll};

use super::{Error, device, udp};
use crate::random;

/// A socket for datagrams.
#[derive(Debug)]
pub struct UdpSocket {
    port: u16,
}

impl UdpSocket {
    /// Binds `port`; 0: any free one.
    ///
    /// # Errors
    /// [`Error::PortInUse`], [`Error::NoInterface`].
    pub fn bind(port: u16) -> Result<Self, Error> {
        let start = if port == 0 { random::u64() as u16 } else { 0 };
        let port = device::with(|network| network.stack.udp.bind(port, start))??;
        Ok(Self { port })
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Takes the next datagram: its length and sender. What does not fit into `to` is lost.
    ///
    /// # Errors
    /// [`Error::NoInterface`].
    pub async fn recv_from(&self, to: &mut [u8]) -> Result<(usize, SocketAddrV4), Error> {
        poll_fn(|context| self.poll_recv_from(context, to)).await
    }

    /// [`UdpSocket::recv_from`] for hand-written futures.
    ///
    /// # Errors
    /// As [`UdpSocket::recv_from`].
    pub fn poll_recv_from(
        &self,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddrV4), Error>> {
        let taken = device::with(|network| {
            let socket = network.stack.udp.get(self.port);
            socket.and_then(|socket| socket.take(to, Some(context.waker())))
        });
        match taken {
            Ok(Some(taken)) => Poll::Ready(Ok(taken)),
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Takes the next datagram if one is there already.
    #[must_use]
    pub fn try_recv_from(&self, to: &mut [u8]) -> Option<(usize, SocketAddrV4)> {
        let taken = device::with(|network| {
            network.stack.udp.get(self.port).and_then(|socket| socket.take(to, None))
        });
        taken.ok().flatten()
    }

    /// Sends a datagram. It may be lost on the way, or here when the ring is full for long.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Unreachable`].
    pub async fn send_to(&self, data: &[u8], to: SocketAddrV4) -> Result<(), Error> {
        for _ in 0..2 {
            let sent = device::with(|network| {
                network.with_link(|_, _, link| udp::send(link, self.port, to, data))
            })??;
            if sent.is_ok() {
                return Ok(());
            }
            // The ring is full: a round later the monitor has emptied it.
            crate::yield_now().await;
        }
        Ok(())
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        // Ignored because: without a network there is nothing to close.
        let _ = device::with(|network| network.stack.udp.close(self.port));
    }
}
