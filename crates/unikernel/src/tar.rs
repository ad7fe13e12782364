//! Tar archives in memory (POSIX ustar, with the long names of pax and GNU), read where they lie.
//!
//! Lenient in what does not matter here (owners, checksums of headers are not looked at), strict in
//! what does: nothing is read outside of the archive, and an entry that does not fit ends it.

use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of a header, and what contents are padded to.
const BLOCK: usize = 512;
/// Longest path; longer ones are left out.
const PATH_MAX: usize = 4096;

/// A regular file or a directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// Relative to the archive's root, without a slash at its ends.
    pub(crate) path: String,
    /// Content; empty for a directory.
    pub(crate) data: &'a [u8],
    /// Seconds since 1970-01-01T00:00:00Z.
    pub(crate) modified: u64,
    pub(crate) is_directory: bool,
}

/// The entries of an archive, in its order. Links and devices are left out.
pub(crate) struct Entries<'a> {
    rest: &'a [u8],
}

/// Reads `archive`.
pub(crate) const fn entries(archive: &[u8]) -> Entries<'_> {
    Entries { rest: archive }
}

/// The text of a field, up to its first zero.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number in octal digits, or in GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let value = field.iter().fold(0_u128, |value, byte| (value << 8) | u128::from(*byte));
        let bits = field.len() as u32 * 8 - 1;
        return u64::try_from(value & ((1 << bits) - 1)).ok();
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// The value of `path` in the records of a pax header: `LENGTH KEY=VALUE\n` each.
fn pax_path(mut records: &[u8]) -> Option<&[u8]> {
    let mut found = None;
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let len: usize = core::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..len)?.strip_suffix(b"\n")?;
        if let Some(path) = record.strip_prefix(b"path=") {
            found = Some(path);
        }
        records = &records[len..];
    }
    found
}

/// A path in its one form: no empty parts, no dots. `None`: it would lead outside, or is no text.
pub(crate) fn clean(path: &str) -> Option<String> {
    if path.len() > PATH_MAX {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl<'a> Entries<'a> {
    /// The next header and its content.
    fn block(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let header = self.rest.get(..BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return None;
        }
        let len = usize::try_from(number(&header[124..136])?).ok()?;
        let data = self.rest.get(BLOCK..BLOCK.checked_add(len)?)?;
        let padded = len.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK)?;
        // The last content may lack its padding.
        self.rest = self.rest.get(padded..).unwrap_or_default();
        Some((header, data))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let mut long: Option<&[u8]> = None;
        loop {
            let (header, data) = self.block()?;
            let kind = header[156];
            match kind {
                b'L' => long = Some(text(data)),
                b'x' => long = pax_path(data).or(long),
                b'0' | 0 | b'7' | b'5' => {
                    let path = match long.take() {
                        Some(path) => path.to_vec(),
                        None => short_path(header),
                    };
                    let path = core::str::from_utf8(&path).ok().and_then(clean);
                    let Some(path) = path.filter(|path| !path.is_empty()) else { continue };
                    let is_directory = kind == b'5';
                    let data = if is_directory { &[] } else { data };
                    let modified = number(&header[136..148]).unwrap_or(0);
                    return Some(Entry { path, data, modified, is_directory });
                }
                _ => long = None,
            }
        }
    }
}

fn short_path(header: &[u8]) -> Vec<u8> {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    // GNU uses the same place for other things.
    let has_prefix = &header[257..263] == b"ustar\0" && !prefix.is_empty();
    if has_prefix { [prefix, b"/", name].concat() } else { name.to_vec() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An archive as `tar` writes it.
    fn archive(files: &[(&str, u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, data) in files {
            let mut header = [0; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(alloc::format!("{:011o}", data.len()).as_bytes());
            header[136..147].copy_from_slice(b"14000000000");
            header[156] = *kind;
            header[257..263].copy_from_slice(b"ustar\0");
            out.extend(header);
            out.extend(*data);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    fn paths(bytes: &[u8]) -> Vec<String> {
        entries(bytes).map(|entry| entry.path).collect()
    }

    #[test]
    fn files_and_directories_are_found() {
        let bytes = archive(&[("./", b'5', b""), ("./a/", b'5', b""), ("./a/b", b'0', b"hello")]);
        let found: Vec<_> = entries(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].path.as_str(), found[0].is_directory), ("a", true));
        assert_eq!((found[1].path.as_str(), found[1].data), ("a/b", &b"hello"[..]));
        assert_eq!(found[1].modified, 0o14_000_000_000);
    }

    #[test]
    fn long_names_of_pax_and_gnu_are_understood() {
        let long = "d/".repeat(90) + "file";
        let record = alloc::format!(" path={long}\n");
        let pax = alloc::format!("{}{record}", record.len() + 3);
        let files: &[(&str, u8, &[u8])] =
            &[("x", b'x', pax.as_bytes()), ("short", b'0', b"1"), ("y", b'0', b"2")];
        assert_eq!(paths(&archive(files)), [long.clone(), "y".into()]);
        let gnu = alloc::format!("{long}\0");
        let files: &[(&str, u8, &[u8])] = &[("x", b'L', gnu.as_bytes()), ("short", b'0', b"1")];
        assert_eq!(paths(&archive(files)), [long]);
    }

    #[test]
    fn nothing_leads_outside() {
        let files: &[(&str, u8, &[u8])] =
            &[("../x", b'0', b""), ("a/../../x", b'0', b""), ("/abs", b'0', b""), ("l", b'2', b"")];
        assert_eq!(paths(&archive(files)), ["abs"]);
        assert_eq!(clean("a//b/./c/../d"), Some("a/b/d".into()));
        assert_eq!(clean(".."), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(entries(&bytes).count() <= bytes.len() / BLOCK);
            if bytes.len() > BLOCK {
                bytes[124..136].copy_from_slice(b"00000000100\0");
                bytes[156] = b'0';
                prop_assert!(entries(&bytes).count() <= bytes.len() / BLOCK);
            }
        }
    }
}
