//! A guest: smoltcp over the other end of the pair of sockets.

#![allow(clippy::unwrap_used, dead_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags};
use shoal_usernet::config::Config;
use shoal_usernet::link::{self, MESSAGE_BYTES_MAX, VNET_HEADER_BYTES};
use shoal_usernet::network::{Network, Running};
use smoltcp::iface::{Config as StackConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Wire {
    fd: OwnedFd,
    mtu: usize,
}

pub struct Incoming(Vec<u8>);
pub struct Outgoing<'a>(&'a OwnedFd);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0[VNET_HEADER_BYTES..])
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut message = vec![0; VNET_HEADER_BYTES + len];
        let result = fill(&mut message[VNET_HEADER_BYTES..]);
        // A full link loses frames, as a wire does.
        let _ = rustix::net::send(self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let (bytes, _) = rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        if bytes == 0 {
            return None;
        }
        buffer.truncate(bytes);
        Some((Incoming(buffer), Outgoing(&self.fd)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&self.fd))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

pub struct Guest {
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub wire: Wire,
    started: Instant,
}

impl Guest {
    pub fn new(fd: OwnedFd, config: &Config) -> Self {
        let mac = EthernetAddress([0x02, 0, 0, 0, 0, 0x15]);
        let mut wire = Wire { fd, mtu: usize::from(config.mtu) };
        let stack = StackConfig::new(HardwareAddress::Ethernet(mac));
        let started = Instant::now();
        let mut interface =
            Interface::new(stack, &mut wire, smoltcp::time::Instant::from_micros(0));
        let address = IpCidr::new(IpAddress::Ipv4(config.guest), config.prefix_len);
        interface.update_ip_addrs(|all| all.push(address).unwrap());
        interface.routes_mut().add_default_ipv4_route(config.gateway).unwrap();
        Self { interface, sockets: SocketSet::new(vec![]), wire, started }
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = self.started.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap())
    }

    pub fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Runs the guest until something holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if holds(self) {
                self.poll();
                return;
            }
            assert!(Instant::now() < deadline, "in vain: {what}");
            let now = self.now();
            let delay = self.interface.poll_delay(now, &self.sockets);
            let wait = delay.map_or(5, |delay| delay.total_millis().min(5));
            let timeout = Duration::from_millis(wait).try_into().unwrap();
            let mut fds = [PollFd::new(&self.wire.fd, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
        }
    }

    pub fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 * 1024]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: (IpAddress, u16), from: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), to, from).unwrap();
        handle
    }

    /// Listens.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    /// Sends what fits; the rest later.
    pub fn send(&mut self, handle: SocketHandle, data: &mut &[u8]) {
        let socket = self.tcp(handle);
        if socket.can_send() {
            let sent = socket.send_slice(data).unwrap();
            *data = &data[sent..];
        }
    }

    /// Takes what is there.
    pub fn receive(&mut self, handle: SocketHandle, into: &mut Vec<u8>) {
        let socket = self.tcp(handle);
        while socket.can_recv() {
            socket
                .recv(|bytes| {
                    into.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
    }
}

/// A guest in a running network.
pub fn start(config: Config) -> io::Result<(Guest, Running)> {
    let (fd, ours) = link::pair().map_err(io::Error::other)?;
    let guest = Guest::new(fd, &config);
    let network = Network::bind(config).map_err(io::Error::other)?;
    let running = network.start(ours).map_err(io::Error::other)?;
    Ok((guest, running))
}

/// Bytes that no shift or repetition leaves the same.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}
