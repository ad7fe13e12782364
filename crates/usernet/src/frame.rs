//! Frames of the guest taken apart, and the answers that need no connection.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::config::Config;
use crate::link::VNET_HEADER_BYTES;
use crate::outbox::Outbox;

/// Hop limit of packets made here.
const HOP_LIMIT: u8 = 64;
/// Bytes of an ARP packet for IPv4 over Ethernet.
const ARP_BYTES: usize = 28;
/// Most that an ICMP error quotes, so that it fits the smallest MTU with its own headers (RFC 1812,
/// section 4.3.2.3).
const QUOTE_BYTES_MAX: usize = 576 - 28;

/// Both ends of a connection or flow, as the guest sees them; its address is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The guest's port.
    pub(crate) guest_port: u16,
    /// The other end.
    pub(crate) remote: SocketAddrV4,
}

/// What a frame means.
#[derive(Debug)]
pub(crate) enum Body<'a> {
    /// Asks for a hardware address.
    ArpRequest(Ipv4Addr),
    /// Tells one: what matters is who sent it.
    ArpReply,
    /// A ping; the whole IPv4 packet.
    Echo(&'a [u8]),
    /// A TCP segment.
    Tcp(Segment<'a>),
    /// A UDP datagram.
    Udp(Datagram<'a>),
}

/// A TCP segment of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) key: Key,
    /// The whole IPv4 packet.
    pub(crate) packet: &'a [u8],
    /// SYN without ACK.
    pub(crate) opens: bool,
    /// RST.
    pub(crate) resets: bool,
    seq: TcpSeqNumber,
    ack: Option<TcpSeqNumber>,
    len: usize,
}

/// A UDP datagram of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) key: Key,
    pub(crate) payload: &'a [u8],
    /// What an ICMP error about it quotes.
    pub(crate) quote: &'a [u8],
}

/// Takes a message of the guest apart. Checksums are not looked at: the guest may leave them to be
/// finished, and memory of one machine does not garble frames.
pub(crate) fn parse<'a>(config: &Config, message: &'a [u8]) -> Option<([u8; 6], Body<'a>)> {
    let frame = EthernetFrame::new_checked(message.get(VNET_HEADER_BYTES..)?).ok()?;
    let mac = frame.src_addr();
    if !mac.is_unicast() || mac.0 == config.gateway_mac {
        return None;
    }
    let body = match frame.ethertype() {
        EthernetProtocol::Arp => arp(config, frame.payload()),
        EthernetProtocol::Ipv4 => parse_packet(config, frame.payload()),
        _ => None,
    };
    body.map(|body| (mac.0, body))
}

fn arp<'a>(config: &Config, bytes: &[u8]) -> Option<Body<'a>> {
    let packet = ArpPacket::new_checked(bytes).ok()?;
    let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    match operation {
        _ if source_protocol_addr != config.guest => None,
        ArpOperation::Request => Some(Body::ArpRequest(target_protocol_addr)),
        ArpOperation::Reply => Some(Body::ArpReply),
        ArpOperation::Unknown(_) => None,
    }
}

/// Takes an IPv4 packet of the guest apart.
pub(crate) fn parse_packet<'a>(config: &Config, bytes: &'a [u8]) -> Option<Body<'a>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let fragment = packet.more_frags() || packet.frag_offset() != 0;
    if packet.version() != 4 || packet.src_addr() != config.guest || fragment {
        return None;
    }
    // What follows the packet is padding of a short frame.
    let whole = bytes.get(..usize::from(packet.total_len()))?;
    let payload = whole.get(usize::from(packet.header_len())..)?;
    let to = packet.dst_addr();
    match packet.next_header() {
        IpProtocol::Icmp => {
            let icmp = Icmpv4Packet::new_checked(payload).ok()?;
            let echo = icmp.msg_type() == Icmpv4Message::EchoRequest && config.is_own(to);
            echo.then_some(Body::Echo(whole))
        }
        IpProtocol::Tcp => tcp(whole, payload, to),
        IpProtocol::Udp => udp(whole, payload, to),
        _ => None,
    }
}

fn tcp<'a>(packet: &'a [u8], payload: &'a [u8], to: Ipv4Addr) -> Option<Body<'a>> {
    let tcp = TcpPacket::new_checked(payload).ok()?;
    let key = Key { guest_port: tcp.src_port(), remote: SocketAddrV4::new(to, tcp.dst_port()) };
    if key.guest_port == 0 || key.remote.port() == 0 {
        return None;
    }
    Some(Body::Tcp(Segment {
        key,
        packet,
        opens: tcp.syn() && !tcp.ack() && !tcp.rst(),
        resets: tcp.rst(),
        seq: tcp.seq_number(),
        ack: tcp.ack().then(|| tcp.ack_number()),
        len: tcp.segment_len(),
    }))
}

fn udp<'a>(packet: &'a [u8], payload: &'a [u8], to: Ipv4Addr) -> Option<Body<'a>> {
    let udp = UdpPacket::new_checked(payload).ok()?;
    let key = Key { guest_port: udp.src_port(), remote: SocketAddrV4::new(to, udp.dst_port()) };
    if key.guest_port == 0 || key.remote.port() == 0 {
        return None;
    }
    let quote = packet.get(..QUOTE_BYTES_MAX).unwrap_or(packet);
    let data = payload.get(8..usize::from(udp.len()))?;
    Some(Body::Udp(Datagram { key, payload: data, quote }))
}

/// Tells the guest the gateway's hardware address, as that of `asked`.
pub(crate) fn arp_reply(config: &Config, asked: Ipv4Addr, mac: [u8; 6], out: &mut Outbox) {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(config.gateway_mac),
        source_protocol_addr: asked,
        target_hardware_addr: EthernetAddress(mac),
        target_protocol_addr: config.guest,
    };
    emit_arp(&repr, false, out);
}

/// Asks the guest for its hardware address.
pub(crate) fn arp_request(config: &Config, out: &mut Outbox) {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(config.gateway_mac),
        source_protocol_addr: config.gateway,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: config.guest,
    };
    emit_arp(&repr, true, out);
}

fn emit_arp(repr: &ArpRepr, everyone: bool, out: &mut Outbox) {
    let mut bytes = [0; ARP_BYTES];
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    out.arp(&bytes, everyone);
}

/// Answers a ping of the gateway.
pub(crate) fn echo_reply(packet: &[u8], out: &mut Outbox) {
    out.ipv4(packet.len(), |to| {
        to.copy_from_slice(packet);
        let mut ip = Ipv4Packet::new_unchecked(to);
        let (guest, asked) = (ip.src_addr(), ip.dst_addr());
        ip.set_src_addr(asked);
        ip.set_dst_addr(guest);
        ip.fill_checksum();
        let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
        icmp.set_msg_type(Icmpv4Message::EchoReply);
        icmp.fill_checksum();
    });
}

/// Refuses a segment that belongs to no connection (RFC 9293, section 3.10.7.1).
pub(crate) fn tcp_reset(guest: Ipv4Addr, segment: &Segment<'_>, out: &mut Outbox) {
    if segment.resets {
        return;
    }
    let (seq_number, ack_number) = match segment.ack {
        Some(ack) => (ack, None),
        None => (TcpSeqNumber(0), Some(segment.seq + segment.len)),
    };
    let repr = TcpRepr {
        src_port: segment.key.remote.port(),
        dst_port: segment.key.guest_port,
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let from = *segment.key.remote.ip();
    let checks = ChecksumCapabilities::default();
    emit_ipv4(from, guest, IpProtocol::Tcp, repr.buffer_len(), out, |payload| {
        let ends = (IpAddress::Ipv4(from), IpAddress::Ipv4(guest));
        repr.emit(&mut TcpPacket::new_unchecked(payload), &ends.0, &ends.1, &checks);
    });
}

/// Gives the guest a datagram.
pub(crate) fn udp_datagram(guest: Ipv4Addr, key: Key, data: &[u8], out: &mut Outbox) {
    let repr = UdpRepr { src_port: key.remote.port(), dst_port: key.guest_port };
    let from = *key.remote.ip();
    let checks = ChecksumCapabilities::default();
    let len = repr.header_len() + data.len();
    emit_ipv4(from, guest, IpProtocol::Udp, len, out, |payload| {
        repr.emit(
            &mut UdpPacket::new_unchecked(payload),
            &IpAddress::Ipv4(from),
            &IpAddress::Ipv4(guest),
            data.len(),
            |to| to.copy_from_slice(data),
            &checks,
        );
    });
}

/// Tells the guest that nobody takes what it sent; `quote` is the beginning of that packet. Nothing
/// to quote: nothing is said.
pub(crate) fn udp_unreachable(config: &Config, quote: &[u8], out: &mut Outbox) {
    if quote.is_empty() {
        return;
    }
    // The packet may be longer than the quote: only its header, which was checked, is read.
    let quoted = Ipv4Packet::new_unchecked(quote);
    let Some(data) = quote.get(usize::from(quoted.header_len())..) else { return };
    let header = Ipv4Repr {
        src_addr: quoted.src_addr(),
        dst_addr: quoted.dst_addr(),
        next_header: quoted.next_header(),
        payload_len: usize::from(quoted.total_len().saturating_sub(20)),
        hop_limit: quoted.hop_limit(),
    };
    let reason = Icmpv4DstUnreachable::PortUnreachable;
    let repr = Icmpv4Repr::DstUnreachable { reason, header, data };
    let from = quoted.dst_addr();
    let checks = ChecksumCapabilities::default();
    emit_ipv4(from, config.guest, IpProtocol::Icmp, repr.buffer_len(), out, |payload| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(payload), &checks);
    });
}

fn emit_ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    next_header: IpProtocol,
    payload_len: usize,
    out: &mut Outbox,
    fill: impl FnOnce(&mut [u8]),
) {
    let repr =
        Ipv4Repr { src_addr: from, dst_addr: to, next_header, payload_len, hop_limit: HOP_LIMIT };
    out.ipv4(repr.buffer_len() + payload_len, |packet| {
        let (header, payload) = packet.split_at_mut(repr.buffer_len());
        repr.emit(&mut Ipv4Packet::new_unchecked(header), &ChecksumCapabilities::default());
        fill(payload);
    });
}

/// What a fuzzer calls: any message is refused, or answered as far as no connection is needed.
pub(crate) fn fuzz(message: &[u8]) {
    let config = Config::default();
    let mut out = Outbox::new(config.gateway_mac, std::sync::Arc::default());
    let Some((mac, body)) = parse(&config, message) else { return };
    out.learn(mac);
    match body {
        Body::ArpRequest(asked) => arp_reply(&config, asked, mac, &mut out),
        Body::ArpReply => arp_request(&config, &mut out),
        Body::Echo(packet) => echo_reply(packet, &mut out),
        Body::Tcp(segment) => tcp_reset(config.guest, &segment, &mut out),
        Body::Udp(datagram) => {
            udp_unreachable(&config, datagram.quote, &mut out);
            udp_datagram(config.guest, datagram.key, datagram.payload, &mut out);
        }
    }
}
