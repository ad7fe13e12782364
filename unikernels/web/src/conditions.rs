//! Whether a request's conditions hold (RFC 9110, section 13).

use unikernel::http::{Request, date};

/// What the conditions of a request for a file come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as without them.
    Go,
    /// The client has it: 304.
    NotModified,
    /// It is not what the client thinks: 412.
    Failed,
}

/// Decides in the order of RFC 9110, section 13.2.2. `etag` is the file's entity tag with its
/// quotes, strong; `modified` when it last changed, in seconds since 1970, if that is known.
#[must_use]
pub fn verdict(request: &Request<'_>, etag: &[u8], modified: Option<u64>) -> Verdict {
    let mut tags = request.all("if-match").peekable();
    if tags.peek().is_some() {
        if !tags.any(|list| matches_any(list, etag, false)) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) = (moment(request, "if-unmodified-since"), modified)
        && modified > since
    {
        return Verdict::Failed;
    }
    let mut tags = request.all("if-none-match").peekable();
    if tags.peek().is_some() {
        if tags.any(|list| matches_any(list, etag, true)) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (moment(request, "if-modified-since"), modified)
        && modified <= since
    {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// Whether a range may be served: without `If-Range`, or with one that names the very same file.
#[must_use]
pub fn range_holds(request: &Request<'_>, etag: &[u8], modified: Option<u64>) -> bool {
    let mut values = request.all("if-range");
    match (values.next(), values.next()) {
        (None, _) => true,
        (Some(value), None) if value.starts_with(b"\"") => value == etag,
        // Dates must be the same, not only later (RFC 9110, section 13.1.5).
        (Some(value), None) => modified.is_some() && date::parse(value) == modified,
        (Some(_), Some(_)) => false,
    }
}

fn moment(request: &Request<'_>, name: &str) -> Option<u64> {
    date::parse(request.field(name)?)
}

/// Whether a list of entity tags has `etag` in it, or is `*`. A weak comparison takes weak tags,
/// too.
fn matches_any(list: &[u8], etag: &[u8], weak: bool) -> bool {
    if list == b"*" {
        return true;
    }
    let mut left = list.trim_ascii();
    loop {
        let (is_weak, rest) = match left.strip_prefix(b"W/") {
            Some(rest) => (true, rest),
            None => (false, left),
        };
        // A comma may be inside of the quotes.
        let Some(inside) = rest.strip_prefix(b"\"") else { return false };
        let Some(end) = inside.iter().position(|byte| *byte == b'"') else { return false };
        if rest[..end + 2] == *etag && (weak || !is_weak) {
            return true;
        }
        left = rest[end + 2..].trim_ascii_start();
        match left.strip_prefix(b",") {
            Some(rest) => left = rest.trim_ascii_start(),
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared() {
        let cases: [(&str, bool, bool); 9] = [
            ("\"a\"", true, true),
            ("W/\"a\"", false, true),
            ("*", true, true),
            ("\"b\", \"a\"", true, true),
            ("\"b,\\\", \"a\"", true, true),
            ("\"b\",W/\"a\"", false, true),
            ("\"b\"", false, false),
            ("a", false, false),
            ("\"a", false, false),
        ];
        for (list, strong, weak) in cases {
            assert_eq!(matches_any(list.as_bytes(), b"\"a\"", false), strong, "{list}");
            assert_eq!(matches_any(list.as_bytes(), b"\"a\"", true), weak, "{list}");
        }
    }
}
