//! Every answer is compared with NSD's for the same zones, record by record; malformed requests,
//! too.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use dns_server::database::Database;
use dns_server::message::{Edns, request};
use dns_server::name::Name;
use dns_server::parser::parse;
use dns_server::respond::{Outcome, Server, Transport};
use dns_server::settings::Network;
use dns_server::zone::{Type, ZoneSet};
use support::{Differences, Message, Nsd, Random, ZONES, decode, zone_path};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Types that are asked for with every name.
const TYPES: &[u16] =
    &[1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 46, 47, 253, 254, 255, 257, 65280, 731, 99, 0, 41];

fn server() -> Server {
    let mut set = ZoneSet::default();
    for (_, file) in ZONES {
        let text = std::fs::read(zone_path(file)).unwrap();
        parse(&text, None, &mut set).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    Server { database: Database::new(set), transfer_to: vec![Network::parse("127.0.0.1").unwrap()] }
}

fn own(server: &Server, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_535];
    match server.respond(request, transport, CLIENT, &mut buffer) {
        Outcome::Silence => None,
        Outcome::Reply(len) => {
            buffer.truncate(len);
            Some(buffer)
        }
        Outcome::Transfer(_) => panic!("a transfer"),
    }
}

/// Names of the zones, names above, below and beside them, and none of theirs.
fn names(server: &Server) -> Vec<Vec<u8>> {
    let mut names = BTreeSet::new();
    let mut add = |wire: &[u8]| {
        if wire.len() <= 255 {
            names.insert(wire.to_vec());
        }
    };
    for record in server.database.zones().iter().flat_map(|zone| &zone.records) {
        let wire = record.owner.wire();
        let mut rest = wire;
        loop {
            add(rest);
            for label in [&b"\x01*"[..], b"\x04nope", b"\x01a", b"\x04host", b"\x02\0."] {
                add(&[label, rest].concat());
                add(&[b"\x02xy", label, rest].concat());
            }
            if rest.len() == 1 {
                break;
            }
            rest = &rest[usize::from(rest[0]) + 1..];
        }
        // The same name in another case, to be echoed.
        let flipped: Vec<u8> = wire
            .iter()
            .enumerate()
            .map(|(at, byte)| if at % 2 == 0 { byte.to_ascii_uppercase() } else { *byte })
            .collect();
        add(&flipped);
    }
    for text in ["nowhere.test.", "com.", "examplE.com.", "xexample.", "example.example."] {
        add(Name::parse(text.as_bytes(), None).unwrap().wire());
    }
    let longest: Vec<u8> = std::iter::repeat_n(&b"\x01x"[..], 123).collect::<Vec<_>>().concat();
    add(&[&longest, &b"\x07example\0"[..]].concat());
    names.into_iter().collect()
}

fn compare(
    differences: &mut Differences,
    kind: &str,
    request: &[u8],
    theirs: Option<Vec<u8>>,
    ours: Option<Vec<u8>>,
    nsd: &Nsd,
) {
    differences.asked += 1;
    let read = |answer: &Option<Vec<u8>>| answer.as_ref().map(|bytes| decode(bytes));
    let (mut theirs, mut ours) = (read(&theirs), read(&ours));
    if let (Some(Ok(theirs)), Some(Ok(ours))) = (&mut theirs, &mut ours) {
        allowances(nsd, request, theirs, ours);
    }
    if let (None, Some(Ok(ours))) = (&theirs, &ours) {
        // NSD bounds how many errors it tells in a second.
        if [FORMERR, NOTIMP].contains(&ours.code) {
            differences.silences += 1;
            return;
        }
    }
    if theirs != ours {
        let question = request.escape_ascii();
        differences
            .add(kind.to_owned(), format!("asked {question}\nNSD: {theirs:#?}\nours: {ours:#?}"));
    }
}

const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// Where the two may differ, and why. Whatever is allowed is made equal.
fn allowances(nsd: &Nsd, request: &[u8], theirs: &mut Message, ours: &mut Message) {
    // A set has no record twice (RFC 2181); NSD follows a wildcard's alias to itself once.
    theirs.sections.iter_mut().for_each(Vec::dedup);
    // An extended error (RFC 8914) beside REFUSED: NSD says "not authoritative" twice.
    if let Some((start, _)) = theirs.opt.as_ref().and_then(|opt| opt.split_once("[00, 0f")) {
        theirs.opt = Some(format!("{start}[]"));
    }
    // RFC 9471 came after this NSD: addresses without which a referral is of no use do not fit.
    let is_referral =
        ours.flags & 0x0400 == 0 && ours.sections[1].iter().any(|r| r.contains(" 1 2 "));
    if is_referral && theirs.flags | TRUNCATED == ours.flags {
        theirs.flags = ours.flags;
    }
    // Addresses beside many servers that do not all fit: NSD shortens names by the question's, too,
    // and goes on with shorter records. All that are given must be those of the whole answer.
    let many = ours.sections[0].len().max(ours.sections[1].len()) >= 20;
    if many && theirs.sections[2] != ours.sections[2] {
        let whole = nsd.tcp(request, |_| true).pop().map(|bytes| decode(&bytes).unwrap()).unwrap();
        let [_, _, all] = whole.sections;
        assert!(ours.sections[2].iter().all(|record| all.contains(record)), "{ours:?}");
        assert!(ours.sections[2].len() + 8 > theirs.sections[2].len(), "{theirs:?} {ours:?}");
        theirs.sections[2] = ours.sections[2].clone();
    }
    // RFC 8482: one set of records for ANY; NSD takes the first of the file.
    let any =
        ours.question.ends_with(&[0, 255, 0, 1]) || ours.question.ends_with(&[0, 255, 0, 255]);
    let has_answer =
        |message: &Message| !message.sections[0].is_empty() || message.flags & TRUNCATED != 0;
    if any && has_answer(ours) && has_answer(theirs) {
        theirs.flags = ours.flags;
        theirs.sections = ours.sections.clone();
    }
    // The DO bit is echoed always (RFC 3225), by NSD not in BADVERS.
    if theirs.opt.as_ref().is_some_and(|opt| opt.contains("ttl 01000000")) {
        theirs.opt = theirs.opt.as_ref().map(|opt| opt.replace("01000000", "01008000"));
        ours.opt = ours.opt.as_ref().map(|opt| opt.replace("01000000", "01008000"));
    }
    // Whether a request that is malformed was to be recursive.
    if theirs.code == FORMERR && ours.code == FORMERR {
        theirs.flags &= !RECURSION_DESIRED;
        ours.flags &= !RECURSION_DESIRED;
    }
    // Flags that mean nothing in another kind of request.
    if theirs.code == NOTIMP && ours.code == NOTIMP {
        theirs.flags = ours.flags;
    }
    // Another class than IN: whether the question is repeated.
    if theirs.code == REFUSED && theirs.question.is_empty() && !ours.question.ends_with(&[0, 1]) {
        theirs.question = ours.question.clone();
        theirs.opt = ours.opt.clone();
    }
    // Any class, which only IN has here: NSD then does not prove what is not there.
    if ours.question.ends_with(&[0, 255]) && theirs.sections[1].is_empty() {
        ours.sections[1].clear();
    }
    // NOTIFY: NSD can be a secondary.
    if ours.code == NOTIMP && ours.flags & 0x7800 == 0x2000 {
        *theirs = ours.clone();
    }
}

#[test]
fn answers_are_those_of_nsd() {
    let server = server();
    let nsd = Nsd::start();
    let mut differences = Differences::default();
    let mut id = 0_u16;
    for name in names(&server) {
        for rtype in TYPES {
            let variants = [
                (None, Transport::Udp),
                (Some(Edns { size: 4096, version: 0, dnssec: true }), Transport::Udp),
                (Some(Edns { size: 700, version: 0, dnssec: false }), Transport::Udp),
            ];
            for (edns, transport) in variants {
                id = id.wrapping_add(1);
                let request = request(id, &name, Type(*rtype), edns);
                let ours = own(&server, &request, transport);
                let theirs = nsd.udp(&request, ours.is_none());
                let kind = format!("type {rtype} edns {}", edns.is_some());
                compare(&mut differences, &kind, &request, theirs, ours, &nsd);
            }
        }
    }
    println!("{} questions", differences.asked);
    differences.none();
}

#[test]
fn long_answers_over_tcp_are_those_of_nsd() {
    let server = server();
    let nsd = Nsd::start();
    let mut differences = Differences::default();
    let names = [
        "big.test.",
        "addresses.big.test.",
        "text.big.test.",
        "huge.big.test.",
        "many.big.test.",
        "x.cut.big.test.",
        "x.bigwild.big.test.",
        "www.example.",
        "example.",
        "some.wild.example.",
        "child.example.",
        "nowhere.",
    ];
    for (id, name) in names.into_iter().enumerate() {
        for rtype in TYPES {
            let wire = Name::parse(name.as_bytes(), None).unwrap();
            let id = u16::try_from(id).unwrap() * 256 + rtype % 256;
            let request = request(id, wire.wire(), Type(*rtype), None);
            let theirs = nsd.tcp(&request, |_| true).pop();
            let ours = own(&server, &request, Transport::Tcp);
            let kind = format!("{name} type {rtype}");
            compare(&mut differences, &kind, &request, theirs, ours, &nsd);
        }
    }
    differences.none();
}

#[test]
fn transfers_are_those_of_nsd() {
    let server = server();
    let nsd = Nsd::start();
    for (apex, _) in ZONES {
        let wire = Name::parse(apex.as_bytes(), None).unwrap();
        let request = request(7, wire.wire(), Type::AXFR, None);
        let all = |messages: Vec<Vec<u8>>| -> Vec<String> {
            messages
                .iter()
                .flat_map(|bytes| {
                    let message = decode(bytes).unwrap();
                    assert_eq!((message.code, message.id), (0, 7));
                    let [answers, ..] = message.sections;
                    answers
                })
                .collect()
        };
        let mut soas = 0;
        let mut theirs = all(nsd.tcp(&request, |bytes| {
            let [answers, ..] = decode(bytes).unwrap().sections;
            soas += answers.iter().filter(|text| text.contains(" 1 6 ")).count();
            soas == 2
        }));
        let mut buffer = vec![0; 65_535];
        let outcome = server.respond(&request, Transport::Tcp, CLIENT, &mut buffer);
        let Outcome::Transfer(mut transfer) = outcome else { panic!("{apex}: {outcome:?}") };
        let mut messages = Vec::new();
        let mut message = Vec::new();
        while transfer.next_message(&mut message) {
            messages.push(message.clone());
        }
        let first = decode(&messages[0]).unwrap();
        assert!(!first.question.is_empty());
        let mut ours = all(messages);
        theirs.sort();
        ours.sort();
        assert_eq!(theirs, ours, "{apex}");
        assert!(ours.len() > 3);
    }
}

/// A request that is not what it should be.
fn malformed(random: &mut Random, names: &[Vec<u8>], id: u16) -> Vec<u8> {
    let name = &names[random.below(names.len())];
    let rtype = TYPES[random.below(TYPES.len())];
    let edns = Edns { size: 1232, version: 0, dnssec: true };
    let mut bytes = request(id, name, Type(rtype), (random.below(2) == 0).then_some(edns));
    for _ in 0..=random.below(3) {
        match random.below(7) {
            0 => bytes.truncate(random.below(bytes.len() + 1)),
            1 => {
                let at = random.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at).filter(|_| at > 1) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
            2 => {
                let at = 2 + random.below(10);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            3 => bytes.extend((0..random.below(30)).map(|_| b'x')),
            4 => {
                let at = bytes.len() - random.below(bytes.len().min(12) + 1);
                if at > 12 {
                    let byte = u8::try_from(random.below(256)).unwrap();
                    bytes.insert(at, byte);
                }
            }
            5 => {
                let at = 12 + random.below(bytes.len().saturating_sub(12).max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [0xc0, 0x40, 0x80, 0xff, 0, 63][random.below(6)];
                }
            }
            _ => {
                let at = 3 + 2 * random.below(5);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(random.below(3)).unwrap();
                }
            }
        }
    }
    bytes
}

/// What fuzzing found to be different from each other, `fuzz/seeds/dns_message`.
fn corpus() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/dns_message");
    let files = std::fs::read_dir(folder).unwrap();
    let mut corpus: Vec<_> =
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    corpus.sort();
    assert!(corpus.len() > 100, "{} requests", corpus.len());
    corpus
}

#[test]
fn malformed_requests_are_answered_as_by_nsd() {
    let server = server();
    let nsd = Nsd::start();
    let mut differences = Differences::default();
    let mut random = Random(0x5eed_0001);
    let names = names(&server);
    let made = (1..=4000).map(|id| malformed(&mut random, &names, id));
    for request in corpus().into_iter().chain(made) {
        let ours = own(&server, &request, Transport::Udp);
        let theirs = nsd.udp(&request, ours.is_none());
        let code = |answer: &Option<Vec<u8>>| {
            answer.as_ref().map_or("silence".to_owned(), |bytes| format!("{}", bytes[3] & 15))
        };
        let kind = format!("NSD {} ours {}", code(&theirs), code(&ours));
        compare(&mut differences, &kind, &request, theirs, ours, &nsd);
    }
    differences.none();
}
