//! Reads the head of a request: request line and fields (RFC 9112, sections 2 to 6).

use core::net::SocketAddrV4;
use core::ops::Range;

use super::{Limits, Status};

/// Longest method that can mean anything; longer ones are answered as unknown.
const METHOD_BYTES_MAX: usize = 20;
/// Most fields of a head, whatever the limits allow: they are read on the stack.
pub(super) const FIELDS_ROOM: usize = 128;
/// Empty lines that are taken before a request line (RFC 9112, section 2.2).
const EMPTY_LINES_MAX: usize = 2;

/// Minor version of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1 or later.
    Http11,
}

/// How a request's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// A request's head. Nothing is copied: it borrows from what was read.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// In upper and lower case as it came.
    pub method: &'a str,
    /// The target without scheme and authority: path and query, or `*`. Visible ASCII.
    pub target: &'a str,
    /// The client's version.
    pub version: Version,
    /// The client's address.
    pub peer: SocketAddrV4,
    /// The own address that it reached.
    pub local: SocketAddrV4,
    /// All field lines, each with its line end; checked.
    fields: &'a [u8],
    pub(crate) framing: Framing,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
}

/// What became of looking for a head.
#[derive(Debug)]
pub(crate) enum Scan {
    /// More bytes are needed.
    Incomplete,
    /// To be answered with this, and the connection closed.
    Bad(Status),
    /// It is there.
    Head(Range<usize>),
}

impl<'a> Request<'a> {
    /// All fields in their order: name and value without blanks around.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        Fields(self.fields)
    }

    /// The value of the only field with this name; nothing if there is none, or more than one.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The values of all fields with this name.
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        Fields(self.fields)
            .filter(move |(other, _)| other.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The target up to the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// Goes through checked field lines.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let end = line_end(self.0)?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 2..];
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    }
}

/// Where the next CRLF begins.
fn line_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == b'\r')?;
        if *bytes.get(at + 1)? == b'\n' {
            return Some(at);
        }
        at += 1;
    }
}

/// Where the head in `bytes` ends, the empty line included. `from` was looked at before.
pub(crate) fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(3);
    let mut at = start;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == b'\n')?;
        let line = &bytes[..=at];
        // A bare line feed ends heads, too, to be refused at once and not after a timeout.
        if line.ends_with(b"\r\n\r\n") || line.ends_with(b"\n\n") {
            return Some(at + 1);
        }
        at += 1;
    }
}

/// For fuzzing and tests: whether the bytes begin with a head that is accepted, and its size.
#[must_use]
pub fn parse(bytes: &[u8], limits: &Limits) -> Option<usize> {
    let nobody = SocketAddrV4::new(core::net::Ipv4Addr::UNSPECIFIED, 0);
    let Scan::Head(place) = scan(bytes, 0, limits) else { return None };
    let request = read(&bytes[place.clone()], limits, nobody, nobody).ok()?;
    assert!(request.fields().count() <= limits.fields_max && place.end <= bytes.len());
    Some(place.end)
}

/// Looks for a head at the beginning of `bytes`; `looked_at` of them held no end before.
pub(crate) fn scan(bytes: &[u8], looked_at: usize, limits: &Limits) -> Scan {
    let mut skipped = 0;
    while bytes[skipped..].starts_with(b"\r\n") {
        skipped += 2;
        if skipped > 2 * EMPTY_LINES_MAX {
            return Scan::Bad(Status::BAD_REQUEST);
        }
    }
    let rest = &bytes[skipped..];
    let end = end_of_head(rest, looked_at.saturating_sub(skipped));
    if end.unwrap_or(rest.len()) > limits.head_bytes_max {
        let has_line = rest[..limits.head_bytes_max].contains(&b'\n');
        let status = if has_line { Status::FIELDS_TOO_LARGE } else { Status::URI_TOO_LONG };
        return Scan::Bad(status);
    }
    end.map_or(Scan::Incomplete, |end| Scan::Head(skipped..skipped + end))
}

/// Reads a head that [`scan`] found.
pub(crate) fn read<'a>(
    head: &'a [u8],
    limits: &Limits,
    peer: SocketAddrV4,
    local: SocketAddrV4,
) -> Result<Request<'a>, Status> {
    // The parser takes bare line feeds (RFC 9112, section 2.2: it may); smuggling is made of them.
    let all = head.strip_suffix(b"\r\n").ok_or(Status::BAD_REQUEST)?;
    let bare = |at: usize| all[at] == b'\n' && (at == 0 || all[at - 1] != b'\r');
    if (0..all.len()).any(bare) {
        return Err(Status::BAD_REQUEST);
    }
    let end = line_end(all).ok_or(Status::BAD_REQUEST)?;
    let mut room = [httparse::EMPTY_HEADER; FIELDS_ROOM];
    let mut parsed = httparse::Request::new(&mut room[..limits.fields_max.min(FIELDS_ROOM)]);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Status::FIELDS_TOO_LARGE),
        Err(httparse::Error::Version) if is_other_version(&all[..end]) => {
            return Err(Status::VERSION_NOT_SUPPORTED);
        }
        _ => return Err(Status::BAD_REQUEST),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Status::BAD_REQUEST);
    };
    if method.len() > METHOD_BYTES_MAX || method == "CONNECT" {
        return Err(Status::NOT_IMPLEMENTED);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let mut request = Request {
        method,
        target: origin(method, target)?,
        version,
        peer,
        local,
        fields: &all[end + 2..],
        framing: Framing::None,
        keep_alive: version == Version::Http11,
        expects_continue: false,
    };
    check_fields(&mut request, limits, parsed.headers)?;
    Ok(request)
}

/// Whether a request line ends with a version of HTTP, and not with something else.
fn is_other_version(line: &[u8]) -> bool {
    line.rsplit(|byte| *byte == b' ').next().is_some_and(|word| word.starts_with(b"HTTP/"))
}

/// Path and query of a target in any of its forms (RFC 9112, section 3.2).
fn origin<'a>(method: &str, target: &'a str) -> Result<&'a str, Status> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(target);
    }
    let Some((start, rest)) = target.split_at_checked(7) else { return Err(Status::BAD_REQUEST) };
    if !start.eq_ignore_ascii_case("http://") {
        return Err(Status::BAD_REQUEST);
    }
    match rest.find(['/', '?']) {
        Some(0) => Err(Status::BAD_REQUEST),
        Some(at) if rest[at..].starts_with('/') => Ok(&rest[at..]),
        // A query without a path: nothing here needs it.
        Some(_) => Ok("/"),
        None if rest.is_empty() => Err(Status::BAD_REQUEST),
        None => Ok("/"),
    }
}

/// Checks every field line, and reads those that say where the request ends.
fn check_fields(
    request: &mut Request<'_>,
    limits: &Limits,
    fields: &[httparse::Header<'_>],
) -> Result<(), Status> {
    let (mut hosts, mut length, mut chunked) = (0, None, false);
    for field in fields {
        let (name, value) = (field.name.as_bytes(), field.value.trim_ascii());
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                check_host(value)?;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Status::EXPECTATION_FAILED);
                }
                request.expects_continue = request.version == Version::Http11;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection_options(request, value);
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                // A second one, even the same, is what smuggling is made of.
                let first = length.replace(read_length(value)?);
                first.is_none().then_some(()).ok_or(Status::BAD_REQUEST)?;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || request.version == Version::Http10 {
                    return Err(Status::BAD_REQUEST);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Status::NOT_IMPLEMENTED);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && request.version == Version::Http11) {
        return Err(Status::BAD_REQUEST);
    }
    request.framing = match (length, chunked) {
        (Some(_), true) => return Err(Status::BAD_REQUEST),
        (None, true) => Framing::Chunked,
        (Some(0) | None, false) => Framing::None,
        (Some(length), false) => Framing::Length(length),
    };
    if length.is_some_and(|length| length > limits.body_bytes_max) {
        return Err(Status::CONTENT_TOO_LARGE);
    }
    Ok(())
}

/// A host has no blanks, no path and no user (RFC 9110, section 7.2). It may be empty.
fn check_host(value: &[u8]) -> Result<(), Status> {
    let fits = |byte: &u8| byte.is_ascii_graphic() && !b"/@\\,?#<>\"{}|^`".contains(byte);
    if value.iter().all(fits) { Ok(()) } else { Err(Status::BAD_REQUEST) }
}

fn connection_options(request: &mut Request<'_>, value: &[u8]) {
    for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if option.eq_ignore_ascii_case(b"close") {
            request.keep_alive = false;
            return;
        }
        if option.eq_ignore_ascii_case(b"keep-alive") {
            request.keep_alive = true;
        }
    }
}

/// Digits only, and few enough.
fn read_length(value: &[u8]) -> Result<u64, Status> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Status::BAD_REQUEST);
    }
    let mut length = 0_u64;
    for digit in value {
        let more = length.checked_mul(10).and_then(|l| l.checked_add(u64::from(digit - b'0')));
        length = more.ok_or(Status::CONTENT_TOO_LARGE)?;
    }
    Ok(length)
}
