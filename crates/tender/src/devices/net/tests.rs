//! The rings against a socket, the test being the guest.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use super::*;
use shoal_unikernel_abi::boot::Backend;
use shoal_unikernel_abi::ring::region_bytes;

const CAPACITY: usize = 256 * 1024;

/// Memory of a device, aligned to a page.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A device, its memory, and what is at the other end of the wire.
struct Bench {
    net: Net,
    region: *mut u8,
    peer: UnixDatagram,
    stats: Stats,
    _fd: OwnedFd,
}

fn bench() -> Bench {
    let pages = region_bytes(CAPACITY, CAPACITY) / 4096;
    let region: &'static mut [Page] =
        (0..pages).map(|_| Page([0; 4096])).collect::<Vec<_>>().leak();
    let region = region.as_mut_ptr().cast::<u8>();
    let (own, peer) = UnixDatagram::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    let fd = OwnedFd::from(own);
    // SAFETY: the region has this size and is never freed.
    let net = unsafe { Net::new(0, fd.as_raw_fd(), region, CAPACITY as u64, 1500) };
    let mut stats = Stats::create(None, Backend::Process).unwrap();
    stats.name_device(0, "net0", 1);
    Bench { net, region, peer, stats, _fd: fd }
}

impl Bench {
    fn header(&self, receive: bool) -> &RingHeader {
        let at = if receive { RECEIVE_HEADER_OFFSET } else { 0 };
        // SAFETY: both headers lie in the region.
        unsafe { &*self.region.add(at).cast::<RingHeader>() }
    }

    /// Writes bytes into the sending ring's data.
    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= CAPACITY);
        // SAFETY: within the ring.
        unsafe {
            let to = self.region.add(DATA_OFFSET + at);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    /// Sends a frame as a guest does.
    fn send(&self, frame: &[u8]) {
        let header = self.header(false);
        let mut produced = header.produced.load(Ordering::Relaxed) as usize;
        let place = produced % CAPACITY;
        if CAPACITY - place < record_bytes(frame.len()) {
            self.put(place, &SKIP.to_le_bytes());
            produced += CAPACITY - place;
        }
        let place = produced % CAPACITY;
        self.put(place, &[0; RECORD_HEADER_BYTES]);
        self.put(place, &(frame.len() as u32).to_le_bytes());
        self.put(place + RECORD_HEADER_BYTES, frame);
        let produced = produced + record_bytes(frame.len());
        header.produced.store(produced as u64, Ordering::Release);
    }

    /// Takes a frame as a guest does.
    fn receive(&self) -> Option<Vec<u8>> {
        let header = self.header(true);
        let produced = header.produced.load(Ordering::Acquire);
        let mut consumed = header.consumed.load(Ordering::Relaxed);
        let data = self.region.wrapping_add(DATA_OFFSET + CAPACITY);
        while consumed != produced {
            let place = consumed as usize % CAPACITY;
            // SAFETY: the tender's records lie within the ring; asserted below.
            let len = unsafe { data.add(place).cast::<u32>().read() };
            if len == SKIP {
                consumed += (CAPACITY - place) as u64;
                continue;
            }
            let len = len as usize;
            assert!(record_bytes(len) <= CAPACITY - place);
            // SAFETY: as asserted.
            let frame = unsafe {
                core::slice::from_raw_parts(data.add(place + RECORD_HEADER_BYTES), len).to_vec()
            };
            consumed += record_bytes(len) as u64;
            header.consumed.store(consumed, Ordering::Release);
            return Some(frame);
        }
        header.consumed.store(consumed, Ordering::Release);
        None
    }

    fn serve(&mut self) -> Result<bool, Stopped> {
        self.net.serve(&mut self.stats)
    }

    fn broken(&mut self) {
        assert!(self.serve().is_err());
    }
}

#[test]
fn frames_pass_unchanged_and_in_order_round_both_rings_many_times() {
    let mut bench = bench();
    let mut buffer = vec![0; 2000];
    // More than three times round a ring of 256 KiB.
    for turn in 0..1000_usize {
        let len = 14 + turn * 37 % 1501;
        let frame: Vec<u8> = (0..len).map(|at| (at * 7 + turn) as u8).collect();
        bench.send(&frame);
        let mut message = vec![0; VNET_BYTES];
        message.extend(frame.iter().rev());
        bench.peer.send(&message).unwrap();
        assert!(bench.serve().unwrap());
        let count = bench.peer.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[VNET_BYTES..count], &frame, "turn {turn}");
        assert_eq!(bench.receive().unwrap(), &message[VNET_BYTES..], "turn {turn}");
        assert_eq!(bench.receive(), None);
        assert!(!bench.serve().unwrap());
    }
    let counters = bench.stats.device(0).unwrap();
    assert_eq!(counters.sent_frames.load(Ordering::Relaxed), 1000);
    assert_eq!(counters.received_frames.load(Ordering::Relaxed), 1000);
}

#[test]
fn a_full_socket_and_a_full_ring_wait() {
    let mut bench = bench();
    let frame = [5; 1400];
    let mut sent = 0;
    // Until the socket's queue is full, and the ring, too.
    while !bench.net.send_blocked {
        bench.send(&frame);
        sent += 1;
        bench.serve().unwrap();
        assert!(sent < 10_000);
    }
    assert_eq!(bench.net.interest().1 & libc::POLLOUT, libc::POLLOUT);
    let mut received = 0;
    let mut buffer = [0; 2000];
    while received < sent {
        while bench.peer.recv(&mut buffer).is_ok() {
            received += 1;
        }
        bench.serve().unwrap();
    }
    let mut message = [0; VNET_BYTES + 1400];
    message[VNET_BYTES] = 1;
    let mut put = 0;
    while !bench.net.receive_full {
        while bench.peer.send(&message).is_ok() {
            put += 1;
        }
        bench.serve().unwrap();
        assert!(put < 10_000);
    }
    assert_eq!(bench.net.interest().1 & libc::POLLIN, 0);
    assert_eq!(bench.header(true).producer_waits.load(Ordering::Relaxed), 1);
    let mut taken = 0;
    while taken < put {
        while bench.receive().is_some() {
            taken += 1;
        }
        bench.serve().unwrap();
    }
    assert_eq!(bench.header(true).producer_waits.load(Ordering::Relaxed), 0);
}

#[test]
fn a_sending_ring_that_lies_is_broken() {
    let positions = [8, CAPACITY as u64 + 16, u64::MAX - 15];
    for produced in positions {
        let mut bench = bench();
        bench.put(0, &60_u32.to_le_bytes());
        bench.header(false).produced.store(produced, Ordering::Release);
        bench.broken();
    }
    // Lengths: too short, too long, beyond what was produced, a skip of the whole ring.
    for (len, produced) in [(0, 64), (13, 64), (70_000, 1 << 17), (60, 32), (u32::MAX, 64)] {
        let mut bench = bench();
        bench.put(0, &u32::to_le_bytes(len));
        bench.header(false).produced.store(produced, Ordering::Release);
        bench.broken();
    }
    // A record that reaches beyond the ring's end, and a skip of more than was produced.
    for len in [1000, SKIP] {
        let mut bench = bench();
        let start = CAPACITY as u64 - 32;
        bench.net.send.consumed = start;
        bench.put(start as usize, &u32::to_le_bytes(len));
        bench.header(false).produced.store(start + 16, Ordering::Release);
        bench.broken();
    }
}

#[test]
fn a_receiving_ring_that_lies_is_broken() {
    for consumed in [16, 8, u64::MAX] {
        let mut bench = bench();
        bench.header(true).consumed.store(consumed, Ordering::Release);
        bench.broken();
    }
}

#[test]
fn capacities_that_the_guest_changes_later_count_nothing() {
    let mut bench = bench();
    bench.header(false).capacity.store(1 << 40, Ordering::Release);
    bench.header(true).capacity.store(1 << 40, Ordering::Release);
    bench.header(false).produced.store(1 << 30, Ordering::Release);
    bench.broken();
}

#[test]
fn a_peer_that_is_gone_makes_no_busy_loop() {
    let mut bench = bench();
    let (own, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    drop(peer);
    bench.net.fd = own.as_raw_fd();
    assert!(!bench.serve().unwrap());
    assert_eq!(bench.net.interest().1, 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]

    #[test]
    fn any_words_are_served_or_broken(
        words in proptest::collection::vec((0_usize..CAPACITY / 8, proptest::num::u64::ANY), 0..40),
        small in proptest::collection::vec((0_usize..256, 0_u32..2000), 0..40),
        produced in 0_u64..1 << 19,
        consumed in 0_u64..64,
    ) {
        let mut bench = bench();
        for (at, word) in words {
            bench.put(at * 8, &word.to_le_bytes());
        }
        for (at, len) in small {
            bench.put(at * 16, &len.to_le_bytes());
        }
        bench.header(false).produced.store(produced, Ordering::Release);
        bench.header(true).consumed.store(consumed, Ordering::Release);
        let _ = bench.serve();
        let _ = bench.serve();
    }
}
