//! The file's header and its program headers.

use super::{Access, ElfError, FILE_BYTES_MAX, PAGE, SPAN_BYTES_MAX, Segment};
use super::{slice, u16_at, u32_at, u64_at};

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 56;
/// Most program headers: linkers make about ten.
const ENTRIES_MAX: usize = 32;

const PT_LOAD: u32 = 1;
pub(super) const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
pub(super) const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PT_GNU_RELRO: u32 = 0x6474_e552;

const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// A program header as the file states it.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub index: usize,
    pub kind: u32,
    flags: u32,
    pub offset: u64,
    pub address: u64,
    pub file_len: u64,
    len: u64,
    align: u64,
}

/// What the file's header says.
pub(super) struct Headers {
    pub entry: u64,
    pub entries: Vec<Entry>,
}

impl Headers {
    /// The program headers of one kind.
    pub fn of(&self, kind: u32) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.kind == kind)
    }
}

pub(super) fn parse(file: &[u8]) -> Result<Headers, ElfError> {
    if file.len() > FILE_BYTES_MAX {
        return Err(ElfError::TooLarge { bytes: file.len() });
    }
    let wrong = |what| ElfError::Header { what };
    let head = file.get(..HEADER_BYTES).ok_or(wrong("it is too short"))?;
    // Class 64 bit, little endian, version 1.
    if head.get(..7) != Some(&[0x7f, b'E', b'L', b'F', 2, 1, 1]) {
        return Err(wrong("its first bytes differ"));
    }
    let word = |at| u16_at(head, at).unwrap_or_default();
    if word(16) != 3 {
        return Err(wrong("it is not ET_DYN, the type of position-independent files"));
    }
    if word(18) != 62 {
        return Err(wrong("it is for another machine"));
    }
    if u32_at(head, 20) != Some(1) {
        return Err(wrong("its version is unknown"));
    }
    let count = usize::from(word(56));
    if usize::from(word(54)) != ENTRY_BYTES || count == 0 || count > ENTRIES_MAX {
        return Err(wrong("its program headers have another size or number"));
    }
    let table = u64_at(head, 32)
        .and_then(|offset| slice(file, offset, (count * ENTRY_BYTES) as u64))
        .ok_or(wrong("its program headers are outside of the file"))?;
    let entries = table.chunks_exact(ENTRY_BYTES).enumerate().filter_map(entry).collect();
    let headers = Headers { entry: u64_at(head, 24).unwrap_or_default(), entries };
    refuse_kinds(&headers)?;
    Ok(headers)
}

fn entry((index, bytes): (usize, &[u8])) -> Option<Entry> {
    Some(Entry {
        index,
        kind: u32_at(bytes, 0)?,
        flags: u32_at(bytes, 4)?,
        offset: u64_at(bytes, 8)?,
        address: u64_at(bytes, 16)?,
        file_len: u64_at(bytes, 32)?,
        len: u64_at(bytes, 40)?,
        align: u64_at(bytes, 48)?,
    })
}

fn refuse_kinds(headers: &Headers) -> Result<(), ElfError> {
    if headers.of(PT_INTERP).next().is_some() {
        return Err(ElfError::Interpreter);
    }
    if headers.of(PT_TLS).any(|entry| entry.len > 0) {
        return Err(ElfError::ThreadLocal);
    }
    match headers.of(PT_GNU_STACK).find(|entry| entry.flags & PF_X != 0) {
        Some(entry) => {
            Err(ElfError::Segment { index: entry.index, what: "it asks for an executable stack" })
        }
        None => Ok(()),
    }
}

pub(super) fn segments(file: &[u8], headers: &Headers) -> Result<Vec<Segment>, ElfError> {
    let mut segments: Vec<Segment> = Vec::with_capacity(ENTRIES_MAX);
    for entry in headers.of(PT_LOAD) {
        let Some(segment) = segment(file, entry)? else { continue };
        let before = segments.last().map_or(0, Segment::page_end);
        if segment.page_start() < before {
            let what = "it is not above the one before, in other pages";
            return Err(ElfError::Segment { index: entry.index, what });
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn segment(file: &[u8], entry: &Entry) -> Result<Option<Segment>, ElfError> {
    let wrong = |what| ElfError::Segment { index: entry.index, what };
    if entry.flags & PF_W != 0 && entry.flags & PF_X != 0 {
        return Err(ElfError::WriteExecute { index: entry.index });
    }
    let access = match entry.flags & (PF_R | PF_W | PF_X) {
        PF_R => Access::Read,
        flags if flags == PF_R | PF_X => Access::Execute,
        flags if flags == PF_R | PF_W => Access::Write,
        _ => return Err(wrong("it is not readable, or has no permission")),
    };
    if entry.file_len > entry.len {
        return Err(wrong("it is longer in the file than in memory"));
    }
    if entry.len == 0 {
        return Ok(None);
    }
    if slice(file, entry.offset, entry.file_len).is_none() {
        return Err(wrong("it reaches beyond the end of the file"));
    }
    match entry.address.checked_add(entry.len) {
        Some(end) if end <= SPAN_BYTES_MAX => {}
        _ => return Err(wrong("it lies too high")),
    }
    if !entry.align.is_power_of_two() || entry.align < PAGE {
        return Err(wrong("its alignment is not a page's"));
    }
    if entry.address % PAGE != entry.offset % PAGE {
        return Err(wrong("its address and its place in the file do not fit into pages"));
    }
    if access != Access::Write && entry.len != entry.file_len {
        return Err(wrong("it is not writable and has memory without content"));
    }
    Ok(Some(Segment {
        address: entry.address,
        len: entry.len,
        file_offset: entry.offset,
        file_len: entry.file_len,
        access,
    }))
}

/// The pages that become read-only after relocation: whole ones only, because a page that is half
/// ordinary data must stay writable.
pub(super) fn sealed(
    headers: &Headers,
    segments: &[Segment],
) -> Result<Option<(u64, u64)>, ElfError> {
    let mut found = None;
    for entry in headers.of(PT_GNU_RELRO).filter(|entry| entry.len > 0) {
        let wrong = |what| ElfError::Segment { index: entry.index, what };
        if found.is_some() {
            return Err(wrong("there are two ranges to be sealed"));
        }
        // The range may reach to the end of the segment's last page.
        let holds = |s: &&Segment| {
            s.access == Access::Write
                && entry.address >= s.page_start()
                && entry.address.checked_add(entry.len).is_some_and(|end| end <= s.page_end())
        };
        let Some(segment) = segments.iter().find(holds) else {
            return Err(wrong("the range to be sealed is not in a writable segment"));
        };
        let start = entry.address & !(PAGE - 1);
        if start != segment.page_start() {
            return Err(wrong("the range to be sealed does not begin its segment"));
        }
        let end = (entry.address + entry.len) & !(PAGE - 1);
        found = Some((start, end)).filter(|_| end > start);
    }
    Ok(found)
}
