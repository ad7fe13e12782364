//! Reads what the linker leaves in an ELF64 file besides what is loaded: sections and symbols.
//!
//! Whether an image may run is decided elsewhere, by the tender's own reader; here are only its
//! describing parts. Any bytes are taken, and nothing outside them is read.

use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, SHT_SYMTAB, STB_WEAK, STT_SECTION, SectionHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};

pub use object::elf::{SHT_NOBITS, STT_FUNC, STT_OBJECT};

use crate::error::ToolError;

/// Section flag: writable.
pub const SHF_WRITE: u64 = object::elf::SHF_WRITE as u64;
/// Section flag: in memory when the program runs.
pub const SHF_ALLOC: u64 = object::elf::SHF_ALLOC as u64;
/// Section flag: executable.
pub const SHF_EXECINSTR: u64 = object::elf::SHF_EXECINSTR as u64;

type Header = FileHeader64<LittleEndian>;

/// A file.
#[derive(Debug)]
pub struct Elf<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    table: SectionTable<'a, Header>,
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
        let header = Header::parse(bytes).map_err(|_| wrong("it does not begin like one"))?;
        let endian = header.endian().map_err(|_| wrong("its numbers are of the other order"))?;
        let table = header
            .sections(endian, bytes)
            .map_err(|_| wrong("its section headers are not inside of the file"))?;
        let sections = table.iter().map(|section| described(&table, section)).collect();
        Ok(Self { bytes, header, table, sections })
    }

    /// Its sections.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// The content of the section called `name`.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<&'a [u8]> {
        let (_, section) = self.table.section_by_name(LittleEndian, name.as_bytes())?;
        section.data(LittleEndian, self.bytes).ok()
    }

    /// Where the loaded content ends in the file.
    ///
    /// # Errors
    /// [`ToolError::Elf`].
    pub fn loaded_end(&self) -> Result<usize, ToolError> {
        let segments = self
            .header
            .program_headers(LittleEndian, self.bytes)
            .map_err(|_| ToolError::Elf { what: "its program headers are outside of the file" })?;
        let headers = std::mem::size_of_val(segments) as u64;
        let mut end = self.header.e_phoff.get(LittleEndian).saturating_add(headers);
        for segment in segments.iter().filter(|s| s.p_type(LittleEndian) == PT_LOAD) {
            let (offset, len) = segment.file_range(LittleEndian);
            end = end.max(offset.saturating_add(len));
        }
        match usize::try_from(end) {
            Ok(end) if end <= self.bytes.len() => Ok(end),
            _ => Err(ToolError::Elf { what: "a segment reaches beyond the end of the file" }),
        }
    }

    /// Its symbols but those of sections and files.
    #[must_use]
    pub fn symbols(&self) -> Vec<Symbol<'a>> {
        // A damaged table has no symbols.
        let Ok(table) = self.table.symbols(LittleEndian, self.bytes, SHT_SYMTAB) else {
            return Vec::new();
        };
        let described = |symbol: &'a object::elf::Sym64<LittleEndian>| Symbol {
            name: text(table.symbol_name(LittleEndian, symbol)),
            kind: symbol.st_type(),
            defined: !symbol.is_undefined(LittleEndian),
            address: symbol.st_value(LittleEndian),
            len: symbol.st_size(LittleEndian),
            weak: symbol.st_bind() == STB_WEAK,
        };
        let symbols = table.iter().map(described);
        symbols.filter(|symbol| symbol.kind < STT_SECTION && !symbol.name.is_empty()).collect()
    }

    /// Names of symbols that somebody else would have to define.
    #[must_use]
    pub fn undefined(&self) -> Vec<&'a str> {
        let missing = |symbol: &Symbol<'_>| !symbol.defined && !symbol.weak;
        self.symbols().into_iter().filter(missing).map(|symbol| symbol.name).collect()
    }
}

fn described<'a>(
    table: &SectionTable<'a, Header>,
    section: &'a SectionHeader64<LittleEndian>,
) -> Section<'a> {
    Section {
        name: text(table.section_name(LittleEndian, section)),
        kind: section.sh_type(LittleEndian),
        flags: section.sh_flags(LittleEndian),
        address: section.sh_addr(LittleEndian),
        offset: section.sh_offset(LittleEndian),
        len: section.sh_size(LittleEndian),
    }
}

/// A name; nothing if it is outside of its table or not UTF-8.
fn text(name: object::Result<&[u8]>) -> &str {
    name.ok().and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
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
