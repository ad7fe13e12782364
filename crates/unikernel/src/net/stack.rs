//! The stack: takes frames apart and hands them to whom they are for.
//!
//! Nothing here knows of tasks, devices or clocks: frames and time come in, frames go out through a
//! [`Sink`]. So whole conversations run in tests without a thread, and a fuzzer can talk to it.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use shoal_unikernel_abi::ring::{CHECKSUM_VALID, NEEDS_CHECKSUM, RecordHeader};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet,
    IpProtocol, Ipv4Packet, UdpPacket,
};

use super::checksum;
use super::hash::Keyed;
use super::link::{ETHERNET_BYTES, Full, Interface, Link, Sink, Transport};
use super::neighbours::{Mac, Neighbours, Waiting};
use super::{tcp, udp};

/// Bytes of an ICMP header.
const ICMP_HEADER_BYTES: usize = 8;
/// "Port unreachable" messages in a burst and in a second: enough to tell, too few to flood.
const UNREACHABLES_MAX: u32 = 50;
const SECOND_NS: u64 = 1_000_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) interface: Interface,
    pub(crate) neighbours: Neighbours,
    pub(crate) tcp: tcp::Table,
    pub(crate) udp: udp::Table,
    unreachables: (u64, u32),
}

impl Stack {
    /// A stack for `interface`; `secret` keys its tables, `heap_bytes` bounds its buffers.
    pub(crate) fn new(interface: Interface, secret: u64, heap_bytes: usize) -> Self {
        let keyed = Keyed::new(secret);
        Self {
            interface,
            neighbours: Neighbours::new(keyed),
            tcp: tcp::Table::new(keyed, heap_bytes),
            udp: udp::Table::new(keyed),
            unreachables: (0, 0),
        }
    }

    /// Calls `with` with the tables and what they need for sending.
    pub(crate) fn with_link<R>(
        &mut self,
        sink: &mut dyn Sink,
        now_ns: u64,
        with: impl FnOnce(&mut tcp::Table, &mut udp::Table, &mut Link<'_>) -> R,
    ) -> R {
        let interface = self.interface;
        let mut link = Link { interface, neighbours: &mut self.neighbours, sink, now_ns };
        with(&mut self.tcp, &mut self.udp, &mut link)
    }

    /// Takes a frame in.
    pub(crate) fn receive(
        &mut self,
        header: RecordHeader,
        frame: &[u8],
        sink: &mut dyn Sink,
        now_ns: u64,
    ) {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return };
        let (to, from) = (ethernet.dst_addr(), ethernet.src_addr());
        if to.0 != self.interface.mac && !to.is_broadcast() {
            return;
        }
        let payload = &frame[ETHERNET_BYTES..];
        match ethernet.ethertype() {
            EthernetProtocol::Arp => self.receive_arp(payload, sink, now_ns),
            EthernetProtocol::Ipv4 => self.receive_ipv4(header, payload, from.0, sink, now_ns),
            _ => {}
        }
    }

    fn receive_arp(&mut self, bytes: &[u8], sink: &mut dyn Sink, now_ns: u64) {
        let packet = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet));
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = packet
        else {
            return;
        };
        let (mac, address) = (source_hardware_addr, source_protocol_addr);
        if !mac.is_unicast() || address == self.interface.address {
            return;
        }
        let for_us = target_protocol_addr == self.interface.address;
        if !address.is_unspecified() && self.interface.is_local(address) {
            self.neighbours.learn(address, mac.0, for_us, now_ns);
            self.wake_waiting(address, mac.0, sink, now_ns);
        }
        if for_us && operation == ArpOperation::Request {
            self.with_link(sink, now_ns, |_, _, link| {
                // Ignored because: whoever asks asks again.
                let _ = link.arp(ArpOperation::Reply, mac.0, address, mac.0);
            });
        }
    }

    /// Sends what waited for a neighbour.
    fn wake_waiting(&mut self, address: Ipv4Addr, mac: Mac, sink: &mut dyn Sink, now_ns: u64) {
        for waiting in self.neighbours.take_waiting(address) {
            match waiting {
                Waiting::Connection(id) => self.tcp.enqueue(id),
                Waiting::Frame(mut frame) => self.with_link(sink, now_ns, |_, _, link| {
                    // Ignored because: a datagram may be lost.
                    let _ = link.finish(&mut frame, mac);
                }),
            }
        }
    }

    fn receive_ipv4(
        &mut self,
        header: RecordHeader,
        bytes: &[u8],
        from: Mac,
        sink: &mut dyn Sink,
        now_ns: u64,
    ) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        let header_len = usize::from(packet.header_len());
        let total_len = usize::from(packet.total_len());
        let (source, target) = (packet.src_addr(), packet.dst_addr());
        let ours = target == self.interface.address || self.interface.is_broadcast(target);
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        let strange = source.is_multicast() || source.is_unspecified() || header_len < 20;
        // Fragments are not put together again: nothing that is served here needs it.
        if packet.version() != 4 || !ours || fragment || strange {
            return;
        }
        let sum = checksum::add(0, &bytes[..header_len]);
        if checksum::fold(sum) != 0xffff {
            return;
        }
        let payload = &bytes[header_len..total_len];
        let trusted = header.flags & (NEEDS_CHECKSUM | CHECKSUM_VALID) != 0;
        let intact = |protocol: IpProtocol| {
            let protocol = u8::from(protocol);
            let (source, target) = (source.octets(), target.octets());
            let sum = checksum::pseudo_header(source, target, protocol, payload.len());
            trusted || checksum::fold(checksum::add(sum, payload)) == 0xffff
        };
        let unicast = target == self.interface.address;
        match packet.next_header() {
            IpProtocol::Tcp if unicast && intact(IpProtocol::Tcp) => {
                let Some(segment) = tcp::Segment::parse(payload) else { return };
                self.with_link(sink, now_ns, |tcp, _, link| {
                    tcp.take(&segment, source, from, link);
                });
            }
            IpProtocol::Udp => {
                let Ok(datagram) = UdpPacket::new_checked(payload) else { return };
                let summed = datagram.checksum() != 0;
                if summed && !intact(IpProtocol::Udp) {
                    return;
                }
                if !self.udp.take(payload, source) && unicast {
                    self.port_unreachable(bytes, header_len, source, from, sink, now_ns);
                }
            }
            IpProtocol::Icmp if unicast => self.receive_icmp(payload, source, from, sink, now_ns),
            _ => {}
        }
    }

    fn receive_icmp(
        &mut self,
        bytes: &[u8],
        source: Ipv4Addr,
        from: Mac,
        sink: &mut dyn Sink,
        now_ns: u64,
    ) {
        let Ok(packet) = Icmpv4Packet::new_checked(bytes) else { return };
        let intact = checksum::fold(checksum::add(0, bytes)) == 0xffff;
        let fits = bytes.len() + 20 <= self.interface.mtu;
        if !intact || !fits || packet.msg_type() != Icmpv4Message::EchoRequest {
            return;
        }
        let transport = self.icmp(source, bytes.len());
        self.with_link(sink, now_ns, |_, _, link| {
            // Ignored because: whoever pings counts what is lost.
            let _ = link.packet(from, &transport, |answer| {
                answer.copy_from_slice(bytes);
                finish_icmp(answer, Icmpv4Message::EchoReply, 0);
            });
        });
    }

    fn icmp(&self, target: Ipv4Addr, len: usize) -> Transport {
        Transport {
            protocol: IpProtocol::Icmp,
            source: self.interface.address,
            target,
            len,
            checksum_at: None,
            segmented: None,
        }
    }

    /// Tells the sender of a datagram that nobody is there (RFC 1122, section 4.1.3.1).
    fn port_unreachable(
        &mut self,
        packet: &[u8],
        header_len: usize,
        source: Ipv4Addr,
        from: Mac,
        sink: &mut dyn Sink,
        now_ns: u64,
    ) {
        let (since_ns, sent) = self.unreachables;
        self.unreachables =
            if now_ns - since_ns >= SECOND_NS { (now_ns, 1) } else { (since_ns, sent + 1) };
        if self.unreachables.1 > UNREACHABLES_MAX {
            return;
        }
        let quoted = &packet[..packet.len().min(header_len + 8)];
        let transport = self.icmp(source, ICMP_HEADER_BYTES + quoted.len());
        self.with_link(sink, now_ns, |_, _, link| {
            // Ignored because: it is a courtesy.
            let _ = link.packet(from, &transport, |answer| {
                answer[..ICMP_HEADER_BYTES].fill(0);
                answer[ICMP_HEADER_BYTES..].copy_from_slice(quoted);
                finish_icmp(answer, Icmpv4Message::DstUnreachable, 3);
            });
        });
    }

    /// Lets time pass.
    pub(crate) fn expire(&mut self, sink: &mut dyn Sink, now_ns: u64) {
        self.tcp.expire(now_ns);
        if self.neighbours.next_ns() > now_ns {
            return;
        }
        let (again, given_up) = self.neighbours.overdue(now_ns);
        self.with_link(sink, now_ns, |_, _, link| {
            for address in again {
                // Ignored because: it is asked again in a second.
                let _ = link.ask_for(address);
            }
        });
        let lost: Vec<Waiting> = given_up
            .into_iter()
            .flat_map(|address| self.neighbours.take_waiting(address))
            .collect();
        for waiting in lost {
            if let Waiting::Connection(id) = waiting {
                self.tcp.unreachable(id, now_ns);
            }
        }
    }

    /// Sends what the connections have to send.
    pub(crate) fn flush(&mut self, sink: &mut dyn Sink, now_ns: u64) -> Result<(), Full> {
        self.with_link(sink, now_ns, |tcp, _, link| tcp.flush(link))
    }

    /// When [`Stack::expire`] must be called next.
    pub(crate) fn next_ns(&self) -> u64 {
        self.tcp.next_ns().min(self.neighbours.next_ns())
    }
}

fn finish_icmp(bytes: &mut [u8], message: Icmpv4Message, code: u8) {
    bytes[0] = u8::from(message);
    bytes[1] = code;
    bytes[2..4].fill(0);
    let sum = !checksum::fold(checksum::add(0, bytes));
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
}
