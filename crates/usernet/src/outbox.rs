//! Frames on their way to the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::counters::Counters;
use crate::link::{Link, VNET_HEADER_BYTES};

/// Ethernet's number of IPv4.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet's number of ARP.
const ETHERTYPE_ARP: u16 = 0x0806;
/// Goes to everyone.
const BROADCAST: [u8; 6] = [0xff; 6];

/// Frames that may wait before connections hold their data back.
const FRAMES_READY_BELOW: usize = 128;
/// Frames that may wait at all: acknowledgements and answers need room when data already waits.
const FRAMES_MAX: usize = 512;
/// Buffers kept for the next frames.
const SPARE_MAX: usize = 32;

/// A queue with a bound.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    guest_mac: Option<[u8; 6]>,
    gateway_mac: [u8; 6],
    counters: Arc<Counters>,
}

impl Outbox {
    pub(crate) fn new(gateway_mac: [u8; 6], counters: Arc<Counters>) -> Self {
        let waiting = VecDeque::new();
        Self { waiting, spare: Vec::new(), guest_mac: None, gateway_mac, counters }
    }

    /// Whether data may be added. Replies always may.
    pub(crate) fn is_ready(&self) -> bool {
        self.waiting.len() < FRAMES_READY_BELOW
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Notes the guest's hardware address. True if it was not known.
    pub(crate) fn learn(&mut self, mac: [u8; 6]) -> bool {
        self.guest_mac.replace(mac).is_none()
    }

    pub(crate) fn knows_guest(&self) -> bool {
        self.guest_mac.is_some()
    }

    /// Adds an IPv4 packet of `len` bytes that `fill` writes.
    pub(crate) fn ipv4<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.frame(self.guest_mac.unwrap_or(BROADCAST), ETHERTYPE_IPV4, len, fill)
    }

    /// Adds an ARP packet; a request goes to everyone.
    pub(crate) fn arp(&mut self, packet: &[u8], everyone: bool) {
        let known = self.guest_mac.filter(|_| !everyone);
        self.frame(known.unwrap_or(BROADCAST), ETHERTYPE_ARP, packet.len(), |to| {
            to.copy_from_slice(packet);
        });
    }

    fn frame<R>(
        &mut self,
        to: [u8; 6],
        ethertype: u16,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut message = self.spare.pop().unwrap_or_default();
        message.clear();
        // All zeros: a complete frame, nothing left to compute or cut.
        message.resize(VNET_HEADER_BYTES, 0);
        message.extend_from_slice(&to);
        message.extend_from_slice(&self.gateway_mac);
        message.extend_from_slice(&ethertype.to_be_bytes());
        let start = message.len();
        message.resize(start + len, 0);
        let result = fill(&mut message[start..]);
        if self.waiting.len() < FRAMES_MAX {
            self.waiting.push_back(message);
        } else {
            self.counters.frames_dropped.bump();
            self.recycle(message);
        }
        result
    }

    fn recycle(&mut self, message: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(message);
        }
    }

    /// Sends what the link takes.
    pub(crate) fn flush(&mut self, link: &Link) -> io::Result<()> {
        while let Some(message) = self.waiting.pop_front() {
            if !link.send(&message)? {
                self.waiting.push_front(message);
                break;
            }
            self.counters.frames_out.bump();
            self.recycle(message);
        }
        Ok(())
    }
}
