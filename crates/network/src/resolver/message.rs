//! Questions and answers as bytes (RFC 1035, RFC 6891). Pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::lookup::{Kind, Outcome};

/// Largest answer over UDP that every client must take.
const UDP_LEN_MIN: u16 = 512;
/// Largest answer over UDP that we send; more travels over TCP.
const UDP_LEN_MAX: u16 = 4096;
/// What we take over UDP ourselves: it fits into a packet everywhere.
const UDP_LEN_OWN: u16 = 1232;
/// Most addresses in one answer: as many as certainly fit into 64 KiB.
const ADDRESSES_MAX: usize = 2000;
/// How long clients may remember that a name does not exist, in seconds.
const MISSING_TTL_S: u32 = 2;

/// A question that can be answered.
pub(super) struct Question {
    message: Message,
    /// In lower case, without the closing dot.
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What came.
pub(super) enum Parsed {
    Question(Box<Question>),
    /// To be answered with these bytes at once.
    Refused(Vec<u8>),
    /// Not to be answered at all.
    Ignored,
}

/// Reads a question.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Some([id_hi, id_lo, flags, ..]) = bytes.get(..12) else { return Parsed::Ignored };
    // An answer, perhaps our own that came back: never answered, or two servers talk for ever.
    if flags & 0x80 != 0 {
        return Parsed::Ignored;
    }
    let id = u16::from_be_bytes([*id_hi, *id_lo]);
    let Ok(message) = Message::from_vec(bytes) else {
        return refused(id, OpCode::Query, ResponseCode::FormErr);
    };
    if message.metadata.op_code != OpCode::Query {
        return refused(id, message.metadata.op_code, ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else {
        return refused(id, OpCode::Query, ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return refused(id, OpCode::Query, ResponseCode::Refused);
    }
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
    let kind = match query.query_type() {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::PTR => Kind::Ptr,
        _ => Kind::Other,
    };
    Parsed::Question(Box::new(Question { message, name, kind }))
}

fn refused(id: u16, op_code: OpCode, code: ResponseCode) -> Parsed {
    match Message::error_msg(id, op_code, code).to_vec() {
        Ok(bytes) => Parsed::Refused(bytes),
        Err(_) => Parsed::Ignored,
    }
}

impl Question {
    /// How long an answer over UDP may be.
    fn udp_len(&self) -> usize {
        let asked = self.message.edns.as_ref().map_or(UDP_LEN_MIN, Edns::max_payload);
        usize::from(asked.clamp(UDP_LEN_MIN, UDP_LEN_MAX))
    }

    fn response(&self, code: ResponseCode, authoritative: bool) -> Message {
        let request = &self.message;
        let mut response = Message::response(request.metadata.id, OpCode::Query);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.message_type = MessageType::Response;
        response.metadata.recursion_available = true;
        response.metadata.authoritative = authoritative;
        response.metadata.response_code = code;
        // The question goes back as it came, capital letters included: clients check that.
        response.queries = request.queries.clone();
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_LEN_OWN);
            response.edns = Some(edns);
        }
        response
    }

    /// An answer that says only that there is none.
    pub(super) fn failure(&self, code: ResponseCode) -> Vec<u8> {
        // Ignored because: a question that could be read can be written; an empty answer is the
        // same to the client as a lost one.
        self.response(code, false).to_vec().unwrap_or_default()
    }

    /// The answer, of which as much as fits; the rest is for TCP. `serial` is the snapshot's.
    pub(super) fn answer(&self, outcome: &Outcome, tcp: bool, serial: u32) -> Vec<u8> {
        let owner = self.message.queries.first().map(|q| q.name().clone()).unwrap_or_default();
        let mut response = self.response(ResponseCode::NoError, true);
        match outcome {
            Outcome::Addresses { addresses, ttl_s } => {
                let record = |ip: &IpAddr| {
                    let data = match ip {
                        IpAddr::V4(v4) => RData::A(A(*v4)),
                        IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
                    };
                    Record::from_rdata(owner.clone(), *ttl_s, data)
                };
                response.answers = addresses.iter().take(ADDRESSES_MAX).map(record).collect();
                if addresses.is_empty() {
                    response.authorities.extend(denial(&owner, serial));
                }
            }
            Outcome::Name { name, ttl_s } => {
                let data = Name::from_ascii(name).map(|name| RData::PTR(PTR(name)));
                let record = data.map(|data| Record::from_rdata(owner, *ttl_s, data));
                // Ignored because: a name that cannot be written has no answer to give.
                response.answers.extend(record.ok());
            }
            Outcome::Missing | Outcome::Forward => {
                response.metadata.response_code = ResponseCode::NXDomain;
                response.authorities.extend(denial(&owner, serial));
            }
        }
        let limit = if tcp { usize::from(u16::MAX) } else { self.udp_len() };
        fit(response, limit)
    }
}

/// Shortens the answer until it fits, and says so.
fn fit(mut response: Message, limit: usize) -> Vec<u8> {
    loop {
        // Ignored because: see `failure`.
        let bytes = response.to_vec().unwrap_or_default();
        if bytes.len() <= limit {
            return bytes;
        }
        response.metadata.truncation = true;
        let keep = response.answers.len() * limit / bytes.len();
        response.answers.truncate(keep.min(response.answers.len().saturating_sub(1)));
        if response.answers.is_empty() {
            response.authorities.clear();
        }
    }
}

/// The record that lets clients remember for a moment that there is nothing. Its owner is the
/// last part of the name.
fn denial(name: &Name, serial: u32) -> Option<Record> {
    let labels = usize::from(name.num_labels());
    let owner = name.trim_to(labels.min(1));
    let mname = Name::from_ascii("resolver").ok()?.append_domain(&owner).ok()?;
    let rname = Name::from_ascii("hostmaster").ok()?.append_domain(&owner).ok()?;
    let soa = SOA::new(mname, rname, serial, 60, 60, 60, MISSING_TTL_S);
    Some(Record::from_rdata(owner, MISSING_TTL_S, RData::SOA(soa)))
}
