//! Answers, byte for byte where it matters. Whole zones are compared with NSD in `tests/nsd.rs`.

#![allow(clippy::unwrap_used)]

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::*;
use crate::message::{Edns, request};
use crate::name::Name;
use crate::parser::parse;
use crate::zone::ZoneSet;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

const ZONE: &str = "$ORIGIN example.\n$TTL 60\n@ SOA ns root 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n\
    www CNAME web\nweb A 192.0.2.2\n*.wild A 192.0.2.3\nsub NS ns.sub\nns.sub A 192.0.2.4\n";

fn server() -> Server {
    let mut set = ZoneSet::default();
    parse(ZONE.as_bytes(), None, &mut set).unwrap();
    Server {
        database: Database::new(set),
        transfer_to: vec![Network::parse("192.0.2.0/24").unwrap()],
    }
}

fn ask(request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let server = server();
    let mut to = vec![0xee; TCP_BYTES_MAX];
    match server.respond(request, transport, CLIENT, &mut to) {
        Outcome::Silence => None,
        Outcome::Reply(len) => Some(to[..len].to_vec()),
        Outcome::Transfer(_) => panic!("a transfer"),
    }
}

fn wire(name: &str) -> Vec<u8> {
    Name::parse(name.as_bytes(), None).unwrap().wire().to_vec()
}

#[test]
fn an_answer_echoes_the_name_and_points_to_it() {
    let asked = request(0x1234, b"\x03WwW\x07eXample\0", Type::A, None);
    let answer = ask(&asked, Transport::Udp).unwrap();
    let mut expected = vec![0x12, 0x34, 0x84, 0, 0, 1, 0, 2, 0, 0, 0, 0];
    expected.extend_from_slice(b"\x03WwW\x07eXample\0\0\x01\0\x01");
    // www CNAME web.example, the latter's end being the question's.
    expected.extend_from_slice(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x06\x03web\xc0\x10");
    // web A, web being in the record before.
    expected.extend_from_slice(b"\xc0\x29\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x02");
    assert_eq!(answer.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn one_encoded_wildcard_serves_names_of_any_length() {
    for label in ["a", "a-much-longer-name", "two.labels"] {
        let name = wire(&alloc::format!("{label}.wild.example."));
        let answer = ask(&request(1, &name, Type::A, None), Transport::Udp).unwrap();
        assert_eq!(&answer[12..12 + name.len()], name);
        assert_eq!(
            &answer[12 + name.len() + 4..],
            b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x03"
        );
    }
}

#[test]
fn what_is_malformed_gets_formerr_or_nothing() {
    let good = request(1, &wire("www.example."), Type::A, None);
    let header = |code: u8| Some(vec![0, 1, 0x80, code, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&good[..11], Transport::Udp), None);
    for len in 12..good.len() {
        assert_eq!(ask(&good[..len], Transport::Udp), header(1), "{len}");
    }
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        ask(&bad, Transport::Udp)
    };
    assert_eq!(with(2, 0x80), None, "a response");
    assert_eq!(with(3, 3), header(1), "a code in a request");
    assert_eq!(with(5, 0), header(1), "no question");
    assert_eq!(with(5, 2), header(1), "two questions");
    assert_eq!(with(7, 1), header(1), "an answer in a request");
    assert_eq!(with(11, 1), header(1), "a record that is not there");
    assert_eq!(with(12, 0xc0), header(1), "a pointer in a question");
    assert_eq!(with(12, 64), header(1), "a label of an unknown kind");
    let notify = with(2, 0x20).unwrap();
    assert_eq!(notify[2..4], [0xa0, 4]);
}

#[test]
fn edns_versions_sizes_and_options() {
    let name = wire("www.example.");
    let edns = |size, version| Some(Edns { size, version, dnssec: true });
    let answer = ask(&request(1, &name, Type::A, edns(4096, 0)), Transport::Udp).unwrap();
    assert_eq!(answer[answer.len() - 11..], [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
    let answer = ask(&request(1, &name, Type::A, edns(4096, 1)), Transport::Udp).unwrap();
    assert_eq!(answer[2..12], [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(answer[answer.len() - 11..], [0, 0, 41, 4, 208, 1, 0, 0x80, 0, 0, 0]);

    // Options: one that is unknown is fine, one that is cut is not.
    let mut asked = request(1, &name, Type::A, edns(4096, 0));
    let end = asked.len();
    asked[end - 1] = 6;
    asked.extend_from_slice(&[0xff, 0xf0, 0, 2, 1, 2]);
    assert_eq!(ask(&asked, Transport::Udp).unwrap()[3], 0);
    asked[end + 3] = 3;
    assert_eq!(ask(&asked, Transport::Udp).unwrap()[3], 1);
}

#[test]
fn transfers_go_to_known_clients_over_tcp() {
    let server = server();
    let mut to = vec![0; TCP_BYTES_MAX];
    let asked = request(1, &wire("example."), Type::AXFR, None);
    let outcome = server.respond(&asked, Transport::Tcp, CLIENT, &mut to);
    assert!(matches!(outcome, Outcome::Transfer(_)), "{outcome:?}");
    let stranger = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    let outcome = server.respond(&asked, Transport::Tcp, stranger, &mut to);
    assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
    assert_eq!(to[3], Code::Refused as u8);
    let inner = request(1, &wire("www.example."), Type::AXFR, None);
    server.respond(&inner, Transport::Tcp, CLIENT, &mut to);
    assert_eq!(to[3], Code::NotAuth as u8, "not an apex");
    server.respond(&asked, Transport::Udp, CLIENT, &mut to);
    assert_eq!(to[3], Code::NotImp as u8, "over UDP");
}

#[test]
fn without_zones_everything_is_refused() {
    let server = Server { database: Database::new(ZoneSet::default()), transfer_to: vec![] };
    let mut to = vec![0; UDP_BYTES_MAX];
    for name in [".", "example."] {
        let asked = request(1, &wire(name), Type::A, None);
        let outcome = server.respond(&asked, Transport::Udp, CLIENT, &mut to);
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
        assert_eq!(to[3], Code::Refused as u8);
    }
}

#[test]
fn the_root_can_be_served() {
    let mut set = ZoneSet::default();
    let zone =
        ". 60 SOA ns.nic. root.nic. 1 2 3 4 5\n. NS ns.nic.\nns.nic. A 192.0.2.1\ncom. NS x.\n";
    parse(zone.as_bytes(), None, &mut set).unwrap();
    let server = Server { database: Database::new(set), transfer_to: vec![] };
    let mut to = vec![0; UDP_BYTES_MAX];
    for (name, code, authoritative) in
        [("ns.nic.", 0, 4), (".", 0, 4), ("nowhere.", 3, 4), ("a.b.com.", 0, 0)]
    {
        let asked = request(1, &wire(name), Type::A, None);
        server.respond(&asked, Transport::Udp, CLIENT, &mut to);
        assert_eq!((to[2] & 4, to[3]), (authoritative, code), "{name}");
    }
}
