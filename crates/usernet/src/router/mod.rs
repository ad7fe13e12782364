//! The loop: waits for the guest, the host and the clock, and hands everything to whom it concerns.

mod connections;
mod datagrams;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::RandomState;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use smoltcp::time::Instant as StackInstant;

use crate::config::Config;
use crate::counters::Counters;
use crate::error::Error;
use crate::frame::{self, Body, Key};
use crate::link::{Link, MESSAGE_BYTES_MAX, Received};
use crate::network::Door;
use crate::outbox::Outbox;
use crate::tcp::Connection;
use crate::udp::{self, Flows};

/// Connections at once: with the UDP flows and the rest they stay below 1024, the file descriptors
/// that a process usually may open.
const CONNECTIONS_MAX: usize = 512;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;
/// Frames taken from the guest before others get their turn.
const FRAMES_AT_ONCE: usize = 64;
/// Datagrams or clients taken from one socket before others get their turn.
const TAKEN_AT_ONCE: usize = 32;
/// How long to wait for the guest to say its hardware address before asking again, at first.
const ASK_FIRST: Duration = Duration::from_millis(20);
/// The same, at last.
const ASK_LAST: Duration = Duration::from_secs(1);
/// Timers are not finer than this: what is due now is done in the same turn anyway.
const TIMER_MIN: Duration = Duration::from_millis(1);

/// The kind of a descriptor is in the topmost bits of its event's number.
const KIND_SHIFT: u32 = 56;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Link = 1,
    Stop = 2,
    Door = 3,
    Connection = 4,
    Flow = 5,
}

/// The state of a running network.
pub(crate) struct Router {
    config: Config,
    doors: Vec<Door>,
    link: Link,
    stop: OwnedFd,
    poller: OwnedFd,
    outbox: Outbox,
    counters: Arc<Counters>,
    connections: HashMap<u64, Connection>,
    by_key: HashMap<Key, u64>,
    timers: BTreeSet<(StackInstant, u64)>,
    /// Connections that have data for the guest, which takes none now.
    held: HashSet<u64>,
    flows: Flows,
    next_id: u64,
    started: Instant,
    sweep_at: Instant,
    ask_at: Instant,
    ask_every: Duration,
    /// Whether the kernel is asked to tell when the link takes frames again.
    waits_for_link: bool,
    /// Whether clients are waiting because there are too many connections.
    doors_shut: bool,
    seeds: RandomState,
}

impl Router {
    pub(crate) fn new(
        config: Config,
        doors: Vec<Door>,
        link: Link,
        stop: OwnedFd,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::host("make an event queue"))?;
        let now = Instant::now();
        let router = Self {
            outbox: Outbox::new(config.gateway_mac, Arc::clone(&counters)),
            config,
            doors,
            link,
            stop,
            poller,
            counters,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            timers: BTreeSet::new(),
            held: HashSet::new(),
            flows: Flows::default(),
            next_id: 0,
            started: now,
            sweep_at: now,
            ask_at: now,
            ask_every: ASK_FIRST,
            waits_for_link: false,
            doors_shut: false,
            seeds: RandomState::new(),
        };
        router.watch(&router.link, Kind::Link, 0, EventFlags::IN)?;
        router.watch(&router.stop, Kind::Stop, 0, EventFlags::IN)?;
        Ok(router)
    }

    fn watch(&self, fd: impl AsFd, kind: Kind, id: u64, flags: EventFlags) -> Result<(), Error> {
        epoll::add(&self.poller, fd, event_data(kind, id), flags)
            .map_err(Error::host("watch a descriptor"))
    }

    /// Runs until the guest's end closes or somebody stops it.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let timeout = self.timeout().try_into().ok();
            match epoll::wait(&self.poller, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::host("wait for events")(error)),
            }
            for event in events.drain(..) {
                let (kind, id) = split(event.data);
                let flags = event.flags;
                match kind {
                    Some(Kind::Stop) => return Ok(()),
                    Some(Kind::Link) if self.take_frames(&mut buffer)? => return Ok(()),
                    Some(Kind::Link) | None => {}
                    Some(Kind::Door) => self.open_door(id, &mut buffer),
                    Some(Kind::Connection) => self.connection_event(id, flags),
                    Some(Kind::Flow) => self.flow_event(id, &mut buffer),
                }
            }
            self.clock();
            self.deliver()?;
        }
    }

    /// The stacks' time.
    fn now(&self) -> StackInstant {
        let micros = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        StackInstant::from_micros(micros)
    }

    /// How long nothing will be due.
    fn timeout(&self) -> Duration {
        let now = Instant::now();
        let mut wait = Duration::from_secs(3600);
        if let Some((at, _)) = self.timers.first() {
            let micros = at.total_micros() - self.now().total_micros();
            let left = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
            wait = wait.min(left.max(TIMER_MIN));
        }
        if !self.flows.is_empty() || self.doors_shut {
            wait = wait.min(self.sweep_at.saturating_duration_since(now).max(TIMER_MIN));
        }
        if !self.outbox.knows_guest() && !self.doors.is_empty() {
            wait = wait.min(self.ask_at.saturating_duration_since(now).max(TIMER_MIN));
        }
        wait
    }

    /// Does what is due.
    fn clock(&mut self) {
        let now = self.now();
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.with_connection(id, Connection::timer);
        }
        let instant = Instant::now();
        if instant >= self.sweep_at {
            self.flows.sweep(instant);
            self.reopen_doors();
            self.sweep_at = instant + udp::SWEEP_EVERY;
        }
        if !self.outbox.knows_guest() && !self.doors.is_empty() && instant >= self.ask_at {
            frame::arp_request(&self.config, &mut self.outbox);
            self.ask_at = instant + self.ask_every;
            self.ask_every = (self.ask_every * 2).min(ASK_LAST);
        }
    }

    /// Sends what the guest takes; connections that were held back go on.
    fn deliver(&mut self) -> Result<(), Error> {
        loop {
            if let Err(error) = self.outbox.flush(&self.link) {
                // The guest's end is closed: the link says so when it is read.
                let gone = [Errno::PIPE, Errno::CONNRESET, Errno::CONNREFUSED];
                let errno = error.raw_os_error().map(Errno::from_raw_os_error);
                if !errno.is_some_and(|errno| gone.contains(&errno)) {
                    return Err(Error::host("send frames to the guest")(error));
                }
            }
            if self.held.is_empty() || !self.outbox.is_ready() {
                break;
            }
            for id in std::mem::take(&mut self.held) {
                self.with_connection(id, |connection, with| connection.advance(None, with));
            }
            if self.outbox.is_empty() {
                break;
            }
        }
        let wait = !self.outbox.is_empty();
        if wait != self.waits_for_link {
            let flags = if wait { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.poller, &self.link, event_data(Kind::Link, 0), flags)
                .map_err(Error::host("watch a descriptor"))?;
            self.waits_for_link = wait;
        }
        Ok(())
    }

    /// Takes frames of the guest. True: it has closed its end.
    fn take_frames(&mut self, buffer: &mut [u8]) -> Result<bool, Error> {
        for _ in 0..FRAMES_AT_ONCE {
            let received = self.link.receive(buffer);
            match received.map_err(Error::host("receive frames of the guest"))? {
                Received::Nothing => break,
                Received::Ended => return Ok(true),
                Received::Message(bytes) => self.frame(&buffer[..bytes])?,
            }
        }
        Ok(false)
    }

    fn frame(&mut self, message: &[u8]) -> Result<(), Error> {
        self.counters.frames_in.bump();
        let Some((mac, body)) = frame::parse(&self.config, message) else {
            self.counters.frames_refused.bump();
            return Ok(());
        };
        if self.outbox.learn(mac) {
            // Clients have waited until there was somebody to answer.
            for (index, door) in self.doors.iter().enumerate() {
                let id = index as u64;
                match door {
                    Door::Tcp(listener, _) => {
                        self.watch(listener, Kind::Door, id, EventFlags::IN)?;
                    }
                    Door::Udp(socket, _) => self.watch(socket, Kind::Door, id, EventFlags::IN)?,
                }
            }
        }
        match body {
            Body::ArpRequest(asked) if self.config.is_own(asked) => {
                frame::arp_reply(&self.config, asked, mac, &mut self.outbox);
            }
            Body::ArpRequest(_) | Body::ArpReply => {}
            Body::Echo(packet) => frame::echo_reply(packet, &mut self.outbox),
            Body::Tcp(segment) => self.segment(&segment),
            Body::Udp(datagram) => self.datagram(&datagram),
        }
        Ok(())
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn event_data(kind: Kind, id: u64) -> EventData {
    EventData::new_u64((kind as u64) << KIND_SHIFT | id)
}

fn split(data: EventData) -> (Option<Kind>, u64) {
    let number = data.u64();
    let kind = match number >> KIND_SHIFT {
        1 => Some(Kind::Link),
        2 => Some(Kind::Stop),
        3 => Some(Kind::Door),
        4 => Some(Kind::Connection),
        5 => Some(Kind::Flow),
        _ => None,
    };
    (kind, number & ((1 << KIND_SHIFT) - 1))
}
