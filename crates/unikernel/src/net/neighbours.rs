//! Who answers for which address on the local network (ARP, RFC 826).
//!
//! Bounded in entries and in frames that wait. An entry is confirmed anew once a minute while it is
//! in use, so that an address that moved to another machine is found again.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use hashbrown::HashMap;

use super::hash::Keyed;

/// Most entries; the one that was not confirmed for longest makes room.
const ENTRIES_MAX: usize = 1024;
/// Most frames that wait for an answer, all together.
const FRAMES_MAX: usize = 64;
/// An entry this old is asked for again.
const CONFIRM_NS: u64 = 60_000_000_000;
/// An entry this old is used no longer.
const STALE_NS: u64 = 75_000_000_000;
/// Time between two questions for one address.
const ASK_NS: u64 = 1_000_000_000;
/// Questions without an answer until the address counts as unreachable.
const ASKS_MAX: u8 = 3;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// What waits for an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// A connection that wants to send.
    Connection(u32),
    /// A complete frame without its target's hardware address.
    Frame(Vec<u8>),
}

#[derive(Debug)]
struct Entry {
    mac: Option<Mac>,
    confirmed_ns: u64,
    asked_ns: u64,
    asks: u8,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its hardware address; whether to ask again.
    Known(Mac, bool),
    /// Nothing; whether to ask now.
    Unknown(bool),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Neighbours {
    entries: HashMap<u32, Entry, Keyed>,
    waiting: Vec<(u32, Waiting)>,
    /// How many of them are frames.
    frames: usize,
}

impl Neighbours {
    pub(crate) fn new(keyed: Keyed) -> Self {
        Self { entries: HashMap::with_hasher(keyed), waiting: Vec::new(), frames: 0 }
    }

    /// Looks an address up and notes the question, if the answer says to ask.
    pub(crate) fn look_up(&mut self, address: Ipv4Addr, now_ns: u64) -> Answer {
        let key = address.to_bits();
        if !self.entries.contains_key(&key) {
            self.make_room();
            let entry = Entry { mac: None, confirmed_ns: 0, asked_ns: now_ns, asks: 1 };
            self.entries.insert(key, entry);
            return Answer::Unknown(true);
        }
        let Some(entry) = self.entries.get_mut(&key) else { return Answer::Unknown(true) };
        let age = now_ns.saturating_sub(entry.confirmed_ns);
        let may_ask = now_ns.saturating_sub(entry.asked_ns) >= ASK_NS;
        let known = entry.mac.filter(|_| age < STALE_NS);
        let ask = may_ask && (known.is_none() || age >= CONFIRM_NS);
        if ask {
            entry.asked_ns = now_ns;
            entry.asks = entry.asks.saturating_add(1);
        }
        known.map_or(Answer::Unknown(ask), |mac| Answer::Known(mac, ask))
    }

    fn make_room(&mut self) {
        if self.entries.len() >= ENTRIES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.confirmed_ns);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.entries.remove(&key);
            }
        }
    }

    /// Keeps something until the address is known. A frame is dropped if too many wait already; a
    /// connection never is: it waits once only, and connections are bounded elsewhere.
    pub(crate) fn wait(&mut self, address: Ipv4Addr, waiting: Waiting) {
        if let Waiting::Frame(_) = waiting {
            if self.frames == FRAMES_MAX {
                return;
            }
            self.frames += 1;
        }
        self.waiting.push((address.to_bits(), waiting));
    }

    /// Learns from an ARP packet. `asked` is whether it was meant for this machine: others'
    /// announcements only refresh what is in use.
    pub(crate) fn learn(&mut self, address: Ipv4Addr, mac: Mac, asked: bool, now_ns: u64) {
        let key = address.to_bits();
        if asked && !self.entries.contains_key(&key) {
            self.make_room();
        }
        let known = self.entries.contains_key(&key);
        if known || asked {
            let entry = Entry { mac: Some(mac), confirmed_ns: now_ns, asked_ns: now_ns, asks: 0 };
            self.entries.insert(key, entry);
        }
    }

    /// What waited for `address`.
    pub(crate) fn take_waiting(&mut self, address: Ipv4Addr) -> Vec<Waiting> {
        let key = address.to_bits();
        let (mine, others) = core::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(waits_for, _)| *waits_for == key);
        self.waiting = others;
        self.frames -= mine.iter().filter(|(_, it)| matches!(it, Waiting::Frame(_))).count();
        mine.into_iter().map(|(_, waiting)| waiting).collect()
    }

    /// Addresses that something waits for: to be asked for again, or to be given up.
    pub(crate) fn overdue(&mut self, now_ns: u64) -> (Vec<Ipv4Addr>, Vec<Ipv4Addr>) {
        let (mut again, mut given_up) = (Vec::new(), Vec::new());
        let mut keys: Vec<u32> = self.waiting.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            let address = Ipv4Addr::from_bits(*key);
            let Some(entry) = self.entries.get_mut(key) else {
                given_up.push(address);
                continue;
            };
            if now_ns.saturating_sub(entry.asked_ns) < ASK_NS {
                continue;
            }
            if entry.asks >= ASKS_MAX {
                given_up.push(address);
                self.entries.remove(key);
            } else {
                entry.asks += 1;
                entry.asked_ns = now_ns;
                again.push(address);
            }
        }
        (again, given_up)
    }

    /// When to call [`Neighbours::overdue`] next.
    pub(crate) fn next_ns(&self) -> u64 {
        let asked = |key: &u32| self.entries.get(key).map_or(0, |entry| entry.asked_ns);
        self.waiting.iter().map(|(key, _)| asked(key) + ASK_NS).min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn an_address_is_asked_for_three_times_and_given_up() {
        let mut neighbours = Neighbours::new(Keyed::new(1));
        assert_eq!(neighbours.look_up(A, 0), Answer::Unknown(true));
        assert_eq!(neighbours.look_up(A, 1), Answer::Unknown(false));
        neighbours.wait(A, Waiting::Connection(7));
        assert_eq!(neighbours.next_ns(), SECOND);
        assert_eq!(neighbours.overdue(SECOND), ([A].to_vec(), Vec::new()));
        assert_eq!(neighbours.overdue(2 * SECOND), ([A].to_vec(), Vec::new()));
        assert_eq!(neighbours.overdue(3 * SECOND), (Vec::new(), [A].to_vec()));
        assert_eq!(neighbours.take_waiting(A), [Waiting::Connection(7)]);
        assert_eq!(neighbours.next_ns(), u64::MAX);
    }

    #[test]
    fn an_entry_is_confirmed_while_it_is_used() {
        let mut neighbours = Neighbours::new(Keyed::new(1));
        neighbours.learn(A, MAC, false, 0);
        assert_eq!(neighbours.look_up(A, 0), Answer::Unknown(true), "others' talk is not learned");
        neighbours.learn(A, MAC, false, 0);
        assert_eq!(neighbours.look_up(A, 59 * SECOND), Answer::Known(MAC, false));
        assert_eq!(neighbours.look_up(A, 60 * SECOND), Answer::Known(MAC, true));
        assert_eq!(neighbours.look_up(A, 60 * SECOND + 1), Answer::Known(MAC, false));
        assert_eq!(neighbours.look_up(A, 76 * SECOND), Answer::Unknown(true));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut neighbours = Neighbours::new(Keyed::new(1));
        for number in 0..2 * ENTRIES_MAX as u32 {
            neighbours.learn(Ipv4Addr::from_bits(number), MAC, true, u64::from(number));
        }
        assert_eq!(neighbours.entries.len(), ENTRIES_MAX);
        for number in 0..1000 {
            neighbours.wait(A, Waiting::Frame([number as u8; 60].to_vec()));
        }
        assert_eq!(neighbours.take_waiting(A).len(), FRAMES_MAX);
        neighbours.wait(A, Waiting::Frame(Vec::new()));
        assert_eq!(neighbours.take_waiting(A).len(), 1);
    }
}
