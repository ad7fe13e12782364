//! TCP sockets for applications.

use core::future::poll_fn;
use core::net::SocketAddrV4;
use core::task::{Context, Poll};

use super::Error;
use super::device::{self, Network};
use super::tcp::State;
use crate::executor;

/// Calls `with` with a running network; a socket exists only while it runs.
fn network<R>(with: impl FnOnce(&mut Network) -> R) -> Result<R, Error> {
    device::with(with)
}

/// Waits for connections on a port.
#[derive(Debug)]
pub struct TcpListener {
    port: u16,
}

impl TcpListener {
    /// Listens on `port`. Up to `backlog` connections wait to be accepted and as many are
    /// half-open; further ones are answered when there is room again.
    ///
    /// # Errors
    /// [`Error::PortInUse`], [`Error::NoInterface`].
    pub fn bind(port: u16, backlog: usize) -> Result<Self, Error> {
        network(|network| network.stack.tcp.listen(port, backlog))??;
        Ok(Self { port })
    }

    /// The next connection.
    pub async fn accept(&self) -> TcpStream {
        poll_fn(|context| {
            let accepted = network(|network| network.stack.tcp.accept(self.port, context.waker()));
            match accepted {
                Ok(Some(id)) => Poll::Ready(TcpStream::new(id)),
                Ok(None) | Err(_) => Poll::Pending,
            }
        })
        .await
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        // Ignored because: without a network there is nothing to end.
        let _ = network(|network| network.with_link(|tcp, _, link| tcp.unlisten(self.port, link)));
    }
}

/// A connection. Dropping it finishes it in order: what was written is still sent. If something
/// was received and not read, it is reset instead.
#[derive(Debug)]
pub struct TcpStream {
    id: u32,
    local: SocketAddrV4,
    peer: SocketAddrV4,
}

impl TcpStream {
    fn new(id: u32) -> Self {
        let unspecified = SocketAddrV4::new(core::net::Ipv4Addr::UNSPECIFIED, 0);
        let ends = network(|network| {
            network.stack.tcp.get(id).map(|connection| (connection.local, connection.peer))
        });
        let (local, peer) = ends.ok().flatten().unwrap_or((unspecified, unspecified));
        Self { id, local, peer }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TimedOut`] (after a minute), [`Error::Unreachable`].
    pub async fn connect(peer: SocketAddrV4) -> Result<Self, Error> {
        let now_ns = executor::now_ns();
        let id = network(|network| {
            let interface = network.stack.interface;
            network.stack.tcp.connect(peer, interface.address, interface.mtu, now_ns)
        })??;
        let stream = Self::new(id);
        poll_fn(|context| {
            stream.poll(context, |connection, context| match connection.state {
                State::SynSent | State::SynReceived => {
                    connection.writer = Some(context.waker().clone());
                    Poll::Pending
                }
                State::Closed(why) => Poll::Ready(Err(why.unwrap_or(Error::Reset))),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await?;
        Ok(stream)
    }

    /// Calls `with` with the connection, and keeps account.
    fn poll<R>(
        &self,
        context: &mut Context<'_>,
        with: impl FnOnce(&mut super::tcp::Connection, &mut Context<'_>) -> Poll<Result<R, Error>>,
    ) -> Poll<Result<R, Error>> {
        let answer = network(|network| {
            network.stack.tcp.change(self.id, |connection| with(connection, context))
        });
        match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => Poll::Ready(Err(Error::Reset)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Lets the connection send what it has at the end of this round.
    fn enqueue(&self) {
        // Ignored because: without a network there is nothing to send.
        let _ = network(|network| network.stack.tcp.enqueue(self.id));
    }

    /// Reads what is there, at least one byte, waiting for it; 0 means that the peer has finished
    /// (or `to` is empty).
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::TimedOut`].
    pub async fn read(&self, to: &mut [u8]) -> Result<usize, Error> {
        poll_fn(|context| self.poll_read(context, to)).await
    }

    /// [`TcpStream::read`] for hand-written futures. At most one task reads a connection at once.
    ///
    /// # Errors
    /// As [`TcpStream::read`].
    pub fn poll_read(
        &self,
        context: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<usize, Error>> {
        let mut tell = false;
        let answer = self.poll(context, |connection, context| {
            let count = connection.receiver.read(to);
            let mss = connection.sender.mss as usize;
            if count > 0 || to.is_empty() {
                tell = connection.receiver.should_tell(connection.limit, mss);
                return Poll::Ready(Ok(count));
            }
            match connection.state {
                State::Closed(Some(why)) => Poll::Ready(Err(why)),
                State::Closed(None) => Poll::Ready(Ok(0)),
                _ if connection.receiver.is_finished => Poll::Ready(Ok(0)),
                _ => {
                    connection.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        if tell {
            self.enqueue();
        }
        answer
    }

    /// Reads until `to` is full.
    ///
    /// # Errors
    /// [`Error::UnexpectedEnd`] if the peer finishes before that, and those of
    /// [`TcpStream::read`].
    pub async fn read_exact(&self, to: &mut [u8]) -> Result<(), Error> {
        let mut filled = 0;
        while filled < to.len() {
            match self.read(&mut to[filled..]).await? {
                0 => return Err(Error::UnexpectedEnd),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Hands over some of `data` for sending, waiting for room.
    ///
    /// # Errors
    /// [`Error::ShutDown`], [`Error::Reset`], [`Error::TimedOut`].
    pub async fn write(&self, data: &[u8]) -> Result<usize, Error> {
        poll_fn(|context| self.poll_write(context, data)).await
    }

    /// [`TcpStream::write`] for hand-written futures. At most one task writes at once.
    ///
    /// # Errors
    /// As [`TcpStream::write`].
    pub fn poll_write(&self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Error>> {
        let limit = network(|network| network.stack.tcp.send_limit()).unwrap_or(0);
        let answer = self.poll(context, |connection, context| {
            match connection.state {
                State::Closed(why) => return Poll::Ready(Err(why.unwrap_or(Error::Reset))),
                _ if connection.sender.fin => return Poll::Ready(Err(Error::ShutDown)),
                _ => {}
            }
            let room = limit.saturating_sub(connection.sender.buffer.len());
            let count = room.min(data.len());
            if count == 0 && !data.is_empty() {
                connection.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            connection.sender.buffer.extend(&data[..count]);
            Poll::Ready(Ok(count))
        });
        if let Poll::Ready(Ok(1..)) = answer {
            self.enqueue();
        }
        answer
    }

    /// Hands all of `data` over for sending.
    ///
    /// # Errors
    /// As [`TcpStream::write`].
    pub async fn write_all(&self, data: &[u8]) -> Result<(), Error> {
        let mut written = 0;
        while written < data.len() {
            written += self.write(&data[written..]).await?;
        }
        Ok(())
    }

    /// Sends no more, and waits until the peer has acknowledged everything. Reading goes on.
    ///
    /// # Errors
    /// [`Error::Reset`], [`Error::TimedOut`]: perhaps not everything arrived.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let begun = network(|network| {
            network.stack.tcp.change(self.id, super::tcp::Connection::shut_down);
        });
        begun?;
        self.enqueue();
        poll_fn(|context| {
            self.poll(context, |connection, context| match connection.state {
                State::Closed(Some(why)) => Poll::Ready(Err(why)),
                State::Closed(None) => Poll::Ready(Ok(())),
                _ if connection.sender.is_fin_acked() => Poll::Ready(Ok(())),
                _ => {
                    connection.writer = Some(context.waker().clone());
                    Poll::Pending
                }
            })
        })
        .await
    }

    /// Ends the connection at once; the peer is told that it did not end well.
    pub fn abort(self) {
        // Ignored because: without a network there is nothing to end.
        let _ = network(|network| network.with_link(|tcp, _, link| tcp.abort(self.id, link)));
        core::mem::forget(self);
    }

    /// The peer's address.
    #[must_use]
    pub const fn peer(&self) -> SocketAddrV4 {
        self.peer
    }

    /// The own address.
    #[must_use]
    pub const fn local(&self) -> SocketAddrV4 {
        self.local
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        // Ignored because: without a network there is nothing to end.
        let _ = network(|network| network.with_link(|tcp, _, link| tcp.leave(self.id, link)));
    }
}
