//! Reads requests (RFC 1035, section 4; EDNS: RFC 6891).

use core::ops::Range;

use crate::name::{LABEL_BYTES_MAX, NAME_BYTES_MAX, wire_len};
use crate::zone::Type;

/// Size of a message's header in bytes.
pub const HEADER_BYTES: usize = 12;
/// Largest response over UDP without EDNS (RFC 1035, section 4.2.1).
pub const UDP_BYTES_PLAIN: usize = 512;
/// Largest response over UDP: not fragmented on any path (the 2020 flag day's value, RFC 9715).
pub const UDP_BYTES_MAX: usize = 1232;
/// Largest message over TCP.
pub const TCP_BYTES_MAX: usize = 65_535;
/// Size of the OPT record in a response.
pub(crate) const OPT_BYTES: usize = 11;
/// Most labels of a name, the root not counted.
const LABELS_MAX: usize = NAME_BYTES_MAX / 2;

/// Response codes (IANA's registry; RFC 1035, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All right.
    NoError = 0,
    /// Not understood.
    FormErr = 1,
    /// Own fault.
    ServFail = 2,
    /// No such name.
    NxDomain = 3,
    /// Kind of request not known.
    NotImp = 4,
    /// Not for this client, or not of this server's zones.
    Refused = 5,
    /// No zone of this server's begins there (RFC 2136, section 2.2).
    NotAuth = 9,
}

/// Bits of the header's flags.
pub(crate) mod flag {
    pub(crate) const RESPONSE: u16 = 0x8000;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    pub(crate) const TRUNCATED: u16 = 0x0200;
    pub(crate) const RECURSION_DESIRED: u16 = 0x0100;
    pub(crate) const CODE: u16 = 0x000f;
}

/// What the client's OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message that it takes, in bytes.
    pub size: u16,
    /// Its version.
    pub version: u8,
    /// The DO bit.
    pub dnssec: bool,
}

/// What was asked.
#[derive(Debug)]
pub struct Question {
    /// Identifier.
    pub id: u16,
    /// The request's flags.
    pub flags: u16,
    /// The name in wire form and lower case.
    name: [u8; NAME_BYTES_MAX],
    /// Where each label begins in `name`, the root not counted.
    starts: [u8; LABELS_MAX + 1],
    /// How many of `starts` count.
    labels: u8,
    /// Length of the name in wire form.
    name_len: u8,
    /// Type.
    pub qtype: Type,
    /// Class.
    pub class: u16,
    /// Nothing: the client knows no EDNS.
    pub edns: Option<Edns>,
}

/// A request as far as it was understood.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it lives on the stack; a box costs an allocation")]
pub enum Request {
    /// Nothing can be answered: shorter than a header, or itself a response.
    Ignored,
    /// To be answered by a header with this code alone.
    Failed(Code),
    /// A question.
    Asked(Question),
}

impl Question {
    /// The name in wire form and lower case.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_len)]
    }

    /// Where the labels begin.
    pub(crate) fn starts(&self) -> &[u8] {
        &self.starts[..usize::from(self.labels)]
    }

    /// Where the name ends in the message.
    pub(crate) fn name_end(&self) -> usize {
        HEADER_BYTES + usize::from(self.name_len)
    }

    /// Where the question is in the message.
    pub(crate) fn range(&self) -> Range<usize> {
        HEADER_BYTES..self.name_end() + 4
    }
}

pub(crate) fn short(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Reads a request. Bytes after the last record are not looked at.
#[must_use]
pub fn read(message: &[u8]) -> Request {
    if message.len() < HEADER_BYTES {
        return Request::Ignored;
    }
    let word = |at| short(message, at).unwrap_or_default();
    let flags = word(2);
    if flags & flag::RESPONSE != 0 {
        return Request::Ignored;
    }
    if flags & flag::OPCODE != 0 {
        return Request::Failed(Code::NotImp);
    }
    if flags & flag::CODE != 0 || word(4) != 1 {
        return Request::Failed(Code::FormErr);
    }
    let mut question = Question {
        id: word(0),
        flags,
        name: [0; NAME_BYTES_MAX],
        starts: [0; LABELS_MAX + 1],
        labels: 0,
        name_len: 0,
        qtype: Type(0),
        class: 0,
        edns: None,
    };
    let records = [word(6), word(8), word(10)];
    match read_question(message, &mut question).and_then(|()| rest(message, &mut question, records))
    {
        Some(()) => Request::Asked(question),
        None => Request::Failed(Code::FormErr),
    }
}

/// Reads name, type and class. A question's name has nothing to be compressed with.
fn read_question(message: &[u8], question: &mut Question) -> Option<()> {
    let mut at = HEADER_BYTES;
    let mut to = 0;
    loop {
        let len = usize::from(*message.get(at)?);
        if len == 0 {
            break;
        }
        // One byte is the root's.
        if len > LABEL_BYTES_MAX || to + len + 1 >= NAME_BYTES_MAX {
            return None;
        }
        let from = message.get(at..at + len + 1)?;
        question.name[to..to + len + 1].copy_from_slice(from);
        question.name[to + 1..to + len + 1].make_ascii_lowercase();
        question.starts[usize::from(question.labels)] = u8::try_from(to).ok()?;
        question.labels += 1;
        at += len + 1;
        to += len + 1;
    }
    question.name_len = u8::try_from(to + 1).ok()?;
    question.qtype = Type(short(message, at + 1)?);
    question.class = short(message, at + 3)?;
    Some(())
}

/// Reads what follows the question: nothing, an OPT record, or for IXFR the client's SOA before it.
fn rest(message: &[u8], question: &mut Question, records: [u16; 3]) -> Option<()> {
    let [answers, authorities, additionals] = records;
    let mut at = question.range().end;
    if answers != 0 || authorities > u16::from(question.qtype == Type::IXFR) || additionals > 1 {
        return None;
    }
    if authorities == 1 {
        at = skip_record(message, at)?;
    }
    if additionals == 1 {
        question.edns = Some(read_opt(message, at)?);
    }
    Some(())
}

/// The end of the record at `at`.
fn skip_record(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => {
                at += 1;
                break;
            }
            1..=LABEL_BYTES_MAX => at += len + 1,
            0xc0..=0xff => {
                at += 2;
                break;
            }
            _ => return None,
        }
    }
    let data = usize::from(short(message, at + 8)?);
    let end = at + 10 + data;
    (end <= message.len()).then_some(end)
}

/// Reads an OPT record: root, type, size, extended code, version, flags, options.
fn read_opt(message: &[u8], at: usize) -> Option<Edns> {
    if *message.get(at)? != 0 || short(message, at + 1)? != Type::OPT.0 {
        return None;
    }
    let size = short(message, at + 3)?;
    let version = *message.get(at + 6)?;
    let dnssec = short(message, at + 7)? & 0x8000 != 0;
    let len = usize::from(short(message, at + 9)?);
    if version != 0 {
        // The options are of another version, too.
        return Some(Edns { size, version, dnssec });
    }
    let mut options = message.get(at + OPT_BYTES..at + OPT_BYTES + len)?;
    while !options.is_empty() {
        let len = usize::from(short(options, 2)?);
        options = options.get(4 + len..)?;
    }
    Some(Edns { size, version, dnssec })
}

/// A request with one question, for tests and tools.
#[must_use]
pub fn request(id: u16, name: &[u8], qtype: Type, edns: Option<Edns>) -> alloc::vec::Vec<u8> {
    debug_assert_eq!(wire_len(name), Some(name.len()));
    let mut to = alloc::vec::Vec::with_capacity(HEADER_BYTES + name.len() + 4 + OPT_BYTES);
    to.extend_from_slice(&id.to_be_bytes());
    to.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    to.extend_from_slice(name);
    to.extend_from_slice(&qtype.0.to_be_bytes());
    to.extend_from_slice(&[0, 1]);
    if let Some(edns) = edns {
        to.extend_from_slice(&[0, 0, 41]);
        to.extend_from_slice(&edns.size.to_be_bytes());
        to.extend_from_slice(&[0, edns.version, u8::from(edns.dnssec) << 7, 0, 0, 0]);
    }
    to
}
