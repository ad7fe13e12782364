//! Sending: Ethernet and IPv4 headers, checksums, and where frames go.

use alloc::vec;
use core::net::Ipv4Addr;

use shoal_unikernel_abi::ring::{NEEDS_CHECKSUM, RecordHeader};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet,
};

use super::checksum;
use super::neighbours::{Answer, Mac, Neighbours, Waiting};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_BYTES: usize = 20;
/// Where the transport header begins.
pub(crate) const TRANSPORT_OFFSET: usize = ETHERNET_BYTES + IPV4_BYTES;
/// Hops that a packet may take.
const HOP_LIMIT: u8 = 64;
const BROADCAST: Mac = [0xff; 6];

/// Takes frames.
pub(crate) trait Sink {
    /// Room for a frame of `len` bytes; `None`: not now.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;
    /// Sends what was written to the room.
    fn commit(&mut self, header: RecordHeader);
}

/// Static configuration of the interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    pub(crate) mac: Mac,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Largest IP packet.
    pub(crate) mtu: usize,
    /// Whether checksums may be left unfinished and segments be larger than the MTU.
    pub(crate) offload: bool,
}

impl Interface {
    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0)
    }

    /// Whether `address` is reached without the gateway.
    pub(crate) fn is_local(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether `address` is the network's broadcast address.
    pub(crate) fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let network = self.prefix_len < 31 && self.is_local(address);
        address.is_broadcast() || network && address.to_bits() | self.mask() == u32::MAX
    }

    /// Who to hand a packet for `address` to. `None`: there is no way.
    pub(crate) fn next_hop(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.is_local(address) { Some(address) } else { self.gateway }
    }
}

/// Everything that sending needs, for one call into the stack.
pub(crate) struct Link<'a> {
    pub(crate) interface: Interface,
    pub(crate) neighbours: &'a mut Neighbours,
    pub(crate) sink: &'a mut dyn Sink,
    pub(crate) now_ns: u64,
}

/// There was no room; try again after the next call to the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this hardware address.
    Mac(Mac),
    /// To be asked for: wait for this neighbour.
    Unresolved(Ipv4Addr),
    /// Nowhere.
    None,
}

/// What a packet is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport {
    pub(crate) protocol: IpProtocol,
    pub(crate) source: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
    /// Bytes of transport header and payload.
    pub(crate) len: usize,
    /// Where the transport's checksum lies in its header. `None`: it has none to fill in.
    pub(crate) checksum_at: Option<usize>,
    /// Bytes of the transport header and payload bytes of a segment, if it is to be cut.
    pub(crate) segmented: Option<(usize, usize)>,
}

impl Link<'_> {
    /// Finds the hardware address for `address`, asking for it if need be.
    pub(crate) fn route(&mut self, address: Ipv4Addr) -> Route {
        if self.interface.is_broadcast(address) {
            return Route::Mac(BROADCAST);
        }
        let Some(hop) = self.interface.next_hop(address) else { return Route::None };
        let (route, ask) = match self.neighbours.look_up(hop, self.now_ns) {
            Answer::Known(mac, ask) => (Route::Mac(mac), ask),
            Answer::Unknown(ask) => (Route::Unresolved(hop), ask),
        };
        if ask {
            // Ignored because: without room the question is asked again in a second.
            let _ = self.ask_for(hop);
        }
        route
    }

    /// Asks who has `address`.
    pub(crate) fn ask_for(&mut self, address: Ipv4Addr) -> Result<(), Full> {
        self.arp(ArpOperation::Request, [0; 6], address, BROADCAST)
    }

    /// Sends an ARP packet about this machine.
    pub(crate) fn arp(
        &mut self,
        operation: ArpOperation,
        target: Mac,
        target_address: Ipv4Addr,
        to: Mac,
    ) -> Result<(), Full> {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.interface.mac),
            source_protocol_addr: self.interface.address,
            target_hardware_addr: EthernetAddress(target),
            target_protocol_addr: target_address,
        };
        let len = ETHERNET_BYTES + repr.buffer_len();
        let frame = self.sink.reserve(len).ok_or(Full)?;
        ethernet(frame, self.interface.mac, to, EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_BYTES..]));
        self.sink.commit(RecordHeader { len: len as u32, ..RecordHeader::default() });
        Ok(())
    }

    /// Builds a packet where it is sent from; `fill` writes transport header and payload, the
    /// checksum left zero.
    pub(crate) fn packet(
        &mut self,
        to: Mac,
        transport: &Transport,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        let len = TRANSPORT_OFFSET + transport.len;
        let frame = self.sink.reserve(len).ok_or(Full)?;
        let header = build(frame, &self.interface, to, transport, fill);
        self.sink.commit(header);
        Ok(())
    }

    /// Builds a packet that waits until the neighbour is known.
    pub(crate) fn packet_later(
        &mut self,
        hop: Ipv4Addr,
        transport: &Transport,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let mut frame = vec![0; TRANSPORT_OFFSET + transport.len];
        // Finished here: the frame alone is kept.
        let plain = Interface { offload: false, ..self.interface };
        build(&mut frame, &plain, [0; 6], transport, fill);
        self.neighbours.wait(hop, Waiting::Frame(frame));
    }

    /// Sends a frame that waited.
    pub(crate) fn finish(&mut self, frame: &mut [u8], to: Mac) -> Result<(), Full> {
        let room = self.sink.reserve(frame.len()).ok_or(Full)?;
        room.copy_from_slice(frame);
        EthernetFrame::new_unchecked(&mut *room).set_dst_addr(EthernetAddress(to));
        let len = frame.len() as u32;
        self.sink.commit(RecordHeader { len, ..RecordHeader::default() });
        Ok(())
    }
}

fn ethernet(frame: &mut [u8], from: Mac, to: Mac, kind: EthernetProtocol) {
    let mut header = EthernetFrame::new_unchecked(frame);
    header.set_src_addr(EthernetAddress(from));
    header.set_dst_addr(EthernetAddress(to));
    header.set_ethertype(kind);
}

fn build(
    frame: &mut [u8],
    interface: &Interface,
    to: Mac,
    transport: &Transport,
    fill: impl FnOnce(&mut [u8]),
) -> RecordHeader {
    ethernet(frame, interface.mac, to, EthernetProtocol::Ipv4);
    let mut ip = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_BYTES..]);
    ip.set_version(4);
    ip.set_header_len(IPV4_BYTES as u8);
    ip.set_dscp(0);
    ip.set_ecn(0);
    ip.set_total_len((IPV4_BYTES + transport.len) as u16);
    ip.set_ident(0);
    ip.clear_flags();
    ip.set_dont_frag(true);
    ip.set_frag_offset(0);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_next_header(transport.protocol);
    ip.set_src_addr(transport.source);
    ip.set_dst_addr(transport.target);
    ip.set_checksum(0);
    let sum = !checksum::fold(checksum::add(0, &frame[ETHERNET_BYTES..TRANSPORT_OFFSET]));
    frame[ETHERNET_BYTES + 10..ETHERNET_BYTES + 12].copy_from_slice(&sum.to_be_bytes());
    fill(&mut frame[TRANSPORT_OFFSET..]);
    finish_transport(frame, interface, transport)
}

/// Fills in the transport's checksum or says in the header that somebody else has to.
fn finish_transport(
    frame: &mut [u8],
    interface: &Interface,
    transport: &Transport,
) -> RecordHeader {
    let mut header = RecordHeader { len: frame.len() as u32, ..RecordHeader::default() };
    let Some(at) = transport.checksum_at else { return header };
    let (source, target) = (transport.source.octets(), transport.target.octets());
    let protocol = u8::from(transport.protocol);
    let mut sum = checksum::pseudo_header(source, target, protocol, transport.len);
    if interface.offload {
        header.flags = NEEDS_CHECKSUM;
        header.csum_start = TRANSPORT_OFFSET as u16;
        header.csum_offset = at as u16;
        if let Some((header_bytes, segment_bytes)) = transport.segmented {
            header.gso_type = 1;
            header.hdr_len = (TRANSPORT_OFFSET + header_bytes) as u16;
            header.gso_size = segment_bytes as u16;
        }
    } else {
        sum = checksum::add(sum, &frame[TRANSPORT_OFFSET..]);
    }
    let mut folded = checksum::fold(sum);
    if !interface.offload {
        folded = !folded;
        if folded == 0 && transport.protocol == IpProtocol::Udp {
            // Zero means "none" in UDP (RFC 768).
            folded = 0xffff;
        }
    }
    let at = TRANSPORT_OFFSET + at;
    frame[at..at + 2].copy_from_slice(&folded.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(prefix_len: u8) -> Interface {
        Interface {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(10, 1, 2, 3),
            prefix_len,
            gateway: Some(Ipv4Addr::new(10, 1, 2, 1)),
            mtu: 1500,
            offload: false,
        }
    }

    #[test]
    fn what_is_not_local_goes_to_the_gateway() {
        let here = interface(24);
        let gateway = here.gateway;
        assert_eq!(here.next_hop(Ipv4Addr::new(10, 1, 2, 200)), Some([10, 1, 2, 200].into()));
        assert_eq!(here.next_hop(Ipv4Addr::new(10, 1, 3, 3)), gateway);
        assert_eq!(interface(32).next_hop(Ipv4Addr::new(10, 1, 2, 200)), gateway);
        assert_eq!(interface(0).next_hop(Ipv4Addr::new(8, 8, 8, 8)), Some([8, 8, 8, 8].into()));
    }

    #[test]
    fn broadcasts_are_known() {
        let here = interface(24);
        assert!(here.is_broadcast(Ipv4Addr::new(10, 1, 2, 255)));
        assert!(here.is_broadcast(Ipv4Addr::BROADCAST));
        assert!(!here.is_broadcast(Ipv4Addr::new(10, 1, 3, 255)));
        assert!(!interface(32).is_broadcast(Ipv4Addr::new(10, 1, 2, 3)));
    }
}
