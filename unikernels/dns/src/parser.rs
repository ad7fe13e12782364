//! Reads zone files: the master file format of RFC 1035, section 5, with `$TTL` (RFC 2308), TTLs
//! with units, and records of any type as `TYPE65280 \# 2 abcd` (RFC 3597).
//!
//! One file may hold several zones: each SOA record begins one.

use alloc::string::String;
use alloc::vec::Vec;

use crate::lexer::{Entry, Lexer, Token};
use crate::name::{Name, NameError};
use crate::rdata;
use crate::zone::{Record, Type, Zone, ZoneSet};

/// Largest TTL in seconds (RFC 2181, section 8).
pub const TTL_MAX: u32 = 0x7fff_ffff;

/// What is wrong in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a zone file. Each says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// `(` without `)`.
    #[error("a parenthesis is not closed")]
    Unclosed,
    /// `)` without `(`.
    #[error("a parenthesis is closed that is not open")]
    Unopened,
    /// `"` without another.
    #[error("a quoted string does not end in its line")]
    Unquoted,
    /// Not a name.
    #[error("'{text}' is not a domain name: {reason}")]
    Name {
        /// As written.
        text: String,
        /// Why.
        reason: NameError,
    },
    /// A blank first column, but nothing above.
    #[error("there is no record above whose owner this one could have: write the owner")]
    NoOwner,
    /// No type after the owner.
    #[error("the record has no type: write 'OWNER [TTL] [IN] TYPE DATA'")]
    NoType,
    /// Neither TTL, class nor type.
    #[error(
        "'{0}' is not a record type: write A, AAAA, NS, SOA, MX, TXT, CNAME, SRV, PTR, CAA \
             or TYPEn"
    )]
    UnknownType(String),
    /// A type that this server does not read.
    #[error("not implemented: records of type '{0}'; write them as TYPEn \\# LENGTH HEX")]
    TypeNotImplemented(String),
    /// A directive that this server does not read.
    #[error("not implemented: the directive '{0}'; write out what it stands for")]
    DirectiveNotImplemented(String),
    /// CH or HS.
    #[error("not implemented: class '{0}'; only IN is served")]
    ClassNotImplemented(String),
    /// Not a time.
    #[error("'{0}' is not a TTL: write seconds up to 2147483647, or like 1h30m")]
    Ttl(String),
    /// No TTL anywhere.
    #[error("the record has no TTL: write one, or '$TTL SECONDS' before it")]
    NoTtl,
    /// Not what the type needs here.
    #[error("'{text}' is not {wanted}")]
    Field {
        /// As written.
        text: String,
        /// What is.
        wanted: &'static str,
    },
    /// Something is missing at the end.
    #[error("the record ends where {0} is missing")]
    Missing(&'static str),
    /// Something too much at the end.
    #[error("'{0}' is more than the record needs: remove it")]
    Surplus(String),
    /// A string that does not fit into its length byte.
    #[error("a string has at most 255 bytes: split it in several quoted strings")]
    StringTooLong,
    /// Longer than 65,535 bytes.
    #[error("the record's data has more than 65535 bytes")]
    DataTooLong,
    /// A record before the first SOA.
    #[error("'{0}' comes before the SOA record of its zone: move the SOA to the top")]
    BeforeSoa(Name),
    /// Not below the zone's name.
    #[error("'{owner}' is not in the zone '{apex}': move it to its own zone's file")]
    OutOfZone {
        /// The record's name.
        owner: Name,
        /// The zone's name.
        apex: Name,
    },
    /// Two SOA records.
    #[error("the zone '{0}' is there twice: keep one SOA record")]
    TwoZones(Name),
    /// CNAME and something else.
    #[error("'{0}' has a CNAME record and other data: keep one or the other")]
    CnameAndOther(Name),
    /// NS at `*`.
    #[error("not implemented: the delegation of a wildcard, '{0}' with NS")]
    WildcardCut(Name),
}

/// As much of a text as a message shows; it is marked where it was cut.
pub(crate) fn shown(text: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 100;
    let mut cut = String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES_MAX)]).into_owned();
    if text.len() > SHOWN_BYTES_MAX {
        cut.push_str("...");
    }
    cut
}

/// What holds from one entry to the next.
struct Context {
    origin: Option<Name>,
    owner: Option<Name>,
    /// By `$TTL`.
    default_ttl: Option<u32>,
    /// Of the record before.
    last_ttl: Option<u32>,
}

/// Reads the zones of one file into `zones`. Relative names before the first `$ORIGIN` are relative
/// to `origin`, if it is given.
///
/// # Errors
/// The first thing that is wrong, with its line. `zones` is then not usable.
pub fn parse(text: &[u8], origin: Option<&Name>, zones: &mut ZoneSet) -> Result<(), ParseError> {
    let mut lexer = Lexer::new(text);
    let mut entry = Entry::default();
    let mut context =
        Context { origin: origin.cloned(), owner: None, default_ttl: None, last_ttl: None };
    let first = zones.zones.len();
    loop {
        match lexer.next(&mut entry) {
            Ok(true) => {}
            Ok(false) => break,
            Err(problem) => return Err(ParseError { line: lexer.line(), problem }),
        }
        let read = read_entry(&entry, &mut context).and_then(|record| match record {
            Some(record) => add(zones, first, record, entry.line),
            None => Ok(()),
        });
        read.map_err(|problem| ParseError { line: entry.line, problem })?;
    }
    for zone in &mut zones.zones[first..] {
        zone.finish().map_err(|(line, problem)| ParseError { line, problem })?;
    }
    Ok(())
}

/// Puts a record into its zone: the last one that encloses it.
fn add(zones: &mut ZoneSet, first: usize, record: Record, line: u32) -> Result<(), Problem> {
    if record.rtype == Type::SOA {
        if zones.zones.iter().any(|zone| zone.apex.key() == record.owner.key()) {
            return Err(Problem::TwoZones(record.owner));
        }
        zones.zones.push(Zone::new(record.owner.clone()));
    }
    let here = &mut zones.zones[first..];
    let Some(last) = here.last() else { return Err(Problem::BeforeSoa(record.owner)) };
    let apex = last.apex.clone();
    match here.iter_mut().rev().find(|zone| record.owner.is_at_or_below(&zone.apex)) {
        Some(zone) => {
            zone.push(record, line);
            Ok(())
        }
        None => Err(Problem::OutOfZone { owner: record.owner, apex }),
    }
}

/// Follows a directive, or reads a record.
fn read_entry(entry: &Entry<'_>, context: &mut Context) -> Result<Option<Record>, Problem> {
    let [first, rest @ ..] = entry.tokens.as_slice() else { return Ok(None) };
    if !first.quoted && first.text.starts_with(b"$") && !entry.indented {
        directive(first, rest, context)?;
        return Ok(None);
    }
    let mut left = entry.tokens.as_slice();
    if entry.indented {
        if context.owner.is_none() {
            return Err(Problem::NoOwner);
        }
    } else {
        context.owner = Some(read_name(first, context.origin.as_ref())?);
        left = rest;
    }
    let owner = context.owner.clone().ok_or(Problem::NoOwner)?;

    let mut ttl = None;
    let mut class_seen = false;
    let rtype = loop {
        let [token, rest @ ..] = left else { return Err(Problem::NoType) };
        left = rest;
        if ttl.is_none() && token.text.first().is_some_and(u8::is_ascii_digit) {
            ttl = Some(read_ttl(token.text)?);
        } else if !class_seen && is_class(token.text)? {
            class_seen = true;
        } else {
            break read_type(token.text)?;
        }
    };
    let data = rdata::read(rtype, left, context.origin.as_ref())?;
    let ttl = ttl.or(context.default_ttl).or(context.last_ttl);
    // RFC 1035 knows no TTL for the first record; every server takes the SOA's own minimum then.
    let soa_minimum = || (rtype == Type::SOA).then(|| rdata::soa_minimum(&data)).flatten();
    let ttl = ttl.or_else(soa_minimum).ok_or(Problem::NoTtl)?;
    context.last_ttl = Some(ttl);
    Ok(Some(Record { key: owner.key(), owner, rtype, ttl, data }))
}

fn directive(word: &Token<'_>, rest: &[Token<'_>], context: &mut Context) -> Result<(), Problem> {
    let wanted = if word.text.eq_ignore_ascii_case(b"$ORIGIN") {
        "a domain name"
    } else if word.text.eq_ignore_ascii_case(b"$TTL") {
        "a TTL"
    } else {
        return Err(Problem::DirectiveNotImplemented(shown(word.text)));
    };
    let [value, surplus @ ..] = rest else { return Err(Problem::Missing(wanted)) };
    if let Some(surplus) = surplus.first() {
        return Err(Problem::Surplus(shown(surplus.text)));
    }
    if wanted == "a TTL" {
        context.default_ttl = Some(read_ttl(value.text)?);
    } else {
        context.origin = Some(read_name(value, context.origin.as_ref())?);
    }
    Ok(())
}

/// Reads a domain name.
pub(crate) fn read_name(token: &Token<'_>, origin: Option<&Name>) -> Result<Name, Problem> {
    if token.text.is_empty() {
        return Err(Problem::Name { text: String::new(), reason: NameError::EmptyLabel });
    }
    Name::parse(token.text, origin)
        .map_err(|reason| Problem::Name { text: shown(token.text), reason })
}

/// Reads seconds, or a time with units (`1w2d3h4m5s`).
pub(crate) fn read_ttl(text: &[u8]) -> Result<u32, Problem> {
    let bad = || Problem::Ttl(shown(text));
    let mut total = 0_u64;
    let mut number = None;
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                let so_far: u64 = number.unwrap_or(0);
                number = Some(so_far * 10 + u64::from(byte - b'0'));
            }
            unit => {
                let seconds = match unit.to_ascii_lowercase() {
                    b's' => 1,
                    b'm' => 60,
                    b'h' => 3600,
                    b'd' => 86_400,
                    b'w' => 604_800,
                    _ => return Err(bad()),
                };
                total += number.take().ok_or_else(bad)? * seconds;
            }
        }
        if number.is_some_and(|number| number > u64::from(TTL_MAX)) || total > u64::from(TTL_MAX) {
            return Err(bad());
        }
    }
    if text.is_empty() {
        return Err(bad());
    }
    let total = total + number.unwrap_or(0);
    u32::try_from(total).ok().filter(|total| *total <= TTL_MAX).ok_or_else(bad)
}

fn is_class(text: &[u8]) -> Result<bool, Problem> {
    if text.eq_ignore_ascii_case(b"IN") || text.eq_ignore_ascii_case(b"CLASS1") {
        return Ok(true);
    }
    let others: [&[u8]; 3] = [b"CH", b"HS", b"CS"];
    if others.iter().any(|other| text.eq_ignore_ascii_case(other)) {
        return Err(Problem::ClassNotImplemented(shown(text)));
    }
    Ok(false)
}

/// Types that are known by name only: their data is not read.
const OTHER_TYPES: &[&str] = &[
    "AFSDB",
    "APL",
    "CDNSKEY",
    "CDS",
    "CERT",
    "CSYNC",
    "DHCID",
    "DNAME",
    "DNSKEY",
    "DS",
    "EUI48",
    "EUI64",
    "HINFO",
    "HIP",
    "HTTPS",
    "IPSECKEY",
    "KEY",
    "KX",
    "LOC",
    "MINFO",
    "NAPTR",
    "NSEC",
    "NSEC3",
    "NSEC3PARAM",
    "OPENPGPKEY",
    "RP",
    "RRSIG",
    "SIG",
    "SMIMEA",
    "SPF",
    "SSHFP",
    "SVCB",
    "TKEY",
    "TLSA",
    "URI",
    "ZONEMD",
];

fn read_type(text: &[u8]) -> Result<Type, Problem> {
    if let Some(found) = Type::from_name(text) {
        return Ok(found);
    }
    if OTHER_TYPES.iter().any(|other| text.eq_ignore_ascii_case(other.as_bytes())) {
        return Err(Problem::TypeNotImplemented(shown(text)));
    }
    Err(Problem::UnknownType(shown(text)))
}

/// Reads every file of `files`, each a name and a text, into one set.
///
/// # Errors
/// The name of the first file that is wrong, and what is wrong there.
pub fn parse_all<'a>(
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<ZoneSet, (&'a str, ParseError)> {
    let mut zones = ZoneSet { zones: Vec::new() };
    for (path, text) in files {
        parse(text, None, &mut zones).map_err(|error| (path, error))?;
    }
    Ok(zones)
}

#[cfg(test)]
#[path = "parser/tests.rs"]
mod tests;
