//! Finds the manifest among the notes of an image.

use shoal_unikernel_abi::manifest::{
    DEVICES_MAX, Device, MAGIC, MANIFEST_BYTES, Manifest, NAME_MAX, NOTE_OWNER, NOTE_TYPE,
};

use super::header::{Headers, PT_NOTE};
use super::{ElfError, slice, u32_at, u64_at};

/// Most notes that are looked at: linkers make about three.
const NOTES_MAX: usize = 64;
/// Notes are padded to this, whatever the program header's alignment.
const NOTE_ALIGN: usize = 4;

/// The manifest.
pub(super) fn find(file: &[u8], headers: &Headers) -> Result<Manifest, ElfError> {
    let mut found = None;
    for entry in headers.of(PT_NOTE) {
        let wrong = |what| ElfError::Segment { index: entry.index, what };
        let notes = slice(file, entry.offset, entry.file_len)
            .ok_or(wrong("it reaches beyond the end of the file"))?;
        let mut rest = notes;
        for _ in 0..NOTES_MAX {
            let Some((note, after)) = next(rest) else { break };
            rest = after;
            if note.kind != NOTE_TYPE || note.owner != NOTE_OWNER.as_bytes() {
                continue;
            }
            // The same note can be named by two program headers; two notes cannot be right.
            let manifest = manifest(note.content)?;
            if found.is_some_and(|before| before != manifest) {
                return Err(ElfError::Manifest { what: "there are two" });
            }
            found = Some(manifest);
        }
    }
    found.ok_or(ElfError::NoManifest)
}

struct Note<'a> {
    kind: u32,
    owner: &'a [u8],
    content: &'a [u8],
}

/// Splits the first note off. `None`: there is no complete one.
fn next(bytes: &[u8]) -> Option<(Note<'_>, &[u8])> {
    let owner_len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let content_len = usize::try_from(u32_at(bytes, 4)?).ok()?;
    let kind = u32_at(bytes, 8)?;
    let owner = bytes.get(12..12_usize.checked_add(owner_len)?)?;
    let start = 12 + owner_len.checked_next_multiple_of(NOTE_ALIGN)?;
    let end = start.checked_add(content_len)?;
    let content = bytes.get(start..end)?;
    let after = bytes.get(end.checked_next_multiple_of(NOTE_ALIGN)?..).unwrap_or_default();
    Some((Note { kind, owner: owner.strip_suffix(&[0]).unwrap_or(owner), content }, after))
}

/// Decodes the note's content. Longer content is a newer one, of which the beginning counts.
fn manifest(content: &[u8]) -> Result<Manifest, ElfError> {
    let wrong = |what| ElfError::Manifest { what };
    let content = content.get(..MANIFEST_BYTES).ok_or(wrong("it is too short"))?;
    if content.get(..8) != Some(&MAGIC) {
        return Err(wrong("its first bytes differ"));
    }
    let short = || wrong("it is too short");
    let word = |at| u32_at(content, at).ok_or_else(short);
    let long = |at| u64_at(content, at).ok_or_else(short);
    let mut devices = [Device::NONE; DEVICES_MAX];
    for (index, device) in devices.iter_mut().enumerate() {
        let at = 40 + index * 32;
        device.kind = word(at)?;
        device.flags = word(at + 4)?;
        let name = content.get(at + 8..at + 8 + NAME_MAX + 1).ok_or_else(short)?;
        device.name.copy_from_slice(name);
    }
    Ok(Manifest {
        magic: MAGIC,
        abi_version: word(8)?,
        device_count: word(12)?,
        features_needed: long(16)?,
        heap_bytes_min: long(24)?,
        stack_bytes: long(32)?,
        devices,
    })
}
