//! Makes the virtual machine of an instance.

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_regs,
    kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};
use shoal_unikernel_abi::features;

use super::cpu::{self, Abilities, Ring};
use super::tables::{Full, Owner, Tables, tables_needed};
use super::{CALL_PORT, OPENING, failed};
use crate::elf::{Access, PAGE};
use crate::error::TenderError;
use crate::layout::{HIGHEST, LARGE_PAGE, Layout, Purpose};
use crate::memory::Space;
use crate::process::Start;

/// The system's pages are drawn from here to twice as high: nothing else is.
const SYSTEM_LOWEST: u64 = HIGHEST;
const SYSTEM_PLACES: u64 = 0x2000_0000_0000 / PAGE;
/// Where page tables begin in guest-physical memory: behind the system's pages.
const TABLES: u64 = cpu::SYSTEM_BYTES;

/// Request of linux/kvm.h: `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;

/// An opened KVM and a virtual machine without memory.
pub(crate) struct Machine {
    kvm: Kvm,
    vm: VmFd,
    cpuid: kvm_bindings::CpuId,
    abilities: Abilities,
}

/// A virtual machine that can be run.
pub(crate) struct Processor {
    pub vcpu: VcpuFd,
    /// The tender's address of the system's pages.
    pub system: *mut u8,
}

impl Machine {
    /// Opens `/dev/kvm` and makes a virtual machine.
    pub fn open() -> Result<Self, TenderError> {
        let kvm = Kvm::new().map_err(failed(OPENING))?;
        let vm = kvm.create_vm().map_err(failed("making a virtual machine"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(failed("asking for the processor's features"))?;
        let abilities = Abilities::of(&cpuid);
        Ok(Self { kvm, vm, cpuid, abilities })
    }

    /// The features that a guest is offered, of those that depend on the processor.
    pub const fn features(&self) -> u64 {
        let mut bits = 0;
        if self.abilities.avx {
            bits |= features::AVX;
        }
        if self.abilities.fsgsbase {
            bits |= features::FSGSBASE;
        }
        bits
    }

    /// Bytes in front of the guest's memory that page tables and the system's pages need.
    pub fn front(layout: &Layout) -> u64 {
        let regions = layout.regions.iter();
        let lengths = regions.map(|r| (r.len, r.purpose == Purpose::Heap));
        let tables = tables_needed(lengths.chain([(cpu::SYSTEM_BYTES, false)]));
        (TABLES + tables * PAGE).next_multiple_of(LARGE_PAGE)
    }

    /// Gives the guest its memory and a processor that begins at `start`. `random` places the
    /// system's pages.
    pub fn build(self, space: &Space, start: Start, random: u64) -> Result<Processor, TenderError> {
        let (piece, len) = space.piece();
        let system = SYSTEM_LOWEST + random % SYSTEM_PLACES * PAGE;
        space.map_front()?;
        // SAFETY: the front was mapped just now, zeroed, and nothing else refers to it.
        let (pages, tables) = unsafe {
            let front = (space.front() - TABLES) as usize / 8;
            (
                core::slice::from_raw_parts_mut(piece, cpu::SYSTEM_BYTES as usize),
                core::slice::from_raw_parts_mut(piece.add(TABLES as usize).cast::<u64>(), front),
            )
        };
        cpu::write_system(pages, system);
        map(&mut Tables::new(tables, TABLES), space, system).map_err(|Full| {
            let source = std::io::ErrorKind::OutOfMemory.into();
            TenderError::Kvm { action: "filling the page tables", source }
        })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: len,
            userspace_addr: piece as u64,
        };
        // SAFETY: the piece stays mapped until the process ends.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
        let vcpu = self.processor(Ring::Three, system, start)?;
        // The processor keeps what it needs of both; their files are closed with all others.
        core::mem::forget((self.kvm, self.vm));
        Ok(Processor { vcpu, system: piece })
    }

    /// A processor that begins at `start`.
    pub(super) fn processor(
        &self,
        ring: Ring,
        system: u64,
        start: Start,
    ) -> Result<VcpuFd, TenderError> {
        let mut vcpu = self.vm.create_vcpu(0).map_err(failed("making a processor"))?;
        vcpu.set_cpuid2(&self.cpuid).map_err(failed("setting the processor's features"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("reading system registers"))?;
        cpu::set_system_registers(&mut sregs, self.abilities, ring, system, TABLES);
        vcpu.set_sregs(&sregs).map_err(failed("setting system registers"))?;
        let regs = kvm_regs {
            rip: start.entry,
            // As if called: a zero return address is on the stack.
            rsp: start.stack_top - 8,
            rdi: start.boot,
            rflags: cpu::RFLAGS,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).map_err(failed("setting registers"))?;
        if self.abilities.xsave {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
            // x87, SSE, and AVX.
            xcrs.xcrs[0].value = if self.abilities.avx { 7 } else { 3 };
            vcpu.set_xcrs(&xcrs).map_err(failed("enabling AVX"))?;
        }
        same_counter(&vcpu)?;
        if self.kvm.check_extension_int(Cap::SyncRegs) & SyncReg::Register as i32 != 0 {
            vcpu.set_sync_valid_reg(SyncReg::Register);
        }
        Ok(vcpu)
    }

    /// The virtual machine.
    pub const fn vm(&self) -> &VmFd {
        &self.vm
    }
}

/// Lets the guest see the host's time stamp counter, on which the clock page is based: with another
/// one its time would be wrong.
fn same_counter(vcpu: &VcpuFd) -> Result<(), TenderError> {
    let offset: u64 = 0;
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: (&raw const offset) as u64,
    };
    // Ignored because: before Linux 5.16 there is no such attribute; then the counter's register is
    // set, which is off by the time that this takes.
    // SAFETY: the attribute and what it points to outlive the call.
    let answer = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attr) };
    if answer != 0 {
        const IA32_TSC: u32 = 0x10;
        let entry = kvm_bindings::kvm_msr_entry {
            index: IA32_TSC,
            data: crate::sys::tsc(),
            ..Default::default()
        };
        let action = "setting the time stamp counter";
        let set = match kvm_bindings::Msrs::from_entries(&[entry]) {
            Ok(msrs) => vcpu.set_msrs(&msrs).map_err(failed(action))?,
            Err(_) => 0,
        };
        if set == 0 {
            let source = io::Error::other("the kernel takes no value");
            return Err(TenderError::Kvm { action, source });
        }
    }
    Ok(())
}

/// Maps every region for the guest, and the system's pages for ring 0.
fn map(tables: &mut Tables<'_>, space: &Space, system: u64) -> Result<(), Full> {
    let (piece, _) = space.piece();
    for window in &space.windows {
        let region = &window.region;
        let physical = window.host as u64 - piece as u64;
        let large = region.purpose == Purpose::Heap;
        tables.map(region.start, physical, region.len, region.access, Owner::Guest, large)?;
    }
    for (offset, access) in [
        (cpu::DESCRIPTORS, Access::Read),
        (cpu::STUBS, Access::Execute),
        (cpu::STACK, Access::Write),
    ] {
        tables.map(system + offset, offset, PAGE, access, Owner::System, false)?;
    }
    Ok(())
}

/// Writes the hypercall entry: `out CALL_PORT, al` and `ret`. The tender finds number and arguments
/// in the registers of the calling convention, and puts the answer into `rax`.
pub(crate) fn write_entry(to: *mut u8) {
    let code = [0xe6, CALL_PORT, 0xc3];
    // SAFETY: callers give the first bytes of the mapped, still writable hypercall page.
    unsafe { to.copy_from_nonoverlapping(code.as_ptr(), code.len()) };
}

/// Descriptor of the processor, and the requests that running it takes.
pub(crate) fn allowed(processor: &Processor) -> (i32, Vec<u64>) {
    // KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS of linux/kvm.h.
    let requests = vec![0xae80, 0x8090_ae81, 0x4090_ae82, 0x8138_ae83];
    (processor.vcpu.as_raw_fd(), requests)
}
