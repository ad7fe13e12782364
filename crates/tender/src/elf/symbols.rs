//! The symbol table that images carry for crash records: a section of lines `address name`, the
//! address in hexadecimal digits from the image's base, ascending. No guest ever sees it.

use super::{slice, u16_at, u32_at, u64_at};

/// Name of the section.
pub const SECTION: &str = ".shoal.symbols";
/// Most section headers that are looked at.
const SECTIONS_MAX: u16 = 256;
const SECTION_BYTES: u64 = 64;

/// The content of the section, if there is one that lies within the file.
#[must_use]
pub fn table(file: &[u8]) -> Option<&[u8]> {
    let offset = u64_at(file, 40)?;
    let count = u16_at(file, 60)?.min(SECTIONS_MAX);
    if u64::from(u16_at(file, 58)?) != SECTION_BYTES {
        return None;
    }
    let header = |index: u16| {
        let at = offset.checked_add(u64::from(index) * SECTION_BYTES)?;
        slice(file, at, SECTION_BYTES)
    };
    let content = |header: &[u8]| slice(file, u64_at(header, 24)?, u64_at(header, 32)?);
    let names = content(header(u16_at(file, 62)?)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(usize::try_from(u32_at(header, 0)?).ok()?..)?;
        let rest = name.strip_prefix(SECTION.as_bytes())?;
        if rest.first() == Some(&0) { content(header) } else { None }
    })
}

/// The symbol that `offset` (from the image's base) is in, and how far behind its beginning.
#[must_use]
pub fn lookup(table: &[u8], offset: u64) -> Option<(&str, u64)> {
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        let Some(space) = line.iter().position(|byte| *byte == b' ') else { continue };
        let (address, name) = line.split_at(space);
        let address = core::str::from_utf8(address).ok();
        let Some(address) = address.and_then(|text| u64::from_str_radix(text, 16).ok()) else {
            continue;
        };
        if address > offset {
            break;
        }
        found = Some((address, name.get(1..).unwrap_or_default()));
    }
    let (address, name) = found?;
    Some((core::str::from_utf8(name).ok()?, offset - address))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_symbol_before_an_address_is_found() {
        let table = b"10 first\n2a0 app::main\nnonsense\n300 last\n";
        assert_eq!(lookup(table, 0xf), None);
        assert_eq!(lookup(table, 0x10), Some(("first", 0)));
        assert_eq!(lookup(table, 0x2ff), Some(("app::main", 0x5f)));
        assert_eq!(lookup(table, 0x1000), Some(("last", 0xd00)));
        assert_eq!(lookup(b"", 1), None);
    }
}
