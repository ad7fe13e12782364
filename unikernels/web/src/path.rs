//! From a request's path to the path of a file.

use alloc::string::String;
use alloc::vec::Vec;

/// Why a path means no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPath;

/// Decodes and normalises an absolute path without its query: percent signs, `.` and `..`, repeated
/// slashes. The result begins with a slash and has no `.` or `..` in it.
///
/// # Errors
/// It leads above the root, has a broken percent sign, or a slash, backslash, zero or control
/// character hidden behind one.
pub fn normalise(path: &str) -> Result<String, BadPath> {
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let rest = path.strip_prefix('/').ok_or(BadPath)?;
    let mut is_folder = true;
    for raw in rest.split('/') {
        let segment = decode(raw.as_bytes())?;
        is_folder = false;
        match segment.as_slice() {
            b"" | b"." => is_folder = true,
            b".." => {
                segments.pop().ok_or(BadPath)?;
                is_folder = true;
            }
            _ => segments.push(segment),
        }
    }
    let mut to = Vec::with_capacity(path.len());
    for segment in &segments {
        to.push(b'/');
        to.extend_from_slice(segment);
    }
    if is_folder {
        to.push(b'/');
    }
    String::from_utf8(to).map_err(|_| BadPath)
}

/// Whether [`normalise`] would answer the path itself: then it need not be asked.
#[must_use]
pub fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.first() == Some(&b'/')
        && !bytes.contains(&b'%')
        && !bytes.contains(&b'\\')
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

fn decode(raw: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut to = Vec::with_capacity(raw.len());
    let mut left = raw;
    loop {
        match left {
            [] => return Ok(to),
            [b'%', high, low, rest @ ..] => {
                let byte = digit(*high)? << 4 | digit(*low)?;
                if byte < b' ' || matches!(byte, b'/' | b'\\' | 0x7f) {
                    return Err(BadPath);
                }
                to.push(byte);
                left = rest;
            }
            [b'%' | b'\\', ..] => return Err(BadPath),
            [byte, rest @ ..] => {
                to.push(*byte);
                left = rest;
            }
        }
    }
}

fn digit(byte: u8) -> Result<u8, BadPath> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(BadPath),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_never_escape() {
        let cases: &[(&str, Option<&str>)] = &[
            ("/", Some("/")),
            ("/a", Some("/a")),
            ("/a/", Some("/a/")),
            ("//a///b", Some("/a/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/..", Some("/")),
            ("/a/.", Some("/a/")),
            ("/%61%20b", Some("/a b")),
            ("/%c3%a4", Some("/\u{e4}")),
            ("/..a", Some("/..a")),
            ("/..", None),
            ("/a/../../b", None),
            ("/%2e%2e/b", None),
            ("/a/%2E./b", Some("/b")),
            ("/%2e%2e%2fetc", None),
            ("/a%5cb", None),
            ("/a\\..\\b", None),
            ("/a%00", None),
            ("/a%0d%0a", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%ff", None),
            ("a", None),
            ("", None),
            ("*", None),
        ];
        for (path, expected) in cases {
            let found = normalise(path);
            assert_eq!(found.as_deref().ok(), *expected, "{path}");
            if is_normal(path) {
                assert_eq!(found.as_deref(), Ok(*path));
            }
        }
        assert!(is_normal("/a/b.html") && !is_normal("/a/../b") && !is_normal("/%61"));
    }
}
