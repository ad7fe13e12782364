//! The entry point.

use core::arch::global_asm;

use shoal_unikernel_abi::ABI_VERSION;
use shoal_unikernel_abi::boot::{BOOT_MAGIC, BootInfo};

use super::allocator;
use crate::{boot, call};

// The monitor enters here like a call, with the boot information's address in `rdi`. A zero frame
// pointer ends backtraces.
global_asm!(
    ".globl _start",
    ".hidden _start",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "jmp {start}",
    ".size _start, . - _start",
    start = sym start,
);

unsafe extern "Rust" {
    /// What [`crate::main!`] defines; answers the exit status.
    safe fn shoal_image_main() -> u8;
}

/// Exit status when the monitor is not one that this library was made for.
const STATUS_WRONG_MONITOR: u8 = 125;

extern "C" fn start(boot: &'static BootInfo) -> ! {
    boot::set(Some(boot));
    if boot.magic != BOOT_MAGIC || boot.abi_version != ABI_VERSION {
        call::exit(STATUS_WRONG_MONITOR);
    }
    allocator::start(boot.heap);
    call::exit(shoal_image_main())
}
