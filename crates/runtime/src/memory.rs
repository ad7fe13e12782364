//! The memory of this process: how the C library keeps what was freed, and which pages of the
//! program stay mapped.

use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::process::sys;

/// Threads share this many heaps. With one for each of hundreds of threads, as is usual, each keeps
/// the most that was ever in it.
const HEAPS_MAX: i32 = 2;

/// Keeps the number of heaps small. To be called before the process has threads.
pub fn share_heaps() {
    sys::limit_heaps(HEAPS_MAX);
}

/// Gives the kernel back what is free in all heaps. Takes milliseconds; waits for nobody.
pub fn give_back() {
    sys::trim_heaps();
}

/// Unmaps the pages of the program's own file; those in use are mapped again as they are needed,
/// from the page cache as a rule. Where the program is large, most of them were touched once, at
/// the start or by one rare request, and would count as its memory for ever.
pub fn forget_program() {
    // Ignored because: whoever cannot read it keeps the pages.
    let Ok(program) = fs::read_link("/proc/self/exe") else { return };
    let Ok(smaps) = fs::read_to_string("/proc/self/smaps") else { return };
    for range in unwritten(&smaps, &program) {
        sys::forget_pages(range);
    }
}

/// Code and constants of the program in the text of `/proc/self/smaps` (proc_pid_smaps(5)), without
/// what the dynamic linker may have written to.
fn unwritten(smaps: &str, program: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some((range, rest)) = heading(line) {
            candidate = is_program(rest, program).then_some(range);
        } else if let Some(kib) = line.strip_prefix("Anonymous:") {
            // Pages of its own differ from the file's: they were written.
            let untouched = kib.trim() == "0 kB";
            found.extend(candidate.take().filter(|_| untouched));
        }
    }
    found
}

/// `START-END REST`, the first line of a mapping.
fn heading(line: &str) -> Option<(Range<usize>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?..number(end)?, rest))
}

/// Whether `PERMISSIONS OFFSET DEVICE INODE PATH` is code or constants of the program.
fn is_program(rest: &str, program: &Path) -> bool {
    let mut words = rest.split_whitespace();
    let (Some(permissions), Some(offset)) = (words.next(), words.next()) else { return false };
    let constants = permissions == "r--p" && offset.bytes().all(|digit| digit == b'0');
    let path = rest.find('/').and_then(|at| rest.get(at..));
    (permissions == "r-xp" || constants) && path.is_some_and(|path| Path::new(path) == program)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SMAPS: &str = "\
55d000000000-55d000010000 r--p 00000000 fe:00 77 /usr/bin/shoal
Rss:                  64 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d000010000-55d000050000 r-xp 00010000 fe:00 77 /usr/bin/shoal
Anonymous:             0 kB
55d000050000-55d000060000 r--p 00050000 fe:00 77 /usr/bin/shoal
Anonymous:            64 kB
55d000060000-55d000070000 rw-p 00060000 fe:00 77 /usr/bin/shoal
Anonymous:             8 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 78 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000001000-7f0000002000 rw-p 00000000 00:00 0
Anonymous:             4 kB
";

    #[test]
    fn code_and_constants_of_the_program_are_found_and_nothing_that_was_written() {
        let program = Path::new("/usr/bin/shoal");
        let both = [0x55d0_0000_0000..0x55d0_0001_0000, 0x55d0_0001_0000..0x55d0_0005_0000];
        assert_eq!(unwritten(SMAPS, program), both);
        // A debugger has set a breakpoint.
        let written = SMAPS.replacen("Anonymous:             0 kB", "Anonymous:  4 kB", 2);
        assert_eq!(unwritten(&written, program), []);
        assert_eq!(unwritten(SMAPS, Path::new("/usr/bin/other")), []);
    }

    #[test]
    fn a_program_goes_on_without_its_pages_mapped() {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let before = unwritten(&smaps, &program);
        assert!(!before.is_empty(), "{smaps}");
        forget_program();
        // Whatever runs from here on was fetched again.
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        assert_eq!(unwritten(&smaps, &program), before);
    }
}
