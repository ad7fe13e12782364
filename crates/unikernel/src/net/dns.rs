//! Looking names up: a stub resolver (RFC 1034, section 5.3.1; RFC 1035).
//!
//! It asks the name servers that the monitor gave, in turn, with new random id and port each time,
//! and believes only the answer to exactly its question from exactly where it asked.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use super::device::name_servers;
use super::{Error, UdpSocket};
use crate::random;
use crate::time::{Duration, timeout};

/// Port of name servers.
const PORT: u16 = 53;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each name server is asked.
const ROUNDS: usize = 2;
/// Longest message over UDP without extensions (RFC 1035, section 4.2.1), and some more.
const MESSAGE_BYTES: usize = 1232;
/// Most aliases that are followed in one answer.
const ALIASES_MAX: usize = 8;
/// Longest name on the wire.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a message's header.
const HEADER_BYTES: usize = 12;

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name, or it has no address.
    Nothing,
    /// The server could not answer; ask another.
    Failed,
}

/// The IPv4 addresses of `host`, which may be an address itself. Never empty.
///
/// # Errors
/// [`Error::BadName`], [`Error::NameNotFound`], [`Error::NoNameServer`],
/// [`Error::NameServerFailed`].
pub async fn lookup(host: &str) -> Result<Vec<Ipv4Addr>, Error> {
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(alloc::vec![address]);
    }
    let name = encode(host).ok_or(Error::BadName)?;
    let servers: Vec<Ipv4Addr> = name_servers().collect();
    if servers.is_empty() {
        return Err(Error::NoNameServer);
    }
    for _ in 0..ROUNDS {
        for server in &servers {
            match ask(&name, SocketAddrV4::new(*server, PORT)).await {
                Ok(Answer::Addresses(addresses)) => return Ok(addresses),
                Ok(Answer::Nothing) => return Err(Error::NameNotFound),
                // The next one may do better.
                Ok(Answer::Failed) | Err(_) => {}
            }
        }
    }
    Err(Error::NameServerFailed)
}

async fn ask(name: &[u8], server: SocketAddrV4) -> Result<Answer, Error> {
    let socket = UdpSocket::bind(0)?;
    let id = random::u64() as u16;
    let query = query(id, name);
    socket.send_to(&query, server).await?;
    let waiting = async {
        let mut message = [0; MESSAGE_BYTES];
        loop {
            let (count, from) = socket.recv_from(&mut message).await?;
            if from == server
                && let Some(answer) = read(&message[..count], id, name)
            {
                return Ok(answer);
            }
        }
    };
    timeout(PATIENCE, waiting).await.map_err(|_| Error::TimedOut)?
}

/// A host name as it is written in messages, in lower case.
fn encode(host: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let host = host.strip_suffix('.').unwrap_or(host);
    for label in host.split('.') {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
        if label.is_empty() || label.len() > 63 || !label.as_bytes().iter().all(allowed) {
            return None;
        }
        name.push(label.len() as u8);
        name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    name.push(0);
    (name.len() <= NAME_BYTES_MAX).then_some(name)
}

fn query(id: u16, name: &[u8]) -> Vec<u8> {
    let mut query = Vec::new();
    query.extend(id.to_be_bytes());
    // Recursion desired; one question.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(name);
    // Type A, class IN.
    query.extend([0, 1, 0, 1]);
    query
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// The name at `at`, in lower case, and where it ends.
fn name_at(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let mut name = Vec::new();
    let mut end = None;
    loop {
        let len = usize::from(*message.get(at)?);
        match len >> 6 {
            0 => {
                let label = message.get(at..=at + len)?;
                name.push(label[0]);
                name.extend(label[1..].iter().map(u8::to_ascii_lowercase));
                at += 1 + len;
                if name.len() > NAME_BYTES_MAX {
                    return None;
                }
                if len == 0 {
                    return Some((name, end.unwrap_or(at)));
                }
            }
            3 => {
                let target = usize::from(word(message, at)? & 0x3fff);
                end = end.or(Some(at + 2));
                // Only backwards, so that it ends.
                if target >= at {
                    return None;
                }
                at = target;
            }
            _ => return None,
        }
    }
}

/// Reads the answer to the question about `name`. `None`: it is not one.
fn read(message: &[u8], id: u16, name: &[u8]) -> Option<Answer> {
    let flags = word(message, 2)?;
    let is_answer = flags & 0x8000 != 0 && word(message, 4)? == 1;
    let (question, end) = name_at(message, HEADER_BYTES)?;
    let same = question == name && word(message, end)? == 1 && word(message, end + 2)? == 1;
    if word(message, 0)? != id || !is_answer || !same {
        return None;
    }
    match flags & 0xf {
        0 => {}
        3 => return Some(Answer::Nothing),
        _ => return Some(Answer::Failed),
    }
    let records = records(message, end + 4, usize::from(word(message, 6)?));
    let mut wanted = name.to_vec();
    for _ in 0..ALIASES_MAX {
        let of_name = || records.iter().filter(|record| record.name == wanted);
        let addresses: Vec<Ipv4Addr> = of_name()
            .filter(|record| record.kind == 1)
            .filter_map(|record| <[u8; 4]>::try_from(message.get(record.data.clone())?).ok())
            .map(Ipv4Addr::from)
            .collect();
        if !addresses.is_empty() {
            return Some(Answer::Addresses(addresses));
        }
        let alias = of_name().find(|record| record.kind == 5);
        match alias.and_then(|record| name_at(message, record.data.start)) {
            Some((target, _)) => wanted = target,
            None => break,
        }
    }
    // Cut off (RFC 2181, section 9): what is missing may be what was asked for.
    Some(if flags & 0x200 == 0 { Answer::Nothing } else { Answer::Failed })
}

struct Record {
    name: Vec<u8>,
    kind: u16,
    data: core::ops::Range<usize>,
}

/// Up to `count` records from `at` on; a malformed one ends them.
fn records(message: &[u8], mut at: usize, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    let mut next = || {
        let (name, end) = name_at(message, at)?;
        let kind = word(message, end)?;
        let start = end + 10;
        let data = start..start + usize::from(word(message, end + 8)?);
        message.get(data.clone())?;
        at = data.end;
        Some(Record { name, kind, data })
    };
    while records.len() < count {
        let Some(record) = next() else { break };
        records.push(record);
    }
    records
}

/// For fuzzing: any bytes are read as an answer or refused.
#[cfg(not(shoal_image))]
#[doc(hidden)]
pub fn fuzz(message: &[u8]) {
    let id = word(message, 0).unwrap_or(0);
    if let Some((name, _)) = name_at(message, HEADER_BYTES) {
        let _ = read(message, id, &name);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn message(flags: [u8; 2], answers: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let mut message = query(7, &encode("www.Example").unwrap());
        message[2..4].copy_from_slice(&flags);
        message[7] = answers.len() as u8;
        for (name, kind, data) in answers {
            message.extend(*name);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    fn check(message: &[u8], expected: Option<Answer>) {
        assert_eq!(read(message, 7, &encode("www.example").unwrap()), expected);
    }

    #[test]
    fn names_are_checked() {
        assert_eq!(encode("a.b."), Some(b"\x01a\x01b\0".to_vec()));
        for bad in ["", ".", "a..b", "a b", "\u{e9}", &"x".repeat(64), &"x.".repeat(128)] {
            assert_eq!(encode(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_found_behind_aliases() {
        let here = &[0xc0, 12][..];
        let one = Answer::Addresses([Ipv4Addr::new(1, 2, 3, 4)].to_vec());
        let address = &[1, 2, 3, 4][..];
        check(&message([0x81, 0x80], &[(here, 1, address)]), Some(one.clone()));
        let alias = message([0x81, 0x80], &[(here, 5, b"\x01x\0"), (b"\x01x\0", 1, address)]);
        check(&alias, Some(one));
        let other = message([0x81, 0x80], &[(b"\x01x\0", 1, address)]);
        check(&other, Some(Answer::Nothing));
        let circle = message([0x81, 0x80], &[(here, 5, b"\x01x\0"), (b"\x01x\0", 5, here)]);
        check(&circle, Some(Answer::Nothing));
    }

    #[test]
    fn other_answers_are_judged() {
        check(&message([0x81, 0x83], &[]), Some(Answer::Nothing));
        check(&message([0x81, 0x82], &[]), Some(Answer::Failed));
        check(&message([0x83, 0x80], &[]), Some(Answer::Failed));
        check(&message([0x01, 0x00], &[]), None);
        let mut wrong = message([0x81, 0x80], &[]);
        wrong[0] = 1;
        check(&wrong, None);
        let mut loops = message([0x81, 0x80], &[(&[0xc0, 12], 1, &[1, 2, 3, 4])]);
        let at = loops.len() - 15;
        loops[at] = 0xff;
        check(&loops, Some(Answer::Nothing));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }
    }
}
