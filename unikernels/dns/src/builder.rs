//! Encodes what follows the question of a response, once for every client.
//!
//! Only the question's name differs in length, so that all compression pointers are kept relative
//! to its end and moved when a response is sent: one into the name is a distance backwards, one
//! into the records a distance forwards. Only a pointer to the whole question name is the same for
//! all.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::message::{HEADER_BYTES, OPT_BYTES, TCP_BYTES_MAX};
use crate::name::{NAME_BYTES_MAX, suffixes, wire_len};
use crate::rdata::Layout;
use crate::zone::Record;

/// Type and class of the question, between the end of its name and the first record.
pub(crate) const AFTER_NAME_BYTES: usize = 4;
/// Most bytes of records that fit into any response.
const BODY_BYTES_MAX: usize =
    TCP_BYTES_MAX - HEADER_BYTES - NAME_BYTES_MAX - AFTER_NAME_BYTES - OPT_BYTES;
/// Last place in the records that a pointer of 14 bits reaches behind the longest question name.
const POINTER_TARGET_MAX: usize = 0x3fff - HEADER_BYTES - NAME_BYTES_MAX - AFTER_NAME_BYTES;
/// Names that are remembered for compression; more would cost time and save little.
const KNOWN_NAMES_MAX: usize = 1024;

/// Parts of a response after the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'a> {
    /// The name that was asked for.
    Question,
    /// Another one, in wire form.
    Name(&'a [u8]),
}

/// A place where a response may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Bytes of the body up to here.
    pub end: u16,
    /// Records since the mark before.
    pub records: u16,
    /// Their section.
    pub section: Section,
    /// Whether the client must be told if they do not fit.
    pub required: bool,
}

/// Encoded records.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// Records; pointers as distances from the end of the question's name.
    pub bytes: Vec<u8>,
    /// Where the pointers are in `bytes`.
    pub pointers: Vec<u16>,
    /// Where it may be cut.
    pub marks: Vec<Mark>,
    /// Records were left out because no message is long enough for them.
    pub incomplete: bool,
}

#[derive(Debug)]
pub(crate) struct Builder {
    body: Body,
    /// Names that can be pointed to, and their distances from the end of the question's name.
    known: Vec<(Box<[u8]>, i16)>,
}

impl Builder {
    /// `common` is how the names of all questions end that the body is for, in wire form.
    pub(crate) fn new(common: &[u8]) -> Self {
        let mut known = Vec::new();
        for start in suffixes(common) {
            let suffix = &common[start..];
            // Cannot fail: a name has at most 255 bytes. The root is never pointed to.
            if let (2.., Ok(len)) = (suffix.len(), i16::try_from(suffix.len())) {
                known.push((suffix.into(), -len));
            }
        }
        Self { body: Body::default(), known }
    }

    pub(crate) fn finish(self) -> Body {
        self.body
    }

    /// Adds a set of records with its TTL, or `ttl` instead; all or none of it.
    pub(crate) fn set(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        records: &[Record],
        ttl: Option<u32>,
        required: bool,
    ) {
        let before = (self.body.bytes.len(), self.body.pointers.len(), self.known.len());
        for record in records {
            self.record(owner, record, ttl.unwrap_or(record.ttl));
            if self.body.bytes.len() > BODY_BYTES_MAX {
                self.body.bytes.truncate(before.0);
                self.body.pointers.truncate(before.1);
                self.known.truncate(before.2);
                self.body.incomplete |= required;
                return;
            }
        }
        let end = u16::try_from(self.body.bytes.len());
        if let (Ok(end), Ok(records)) = (end, u16::try_from(records.len())) {
            self.body.marks.push(Mark { end, records, section, required });
        }
    }

    fn record(&mut self, owner: Owner<'_>, record: &Record, ttl: u32) {
        match owner {
            // The question's name is always behind the header.
            Owner::Question => self.body.bytes.extend_from_slice(&[0xc0, 12]),
            Owner::Name(wire) => self.name(wire),
        }
        self.body.bytes.extend_from_slice(&record.rtype.0.to_be_bytes());
        self.body.bytes.extend_from_slice(&[0, 1]);
        self.body.bytes.extend_from_slice(&ttl.to_be_bytes());
        let len_at = self.body.bytes.len();
        self.body.bytes.extend_from_slice(&[0, 0]);
        self.data(record);
        let len = self.body.bytes.len() - len_at - 2;
        // Cannot fail: data never grows by being compressed.
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        self.body.bytes[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
    }

    fn data(&mut self, record: &Record) {
        let data = &*record.data;
        let Some(layout) = Layout::of(record.rtype).filter(|layout| layout.compress) else {
            self.body.bytes.extend_from_slice(data);
            return;
        };
        let mut at = layout.before;
        self.body.bytes.extend_from_slice(&data[..at]);
        for _ in 0..layout.names {
            let len = wire_len(&data[at..]).unwrap_or_default();
            self.name(&data[at..at + len]);
            at += len;
        }
        self.body.bytes.extend_from_slice(&data[at..]);
    }

    /// Writes a name, its end as a pointer if that is known.
    fn name(&mut self, wire: &[u8]) {
        for start in suffixes(wire) {
            let suffix = &wire[start..];
            if suffix.len() == 1 {
                self.body.bytes.push(0);
                return;
            }
            let at = self.body.bytes.len();
            let known = self.known.iter().find(|(name, _)| suffix.eq_ignore_ascii_case(name));
            if let (Some((_, distance)), Ok(place)) = (known, u16::try_from(at)) {
                self.body.bytes.extend_from_slice(&distance.to_be_bytes());
                self.body.pointers.push(place);
                return;
            }
            let distance = i16::try_from(at + AFTER_NAME_BYTES);
            let may_be_known = at <= POINTER_TARGET_MAX && self.known.len() < KNOWN_NAMES_MAX;
            if let (true, Ok(distance)) = (may_be_known, distance) {
                self.known.push((suffix.into(), distance));
            }
            let len = usize::from(suffix[0]);
            self.body.bytes.extend_from_slice(&suffix[..len + 1]);
        }
    }
}
