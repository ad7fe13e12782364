//! Reads the data of records; says where names are in it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use crate::lexer::Token;
use crate::name::{Name, unescape, wire_len};
use crate::parser::{Problem, read_name, read_ttl, shown};
use crate::zone::Type;

/// Most bytes of a record's data: its length has two bytes.
const DATA_BYTES_MAX: usize = 65_535;

/// The words that are still to be read.
struct Words<'a> {
    left: &'a [Token<'a>],
    origin: Option<&'a Name>,
    to: Vec<u8>,
}

/// Reads the words after a record's type.
pub(crate) fn read(
    rtype: Type,
    words: &[Token<'_>],
    origin: Option<&Name>,
) -> Result<Box<[u8]>, Problem> {
    let mut words = Words { left: words, origin, to: Vec::new() };
    if words.left.first().is_some_and(|first| !first.quoted && first.text == b"\\#") {
        words.generic()?;
        check_generic(rtype, &words.to)?;
    } else {
        match rtype {
            Type::A => {
                let address: Ipv4Addr = words.parsed("an IPv4 address")?;
                words.to.extend_from_slice(&address.octets());
            }
            Type::AAAA => {
                let address: Ipv6Addr = words.parsed("an IPv6 address")?;
                words.to.extend_from_slice(&address.octets());
            }
            Type::NS | Type::CNAME | Type::PTR => words.name()?,
            Type::MX => {
                words.short("a preference")?;
                words.name()?;
            }
            Type::SRV => {
                words.short("a priority")?;
                words.short("a weight")?;
                words.short("a port")?;
                words.name()?;
            }
            Type::SOA => words.soa()?,
            Type::TXT => words.strings()?,
            Type::CAA => words.caa()?,
            _ => return Err(Problem::Missing("\\# and the data in hexadecimal")),
        }
    }
    if let Some(surplus) = words.left.first() {
        return Err(Problem::Surplus(shown(surplus.text)));
    }
    if words.to.len() > DATA_BYTES_MAX {
        return Err(Problem::DataTooLong);
    }
    Ok(words.to.into())
}

impl<'a> Words<'a> {
    fn next(&mut self, wanted: &'static str) -> Result<&'a Token<'a>, Problem> {
        let (first, rest) = self.left.split_first().ok_or(Problem::Missing(wanted))?;
        self.left = rest;
        Ok(first)
    }

    fn parsed<T: FromStr>(&mut self, wanted: &'static str) -> Result<T, Problem> {
        let token = self.next(wanted)?;
        core::str::from_utf8(token.text)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Problem::Field { text: shown(token.text), wanted })
    }

    fn short(&mut self, wanted: &'static str) -> Result<(), Problem> {
        let number: u16 = self.parsed(wanted)?;
        self.to.extend_from_slice(&number.to_be_bytes());
        Ok(())
    }

    fn name(&mut self) -> Result<(), Problem> {
        let name = read_name(self.next("a domain name")?, self.origin)?;
        self.to.extend_from_slice(name.wire());
        Ok(())
    }

    fn soa(&mut self) -> Result<(), Problem> {
        self.name()?;
        self.name()?;
        let serial: u32 = self.parsed("a serial number")?;
        self.to.extend_from_slice(&serial.to_be_bytes());
        for wanted in ["a refresh time", "a retry time", "an expiry time", "a negative TTL"] {
            let seconds = read_ttl(self.next(wanted)?.text)?;
            self.to.extend_from_slice(&seconds.to_be_bytes());
        }
        Ok(())
    }

    /// Unescapes a string to the end of `to`; answers its length.
    fn unescaped(&mut self, token: &Token<'_>) -> Result<usize, Problem> {
        let start = self.to.len();
        let mut left = token.text;
        while !left.is_empty() {
            let (byte, used) = unescape(left).ok_or_else(|| Problem::Field {
                text: shown(token.text),
                wanted: "a string: a backslash stands before one character or three digits",
            })?;
            self.to.push(byte);
            left = &left[used..];
        }
        Ok(self.to.len() - start)
    }

    fn string(&mut self, wanted: &'static str) -> Result<(), Problem> {
        let token = self.next(wanted)?;
        let at = self.to.len();
        self.to.push(0);
        let len = self.unescaped(token)?;
        self.to[at] = u8::try_from(len).map_err(|_| Problem::StringTooLong)?;
        Ok(())
    }

    fn strings(&mut self) -> Result<(), Problem> {
        self.string("a text")?;
        while !self.left.is_empty() {
            self.string("a text")?;
        }
        Ok(())
    }

    fn caa(&mut self) -> Result<(), Problem> {
        let flags: u8 = self.parsed("flags from 0 to 255")?;
        self.to.push(flags);
        let tag = self.next("a tag")?;
        let fits = !tag.text.is_empty() && tag.text.iter().all(u8::is_ascii_alphanumeric);
        let len = u8::try_from(tag.text.len()).ok().filter(|_| fits);
        let wanted = "a tag: letters and digits";
        let len = len.ok_or_else(|| Problem::Field { text: shown(tag.text), wanted })?;
        self.to.push(len);
        self.to.extend_from_slice(tag.text);
        let value = self.next("a value")?;
        self.unescaped(value)?;
        Ok(())
    }

    /// `\# LENGTH HEX...` (RFC 3597, section 5).
    fn generic(&mut self) -> Result<(), Problem> {
        self.next("\\#")?;
        let wanted = "a length up to 65535";
        let len: u16 = self.parsed(wanted)?;
        let mut high = None;
        while let Ok(token) = self.next("hexadecimal data") {
            for byte in token.text {
                let digit =
                    char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let wanted = "hexadecimal data";
                let digit =
                    digit.ok_or_else(|| Problem::Field { text: shown(token.text), wanted })?;
                match high.take() {
                    None => high = Some(digit << 4),
                    Some(high) => self.to.push(high | digit),
                }
            }
        }
        if high.is_some() || self.to.len() != usize::from(len) {
            return Err(Problem::Missing("as much hexadecimal data as the length says"));
        }
        Ok(())
    }
}

/// Data of a known type in generic form must still be well formed: names in it are compressed
/// later.
fn check_generic(rtype: Type, data: &[u8]) -> Result<(), Problem> {
    let fits = match rtype {
        Type::A => data.len() == 4,
        Type::AAAA => data.len() == 16,
        Type::TXT => strings_fit(data),
        Type::CAA => data.get(1).is_some_and(|len| *len > 0 && data.len() >= usize::from(*len) + 2),
        _ => match Layout::of(rtype) {
            None => true,
            Some(layout) => layout.fits(data),
        },
    };
    let wanted = "data of the record's type: write it in the type's own form";
    if fits { Ok(()) } else { Err(Problem::Field { text: "\\#".into(), wanted }) }
}

fn strings_fit(mut data: &[u8]) -> bool {
    if data.is_empty() {
        return false;
    }
    while let [len, rest @ ..] = data {
        let Some(rest) = rest.get(usize::from(*len)..) else { return false };
        data = rest;
    }
    true
}

/// Where names are in a record's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes before the first name.
    pub before: usize,
    /// Names, one after the other.
    pub names: usize,
    /// Bytes after the last name.
    pub after: usize,
    /// Whether they may be compressed (RFC 3597, section 4).
    pub compress: bool,
}

impl Layout {
    /// Nothing: no names.
    pub(crate) fn of(rtype: Type) -> Option<Self> {
        let (before, names, after, compress) = match rtype {
            Type::NS | Type::CNAME | Type::PTR => (0, 1, 0, true),
            Type::MX => (2, 1, 0, true),
            Type::SOA => (0, 2, 20, true),
            Type::SRV => (6, 1, 0, false),
            _ => return None,
        };
        Some(Self { before, names, after, compress })
    }

    fn fits(self, data: &[u8]) -> bool {
        let mut at = self.before;
        for _ in 0..self.names {
            let Some(len) = data.get(at..).and_then(wire_len) else { return false };
            at += len;
        }
        data.len() == at + self.after
    }
}

/// The name in the data of NS, CNAME, PTR, MX and SRV.
pub(crate) fn target(rtype: Type, data: &[u8]) -> Option<Name> {
    let layout = Layout::of(rtype)?;
    let from = data.get(layout.before..)?;
    let len = wire_len(from)?;
    Some(Name::from_wire(&from[..len]))
}

/// The last number of a SOA record.
pub(crate) fn soa_minimum(data: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*data.last_chunk()?))
}
