//! On cgroup version 2 access to devices is decided by a small program of the kernel's BPF machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::cgroup::DeviceRule;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of groups above stay in force.
const ALLOW_MULTI: u32 = 2;

/// One instruction, in the kernel's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Lets processes in the group at `dir` use devices only as `rules` say.
pub(crate) fn restrict_devices(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let group = File::open(dir)?;
    let program = load(&compile(rules))?;
    let attributes: [u32; 4] = [
        group.as_raw_fd().cast_unsigned(),
        program.as_raw_fd().cast_unsigned(),
        ATTACH_CGROUP_DEVICE,
        ALLOW_MULTI,
    ];
    // SAFETY: the attributes outlive the call and their size is given.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel's arguments of a program load, up to the fields that are used.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the attributes and everything that they point to outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Registers: 2 the type of device, 3 the kind of access, 4 and 5 the numbers; one block of jumps
/// for each rule that ends in "yes", and "no" at the end.
fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    const BLOCK: i32 = 1;
    const CHARACTER: i32 = 2;
    /// Reading and writing; making a node is 1.
    const OPEN: i32 = 6;
    let mut out = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { BLOCK } else { CHARACTER };
        let mut body = vec![(2, kind)];
        let mut block = Vec::new();
        if !rule.open {
            block.extend([op(MOVE, 6, 3, 0, 0), op(AND, 6, 0, 0, OPEN)]);
            body.push((6, 0));
        }
        body.extend(rule.major.map(|n| (4, n.cast_signed())));
        body.extend(rule.minor.map(|n| (5, n.cast_signed())));
        // Two instructions follow the tests: set the answer, end.
        for (index, (register, value)) in body.iter().enumerate() {
            let skip = i16::try_from(body.len() - index - 1 + 2).unwrap_or(0);
            block.push(op(JUMP_IF_NOT, *register, 0, skip, *value));
        }
        block.extend([op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
        out.extend(block);
    }
    out.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_behind_its_rule() {
        let rule = DeviceRule { block: false, major: Some(1), minor: Some(3), open: true };
        let program = compile(&[rule]);
        assert_eq!(program.len(), 6 + 3 + 2 + 2);
        let jumps: Vec<(usize, i16)> = program
            .iter()
            .enumerate()
            .filter(|(_, i)| i.code == JUMP_IF_NOT)
            .map(|(at, i)| (at, i.offset))
            .collect();
        for (at, offset) in jumps {
            assert_eq!(at + 1 + usize::try_from(offset).unwrap_or(0), 11);
        }
    }
}
