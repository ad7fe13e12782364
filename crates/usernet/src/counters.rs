//! What happened, in numbers; readable while the network runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn bump(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames from the guest.
    pub frames_in: Counter,
    /// Frames to the guest.
    pub frames_out: Counter,
    /// Frames from the guest that are no sound IPv4 or ARP, or not from its own address.
    pub frames_refused: Counter,
    /// Frames to the guest that were dropped because it does not take them.
    pub frames_dropped: Counter,
    /// TCP connections, both ways.
    pub connections: Counter,
    /// TCP connections refused because there are too many.
    pub connections_over_limit: Counter,
    /// UDP flows, both ways.
    pub flows: Counter,
    /// UDP flows that ended early to make room.
    pub flows_evicted: Counter,
    /// Datagrams too large for the guest's network, or refused by the host.
    pub datagrams_dropped: Counter,
}
