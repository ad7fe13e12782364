//! Which bytes of a file a client wants (RFC 9110, section 14).

use alloc::vec::Vec;
use core::ops::Range;

/// Ranges that are answered in one answer; who asks for more gets the whole file.
pub const RANGES_MAX: usize = 8;

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: nothing else was asked for, or not understandably.
    All,
    /// These parts, in the order in which they were asked for; none overlaps another.
    Parts(Vec<Range<u64>>),
    /// Nothing of what was asked for exists.
    Nothing,
}

/// Reads the field `Range` for a file of `length` bytes. What is malformed counts as not there.
#[must_use]
pub fn wanted(field: &[u8], length: u64) -> Wanted {
    let Some(list) = core::str::from_utf8(field).ok().and_then(|text| {
        let (unit, list) = text.split_once('=')?;
        unit.trim_ascii().eq_ignore_ascii_case("bytes").then_some(list)
    }) else {
        return Wanted::All;
    };
    let mut parts: Vec<Range<u64>> = Vec::new();
    for (count, one) in
        list.split(',').map(str::trim_ascii).filter(|one| !one.is_empty()).enumerate()
    {
        if count == RANGES_MAX {
            return Wanted::All;
        }
        match part(one, length) {
            Err(()) => return Wanted::All,
            Ok(None) => {}
            // Overlaps are a way to have more sent than there is.
            Ok(Some(new)) if parts.iter().any(|old| new.start < old.end && old.start < new.end) => {
                return Wanted::All;
            }
            Ok(Some(new)) => parts.push(new),
        }
    }
    match parts.as_slice() {
        [] if list.trim_ascii().is_empty() => Wanted::All,
        [] => Wanted::Nothing,
        [one] if *one == (0..length) => Wanted::All,
        _ => Wanted::Parts(parts),
    }
}

/// One range; nothing if the file has none of it.
fn part(text: &str, length: u64) -> Result<Option<Range<u64>>, ()> {
    let (first, last) = text.split_once('-').ok_or(())?;
    let (first, last) = (number(first.trim_ascii())?, number(last.trim_ascii())?);
    let range = match (first, last) {
        (None, None) => return Err(()),
        (None, Some(count)) => length.saturating_sub(count)..length,
        (Some(first), None) => first..length,
        (Some(first), Some(last)) if last < first => return Err(()),
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
    };
    Ok(Some(range).filter(|range| range.start < range.end))
}

/// A number of digits only; nothing for an empty text. One that is too large is beyond any file.
fn number(text: &str) -> Result<Option<u64>, ()> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let parts = |ranges: &[Range<u64>]| Wanted::Parts(ranges.to_vec());
        let one = |range: Range<u64>| parts(&[range]);
        let cases = [
            ("bytes=0-0", one(0..1)),
            ("bytes=0-9", one(0..10)),
            ("bytes=90-", one(90..100)),
            ("bytes=90-200", one(90..100)),
            ("bytes=-10", one(90..100)),
            ("bytes=99999999999999999999-", Wanted::Nothing),
            ("bytes=0-99999999999999999999", Wanted::All),
            ("bytes=-200", Wanted::All),
            ("bytes=0-", Wanted::All),
            ("Bytes = 5-6 , 1-2", parts(&[5..7, 1..3])),
            ("bytes=0-1,200-300", one(0..2)),
            ("bytes=0-5,3-8", Wanted::All),
            ("bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16", Wanted::All),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=5-4", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("lines=1-2", Wanted::All),
            ("", Wanted::All),
        ];
        for (field, expected) in cases {
            assert_eq!(wanted(field.as_bytes(), 100), expected, "{field}");
        }
        assert_eq!(wanted(b"bytes=0-", 0), Wanted::Nothing);
    }
}
