//! The state of the virtual processor: segments, interrupt table, exception stubs, registers.

use kvm_bindings::{CpuId, kvm_dtable, kvm_segment, kvm_sregs};

use super::{CALL_PORT, EXCEPTION_PORT};

/// Selectors of the descriptors below.
const RING0_CODE: u16 = 0x08;
const RING0_DATA: u16 = 0x10;
const RING3_CODE: u16 = 0x18 | 3;
const RING3_DATA: u16 = 0x20 | 3;
const TASK: u16 = 0x28;

/// Exceptions of the architecture.
const VECTORS: usize = 32;
/// Exceptions that push an error code.
const WITH_ERROR: [usize; 9] = [8, 10, 11, 12, 13, 14, 17, 21, 30];
/// Bytes of each stub.
const STUB_BYTES: usize = 8;

/// Offsets in the system's pages, each of which has its own permissions.
pub(super) const DESCRIPTORS: u64 = 0;
/// Task segment, in the page of the descriptors.
const TASK_SEGMENT: u64 = 0x400;
/// Where its bitmap of ports begins: behind the fixed part.
const TASK_PORTS: u64 = 104;
/// Ports that the bitmap is about: up to the end of the byte of the last one.
const PORT_BYTES: usize = CALL_PORT as usize / 8 + 1;
/// Bytes of the segment: the bitmap ends with a byte of ones.
const TASK_BYTES: u64 = TASK_PORTS + PORT_BYTES as u64 + 1;
/// Interrupt table, in the page of the descriptors.
const INTERRUPTS: u64 = 0x800;
/// Page of the stubs.
pub(super) const STUBS: u64 = 0x1000;
/// Page of the stack that exceptions change to.
pub(super) const STACK: u64 = 0x2000;
/// Bytes of all of them.
pub(super) const SYSTEM_BYTES: u64 = 0x3000;

const CR0: u64 = 0x8005_0033;
const CR4_PAE: u64 = 1 << 5;
const CR4_SSE: u64 = 1 << 9 | 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
/// Long mode enabled and active, no-execute enabled; no `syscall`.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// Nothing but the bit that is always set. The I/O privilege level is 0 (software KVM allows no
/// other): what lets a guest use `out` is the bitmap of ports, for the port of calls only.
pub(super) const RFLAGS: u64 = 2;

/// What the processor can do, of what a guest is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    pub umip: bool,
    pub fsgsbase: bool,
    pub xsave: bool,
    pub avx: bool,
}

impl Abilities {
    pub fn of(cpuid: &CpuId) -> Self {
        let leaf = |function| {
            let mut entries = cpuid.as_slice().iter();
            entries.find(|entry| entry.function == function && entry.index == 0)
        };
        let (one, seven) = (leaf(1), leaf(7));
        let xsave = one.is_some_and(|entry| entry.ecx & 1 << 26 != 0);
        Self {
            umip: seven.is_some_and(|entry| entry.ecx & 1 << 2 != 0),
            fsgsbase: seven.is_some_and(|entry| entry.ebx & 1 != 0),
            xsave,
            avx: xsave && one.is_some_and(|entry| entry.ecx & 1 << 28 != 0),
        }
    }

    const fn cr4(self) -> u64 {
        let mut cr4 = CR4_PAE | CR4_SSE;
        if self.umip {
            cr4 |= CR4_UMIP;
        }
        if self.fsgsbase {
            cr4 |= CR4_FSGSBASE;
        }
        if self.xsave {
            cr4 |= CR4_OSXSAVE;
        }
        cr4
    }
}

/// Writes the system's pages; `address` is where ring 0 sees them.
pub(super) fn write_system(pages: &mut [u8], address: u64) {
    let mut put = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        if let Some(to) = pages.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    let task = address + TASK_SEGMENT;
    // Type 11: a busy task segment of 64 bits. Its base is spread over the descriptor.
    let task_low =
        (TASK_BYTES - 1) | (task & 0x00ff_ffff) << 16 | 0x8b << 40 | (task >> 24 & 0xff) << 56;
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        task_low,
        task >> 32,
    ];
    for (index, descriptor) in descriptors.iter().enumerate() {
        put(DESCRIPTORS + index as u64 * 8, &u64::to_le_bytes(*descriptor));
    }
    // The stack for ring 0 is the only part of the task segment that is used.
    put(TASK_SEGMENT + 4, &(address + STACK + 0x1000).to_le_bytes());
    put(TASK_SEGMENT + 102, &(TASK_PORTS as u16).to_le_bytes());
    let mut ports = [0xff; PORT_BYTES + 1];
    ports[PORT_BYTES - 1] = !(1_u8 << (CALL_PORT % 8));
    put(TASK_SEGMENT + TASK_PORTS, &ports);
    for vector in 0..VECTORS {
        let stub = address + STUBS + (vector * STUB_BYTES) as u64;
        // An interrupt gate for ring 0 (type 14, present).
        let low = stub & 0xffff
            | u64::from(RING0_CODE) << 16
            | 0x8e00 << 32
            | (stub >> 16 & 0xffff) << 48;
        let at = INTERRUPTS + vector as u64 * 16;
        put(at, &low.to_le_bytes());
        put(at + 8, &(stub >> 32).to_le_bytes());
        put(STUBS + (vector * STUB_BYTES) as u64, &stub_code(vector));
    }
}

/// `push 0` if there is no error code, `push vector`, `out EXCEPTION_PORT, al`, `hlt`.
fn stub_code(vector: usize) -> [u8; STUB_BYTES] {
    let vector_byte = vector as u8;
    if WITH_ERROR.contains(&vector) {
        [0x6a, vector_byte, 0xe6, EXCEPTION_PORT, 0xf4, 0xf4, 0xf4, 0xf4]
    } else {
        [0x6a, 0, 0x6a, vector_byte, 0xe6, EXCEPTION_PORT, 0xf4, 0xf4]
    }
}

/// Which ring the processor begins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// For the self-test only.
    Zero,
    /// Where guests run.
    Three,
}

/// Fills the system registers. `system` is where ring 0 sees the system's pages, `root` the
/// guest-physical address of the page tables.
pub(super) fn set_system_registers(
    sregs: &mut kvm_sregs,
    abilities: Abilities,
    ring: Ring,
    system: u64,
    root: u64,
) {
    let (code, data, dpl) = match ring {
        Ring::Zero => (RING0_CODE, RING0_DATA, 0),
        Ring::Three => (RING3_CODE, RING3_DATA, 3),
    };
    let flat = kvm_segment {
        base: 0,
        limit: u32::MAX,
        present: 1,
        dpl,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment { selector: code, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: data, type_: 3, db: 1, ..flat };
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        base: system + TASK_SEGMENT,
        limit: (TASK_BYTES - 1) as u32,
        selector: TASK,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    let table = |base, limit| kvm_dtable { base, limit, ..kvm_dtable::default() };
    sregs.gdt = table(system + DESCRIPTORS, 7 * 8 - 1);
    sregs.idt = table(system + INTERRUPTS, (VECTORS * 16 - 1) as u16);
    sregs.cr0 = CR0;
    sregs.cr3 = root;
    sregs.cr4 = abilities.cr4();
    sregs.efer = EFER;
}

/// What an exception stub left on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
}

impl Exception {
    /// Reads the frame from the stack's page.
    pub fn read(stack: &[u64; 512]) -> Self {
        let [.., vector, error, rip, cs, rflags, rsp, _] = *stack;
        Self { vector, error, rip, cs, rflags, rsp }
    }

    pub const fn name(self) -> &'static str {
        match self.vector {
            0 => "division by zero",
            1 | 3 => "breakpoint",
            4 => "overflow",
            6 => "illegal instruction",
            7 => "use of a processor extension that is off",
            12 => "stack access outside of the address space",
            13 => "privileged instruction or address outside of the address space",
            14 => "memory access",
            16 | 19 => "arithmetic exception",
            17 => "access that is not aligned",
            _ => "exception",
        }
    }
}
