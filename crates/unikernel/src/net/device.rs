//! The stack and its device, and how the executor drives them.

use core::cell::RefCell;
use core::net::Ipv4Addr;

use shoal_unikernel_abi::features;
use shoal_unikernel_abi::manifest::DeviceKind;
use shoal_unikernel_abi::ring::RecordHeader;

use super::Error;
use super::link::{Interface, Sink};
use super::stack::Stack;
use crate::executor::{self, Driver};
use crate::ring::{self, Consumer, Producer};
use crate::{boot, log, random};

/// Most frames that are taken in before the tasks have their turn.
const BATCH_FRAMES: usize = 256;
/// Smallest MTU that every IPv4 network has (RFC 791), and the largest packet.
const MTU: core::ops::RangeInclusive<u16> = 576..=u16::MAX;

/// The sending ring.
struct Sending(Producer);

impl Sink for Sending {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        // A broken ring looks full for ever: the monitor ends what breaks its rules, and a guest
        // can do no more about a broken monitor.
        self.0.reserve(len).unwrap_or(None)
    }

    fn commit(&mut self, header: RecordHeader) {
        self.0.commit(header);
    }
}

/// The instance's network.
pub(crate) struct Network {
    pub(crate) stack: Stack,
    sending: Sending,
    receiving: Consumer,
}

local! {
    static NETWORK: RefCell<Option<Network>> = RefCell::new(None);
}

/// Calls `with` with the network, which is started if need be.
pub(crate) fn with<R>(with: impl FnOnce(&mut Network) -> R) -> Result<R, Error> {
    NETWORK.with(|cell| {
        let mut network = cell.borrow_mut();
        if network.is_none() {
            *network = Some(open()?);
            executor::add_driver(Driver { receive, settle });
        }
        network.as_mut().map(with).ok_or(Error::NoInterface)
    })
}

/// Starts the network now, so that ARP and ping are answered before the first socket is used.
///
/// # Errors
/// [`Error::NoInterface`].
pub fn start() -> Result<(), Error> {
    with(|_| ())
}

/// The interface's own address.
///
/// # Errors
/// [`Error::NoInterface`].
pub fn address() -> Result<Ipv4Addr, Error> {
    with(|network| network.stack.interface.address)
}

/// Length of the prefix of the interface's network in bits.
///
/// # Errors
/// [`Error::NoInterface`].
pub fn prefix_len() -> Result<u8, Error> {
    with(|network| network.stack.interface.prefix_len)
}

#[cfg(not(shoal_image))]
pub(crate) fn clear() {
    NETWORK.with(|cell| *cell.borrow_mut() = None);
}

/// An address of the boot information; zeros mean none.
fn given(octets: [u8; 4]) -> Option<Ipv4Addr> {
    (octets != [0; 4]).then(|| octets.into())
}

/// The name servers that the monitor gave.
pub(crate) fn name_servers() -> impl Iterator<Item = Ipv4Addr> {
    let info = boot::device(DeviceKind::Net, None).map(|(_, device)| device.net);
    info.unwrap_or_default().dns.into_iter().filter_map(given)
}

fn open() -> Result<Network, Error> {
    let (_, device) = boot::device(DeviceKind::Net, None).ok_or(Error::NoInterface)?;
    let info = device.net;
    let interface = Interface {
        mac: info.mac,
        address: given(info.ipv4).ok_or(Error::NoInterface)?,
        prefix_len: info.prefix_len,
        gateway: given(info.gateway),
        mtu: usize::from(info.mtu.clamp(*MTU.start(), *MTU.end())),
        offload: boot::offers(features::NET_OFFLOAD),
    };
    // SAFETY: the monitor made the region for this instance alone, as the layout asks, and keeps it
    // for as long as the instance runs; the network is opened once.
    let ends = unsafe { ring::open(device.region.start as *mut u8, device.region.len, true) };
    let (producer, consumer) = ends.ok_or(Error::NoInterface)?;
    let heap_bytes = boot::info().map_or(0, |boot| boot.heap.len) as usize;
    let stack = Stack::new(interface, random::u64(), heap_bytes);
    Ok(Network { stack, sending: Sending(producer), receiving: consumer })
}

impl Network {
    /// Calls `with` with the tables and what they need for sending.
    pub(crate) fn with_link<R>(
        &mut self,
        with: impl FnOnce(
            &mut super::tcp::Table,
            &mut super::udp::Table,
            &mut super::link::Link<'_>,
        ) -> R,
    ) -> R {
        self.stack.with_link(&mut self.sending, executor::now_ns(), with)
    }
}

/// Calls `each` with the running network.
fn running(each: impl FnOnce(&mut Network)) {
    NETWORK.with(|cell| {
        if let Some(network) = cell.borrow_mut().as_mut() {
            each(network);
        }
    });
}

fn receive(now_ns: u64) {
    running(|network| {
        let Network { stack, sending, receiving } = network;
        receiving.set_sleeps(false);
        for _ in 0..BATCH_FRAMES {
            match receiving.front() {
                Ok(Some((header, frame))) => stack.receive(header, frame, sending, now_ns),
                Ok(None) => break,
                Err(broken) => {
                    log::write_line(crate::call::Stream::Err, format_args!("{broken}"));
                    crate::exit(1);
                }
            }
            receiving.release();
        }
        stack.expire(sending, now_ns);
    });
}

fn settle(now_ns: u64) -> u64 {
    let mut next_ns = u64::MAX;
    running(|network| {
        let Network { stack, sending, receiving } = network;
        let full = stack.flush(sending, now_ns).is_err();
        sending.0.set_waits(full);
        receiving.set_sleeps(true);
        // Without room the monitor is called to make some; with frames waiting it must not sleep.
        next_ns = if full || !receiving.is_empty() { 0 } else { stack.next_ns() };
    });
    next_ns
}
