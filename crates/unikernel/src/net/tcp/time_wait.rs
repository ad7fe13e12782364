//! Connections that ended here first, remembered for a while (TIME-WAIT, RFC 9293, section 3.6.1).

use alloc::collections::VecDeque;

use hashbrown::HashMap;

use super::segment::{Segment, before, flag};
use crate::net::hash::Keyed;

/// How long. Twice the time that a packet is thought to live in a network of today.
const REMEMBER_NS: u64 = 20_000_000_000;
/// Most of them; the oldest are forgotten earlier. 64 bytes each.
const ENTRIES_MAX: usize = 8192;

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains {
    /// Next sequence number to send.
    pub(crate) nxt: u32,
    /// Next one expected from the peer.
    pub(crate) next: u32,
    until_ns: u64,
}

/// What a segment for a remembered connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing of it is remembered.
    Unknown,
    /// The peer begins anew, with numbers beyond the old ones.
    Anew,
    /// It is to be acknowledged again: sequence and acknowledgement number.
    Acknowledge(u32, u32),
    /// It is dropped.
    Ignore,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TimeWait {
    entries: HashMap<u64, Remains, Keyed>,
    order: VecDeque<(u64, u64)>,
}

impl TimeWait {
    pub(crate) fn new(keyed: Keyed) -> Self {
        Self { entries: HashMap::with_hasher(keyed), order: VecDeque::new() }
    }

    /// Remembers a connection.
    pub(crate) fn insert(&mut self, key: u64, nxt: u32, next: u32, now_ns: u64) {
        self.expire(now_ns);
        if self.order.len() >= ENTRIES_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        let until_ns = now_ns + REMEMBER_NS;
        self.entries.insert(key, Remains { nxt, next, until_ns });
        self.order.push_back((until_ns, key));
    }

    /// Forgets those whose time is over. Called when another one comes or is asked for: nothing
    /// has to wake up for it.
    fn expire(&mut self, now_ns: u64) {
        while let Some((until_ns, key)) = self.order.front().copied() {
            if until_ns > now_ns {
                return;
            }
            self.order.pop_front();
            // The same addresses may have been used and remembered again meanwhile.
            if self.entries.get(&key).is_some_and(|entry| entry.until_ns == until_ns) {
                self.entries.remove(&key);
            }
        }
        if self.order.is_empty() && self.order.capacity() > 64 {
            self.order = VecDeque::new();
            self.entries.shrink_to_fit();
        }
    }

    /// Whether a connection with these addresses is remembered.
    pub(crate) fn contains(&mut self, key: u64, now_ns: u64) -> bool {
        self.expire(now_ns);
        self.entries.contains_key(&key)
    }

    /// Judges a segment that belongs to no living connection.
    pub(crate) fn judge(&mut self, key: u64, segment: &Segment<'_>, now_ns: u64) -> Verdict {
        if self.order.is_empty() {
            return Verdict::Unknown;
        }
        self.expire(now_ns);
        let Some(entry) = self.entries.get(&key).copied() else { return Verdict::Unknown };
        // A reset does not end it early (RFC 1337).
        if segment.has(flag::RST) {
            return Verdict::Ignore;
        }
        if segment.has(flag::SYN) && before(entry.next, segment.seq) {
            self.entries.remove(&key);
            return Verdict::Anew;
        }
        if segment.len() > 0 {
            return Verdict::Acknowledge(entry.nxt, entry.next);
        }
        Verdict::Ignore
    }
}
