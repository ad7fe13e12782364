//! The dynamic table and the relocations.

use super::header::{Headers, PT_DYNAMIC};
use super::{Access, ElfError, Segment, slice, u64_at};

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_PLTRELSZ: u64 = 2;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELAENT: u64 = 9;
const DT_REL: u64 = 17;
const DT_TEXTREL: u64 = 22;
const DT_RELRSZ: u64 = 35;

/// Most entries of the table that are looked at: linkers make about twenty.
const ENTRIES_MAX: usize = 128;
const RELOCATION_BYTES: usize = 24;
const R_X86_64_RELATIVE: u64 = 8;

/// An entry of the table of relocations as the file states it.
pub(super) struct Rela {
    pub place: u64,
    info: u64,
    pub addend: u64,
}

/// The entries in `table`.
pub(super) fn entries(table: &[u8]) -> impl Iterator<Item = Rela> {
    table.chunks_exact(RELOCATION_BYTES).filter_map(|bytes| {
        Some(Rela { place: u64_at(bytes, 0)?, info: u64_at(bytes, 8)?, addend: u64_at(bytes, 16)? })
    })
}

/// Where in the file the relocations begin and end, all of them checked.
pub(super) fn relocations(
    file: &[u8],
    headers: &Headers,
    segments: &[Segment],
    span: u64,
) -> Result<(usize, usize), ElfError> {
    let (address, len) = table(file, headers)?;
    if len == 0 {
        return Ok((0, 0));
    }
    let wrong = |what| ElfError::Dynamic { what };
    let outside = "the relocations are outside of the file's segments";
    let segment = segments.iter().find(|s| s.contains(address, len)).ok_or(wrong(outside))?;
    let from = address - segment.address;
    if from.checked_add(len).is_none_or(|end| end > segment.file_len) {
        return Err(wrong(outside));
    }
    let start = segment.file_offset + from;
    let bytes = slice(file, start, len).ok_or(wrong(outside))?;
    for (index, entry) in entries(bytes).enumerate() {
        let wrong = |what| ElfError::Relocation { index, what };
        if entry.info != R_X86_64_RELATIVE {
            return Err(wrong("it is not a relative one"));
        }
        let holds = |s: &Segment| s.access == Access::Write && s.contains(entry.place, 8);
        if !segments.iter().any(holds) {
            return Err(wrong("its place is not in a writable segment"));
        }
        if entry.addend > span {
            return Err(wrong("it points outside of the image"));
        }
    }
    let start = usize::try_from(start).map_err(|_| wrong(outside))?;
    Ok((start, start + bytes.len()))
}

/// Address and length of the table of relocations, both 0 if there is none.
fn table(file: &[u8], headers: &Headers) -> Result<(u64, u64), ElfError> {
    let Some(entry) = headers.of(PT_DYNAMIC).next() else { return Ok((0, 0)) };
    let wrong = |what| ElfError::Dynamic { what };
    let bytes = slice(file, entry.offset, entry.file_len)
        .ok_or(wrong("it reaches beyond the end of the file"))?;
    let (mut address, mut len) = (0, 0);
    for pair in bytes.chunks_exact(16).take(ENTRIES_MAX) {
        let tag = u64_at(pair, 0).unwrap_or_default();
        let value = u64_at(pair, 8).unwrap_or_default();
        match tag {
            DT_NULL => break,
            DT_RELA => address = value,
            DT_RELASZ => len = value,
            DT_RELAENT if value != RELOCATION_BYTES as u64 => {
                return Err(wrong("its relocations have another size"));
            }
            DT_NEEDED => return Err(wrong("it needs a shared library")),
            DT_REL => return Err(wrong("it has relocations without addends")),
            DT_TEXTREL => return Err(wrong("it has relocations in its text")),
            DT_PLTRELSZ | DT_RELRSZ if value != 0 => {
                return Err(wrong("it has relocations for a linker, or packed ones"));
            }
            _ => {}
        }
    }
    if len % RELOCATION_BYTES as u64 != 0 {
        return Err(wrong("its relocations do not fill their table"));
    }
    Ok((address, len))
}
