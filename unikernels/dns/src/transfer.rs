//! Whole zones (RFC 5936): the SOA, all other records, the SOA again, in as many messages as
//! needed.

use alloc::vec::Vec;

use crate::builder::AFTER_NAME_BYTES;
use crate::message::{HEADER_BYTES, Question, flag};
use crate::name::suffixes;
use crate::rdata::Layout;
use crate::zone::{Record, Zone};

/// Messages are ended when they reach this size in bytes: names beyond cannot be pointed to, and a
/// record of the largest size still fits behind.
const MESSAGE_BYTES: usize = 16 * 1024;

/// A transfer under way.
#[derive(Debug)]
pub struct Transfer<'a> {
    zone: &'a Zone,
    id: u16,
    flags: u16,
    /// The question as it is repeated in the first message.
    name: Vec<u8>,
    question_tail: [u8; AFTER_NAME_BYTES],
    /// Records sent; one more than the zone has is the last SOA.
    sent: usize,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(zone: &'a Zone, question: &Question) -> Self {
        let [a, b] = question.qtype.0.to_be_bytes();
        let [c, d] = question.class.to_be_bytes();
        let kept = question.flags & flag::RECURSION_DESIRED;
        Self {
            zone,
            id: question.id,
            flags: flag::RESPONSE | flag::AUTHORITATIVE | kept,
            name: question.name().into(),
            question_tail: [a, b, c, d],
            sent: 0,
        }
    }

    /// Writes the next message, without the length before it, into `to`; false: there is none.
    pub fn next_message(&mut self, to: &mut Vec<u8>) -> bool {
        let last = self.zone.records.len();
        if self.sent > last || last == 0 {
            return false;
        }
        let is_first = self.sent == 0;
        to.clear();
        to.extend_from_slice(&self.id.to_be_bytes());
        to.extend_from_slice(&self.flags.to_be_bytes());
        to.extend_from_slice(&[0, u8::from(is_first), 0, 0, 0, 0, 0, 0]);
        let mut names = Names { known: Vec::new() };
        if is_first {
            names.write(to, &self.name);
            to.extend_from_slice(&self.question_tail);
        }
        let mut count = 0_u16;
        while self.sent <= last && count < u16::MAX {
            // A record of the largest size goes alone, so that it always fits.
            let record = self.zone.records.get(self.sent).unwrap_or(&self.zone.records[0]);
            if count > 0 && to.len() + record.data.len() > MESSAGE_BYTES {
                break;
            }
            names.record(to, record);
            count += 1;
            self.sent += 1;
        }
        to[6..8].copy_from_slice(&count.to_be_bytes());
        debug_assert!(to.len() >= HEADER_BYTES);
        true
    }
}

/// Names of one message that can be pointed to: enough of the last ones to be worth it.
struct Names {
    known: Vec<u16>,
}

/// Names that are compared with each new one.
const KNOWN_NAMES_MAX: usize = 64;

impl Names {
    fn record(&mut self, to: &mut Vec<u8>, record: &Record) {
        self.write(to, record.owner.wire());
        to.extend_from_slice(&record.rtype.0.to_be_bytes());
        to.extend_from_slice(&[0, 1]);
        to.extend_from_slice(&record.ttl.to_be_bytes());
        let len_at = to.len();
        to.extend_from_slice(&[0, 0]);
        let data = &*record.data;
        match Layout::of(record.rtype).filter(|layout| layout.compress) {
            None => to.extend_from_slice(data),
            Some(layout) => {
                let mut at = layout.before;
                to.extend_from_slice(&data[..at]);
                for _ in 0..layout.names {
                    let len = crate::name::wire_len(&data[at..]).unwrap_or_default();
                    self.write(to, &data[at..at + len]);
                    at += len;
                }
                to.extend_from_slice(&data[at..]);
            }
        }
        let len = u16::try_from(to.len() - len_at - 2).unwrap_or(u16::MAX);
        to[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
    }

    fn write(&mut self, to: &mut Vec<u8>, wire: &[u8]) {
        for start in suffixes(wire) {
            let suffix = &wire[start..];
            if suffix.len() == 1 {
                to.push(0);
                return;
            }
            let found = self.known.iter().rev().find(|at| is_name(to, usize::from(**at), suffix));
            if let Some(at) = found {
                to.extend_from_slice(&(at | 0xc000).to_be_bytes());
                return;
            }
            if let Some(at) = u16::try_from(to.len()).ok().filter(|at| *at < 0x4000) {
                if self.known.len() == KNOWN_NAMES_MAX {
                    // The first few are the apex and its like: they are needed to the end.
                    self.known.remove(KNOWN_NAMES_MAX / 4);
                }
                self.known.push(at);
            }
            let len = usize::from(suffix[0]);
            to.extend_from_slice(&suffix[..len + 1]);
        }
    }
}

/// Whether the name at `at`, which may end in a pointer backwards, is `wire`. Upper and lower case
/// differ here: a transfer keeps them.
fn is_name(message: &[u8], mut at: usize, wire: &[u8]) -> bool {
    let mut compared = 0;
    loop {
        let Some(len) = message.get(at).copied() else { return false };
        if len >= 0xc0 {
            let Some(low) = message.get(at + 1).copied() else { return false };
            at = usize::from(u16::from_be_bytes([len & 0x3f, low]));
            continue;
        }
        let len = usize::from(len) + 1;
        let (Some(here), Some(there)) =
            (message.get(at..at + len), wire.get(compared..compared + len))
        else {
            return false;
        };
        if here != there {
            return false;
        }
        if len == 1 {
            return compared + 1 == wire.len();
        }
        at += len;
        compared += len;
    }
}
