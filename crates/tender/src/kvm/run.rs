//! Runs the virtual processor and serves what it leaves for.

use kvm_bindings::kvm_regs;
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};

use super::cpu::{self, Exception};
use super::setup::Processor;
use super::{CALL_PORT, EXCEPTION_PORT};
use crate::crash::Registers;
use crate::guest::{Call, Guest};

/// Why the processor came back, without what it borrows.
enum Left {
    Call,
    Exception,
    Interrupted,
    Port(u16),
    Memory(u64),
    Other(&'static str),
}

/// Runs the guest until it ends.
pub(crate) fn run(guest: &mut Guest, mut processor: Processor) -> ! {
    let vcpu = &mut processor.vcpu;
    let synced = vcpu.get_kvm_run().kvm_valid_regs & u64::from(SyncReg::Register as u32) != 0;
    loop {
        match next(vcpu) {
            Left::Call => call(guest, vcpu, synced),
            Left::Interrupted => {}
            Left::Exception => exception(guest, &processor),
            Left::Port(port) => {
                let registers = registers(vcpu);
                let message = format_args!("access to port {port:#x}, which is nothing");
                guest.end("fault", message, Some(&registers), None);
            }
            Left::Memory(address) => {
                let registers = registers(vcpu);
                let message = format_args!("access to physical memory {address:#x}, which is none");
                guest.end("fault", message, Some(&registers), None);
            }
            Left::Other(what) => {
                let registers = registers(vcpu);
                guest.end("fault", format_args!("{what}"), Some(&registers), fault_address(vcpu));
            }
        }
    }
}

fn next(vcpu: &mut VcpuFd) -> Left {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => match (u8::try_from(port), data.len()) {
            (Ok(CALL_PORT), 1) => Left::Call,
            (Ok(EXCEPTION_PORT), 1) => Left::Exception,
            _ => Left::Port(port),
        },
        Ok(VcpuExit::IoIn(port, _)) => Left::Port(port),
        Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) => {
            Left::Memory(address)
        }
        Ok(VcpuExit::Intr) => Left::Interrupted,
        Ok(VcpuExit::Hlt) => Left::Other("the processor was halted"),
        Ok(VcpuExit::Shutdown) => Left::Other("an exception could not be delivered"),
        Ok(VcpuExit::FailEntry(..)) => Left::Other("the processor refused to run the guest"),
        Ok(VcpuExit::InternalError) => Left::Other("an instruction could not be emulated"),
        Ok(_) => Left::Other("the processor left for an unknown reason"),
        Err(error) if error.errno() == libc::EINTR => Left::Interrupted,
        Err(error) if error.errno() == libc::EFAULT => {
            Left::Other("the host has no memory for the guest's")
        }
        Err(error) if error.errno() == libc::EAGAIN => {
            Left::Other("the host's limit of processes lets the virtual machine not start")
        }
        Err(_) => Left::Other("the virtual machine failed"),
    }
}

fn call(guest: &mut Guest, vcpu: &mut VcpuFd, synced: bool) {
    let made = |regs: &kvm_regs| Call { number: regs.rdi, a: regs.rsi, b: regs.rdx, c: regs.rcx };
    if synced {
        let answer = guest.call(made(&vcpu.sync_regs_mut().regs));
        vcpu.sync_regs_mut().regs.rax = answer as u64;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        return;
    }
    let Ok(mut regs) = vcpu.get_regs() else {
        guest.end("fault", format_args!("the registers cannot be read"), None, None);
    };
    regs.rax = guest.call(made(&regs)) as u64;
    if vcpu.set_regs(&regs).is_err() {
        guest.end("fault", format_args!("the registers cannot be set"), None, None);
    }
}

fn exception(guest: &Guest, processor: &Processor) -> ! {
    let vcpu = &processor.vcpu;
    let mut registers = registers(vcpu);
    let ring0 = vcpu.get_sregs().is_ok_and(|sregs| sregs.cs.dpl == 0);
    if !ring0 {
        let message = format_args!("access to port {EXCEPTION_PORT:#x}, which is nothing");
        guest.end("fault", message, Some(&registers), None);
    }
    let stack = processor.system.wrapping_add(cpu::STACK as usize).cast::<[u64; 512]>();
    // SAFETY: the page is mapped until the process ends, and the processor does not run.
    let exception = Exception::read(unsafe { &*stack });
    registers.words[7] = exception.rsp;
    registers.words[16] = exception.rip;
    registers.words[17] = exception.rflags;
    let at = exception.rip;
    let name = exception.name();
    if exception.vector == 14 {
        let to = fault_address(vcpu).unwrap_or_default();
        let message = format_args!("{name} to {to:#x} at {at:#x}");
        guest.end("fault", message, Some(&registers), Some(to));
    }
    let vector = exception.vector;
    let message = format_args!("{name} at {at:#x} (exception {vector})");
    guest.end("fault", message, Some(&registers), None)
}

fn fault_address(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_sregs().ok().map(|sregs| sregs.cr2)
}

fn registers(vcpu: &VcpuFd) -> Registers {
    let regs = vcpu.get_regs().unwrap_or_default();
    Registers {
        words: [
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rbp,
            regs.rsp,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rip,
            regs.rflags,
        ],
    }
}
