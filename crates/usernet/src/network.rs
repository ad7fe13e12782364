//! The network as its user has it: bind, then run here or in a thread.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;

use crate::config::Config;
use crate::counters::Counters;
use crate::error::Error;
use crate::link::Link;
use crate::publish::{Protocol, Publish};
use crate::router::Router;

/// A published port that is open.
#[derive(Debug)]
pub(crate) enum Door {
    /// Takes connections for this port of the guest.
    Tcp(TcpListener, u16),
    /// Takes datagrams for it.
    Udp(UdpSocket, u16),
}

/// A network that is ready: published ports are open, and clients wait.
#[derive(Debug)]
pub struct Network {
    config: Config,
    doors: Vec<Door>,
    addresses: Vec<SocketAddr>,
    counters: Arc<Counters>,
}

impl Network {
    /// Opens the published ports.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::Publish`].
    pub fn bind(config: Config) -> Result<Self, Error> {
        config.check()?;
        let mut doors = Vec::new();
        let mut addresses = Vec::new();
        for publish in &config.published {
            let (door, address) = open(publish).map_err(|source| Error::Publish {
                address: publish.host,
                protocol: publish.protocol,
                source,
            })?;
            doors.push(door);
            addresses.push(address);
        }
        Ok(Self { config, doors, addresses, counters: Arc::default() })
    }

    /// Where the published ports listen, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What will be counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs until the guest closes its end.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn run(self, link: Link) -> Result<(), Error> {
        let never = stopper()?;
        Router::new(self.config, self.doors, link, never, self.counters)?.run()
    }

    /// Runs in a thread of its own until the guest closes its end or the handle is dropped.
    ///
    /// # Errors
    /// [`Error::Host`].
    pub fn start(self, link: Link) -> Result<Running, Error> {
        let stop = stopper()?;
        let theirs = stop.try_clone().map_err(Error::host("duplicate a descriptor"))?;
        let (addresses, counters) = (self.addresses, Arc::clone(&self.counters));
        let router = Router::new(self.config, self.doors, link, theirs, self.counters)?;
        let thread = std::thread::Builder::new()
            .name("usernet".to_owned())
            .spawn(move || router.run())
            .map_err(Error::host("start a thread"))?;
        Ok(Running { stop, thread: Some(thread), addresses, counters })
    }
}

fn stopper() -> Result<OwnedFd, Error> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).map_err(Error::host("make an event descriptor"))
}

fn open(publish: &Publish) -> std::io::Result<(Door, SocketAddr)> {
    match publish.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(publish.host)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((Door::Tcp(listener, publish.guest_port), address))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(publish.host)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok((Door::Udp(socket, publish.guest_port), address))
        }
    }
}

/// A network that runs in a thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: OwnedFd,
    thread: Option<JoinHandle<Result<(), Error>>>,
    addresses: Vec<SocketAddr>,
    counters: Arc<Counters>,
}

impl Running {
    /// Where the published ports listen, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends the network and all its connections.
    ///
    /// # Errors
    /// [`Error::Host`] if it had ended because of a failure.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Ignored because: the counter of an event cannot overflow by one word, and nothing else
        // can fail.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        thread.join().unwrap_or_else(|_| {
            let source = std::io::Error::other("its thread panicked");
            Err(Error::Host { action: "run a thread", source })
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ignored because: whoever wants to know calls `stop`.
        let _ = self.end();
    }
}
