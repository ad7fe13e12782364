//! A TCP stack for one connection: it has the other end's address, and one socket.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::iface::{Config as StackConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::frame::Key;
use crate::outbox::Outbox;

/// Bytes each way between host and guest: more than two of the largest packets, and as much as the
/// little delay on one machine can use.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long a guest may leave data unacknowledged before the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often an idle guest is asked whether it still has the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    mtu: usize,
}

impl Stack {
    /// A stack that answers the guest's next opening segment at `at`. `None`: not an address that
    /// can have connections.
    pub(crate) fn listening(at: SocketAddrV4, mtu: u16, seed: u64, now: Instant) -> Option<Self> {
        let mut stack = Self::new(*at.ip(), mtu, seed, now)?;
        stack.socket().listen((IpAddress::Ipv4(*at.ip()), at.port())).ok()?;
        Some(stack)
    }

    /// A stack that opens a connection to the guest.
    pub(crate) fn connecting(
        key: Key,
        guest: Ipv4Addr,
        mtu: u16,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        let mut stack = Self::new(*key.remote.ip(), mtu, seed, now)?;
        let Self { interface, sockets, handle, .. } = &mut stack;
        let local = (IpAddress::Ipv4(*key.remote.ip()), key.remote.port());
        let remote = (IpAddress::Ipv4(guest), key.guest_port);
        sockets.get_mut::<Socket<'_>>(*handle).connect(interface.context(), remote, local).ok()?;
        Some(stack)
    }

    fn new(address: Ipv4Addr, mtu: u16, seed: u64, now: Instant) -> Option<Self> {
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return None;
        }
        let mtu = usize::from(mtu);
        let mut config = StackConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Shape { mtu }, now);
        let mut full = false;
        interface.update_ip_addrs(|addresses| {
            full = addresses.push(IpCidr::new(IpAddress::Ipv4(address), 32)).is_err();
        });
        // The guest is the only neighbour there is.
        full |= interface.routes_mut().add_default_ipv4_route(address).is_err();
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        // Data is handed on as it comes: the sender has already decided how to cut it.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(SILENCE_MAX));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        (!full).then_some(Self { interface, sockets, handle, mtu })
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Takes a packet of the guest, if any, and sends what there is to send.
    pub(crate) fn poll(&mut self, packet: Option<&[u8]>, now: Instant, outbox: &mut Outbox) {
        let mut wire = Wire { packet, outbox, mtu: self.mtu };
        self.interface.poll(now, &mut wire, &mut self.sockets);
    }

    /// When to poll again at the latest.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Stack").field("state", &self.state()).finish_non_exhaustive()
    }
}

fn capabilities(mtu: usize) -> DeviceCapabilities {
    let mut checksum = ChecksumCapabilities::ignored();
    checksum.ipv4 = Checksum::Tx;
    checksum.tcp = Checksum::Tx;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu;
    capabilities.checksum = checksum;
    capabilities
}

/// A device that only says what it is like.
struct Shape {
    mtu: usize,
}

/// A device for one poll: at most one packet comes in.
struct Wire<'a> {
    packet: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
    mtu: usize,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a>(&'a mut Outbox);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.ipv4(len, fill)
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.packet.take()?;
        Some((Incoming(packet), Outgoing(self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        if self.outbox.is_ready() { Some(Outgoing(self.outbox)) } else { None }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}

impl Device for Shape {
    type RxToken<'t> = Incoming<'t>;
    type TxToken<'t> = Outgoing<'t>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.mtu)
    }
}
