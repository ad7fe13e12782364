//! What must not be in an image: the tender's rules, and what it has but does not use.

use crate::elf::{Elf, Symbol};
use crate::error::ToolError;
use crate::inspect::Inspection;
use crate::symbols::readable;

/// Beginnings of names of the library's code that every user of a kind of device has.
const USERS: [(&str, &str); 2] = [("network", "unikernel::net::"), ("block", "unikernel::block::")];
/// Most names that are told of one kind.
const TOLD_MAX: usize = 10;

/// Checks a sealed file with the help of the one that the linker made.
///
/// # Errors
/// [`ToolError::Rules`], [`ToolError::Superfluous`], [`ToolError::Elf`].
pub fn check(linked: &[u8], sealed: &[u8]) -> Result<Inspection, ToolError> {
    let about = Inspection::of(sealed)?;
    let elf = Elf::parse(linked)?;
    refuse("undefined symbols", elf.undefined().into_iter().map(readable).collect())?;
    refuse("devices that no code uses", unused_devices(&about, &elf.symbols()))?;
    Ok(about)
}

fn refuse(what: &'static str, mut found: Vec<String>) -> Result<(), ToolError> {
    found.truncate(TOLD_MAX);
    if found.is_empty() { Ok(()) } else { Err(ToolError::Superfluous { what, found }) }
}

/// Declared devices of a kind that none of the library's code for it is linked for.
fn unused_devices(about: &Inspection, symbols: &[Symbol<'_>]) -> Vec<String> {
    let linked = |kind: &str| {
        let user = USERS.iter().find(|(of, _)| *of == kind).map_or("", |(_, user)| user);
        symbols.iter().any(|symbol| symbol.defined && readable(symbol.name).contains(user))
    };
    let unused = about.devices.iter().filter(|device| !linked(device.kind));
    unused.map(|device| device.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_many_are_told() {
        let many = (0..2 * TOLD_MAX).map(|number| number.to_string()).collect();
        let Err(ToolError::Superfluous { found, .. }) = refuse("things", many) else {
            panic!("not refused")
        };
        assert_eq!(found.len(), TOLD_MAX);
    }
}
