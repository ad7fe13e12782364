//! Two stacks and a bad wire between them: frames are lost, repeated, and overtake each other, by a
//! seed; time is simulated, so that minutes of timeouts pass at once.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::task::Waker;

use proptest::prelude::*;
use shoal_unikernel_abi::ring::RecordHeader;

use super::Error;
use super::link::{Interface, Sink};
use super::stack::Stack;
use super::tcp::State;

const PORT: u16 = 80;
const MILLISECOND: u64 = 1_000_000;
/// Simulated time within which everything must be over.
const PATIENCE_NS: u64 = 3_600_000 * MILLISECOND;

/// What a stack sends.
#[derive(Default)]
struct Out {
    room: Vec<u8>,
    frames: Vec<(RecordHeader, Vec<u8>)>,
}

impl Sink for Out {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room = vec![0; len];
        Some(&mut self.room)
    }

    fn commit(&mut self, header: RecordHeader) {
        let mut frame = std::mem::take(&mut self.room);
        frame.truncate(header.len as usize);
        self.frames.push((header, frame));
    }
}

/// How bad the wire is, in percent of frames.
#[derive(Clone, Copy, Debug)]
struct Wire {
    lost: u64,
    repeated: u64,
    late: u64,
}

const PERFECT: Wire = Wire { lost: 0, repeated: 0, late: 0 };

struct World {
    stacks: [Stack; 2],
    wire: Wire,
    /// Frames under way, by arrival and number.
    under_way: BTreeMap<(u64, u64), (usize, RecordHeader, Vec<u8>)>,
    now_ns: u64,
    frames: u64,
    random: u64,
    /// Nothing from this stack arrives any more.
    is_cut: Option<usize>,
}

const fn address(side: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, side as u8 + 1)
}

impl World {
    fn new(wire: Wire, seed: u64, offload: bool) -> Self {
        let stack = |side: usize| {
            let interface = Interface {
                mac: [2, 0, 0, 0, 0, side as u8],
                address: address(side),
                prefix_len: 24,
                gateway: None,
                mtu: 1500,
                offload,
            };
            Stack::new(interface, seed | 1, 64 << 20)
        };
        Self {
            stacks: [stack(0), stack(1)],
            wire,
            under_way: BTreeMap::new(),
            now_ns: MILLISECOND,
            frames: 0,
            random: seed,
            is_cut: None,
        }
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % 100 < chance
    }

    fn send(&mut self, from: usize, out: Out) {
        for (header, frame) in out.frames {
            let copies = if self.percent(self.wire.lost) { 0 } else { 1 };
            let copies = copies + u64::from(self.percent(self.wire.repeated));
            for _ in 0..copies {
                let late = if self.percent(self.wire.late) { 7 } else { 0 };
                let arrival = self.now_ns + (5 + late) * MILLISECOND;
                self.frames += 1;
                if self.is_cut != Some(from) {
                    let frame = (1 - from, header, frame.clone());
                    self.under_way.insert((arrival, self.frames), frame);
                }
            }
        }
    }

    fn flush(&mut self) {
        for side in 0..2 {
            let mut out = Out::default();
            self.stacks[side].flush(&mut out, self.now_ns).unwrap();
            self.send(side, out);
        }
    }

    /// Goes on to whatever happens next. False: nothing ever will.
    fn step(&mut self) -> bool {
        self.flush();
        let arrival = self.under_way.keys().next().map_or(u64::MAX, |(arrival, _)| *arrival);
        let timers = self.stacks.iter().map(Stack::next_ns).min().unwrap();
        let next = arrival.min(timers);
        if next > PATIENCE_NS {
            return false;
        }
        self.now_ns = self.now_ns.max(next);
        while let Some(entry) = self.under_way.first_entry()
            && entry.key().0 <= self.now_ns
        {
            let (to, header, frame) = entry.remove();
            let mut out = Out::default();
            self.stacks[to].receive(header, &frame, &mut out, self.now_ns);
            self.send(to, out);
        }
        for side in 0..2 {
            let mut out = Out::default();
            self.stacks[side].expire(&mut out, self.now_ns);
            self.send(side, out);
        }
        true
    }

    fn connect(&mut self) -> u32 {
        let peer = SocketAddrV4::new(address(1), PORT);
        self.stacks[0].tcp.connect(peer, address(0), 1500, self.now_ns).unwrap()
    }

    fn accept(&mut self) -> Option<u32> {
        self.stacks[1].tcp.accept(PORT, Waker::noop())
    }

    fn state(&mut self, side: usize, id: u32) -> Option<State> {
        self.stacks[side].tcp.get(id).map(|connection| connection.state)
    }

    fn leave(&mut self, side: usize, id: u32) {
        let mut out = Out::default();
        let now_ns = self.now_ns;
        self.stacks[side].with_link(&mut out, now_ns, |tcp, _, link| tcp.leave(id, link));
        self.send(side, out);
    }

    /// Reads what is there.
    fn read(&mut self, side: usize, id: u32, to: &mut Vec<u8>) {
        let mut buffer = [0; 4096];
        loop {
            let read =
                |connection: &mut super::tcp::Connection| connection.receiver.read(&mut buffer);
            let count = self.stacks[side].tcp.change(id, read).unwrap_or(0);
            to.extend_from_slice(&buffer[..count]);
            if count == 0 {
                return;
            }
            self.stacks[side].tcp.enqueue(id);
        }
    }

    /// Hands data over as far as there is room; finishes when it was the last.
    fn write(&mut self, side: usize, id: u32, data: &[u8], written: &mut usize) {
        let limit = self.stacks[side].tcp.send_limit();
        let rest = &data[*written..];
        let count = self.stacks[side].tcp.change(id, |connection| {
            if !matches!(connection.state, State::Established | State::CloseWait) {
                return 0;
            }
            let count = rest.len().min(limit - connection.sender.buffer.len());
            connection.sender.buffer.extend(&rest[..count]);
            if count == rest.len() {
                connection.shut_down();
            }
            count
        });
        *written += count.unwrap_or(0);
        self.stacks[side].tcp.enqueue(id);
    }
}

/// Sends both ways at once until both sides have everything; answers the simulated time. The wire
/// is perfect until both know each other: opening gives up after six attempts, as it should.
fn check(wire: Wire, seed: u64, offload: bool, bytes: [usize; 2]) -> u64 {
    let mut world = World::new(PERFECT, seed, offload);
    world.stacks[1].tcp.listen(PORT, 8).unwrap();
    let data = bytes.map(|bytes| (0..bytes).map(|at| (at % 241) as u8).collect::<Vec<u8>>());
    let mut got = [Vec::new(), Vec::new()];
    let mut written = [0, 0];
    let client = world.connect();
    let mut server = None;
    loop {
        server = server.or_else(|| world.accept());
        if server.is_some() {
            world.wire = wire;
        }
        for (side, id) in [(0, Some(client)), (1, server)] {
            let Some(id) = id else { continue };
            world.write(side, id, &data[side], &mut written[side]);
            world.read(side, id, &mut got[side]);
        }
        let done = got[0].len() == bytes[1] && got[1].len() == bytes[0];
        let closed = |state| matches!(state, Some(State::Closed(None) | State::FinWait2));
        if done && closed(world.state(0, client)) {
            break;
        }
        if !world.step() {
            let states = [world.state(0, client), server.and_then(|id| world.state(1, id))];
            panic!("stuck at {:?} of {bytes:?} bytes in {states:?}", got.map(|got| got.len()));
        }
    }
    assert!(got[0] == data[1] && got[1] == data[0], "something else arrived");
    // Both leave; nothing may remain.
    world.leave(0, client);
    world.leave(1, server.unwrap());
    let finished = world.now_ns;
    while world.step() {}
    for side in 0..2 {
        assert_eq!(world.stacks[side].tcp.usage(), (0, 0), "side {side}");
    }
    finished
}

#[test]
fn a_perfect_wire_is_fast() {
    let took_ns = check(PERFECT, 1, false, [2_000_000, 0]);
    // 2 MB in windows that double each round trip of 10 ms, up to 256 KB.
    assert!(took_ns < 250 * MILLISECOND, "{took_ns}");
    check(PERFECT, 1, true, [2_000_000, 2_000_000]);
}

#[test]
fn one_percent_of_loss_is_repaired_without_timeouts() {
    let wire = Wire { lost: 1, ..PERFECT };
    let took_ns = check(wire, 3, false, [1_000_000, 0]);
    assert!(took_ns < 3_000 * MILLISECOND, "{took_ns}");
}

#[test]
fn connections_are_opened_over_a_bad_wire() {
    for seed in 0..50 {
        let mut world = World::new(Wire { lost: 10, repeated: 20, late: 20 }, seed, false);
        world.stacks[1].tcp.listen(PORT, 8).unwrap();
        let id = world.connect();
        while world.accept().is_none() {
            assert!(world.step(), "seed {seed}: {:?}", world.state(0, id));
        }
    }
}

#[test]
fn nobody_listens() {
    let mut world = World::new(PERFECT, 1, false);
    let id = world.connect();
    while world.step() {}
    assert_eq!(world.state(0, id), Some(State::Closed(Some(Error::Refused))));
}

#[test]
fn nobody_answers() {
    let mut world = World::new(PERFECT, 1, false);
    world.stacks[1].tcp.listen(PORT, 8).unwrap();
    let id = world.connect();
    // ARP is answered, and then silence.
    while world.frames < 2 {
        assert!(world.step());
    }
    world.is_cut = Some(1);
    while world.step() {}
    let state = world.state(0, id);
    assert!(matches!(state, Some(State::Closed(Some(_)))), "{state:?}");
    // The half-open one on the other side was given up, too.
    assert_eq!(world.stacks[1].tcp.usage(), (0, 0));
}

#[test]
fn a_peer_that_vanishes_is_noticed_when_something_is_sent() {
    let mut world = World::new(PERFECT, 1, false);
    world.stacks[1].tcp.listen(PORT, 8).unwrap();
    let id = world.connect();
    while world.accept().is_none() {
        assert!(world.step());
    }
    world.is_cut = Some(1);
    let mut written = 0;
    world.write(0, id, &[1; 1000], &mut written);
    while world.step() {}
    assert_eq!(world.state(0, id), Some(State::Closed(Some(Error::TimedOut))));
}

#[test]
fn the_backlog_bounds_what_a_flood_leaves_behind() {
    let mut world = World::new(PERFECT, 1, false);
    world.stacks[1].tcp.listen(PORT, 16).unwrap();
    for _ in 0..200 {
        world.connect();
    }
    // Let ARP pass, then the clients fall silent: their SYNs arrive, nothing else does.
    for _ in 0..3 {
        world.step();
    }
    assert!(world.stacks[1].tcp.usage().0 <= 32);
    world.is_cut = Some(0);
    while world.step() {}
    let left = world.stacks[1].tcp.usage().0;
    assert!(left <= 32, "{left}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever the wire does short of cutting it: everything arrives, in order, and nothing is
    /// left afterwards.
    #[test]
    fn everything_arrives_over_any_wire(
        seed in any::<u64>(),
        lost in 0..20_u64,
        repeated in 0..20_u64,
        late in 0..40_u64,
        offload in any::<bool>(),
        bytes in (0..200_000_usize, 0..200_000_usize),
    ) {
        check(Wire { lost, repeated, late }, seed, offload, [bytes.0, bytes.1]);
    }
}
