//! One request in, one response out.

use core::net::IpAddr;

use crate::builder::Body;
use crate::database::{Answer, Database, Found};
use crate::message::{
    Code, HEADER_BYTES, OPT_BYTES, Question, Request, TCP_BYTES_MAX, UDP_BYTES_MAX,
    UDP_BYTES_PLAIN, flag, read, short,
};
use crate::settings::Network;
use crate::transfer::Transfer;
use crate::zone::Type;

/// Class of the Internet.
const CLASS_IN: u16 = 1;
/// Any class.
const CLASS_ANY: u16 = 255;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a connection.
    Tcp,
}

/// A DNS server.
#[derive(Debug)]
pub struct Server {
    /// What it knows.
    pub database: Database,
    /// Who may have whole zones.
    pub transfer_to: alloc::vec::Vec<Network>,
}

/// What to do after a request.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Say nothing.
    Silence,
    /// Send that many bytes of the buffer.
    Reply(usize),
    /// Send all messages of the transfer; over TCP only.
    Transfer(Transfer<'a>),
}

/// What the header says beside the sections.
struct Head {
    code: u8,
    authoritative: bool,
    truncated: bool,
}

impl Server {
    /// Answers `message` from `client` into `to`, which holds at least [`UDP_BYTES_MAX`] bytes
    /// (over TCP: [`TCP_BYTES_MAX`]).
    pub fn respond<'a>(
        &'a self,
        message: &[u8],
        transport: Transport,
        client: IpAddr,
        to: &mut [u8],
    ) -> Outcome<'a> {
        let question = match read(message) {
            Request::Ignored => return Outcome::Silence,
            Request::Failed(code) => return Outcome::Reply(fail(message, code, to)),
            Request::Asked(question) => question,
        };
        let mut reply = Reply { message, question: &question, to, transport };
        if question.edns.is_some_and(|edns| edns.version != 0) {
            // BADVERS is 16: the upper bits are in the OPT record.
            return Outcome::Reply(reply.empty(Code::NoError as u8, false, 1));
        }
        if question.class != CLASS_IN && question.class != CLASS_ANY {
            return Outcome::Reply(reply.empty(Code::Refused as u8, false, 0));
        }
        if matches!(question.qtype, Type::AXFR | Type::IXFR) {
            return self.transfer(reply, client);
        }
        let found = self.database.find(question.name(), question.starts(), question.qtype);
        Outcome::Reply(match found {
            Found::Ready(answer, code) => reply.answer(answer, code),
            Found::Made(answer) => reply.answer(&answer, None),
            Found::Foreign => reply.empty(Code::Refused as u8, false, 0),
        })
    }

    fn transfer<'a>(&'a self, mut reply: Reply<'_>, client: IpAddr) -> Outcome<'a> {
        let question = reply.question;
        if (reply.transport, question.qtype) == (Transport::Udp, Type::AXFR) {
            // RFC 5936, section 4.2: not over datagrams.
            return Outcome::Reply(reply.empty(Code::NotImp as u8, false, 0));
        }
        let Some(zone) = self.database.zone_at(question.name(), question.starts()) else {
            // RFC 5936, section 2.2.1.
            return Outcome::Reply(reply.empty(Code::NotAuth as u8, false, 0));
        };
        if !self.transfer_to.iter().any(|network| network.contains(client)) {
            return Outcome::Reply(reply.empty(Code::Refused as u8, false, 0));
        }
        if reply.transport == Transport::Tcp {
            return Outcome::Transfer(Transfer::new(zone, question));
        }
        // RFC 1995, section 2: the SOA alone says that the client should come over TCP.
        match self.database.find(question.name(), question.starts(), Type::SOA) {
            Found::Ready(answer, code) => Outcome::Reply(reply.answer(answer, code)),
            Found::Made(_) | Found::Foreign => Outcome::Silence,
        }
    }
}

/// Answers with a header alone; the length of it.
fn fail(message: &[u8], code: Code, to: &mut [u8]) -> usize {
    let flags = short(message, 2).unwrap_or_default();
    let kept = flags & (flag::OPCODE | flag::RECURSION_DESIRED);
    let flags = flag::RESPONSE | kept | u16::from(code as u8);
    let Some(to) = to.get_mut(..HEADER_BYTES) else { return 0 };
    to.fill(0);
    to[..2].copy_from_slice(&message[..2]);
    to[2..4].copy_from_slice(&flags.to_be_bytes());
    HEADER_BYTES
}

/// A response that is being written.
struct Reply<'a> {
    message: &'a [u8],
    question: &'a Question,
    to: &'a mut [u8],
    transport: Transport,
}

impl Reply<'_> {
    /// Bytes that the client takes before the OPT record.
    fn room(&self) -> usize {
        let limit = match (self.transport, self.question.edns) {
            (Transport::Tcp, _) => TCP_BYTES_MAX,
            (Transport::Udp, None) => UDP_BYTES_PLAIN,
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.size).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX)
            }
        };
        let opt = if self.question.edns.is_some() { OPT_BYTES } else { 0 };
        limit.min(self.to.len()) - opt
    }

    /// Writes header and question, and an OPT record behind `end`; the length of all.
    fn frame(&mut self, head: &Head, counts: [u16; 3], end: usize, extended_code: u8) -> usize {
        let question = self.question;
        let copied = question.flags & flag::RECURSION_DESIRED;
        let mut flags = flag::RESPONSE | copied | u16::from(head.code);
        if head.authoritative && question.class != CLASS_ANY {
            flags |= flag::AUTHORITATIVE;
        }
        if head.truncated {
            flags |= flag::TRUNCATED;
        }
        let [answers, authorities, additionals] = counts;
        let with_opt = additionals + u16::from(question.edns.is_some());
        let words = [question.id, flags, 1, answers, authorities, with_opt];
        for (at, word) in words.into_iter().enumerate() {
            self.to[at * 2..at * 2 + 2].copy_from_slice(&word.to_be_bytes());
        }
        let range = question.range();
        self.to[range.clone()].copy_from_slice(&self.message[range]);
        let Some(edns) = question.edns else { return end };
        let opt = &mut self.to[end..end + OPT_BYTES];
        opt.copy_from_slice(&[0, 0, 41, 0, 0, extended_code, 0, 0, 0, 0, 0]);
        // Cannot be cut: the constant is 1232.
        #[allow(clippy::cast_possible_truncation)]
        opt[3..5].copy_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
        opt[7] = u8::from(edns.dnssec) << 7;
        end + OPT_BYTES
    }

    /// A response without records.
    fn empty(&mut self, code: u8, authoritative: bool, extended_code: u8) -> usize {
        let head = Head { code, authoritative, truncated: false };
        let end = self.question.range().end;
        self.frame(&head, [0; 3], end, extended_code)
    }

    /// An encoded answer, with `code` instead of its own, if given.
    fn answer(&mut self, answer: &Answer, code: Option<Code>) -> usize {
        let start = self.question.range().end;
        let body = &answer.body;
        let code = code.unwrap_or(answer.code) as u8;
        let mut head =
            Head { code, authoritative: answer.authoritative, truncated: body.incomplete };
        let mut counts = answer.counts;
        let mut len = body.bytes.len();
        if start + len > self.room() {
            len = fitting(body, self.room() - start, &mut counts, &mut head.truncated);
        }
        self.to[start..start + len].copy_from_slice(&body.bytes[..len]);
        let name_end = self.question.name_end();
        for at in body.pointers.iter().map(|at| usize::from(*at)).take_while(|at| *at < len) {
            let at = start + at;
            let distance = i16::from_be_bytes([self.to[at], self.to[at + 1]]);
            // Cannot leave the 14 bits: the builder bounds the distances.
            #[allow(clippy::cast_possible_truncation)]
            let target = (name_end as u16).wrapping_add_signed(distance) | 0xc000;
            self.to[at..at + 2].copy_from_slice(&target.to_be_bytes());
        }
        self.frame(&head, counts, start + len, 0)
    }
}

/// How many bytes of the body fit into `room`; corrects the counts, and says whether the client
/// misses something that it needs (RFC 2181, section 9; RFC 9471).
fn fitting(body: &Body, room: usize, counts: &mut [u16; 3], truncated: &mut bool) -> usize {
    let mut fits = 0;
    let mut left = false;
    for mark in &body.marks {
        if !left && usize::from(mark.end) <= room {
            fits = usize::from(mark.end);
            continue;
        }
        left = true;
        counts[mark.section as usize] -= mark.records;
        *truncated |= mark.required;
    }
    fits
}

#[cfg(test)]
#[path = "respond/tests.rs"]
mod tests;
