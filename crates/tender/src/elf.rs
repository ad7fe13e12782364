//! The rules for an image, checked before anything of it is mapped.
//!
//! An image is a static position-independent ELF64 file for x86-64: no interpreter, no thread-local
//! storage, no segment that is writable and executable, no two segments in one page, and no
//! relocations but relative ones. [`Image::parse`] takes any bytes; it neither panics nor reads
//! outside them, and everything that it returns is within the bounds it says.

mod dynamic;
mod error;
mod header;
mod note;
pub mod symbols;

pub use error::ElfError;

use shoal_unikernel_abi::manifest::Manifest;

/// Largest image file in bytes: an appliance has some hundred kilobytes.
pub const FILE_BYTES_MAX: usize = 256 << 20;
/// Largest extent of an image in memory, in bytes.
pub const SPAN_BYTES_MAX: u64 = 512 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// What a guest may do with a range of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and execute.
    Execute,
    /// Read and write.
    Write,
}

/// A checked loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte, from the image's base.
    pub address: u64,
    /// Bytes in memory, at least `file_len`; the rest is zero.
    pub len: u64,
    /// Where its content begins in the file. Same remainder of [`PAGE`] as `address`.
    pub file_offset: u64,
    /// Bytes of content.
    pub file_len: u64,
    /// What the guest may do with it.
    pub access: Access,
}

impl Segment {
    /// The first page's address, from the image's base.
    #[must_use]
    pub const fn page_start(&self) -> u64 {
        self.address & !(PAGE - 1)
    }

    /// The end of the last page, from the image's base.
    #[must_use]
    pub const fn page_end(&self) -> u64 {
        (self.address + self.len).next_multiple_of(PAGE)
    }

    /// Whether all of `len` bytes at `address` lie in it.
    #[must_use]
    pub const fn contains(&self, address: u64, len: u64) -> bool {
        address >= self.address && len <= self.len && address - self.address <= self.len - len
    }
}

/// A relocation: the word at `place` becomes the base plus `addend`. Both are from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Where; eight bytes in a writable segment.
    pub place: u64,
    /// What; at most [`Image::span`].
    pub addend: u64,
}

/// A checked image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The segments, ascending, no two in one page.
    pub segments: Vec<Segment>,
    /// Entry point, from the base; in an executable segment.
    pub entry: u64,
    /// Bytes from the base to the end of the last page.
    pub span: u64,
    /// Writable pages that become read-only once relocations are applied: start and end, whole
    /// pages, from the base.
    pub sealed: Option<(u64, u64)>,
    /// What the image says that it needs; its content is checked by [`crate::manifest`].
    pub manifest: Manifest,
    relocations: (usize, usize),
}

impl Image {
    /// Checks the bytes of a file.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(file: &[u8]) -> Result<Self, ElfError> {
        let headers = header::parse(file)?;
        let segments = header::segments(file, &headers)?;
        let span = segments.last().map_or(0, Segment::page_end);
        let runs = |s: &Segment| s.access == Access::Execute && s.contains(headers.entry, 1);
        if !segments.iter().any(runs) {
            return Err(ElfError::Entry { address: headers.entry });
        }
        let sealed = header::sealed(&headers, &segments)?;
        let manifest = note::find(file, &headers)?;
        let relocations = dynamic::relocations(file, &headers, &segments, span)?;
        Ok(Self { segments, entry: headers.entry, span, sealed, manifest, relocations })
    }

    /// An image as a linker might have made it.
    #[cfg(test)]
    pub(crate) const fn without_relocations(
        segments: Vec<Segment>,
        entry: u64,
        span: u64,
        sealed: Option<(u64, u64)>,
        manifest: Manifest,
    ) -> Self {
        Self { segments, entry, span, sealed, manifest, relocations: (0, 0) }
    }

    /// The relocations, read again from the same `file`.
    pub fn relocations<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Relocation> + use<'a> {
        let (start, end) = self.relocations;
        dynamic::entries(file.get(start..end).unwrap_or_default())
            .map(|entry| Relocation { place: entry.place, addend: entry.addend })
    }
}

/// What a fuzzer calls: any bytes are either refused or an image within its bounds.
pub fn fuzz(file: &[u8]) {
    let _ = symbols::table(file);
    if let Ok(image) = Image::parse(file) {
        let _ = crate::manifest::Declared::check(&image.manifest);
        for relocation in image.relocations(file) {
            assert!(relocation.addend <= image.span, "an addend outside of the image");
            let fits = |s: &Segment| s.access == Access::Write && s.contains(relocation.place, 8);
            assert!(image.segments.iter().any(fits), "a relocation outside of writable memory");
        }
    }
}

/// Little-endian 16-bit word at `at`.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(word.try_into().ok()?))
}

/// Little-endian 32-bit word at `at`.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

/// Little-endian 64-bit word at `at`.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

/// `len` bytes at `offset`, both as the file states them.
fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}
