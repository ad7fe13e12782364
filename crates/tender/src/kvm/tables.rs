//! Page tables of four levels, written into the front of guest-physical memory.

use crate::elf::Access;

/// Bytes of a page and of a table.
const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const ENTRIES: usize = 512;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Set from the beginning, so that no processor has to write them.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
const LARGE_ENTRY: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whose a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The guest's.
    Guest,
    /// Ring 0's; the guest can do nothing with it.
    System,
}

/// Page tables under construction. The first table is the root.
pub(super) struct Tables<'a> {
    memory: &'a mut [u64],
    base: u64,
    used: usize,
}

/// More tables are needed than there is room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<'a> Tables<'a> {
    /// Builds in zeroed `memory`, which is at guest-physical `base`.
    pub fn new(memory: &'a mut [u64], base: u64) -> Self {
        Self { memory, base, used: 1 }
    }

    /// Maps whole pages. Where both addresses and what is left allow it, and `large` is set, by
    /// entries of two mebibytes.
    pub fn map(
        &mut self,
        address: u64,
        physical: u64,
        len: u64,
        access: Access,
        owner: Owner,
        large: bool,
    ) -> Result<(), Full> {
        let mut flags = PRESENT | ACCESSED_DIRTY;
        flags |= match access {
            Access::Read => NO_EXECUTE,
            Access::Write => WRITE | NO_EXECUTE,
            Access::Execute => 0,
        };
        if owner == Owner::Guest {
            flags |= USER;
        }
        let mut done = 0;
        while done < len {
            let (at, to) = (address + done, physical + done);
            let fits = at.is_multiple_of(LARGE) && to.is_multiple_of(LARGE) && len - done >= LARGE;
            if large && fits {
                *self.entry(at, 2)? = to | flags | LARGE_ENTRY;
                done += LARGE;
            } else {
                *self.entry(at, 1)? = to | flags;
                done += PAGE;
            }
        }
        Ok(())
    }

    /// The entry for an address at `level` (1: a page, 2: a large page), making tables on the way.
    fn entry(&mut self, address: u64, level: u32) -> Result<&mut u64, Full> {
        let mut table = 0;
        for above in (level + 1..=4).rev() {
            let at = table * ENTRIES + index(address, above);
            let entry = *self.memory.get(at).ok_or(Full)?;
            table = if entry & PRESENT == 0 {
                let new = self.used;
                if (new + 1) * ENTRIES > self.memory.len() {
                    return Err(Full);
                }
                self.used += 1;
                let physical = self.base + new as u64 * PAGE;
                // What is below decides: every level on the way allows everything.
                let entry = physical | PRESENT | WRITE | USER | ACCESSED_DIRTY;
                *self.memory.get_mut(at).ok_or(Full)? = entry;
                new
            } else {
                usize::try_from(((entry & ADDRESS) - self.base) / PAGE).map_err(|_| Full)?
            };
        }
        self.memory.get_mut(table * ENTRIES + index(address, level)).ok_or(Full)
    }
}

/// Index of an address in a table of this level.
const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * (level - 1))) as usize % ENTRIES
}

/// Tables that suffice for regions of these lengths, wherever they lie.
pub(super) fn tables_needed(lengths: impl Iterator<Item = (u64, bool)>) -> u64 {
    let mut needed = 1;
    for (len, large) in lengths {
        // A range touches one more table of each level than it fills, and one for its odd end.
        needed += (len >> 39) + 2 + (len >> 30) + 2;
        needed += if large { 2 } else { (len >> 21) + 2 };
    }
    needed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Walks the tables as a processor does: the entry for an address and its level.
    fn walk(memory: &[u64], base: u64, address: u64) -> Option<(u64, u32)> {
        let mut table = 0;
        for level in (1..=4).rev() {
            let entry = memory[table * ENTRIES + index(address, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 1 || entry & LARGE_ENTRY != 0 {
                return Some((entry, level));
            }
            table = (((entry & ADDRESS) - base) / PAGE) as usize;
        }
        None
    }

    proptest::proptest! {
        #[test]
        fn what_is_mapped_is_found_and_nothing_else(
            page in 0x1_0000_0000_u64..0x5_0000_0000,
            pages in 1_u64..1500,
            large: bool,
            access in 0..3,
        ) {
            let access = [Access::Read, Access::Write, Access::Execute][access as usize];
            let (address, len) = (page * PAGE, pages * PAGE);
            let physical = address % LARGE + (64 << 20);
            let needed = tables_needed([(len, large)].into_iter()) as usize;
            let mut memory = vec![0; needed * ENTRIES];
            let base = 0x10000;
            Tables::new(&mut memory, base)
                .map(address, physical, len, access, Owner::Guest, large)
                .unwrap();
            for at in (0..len).step_by(PAGE as usize) {
                let (entry, level) = walk(&memory, base, address + at).unwrap();
                let size = if level == 2 { LARGE } else { PAGE };
                let found = (entry & ADDRESS & !(size - 1)) + (address + at) % size;
                assert_eq!(found, physical + at);
                assert_eq!(entry & WRITE != 0, access == Access::Write);
                assert_eq!(entry & NO_EXECUTE == 0, access == Access::Execute);
                assert_ne!(entry & USER, 0);
            }
            assert_eq!(walk(&memory, base, address - PAGE), None);
            assert_eq!(walk(&memory, base, address + len), None);
        }
    }

    #[test]
    fn too_little_room_is_told() {
        let mut memory = vec![0; 3 * ENTRIES];
        let mut tables = Tables::new(&mut memory, 0);
        assert_eq!(tables.map(1 << 40, 0, PAGE, Access::Read, Owner::System, false), Err(Full));
    }
}
