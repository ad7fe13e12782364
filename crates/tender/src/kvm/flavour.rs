//! Which flavour of KVM this is: a self-test of some milliseconds.
//!
//! Some machines offer KVM without virtualisation hardware; there ring 0 of a guest is emulated,
//! instruction by instruction. Nothing announces that, so the same loop is timed in both rings.

use std::fmt;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;

use super::cpu::{self, Ring};
use super::setup::Machine;
use super::tables::{Owner, Tables};
use super::{CALL_PORT, failed};
use crate::elf::Access;
use crate::error::TenderError;
use crate::process::Start;

/// Bytes of the virtual machine's memory.
const MEMORY_BYTES: usize = 1 << 20;
/// Where the loop is.
const CODE: u64 = 0x8_0000;
/// Turns of the loop in ring 3, and in ring 0, where each can take a microsecond.
const RING3_TURNS: u64 = 8_000_000;
const RING0_TURNS: u64 = 8_000;
/// How often each is timed.
const ROUNDS: usize = 3;
/// A turn of two instructions that takes longer is emulated: no processor is so slow.
const EMULATED_NS: f64 = 50.0;
/// Address of the system's pages.
const SYSTEM: u64 = 0x4000_0000;

/// What the self-test found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flavour {
    /// Time to make a virtual machine and a processor.
    pub setup: Duration,
    /// Nanoseconds for two instructions in ring 0.
    pub ring0_ns: f64,
    /// Nanoseconds for two instructions in ring 3.
    pub ring3_ns: f64,
    /// Time from the guest to the tender and back.
    pub exit: Duration,
}

impl Flavour {
    /// Whether ring 0 is emulated, as without virtualisation hardware.
    #[must_use]
    pub fn emulates_ring0(&self) -> bool {
        self.ring0_ns > EMULATED_NS
    }

    /// One word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.emulates_ring0() { "software" } else { "hardware" }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ring0, ring3) = (self.ring0_ns, self.ring3_ns);
        let (setup, exit) = (self.setup.as_micros(), self.exit.as_micros());
        write!(
            f,
            "{} (two instructions: {ring0:.1} ns in ring 0, {ring3:.2} ns in ring 3; \
             set up in {setup} us; exit {exit} us)",
            self.name()
        )
    }
}

/// Times the loop in both rings. Takes some 100 ms, and less where ring 0 is not emulated.
///
/// # Errors
/// [`TenderError::Kvm`] if there is no KVM, or it does not run the loop.
pub fn flavour() -> Result<Flavour, TenderError> {
    let three = time(Ring::Three, RING3_TURNS)?;
    let zero = time(Ring::Zero, RING0_TURNS)?;
    Ok(Flavour {
        setup: three.setup.min(zero.setup),
        ring0_ns: zero.turn_ns,
        ring3_ns: three.turn_ns,
        exit: three.exit,
    })
}

struct Timing {
    setup: Duration,
    exit: Duration,
    turn_ns: f64,
}

fn time(ring: Ring, turns: u64) -> Result<Timing, TenderError> {
    let begin = Instant::now();
    let memory = Memory::map()?;
    memory.fill();
    let machine = Machine::open()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.start as u64,
    };
    // SAFETY: the memory stays mapped until the virtual machine is gone: it was made before.
    unsafe { machine.vm().set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
    let start = Start { entry: CODE, stack_top: CODE + 0x1000, boot: 0 };
    let mut vcpu = machine.processor(ring, SYSTEM, start)?;
    let setup = begin.elapsed();
    let mut round = |turns: u64| -> Result<Duration, TenderError> {
        let action = "running the self-test";
        let mut regs = vcpu.get_regs().map_err(failed(action))?;
        regs.rip = CODE;
        regs.rcx = turns;
        vcpu.set_regs(&regs).map_err(failed(action))?;
        let begin = Instant::now();
        match vcpu.run().map_err(failed(action))? {
            VcpuExit::IoOut(port, _) if port == u16::from(CALL_PORT) => Ok(begin.elapsed()),
            other => {
                let source = std::io::Error::other(format!("it ended with {other:?}"));
                Err(TenderError::Kvm { action, source })
            }
        }
    };
    // The first round touches the pages; the shortest one is the way there and back.
    round(1)?;
    let exit = (0..ROUNDS)
        .map(|_| round(1))
        .try_fold(Duration::MAX, |best, each| each.map(|each| best.min(each)))?;
    // The best of a few: a host that lets nothing run for a moment must not pass for a slow one.
    let total = (0..ROUNDS)
        .map(|_| round(turns))
        .try_fold(Duration::MAX, |best, each| each.map(|each| best.min(each)))?;
    let turn_ns = total.saturating_sub(exit).as_nanos() as f64 / turns as f64;
    Ok(Timing { setup, exit, turn_ns })
}

/// Memory of the virtual machine.
struct Memory {
    start: *mut u8,
}

impl Memory {
    fn map() -> Result<Self, TenderError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = core::ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(none, MEMORY_BYTES, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            let source = std::io::Error::last_os_error();
            return Err(TenderError::Kvm { action: "mapping memory", source });
        }
        Ok(Self { start: start.cast() })
    }

    fn fill(&self) {
        // SAFETY: mapped above, and nothing else refers to it.
        let bytes = unsafe { core::slice::from_raw_parts_mut(self.start, MEMORY_BYTES) };
        cpu::write_system(bytes, SYSTEM);
        // dec rcx; jnz -5; out CALL_PORT, al; hlt
        let code = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, CALL_PORT, 0xf4];
        let at = CODE as usize;
        bytes[at..at + code.len()].copy_from_slice(&code);
        let tables = cpu::SYSTEM_BYTES;
        let len = (CODE - tables) as usize / 8;
        // SAFETY: aligned to a page, within the memory; `bytes` is not used any more.
        let memory = unsafe {
            core::slice::from_raw_parts_mut(self.start.add(tables as usize).cast::<u64>(), len)
        };
        let mut tables = Tables::new(memory, tables);
        for (access, owner, from, to, bytes) in [
            (Access::Execute, Owner::Guest, CODE, CODE, 0x1000),
            (Access::Read, Owner::System, SYSTEM, 0, 0x1000),
            (Access::Execute, Owner::System, SYSTEM + cpu::STUBS, cpu::STUBS, 0x1000),
            (Access::Write, Owner::System, SYSTEM + cpu::STACK, cpu::STACK, 0x1000),
        ] {
            // Cannot fail: there is room for a hundred tables, and eight are needed.
            let mapped = tables.map(from, to, bytes, access, owner, false);
            debug_assert!(mapped.is_ok());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; the virtual machine that used it is gone.
        unsafe { libc::munmap(self.start.cast(), MEMORY_BYTES) };
    }
}
