//! Where the bytes of an image are.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::elf::{Elf, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, STT_FUNC, STT_OBJECT};
use crate::error::ToolError;
use crate::symbols;

/// Crates that are named; the others are summed.
const CRATES_SHOWN: usize = 12;

/// Bytes of an image, by part. All but `zeroed` are bytes of the file; they add up to `file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// The whole file.
    pub file: u64,
    /// Instructions.
    pub text: u64,
    /// Constants.
    pub rodata: u64,
    /// Variables with an initial value, and constants that hold addresses.
    pub data: u64,
    /// What the tender needs to put the image at a random base.
    pub relocations: u64,
    /// Unwinding tables: an image that aborts on panics needs none.
    pub unwind: u64,
    /// Names of functions for crash records; never in memory.
    pub symbols: u64,
    /// Headers, the manifest, and what fills pages so that no page has two kinds of access.
    pub rest: u64,
    /// Variables that are zero at first: memory only.
    pub zeroed: u64,
    /// Instructions and data by the crate that they come from, largest first.
    pub crates: Vec<(String, u64)>,
}

/// Measures a sealed file with the help of the one that the linker made.
///
/// # Errors
/// [`ToolError::Elf`].
pub fn measure(linked: &[u8], sealed: &[u8]) -> Result<Sizes, ToolError> {
    let elf = Elf::parse(linked)?;
    let mut sizes = Sizes { file: sealed.len() as u64, ..Sizes::default() };
    for section in elf.sections().iter().filter(|section| section.flags & SHF_ALLOC != 0) {
        let part = match section.name {
            _ if section.kind == SHT_NOBITS => &mut sizes.zeroed,
            name if name.starts_with(".eh_frame") || name.starts_with(".gcc_except") => {
                &mut sizes.unwind
            }
            name if name.starts_with(".rel") => &mut sizes.relocations,
            name if name.starts_with(".note") || name.starts_with(".dyn") => continue,
            name if name.starts_with(".gnu.hash") || name == ".hash" => continue,
            _ if section.flags & SHF_EXECINSTR != 0 => &mut sizes.text,
            _ if section.flags & SHF_WRITE != 0 => &mut sizes.data,
            _ => &mut sizes.rodata,
        };
        *part += section.len;
    }
    let table = Elf::parse(sealed)?.content(symbols::SECTION).unwrap_or_default();
    sizes.symbols = table.len() as u64;
    let known =
        sizes.text + sizes.rodata + sizes.data + sizes.relocations + sizes.unwind + sizes.symbols;
    sizes.rest = sizes.file.saturating_sub(known);
    sizes.crates = by_crate(&elf);
    Ok(sizes)
}

fn by_crate(elf: &Elf<'_>) -> Vec<(String, u64)> {
    let mut found: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
    for symbol in elf.symbols() {
        if symbol.defined && matches!(symbol.kind, STT_FUNC | STT_OBJECT) {
            // Merged functions have several names for one place: it counts once.
            found.entry(symbol.address).or_insert((symbol.name, symbol.len));
        }
    }
    let mut crates: BTreeMap<String, u64> = BTreeMap::new();
    for (name, len) in found.into_values() {
        let readable = symbols::readable(name);
        let origin = symbols::origin(&readable);
        let origin = if origin.is_empty() { "(no crate)" } else { origin };
        *crates.entry(origin.to_owned()).or_default() += len;
    }
    let mut crates: Vec<_> = crates.into_iter().filter(|(_, len)| *len > 0).collect();
    crates.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    crates
}

impl Sizes {
    /// As a table for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let parts = [
            ("text", self.text),
            ("rodata", self.rodata),
            ("data", self.data),
            ("relocations", self.relocations),
            ("unwind", self.unwind),
            ("symbols", self.symbols),
            ("headers, padding", self.rest),
            ("file", self.file),
        ];
        for (name, bytes) in parts {
            // Cannot fail: it writes into a string.
            let _ = writeln!(out, "  {name:<18}{bytes:>9}");
        }
        let _ = writeln!(out, "  {:<18}{:>9}  (memory only)", "zeroed", self.zeroed);
        let _ = writeln!(out, "  by crate:");
        for (name, bytes) in self.crates.iter().take(CRATES_SHOWN) {
            let _ = writeln!(out, "    {name:<16}{bytes:>9}");
        }
        let others: u64 = self.crates.iter().skip(CRATES_SHOWN).map(|(_, bytes)| bytes).sum();
        if others > 0 {
            let _ = writeln!(out, "    {:<16}{others:>9}", "(others)");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn parts_add_up() {
        let linked = std::fs::read("/proc/self/exe").unwrap();
        let sealed = crate::seal::seal(&linked, true).unwrap();
        let sizes = measure(&linked, &sealed).unwrap();
        let sum = sizes.text + sizes.rodata + sizes.data + sizes.relocations + sizes.unwind;
        assert_eq!(sum + sizes.symbols + sizes.rest, sizes.file);
        assert!(sizes.text > 0 && sizes.rodata > 0 && sizes.symbols > 0);
        let std = sizes.crates.iter().find(|(name, _)| name == "std").unwrap();
        assert!(std.1 > 1000);
        assert!(sizes.text().contains("relocations"));
    }
}
