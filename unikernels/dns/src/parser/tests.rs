//! Zone files that are read, and what is said about those that are not.

#![allow(clippy::unwrap_used)]

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::*;

const SOA: &str = "@ 60 SOA ns root 1 2 3 4 5\n@ NS ns\n";

fn read(text: &str) -> Result<ZoneSet, ParseError> {
    let origin = Name::parse(b"example.org.", None).unwrap();
    let mut zones = ZoneSet::default();
    parse(text.as_bytes(), Some(&origin), &mut zones).map(|()| zones)
}

/// Records as `owner ttl type data`.
fn records(text: &str) -> Vec<String> {
    let zones = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let records = zones.zones.iter().flat_map(|zone| &zone.records);
    let shown = records.filter(|record| ![Type::SOA, Type::NS].contains(&record.rtype));
    shown
        .map(|record| {
            let data: String = record.data.iter().map(|b| alloc::format!("{b:02x}")).collect();
            alloc::format!("{} {} {} {data}", record.owner, record.ttl, record.rtype.0)
        })
        .collect()
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(records(&(SOA.to_string() + text)), expected, "{text}");
}

fn fails(text: &str, expected: &str) {
    let error = read(&(SOA.to_string() + text)).map(|_| String::from("no error")).unwrap_err();
    assert_eq!(error.to_string(), expected, "{text}");
}

#[test]
fn owners_ttls_and_classes() {
    check("a A 192.0.2.1", &["a.example.org. 60 1 c0000201"]);
    check("a 5 A 192.0.2.1", &["a.example.org. 5 1 c0000201"]);
    check("a IN 5 A 192.0.2.1", &["a.example.org. 5 1 c0000201"]);
    check("a 5 in a 192.0.2.1", &["a.example.org. 5 1 c0000201"]);
    check("a 1h1m A 192.0.2.1", &["a.example.org. 3660 1 c0000201"]);
    check("$TTL 1D\na A 192.0.2.1", &["a.example.org. 86400 1 c0000201"]);
    check(
        "$ORIGIN x.org.\n$ORIGIN sub.example.org.\na A 192.0.2.1",
        &["a.sub.example.org. 60 1 c0000201"],
    );
    check("$ORIGIN sub\na A 192.0.2.1", &["a.sub.example.org. 60 1 c0000201"]);
    check(
        "a A 192.0.2.1\n  A 192.0.2.2\n\tTXT x",
        &[
            "a.example.org. 60 1 c0000201",
            "a.example.org. 60 1 c0000202",
            "a.example.org. 60 16 0178",
        ],
    );
    // The TTL of the record before, where there is no $TTL.
    check(
        "a 7 A 192.0.2.1\nb A 192.0.2.1",
        &["a.example.org. 7 1 c0000201", "b.example.org. 7 1 c0000201"],
    );
    // A name that looks like a type or a class.
    check(
        "A A 192.0.2.1\nIN A 192.0.2.2",
        &["A.example.org. 60 1 c0000201", "IN.example.org. 60 1 c0000202"],
    );
}

#[test]
fn data_of_every_type() {
    check("a AAAA 2001:db8::1", &["a.example.org. 60 28 20010db8000000000000000000000001"]);
    check("a MX 10 .", &["a.example.org. 60 15 000a00"]);
    check("a CNAME @", &["a.example.org. 60 5 076578616d706c65036f726700"]);
    check("a PTR b.", &["a.example.org. 60 12 016200"]);
    check("a SRV 1 2 3 b.", &["a.example.org. 60 33 000100020003016200"]);
    check(
        "a TXT \"a b\" c ( \"\"\n\"\\\"\\065\" )",
        &["a.example.org. 60 16 03612062016300022241"],
    );
    check("a CAA 128 issue \"ca.org\"", &["a.example.org. 60 257 8005697373756563612e6f7267"]);
    check("a TYPE65280 \\# 3 0a 0b0c", &["a.example.org. 60 65280 0a0b0c"]);
    check("a TYPE65280 \\# 0", &["a.example.org. 60 65280 "]);
    check("a TYPE1 \\# 4 c0000201", &["a.example.org. 60 1 c0000201"]);
}

#[test]
fn several_zones_in_one_file() {
    let zones = read(
        "@ 60 SOA ns root 1 2 3 4 5\n@ NS ns\nsub NS ns.sub\n\
         $ORIGIN sub.example.org.\n@ 60 SOA ns root 9 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n\
         $ORIGIN example.org.\nwww A 192.0.2.2\n",
    )
    .unwrap();
    let shown: Vec<_> = zones
        .zones
        .iter()
        .map(|zone| (zone.apex.to_string(), zone.serial(), zone.records.len()))
        .collect();
    assert_eq!(shown, [("example.org.".to_string(), 1, 4), ("sub.example.org.".to_string(), 9, 3)]);
}

#[test]
fn doubles_and_different_ttls() {
    check("a A 192.0.2.1\na A 192.0.2.1", &["a.example.org. 60 1 c0000201"]);
    let zones = read(&(SOA.to_string() + "a 9 A 192.0.2.1\na 7 A 192.0.2.2")).unwrap();
    let [zone] = zones.zones.as_slice() else { panic!("one zone") };
    let ttls: Vec<u32> = zone.records.iter().skip(2).map(|record| record.ttl).collect();
    assert_eq!(ttls, [7, 7]);
    assert_eq!(zone.warnings.len(), 1);
}

#[test]
fn failures_say_line_and_remedy() {
    fails("a A 192.0.2", "line 3: '192.0.2' is not an IPv4 address");
    fails("\n\na A", "line 5: the record ends where an IPv4 address is missing");
    fails("a A 192.0.2.1 x", "line 3: 'x' is more than the record needs: remove it");
    fails("a MX mail", "line 3: 'mail' is not a preference");
    fails("a TXT", "line 3: the record ends where a text is missing");
    fails(
        "a 99999999999 A 1",
        "line 3: '99999999999' is not a TTL: write seconds up to \
        2147483647, or like 1h30m",
    );
    fails("a CH A 192.0.2.1", "line 3: not implemented: class 'CH'; only IN is served");
    fails(
        "a DNSKEY 1",
        "line 3: not implemented: records of type 'DNSKEY'; write them as TYPEn \
        \\# LENGTH HEX",
    );
    fails(
        "a FOO 1",
        "line 3: 'FOO' is not a record type: write A, AAAA, NS, SOA, MX, TXT, CNAME, \
        SRV, PTR, CAA or TYPEn",
    );
    fails(
        "$INCLUDE x",
        "line 3: not implemented: the directive '$INCLUDE'; write out what it \
        stands for",
    );
    fails(
        "a.. A 192.0.2.1",
        "line 3: 'a..' is not a domain name: a name has no empty label: \
        remove the extra dot",
    );
    fails(
        "b.com. A 192.0.2.1",
        "line 3: 'b.com.' is not in the zone 'example.org.': move it to \
        its own zone's file",
    );
    fails(
        "a CNAME b\na TXT x",
        "line 4: 'a.example.org.' has a CNAME record and other data: keep \
        one or the other",
    );
    fails(
        "a CNAME b\na CNAME c",
        "line 4: 'a.example.org.' has a CNAME record and other data: \
        keep one or the other",
    );
    fails(
        "@ SOA a b 1 2 3 4 5",
        "line 3: the zone 'example.org.' is there twice: keep one SOA \
        record",
    );
    fails(
        "*.x NS y",
        "line 3: not implemented: the delegation of a wildcard, '*.x.example.org.' \
        with NS",
    );
    fails(
        "a TYPE15 \\# 3 000103",
        "line 3: '\\#' is not data of the record's type: write it in \
        the type's own form",
    );
    fails(
        "a TYPE1 \\# 5 c0000201",
        "line 3: the record ends where as much hexadecimal data as \
        the length says is missing",
    );
    fails("a ( A", "line 3: a parenthesis is not closed");
    let long = "x".repeat(256);
    fails(
        &alloc::format!("a TXT {long}"),
        "line 3: a string has at most 255 bytes: split it in \
        several quoted strings",
    );
    let error = read("a A 192.0.2.1").unwrap_err();
    assert_eq!(error.problem, Problem::NoTtl);
    let error = read("a 1 A 192.0.2.1").unwrap_err();
    assert!(matches!(error.problem, Problem::BeforeSoa(_)), "{error}");
    let error = read("  A 192.0.2.1").unwrap_err();
    assert_eq!(error.problem, Problem::NoOwner);
}
