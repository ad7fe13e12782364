//! Queries: whatever is asked over either transport, the server says something that fits, or
//! nothing.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use dns_server::database::Database;
use dns_server::message::TCP_BYTES_MAX;
use dns_server::parser::parse_all;
use dns_server::respond::{Outcome, Server, Transport};
use dns_server::settings::Network;

const ZONE: &[u8] =
    b"$ORIGIN example.test.\n$TTL 300\n@ SOA ns root 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n\
    * TXT \"any\"\na.b A 192.0.2.2\nc CNAME a.b\nsub NS ns.sub\nns.sub A 192.0.2.3\n\
    big TXT \"0123456789012345678901234567890123456789012345678901234567890123456789\"\n";

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let zones = parse_all([("zone", ZONE)].into_iter()).expect("the zone is right");
    let all = Network::parse("0.0.0.0/0").expect("the network is right");
    Server { database: Database::new(zones), transfer_to: vec![all] }
});

libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut room = vec![0; TCP_BYTES_MAX];
        if let Outcome::Reply(len) = SERVER.respond(message, transport, client, &mut room) {
            assert!(len >= 12 && len <= room.len());
            assert_eq!(room[..2], message[..2], "an answer has the number of its question");
        }
    }
});
