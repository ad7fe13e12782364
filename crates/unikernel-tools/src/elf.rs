//! Reads what the linker leaves in an ELF64 file besides what is loaded: sections and symbols.
//!
//! Whether an image may run is decided elsewhere, by the tender's own reader; here are only its
//! describing parts. Any bytes are taken, and nothing outside them is read.

use crate::error::ToolError;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const PROGRAM_BYTES: usize = 56;
const SYMBOL_BYTES: usize = 24;
/// Program header type of loaded content.
const PT_LOAD: u32 = 1;
/// Section type of a symbol table.
const SHT_SYMTAB: u32 = 2;
/// Section type of memory without content.
pub const SHT_NOBITS: u32 = 8;
/// Section flag: writable.
pub const SHF_WRITE: u64 = 1;
/// Section flag: in memory when the program runs.
pub const SHF_ALLOC: u64 = 2;
/// Section flag: executable.
pub const SHF_EXECINSTR: u64 = 4;
/// Symbol type of data.
pub const STT_OBJECT: u8 = 1;
/// Symbol type of functions.
pub const STT_FUNC: u8 = 2;
/// Symbol type of sections, and above that of files.
const STT_SECTION: u8 = 3;
/// Binding of symbols that may stay undefined.
const STB_WEAK: u8 = 2;

/// A file.
#[derive(Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section<'a>>,
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type, one of the `SHT_` numbers.
    pub kind: u32,
    /// Its `SHF_` flags.
    pub flags: u64,
    /// Address from the image's base.
    pub address: u64,
    /// Place in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    link: u32,
}

/// A symbol.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Its name as the compiler mangled it.
    pub name: &'a str,
    /// Its type, one of the `STT_` numbers.
    pub kind: u8,
    /// Whether it is defined in this file.
    pub defined: bool,
    /// Address from the image's base.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    weak: bool,
}

impl<'a> Elf<'a> {
    /// Reads the tables.
    ///
    /// # Errors
    /// [`ToolError::Elf`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ToolError> {
        let wrong = |what| ToolError::Elf { what };
        if bytes.len() < HEADER_BYTES || bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(wrong("it does not begin like one"));
        }
        let count = usize::from(half(bytes, 60).unwrap_or_default());
        let names = usize::from(half(bytes, 62).unwrap_or_default());
        if count > 0 && half(bytes, 58) != Some(SECTION_BYTES as u16) {
            return Err(wrong("its section headers have another size"));
        }
        let start = long(bytes, 40).unwrap_or_default();
        let table = range(bytes, start, (count * SECTION_BYTES) as u64)
            .ok_or(wrong("its section headers are outside of the file"))?;
        let mut elf = Self { bytes, sections: Vec::with_capacity(count) };
        let headers: Vec<&[u8]> = table.chunks_exact(SECTION_BYTES).collect();
        let strings = headers.get(names).and_then(|header| content(bytes, header));
        for header in headers {
            let section = section(header, strings.unwrap_or_default());
            elf.sections.push(section.ok_or(wrong("a section header is cut off"))?);
        }
        Ok(elf)
    }

    /// Its sections.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// The content of the section called `name`.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|section| section.name == name)?;
        range(self.bytes, section.offset, section.len)
    }

    /// Where the loaded content ends in the file.
    ///
    /// # Errors
    /// [`ToolError::Elf`].
    pub fn loaded_end(&self) -> Result<usize, ToolError> {
        let wrong = ToolError::Elf { what: "its program headers are outside of the file" };
        let count = u64::from(half(self.bytes, 56).unwrap_or_default());
        let start = long(self.bytes, 32).unwrap_or_default();
        let bytes = count * PROGRAM_BYTES as u64;
        let Some(table) = range(self.bytes, start, bytes) else { return Err(wrong) };
        let mut end = start.saturating_add(bytes);
        for header in table.chunks_exact(PROGRAM_BYTES) {
            if word(header, 0) == Some(PT_LOAD) {
                let offset = long(header, 8).unwrap_or_default();
                end = end.max(offset.saturating_add(long(header, 32).unwrap_or_default()));
            }
        }
        match usize::try_from(end) {
            Ok(end) if end <= self.bytes.len() => Ok(end),
            _ => Err(ToolError::Elf { what: "a segment reaches beyond the end of the file" }),
        }
    }

    /// Its symbols but those of sections and files.
    #[must_use]
    pub fn symbols(&self) -> Vec<Symbol<'a>> {
        let Some(table) = self.sections.iter().find(|section| section.kind == SHT_SYMTAB) else {
            return Vec::new();
        };
        let strings = usize::try_from(table.link).ok().and_then(|link| self.sections.get(link));
        let strings = strings.and_then(|s| range(self.bytes, s.offset, s.len));
        let entries = range(self.bytes, table.offset, table.len).unwrap_or_default();
        entries
            .chunks_exact(SYMBOL_BYTES)
            .filter_map(|entry| symbol(entry, strings.unwrap_or_default()))
            .filter(|symbol| symbol.kind < STT_SECTION && !symbol.name.is_empty())
            .collect()
    }

    /// Names of symbols that somebody else would have to define.
    #[must_use]
    pub fn undefined(&self) -> Vec<&'a str> {
        let missing = |symbol: &Symbol<'_>| !symbol.defined && !symbol.weak;
        self.symbols().into_iter().filter(missing).map(|symbol| symbol.name).collect()
    }
}

fn section<'a>(header: &[u8], strings: &'a [u8]) -> Option<Section<'a>> {
    Some(Section {
        name: text(strings, word(header, 0)?),
        kind: word(header, 4)?,
        flags: long(header, 8)?,
        address: long(header, 16)?,
        offset: long(header, 24)?,
        len: long(header, 32)?,
        link: word(header, 40)?,
    })
}

fn symbol<'a>(entry: &[u8], strings: &'a [u8]) -> Option<Symbol<'a>> {
    let info = *entry.get(4)?;
    Some(Symbol {
        name: text(strings, word(entry, 0)?),
        kind: info & 15,
        defined: half(entry, 6)? != 0,
        address: long(entry, 8)?,
        len: long(entry, 16)?,
        weak: info >> 4 == STB_WEAK,
    })
}

fn content<'a>(bytes: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    range(bytes, long(header, 24)?, long(header, 32)?)
}

/// The zero-terminated text at `offset`; nothing if it is not UTF-8.
fn text(strings: &[u8], offset: u32) -> &str {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}

fn range(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// This very test program.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn the_tables_of_a_real_file() {
        let bytes = own();
        let elf = Elf::parse(&bytes).unwrap();
        let text = elf.sections().iter().find(|section| section.name == ".text").unwrap();
        assert!(text.flags & SHF_EXECINSTR != 0 && text.len > 1000);
        assert!(elf.loaded_end().unwrap() <= bytes.len());
        let here = |symbol: &Symbol<'_>| symbol.name.contains("the_tables_of_a_real_file");
        let symbols = elf.symbols();
        let found = symbols.iter().find(|symbol| here(symbol)).unwrap();
        assert!(found.defined && found.address >= text.address);
    }

    #[test]
    fn broken_files_are_refused_or_harmless() {
        let bytes = own();
        for len in [0, 5, 63, 64, 100, bytes.len() / 2] {
            if let Ok(elf) = Elf::parse(&bytes[..len]) {
                let _ = (elf.symbols(), elf.loaded_end(), elf.content(".text"));
            }
        }
        let mut garbled = bytes[..4096].to_vec();
        for at in 16..64 {
            garbled[at] = 0xff;
            if let Ok(elf) = Elf::parse(&garbled) {
                let _ = (elf.symbols(), elf.loaded_end());
            }
        }
    }
}
