//! The names of an image's functions, for backtraces of crashes: the section `.shoal.symbols`.
//!
//! Its content is lines `address name\n`: the address in lower-case hexadecimal digits from the
//! image's base, ascending, the name as a person reads it, without the compiler's hash. The tender
//! reads it from the file; it is never in a guest's memory.

use rustc_demangle::demangle;

use crate::elf::{Elf, STT_FUNC};

/// Name of the section.
pub const SECTION: &str = shoal_tender::elf::symbols::SECTION;

/// The section's content for a file as the linker made it.
#[must_use]
pub fn table(elf: &Elf<'_>) -> Vec<u8> {
    let mut functions: Vec<(u64, String)> = elf
        .symbols()
        .into_iter()
        .filter(|symbol| symbol.kind == STT_FUNC && symbol.defined)
        .map(|symbol| (symbol.address, readable(symbol.name)))
        .collect();
    functions.sort();
    // Functions of equal code are merged by the linker: one name is as good as the other.
    functions.dedup_by_key(|(address, _)| *address);
    let mut out = Vec::new();
    for (address, name) in functions {
        out.extend_from_slice(format!("{address:x} {name}\n").as_bytes());
    }
    out
}

/// How many names a table has.
#[must_use]
pub fn count(table: &[u8]) -> usize {
    table.iter().filter(|byte| **byte == b'\n').count()
}

/// A mangled name as a person reads it.
#[must_use]
pub fn readable(name: &str) -> String {
    format!("{:#}", demangle(name))
}

/// The crate that a function or a value comes from, by its readable name.
#[must_use]
pub fn origin(name: &str) -> &str {
    // `<alloc::vec::Vec<T> as core::ops::drop::Drop>::drop`, `<&mut [app::Thing] as …>`.
    let punctuation = |c: char| !(c.is_alphanumeric() || c == '_');
    let mut plain = name.trim_start_matches(punctuation);
    for word in ["mut ", "dyn ", "const "] {
        plain = plain.strip_prefix(word).unwrap_or(plain).trim_start_matches(punctuation);
    }
    let end = plain.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(plain.len());
    let (first, rest) = plain.split_at(end);
    if rest.starts_with("::") {
        return first;
    }
    // A type parameter or a primitive: the trait's crate, if there is one.
    match rest.split_once(" as ") {
        Some((_, implemented)) => origin(implemented),
        None => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn origins() {
        for (name, crate_name) in [
            ("unikernel::net::link::poll", "unikernel"),
            ("<alloc::vec::Vec<T> as core::ops::drop::Drop>::drop", "alloc"),
            ("<&mut [app::Thing] as core::fmt::Debug>::fmt", "app"),
            ("<T as core::fmt::Display>::fmt", "core"),
            ("<u8 as core::fmt::Display>::fmt", "core"),
            ("core::ptr::drop_in_place<app::Thing>", "core"),
            ("memcpy", ""),
        ] {
            assert_eq!(origin(name), crate_name, "{name}");
        }
    }

    #[test]
    fn a_table_of_this_program() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let table = table(&Elf::parse(&bytes).unwrap());
        let text = std::str::from_utf8(&table).unwrap();
        assert_eq!(text.lines().count(), count(&table));
        let addresses: Vec<u64> = text
            .lines()
            .map(|line| u64::from_str_radix(line.split_once(' ').unwrap().0, 16).unwrap())
            .collect();
        assert!(addresses.is_sorted_by(|a, b| a < b));
        let line = text.lines().find(|line| line.contains("a_table_of_this_program")).unwrap();
        let (address, name) = line.split_once(' ').unwrap();
        assert!(!name.contains("17h"), "{name}");
        let address = u64::from_str_radix(address, 16).unwrap();
        let found = shoal_tender::elf::symbols::lookup(&table, address + 1).unwrap();
        assert_eq!(found, (name, 1));
    }
}
