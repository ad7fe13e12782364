//! Makes the file that is shipped of the file that the linker made.
//!
//! What is loaded stays byte for byte where it is. Everything else goes: symbols, debug
//! information, section names. One section comes: the names of functions for crash records.

use crate::elf::Elf;
use crate::error::ToolError;
use crate::symbols;

const SECTION_BYTES: usize = 64;
const SHT_PROGBITS: u32 = 1;
const SHT_STRTAB: u32 = 3;
/// Names of the sections of a sealed file; each begins where its header says.
const NAMES: &[u8] = b"\0.shstrtab\0.shoal.symbols\0";
/// Where `.shstrtab` begins in [`NAMES`].
const NAME_OF_NAMES: u32 = 1;
/// Where `.shoal.symbols` begins in [`NAMES`].
const NAME_OF_SYMBOLS: u32 = 11;

/// Seals a file; `with_symbols` puts the names of functions in.
///
/// # Errors
/// [`ToolError::Elf`].
pub fn seal(linked: &[u8], with_symbols: bool) -> Result<Vec<u8>, ToolError> {
    let elf = Elf::parse(linked)?;
    let end = elf.loaded_end()?;
    let mut out = linked[..end].to_vec();
    let mut headers = vec![[0; SECTION_BYTES]];
    let names = (out.len(), NAMES.len());
    out.extend_from_slice(NAMES);
    headers.push(header(NAME_OF_NAMES, SHT_STRTAB, names));
    if with_symbols {
        let table = symbols::table(&elf);
        let place = (out.len(), table.len());
        out.extend_from_slice(&table);
        headers.push(header(NAME_OF_SYMBOLS, SHT_PROGBITS, place));
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let start = out.len() as u64;
    for header in &headers {
        out.extend_from_slice(header);
    }
    // e_shoff, then e_shentsize, e_shnum, e_shstrndx.
    put(&mut out, 40, &start.to_le_bytes());
    put(&mut out, 58, &(SECTION_BYTES as u16).to_le_bytes());
    put(&mut out, 60, &(headers.len() as u16).to_le_bytes());
    put(&mut out, 62, &1_u16.to_le_bytes());
    Ok(out)
}

fn header(name: u32, kind: u32, (offset, len): (usize, usize)) -> [u8; SECTION_BYTES] {
    let mut header = [0; SECTION_BYTES];
    put(&mut header, 0, &name.to_le_bytes());
    put(&mut header, 4, &kind.to_le_bytes());
    put(&mut header, 24, &(offset as u64).to_le_bytes());
    put(&mut header, 32, &(len as u64).to_le_bytes());
    put(&mut header, 48, &1_u64.to_le_bytes());
    header
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_is_loaded_and_the_names_remain() {
        let linked = std::fs::read("/proc/self/exe").unwrap();
        let before = Elf::parse(&linked).unwrap();
        let sealed = seal(&linked, true).unwrap();
        let elf = Elf::parse(&sealed).unwrap();
        let names: Vec<&str> = elf.sections().iter().map(|section| section.name).collect();
        assert_eq!(names, ["", ".shstrtab", symbols::SECTION]);
        assert!(elf.symbols().is_empty());
        assert_eq!(elf.content(symbols::SECTION).unwrap(), symbols::table(&before));
        // The tender's own reader finds them, too.
        assert_eq!(
            shoal_tender::elf::symbols::table(&sealed).unwrap(),
            elf.content(symbols::SECTION).unwrap()
        );
        let end = before.loaded_end().unwrap();
        assert!(sealed[64..end] == linked[64..end], "loaded bytes differ");
        assert!(seal(&linked, false).unwrap().len() < sealed.len());
    }
}
