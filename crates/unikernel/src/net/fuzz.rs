//! For fuzzing: bytes from the network, handed to everything that takes them apart.

use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::task::Waker;

use shoal_unikernel_abi::ring::{CHECKSUM_VALID, RecordHeader};
use smoltcp::wire::{EthernetFrame, IpProtocol, Ipv4Packet, TcpPacket};

pub use super::dns::fuzz as name_answer;
use super::link::{Interface, Sink};
use super::stack::Stack;

/// Port that listens.
const PORT: u16 = 80;
/// Heap that buffers are measured by.
const HEAP_BYTES: usize = 4 << 20;
/// Frames of one input: enough for a conversation, few enough to be quick.
const FRAMES_MAX: usize = 64;

/// Where frames go: the last one is kept.
#[derive(Default)]
struct Last {
    room: Vec<u8>,
    frame: Vec<u8>,
}

impl Sink for Last {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room = vec![0; len];
        Some(&mut self.room)
    }

    fn commit(&mut self, _: RecordHeader) {
        self.frame = core::mem::take(&mut self.room);
    }
}

impl Last {
    /// What acknowledges the last segment that the stack sent.
    fn acknowledgment(&self) -> Option<u32> {
        let ethernet = EthernetFrame::new_checked(&self.frame[..]).ok()?;
        let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        if packet.next_header() != IpProtocol::Tcp {
            return None;
        }
        let segment = TcpPacket::new_checked(packet.payload()).ok()?;
        let next = segment.seq_number() + segment.segment_len();
        Some(next.0.cast_unsigned())
    }
}

/// A conversation: each frame is two bytes of length (little endian), a byte that says how far the
/// clock has moved (in units of 8 ms) and, with bit 7, that the frame acknowledges what the stack
/// sent last; then the frame without its Ethernet header. Checksums count as verified.
pub fn frames(mut input: &[u8]) {
    let interface = Interface {
        mac: [2, 0, 0, 0, 0, 1],
        address: Ipv4Addr::new(192, 0, 2, 1),
        prefix_len: 24,
        gateway: Some(Ipv4Addr::new(192, 0, 2, 254)),
        mtu: 1500,
        offload: false,
    };
    let mut stack = Stack::new(interface, 1, HEAP_BYTES);
    let listening = stack.tcp.listen(PORT, 4).and(stack.udp.bind(PORT, 0)).is_ok();
    assert!(listening, "nothing else has the port");
    let (mut sink, mut now_ns) = (Last::default(), 1_000_000_000);
    for _ in 0..FRAMES_MAX {
        let [low, high, how, rest @ ..] = input else { return };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        // 0x0800 is IPv4, 0x0806 ARP; a frame of ARP is told by its first byte.
        if rest.first() == Some(&0) {
            frame[13] = 6;
        }
        frame.extend_from_slice(&rest[..len]);
        input = &rest[len..];
        now_ns += u64::from(how & 0x3f) * 8_000_000;
        if how & 0x80 != 0
            && let Some(number) = sink.acknowledgment()
        {
            acknowledge(&mut frame[14..], number);
        }
        let header = RecordHeader { flags: CHECKSUM_VALID, ..RecordHeader::default() };
        stack.receive(header, &frame, &mut sink, now_ns);
        let accepted = stack.tcp.accept(PORT, Waker::noop());
        stack.tcp.expire(now_ns);
        stack.with_link(&mut sink, now_ns, |tcp, _, link| {
            // Ignored because: this sink is never full.
            let _ = tcp.flush(link);
            if let Some(id) = accepted.filter(|id| id % 2 == 0) {
                tcp.leave(id, link);
            }
        });
    }
}

/// Writes the number where a segment without IP options has it.
fn acknowledge(packet: &mut [u8], number: u32) {
    if packet.first() == Some(&0x45)
        && packet.get(9) == Some(&6)
        && let Some(field) = packet.get_mut(28..32)
    {
        field.copy_from_slice(&number.to_be_bytes());
    }
}
