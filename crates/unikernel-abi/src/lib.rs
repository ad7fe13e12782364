//! What a unikernel and the monitor that runs it (the tender) agree on: the manifest inside an
//! image, what the guest finds when it starts, the calls that it may make, and the layout of the
//! memory that both share.
//!
//! It is the same for every backend: a virtual machine (the guest runs in ring 3 of long mode), a
//! seccomp-locked process, and an ordinary program under development. A guest never learns more
//! about its backend than [`boot::BootInfo::backend`].
//!
//! Layouts are `repr(C)`, little endian, and only ever grow at the end: [`ABI_VERSION`] changes
//! when an old guest would misunderstand, a bit of [`features`] is added when it merely would not
//! know.
//!
//! This crate has no code that runs on its own: no allocation, no I/O, no `unsafe`.
//!
//! Begin reading at [`boot`], then [`call`] and [`ring`].

#![no_std]
#![forbid(unsafe_code)]

pub mod block;
pub mod boot;
pub mod call;
pub mod clock;
pub mod control;
pub mod manifest;
pub mod ring;

/// The version of everything in this crate. A tender refuses an image that states another.
pub const ABI_VERSION: u32 = 1;

/// Bits of `features` in the manifest (needed) and in the boot information (offered).
pub mod features {
    /// Network devices take frames larger than the MTU and unfinished checksums
    /// ([`crate::ring::RecordHeader`] is then more than zeros).
    pub const NET_OFFLOAD: u64 = 1 << 0;
    /// The guest may use AVX registers.
    pub const AVX: u64 = 1 << 1;
    /// The guest may set the FS and GS bases itself.
    pub const FSGSBASE: u64 = 1 << 2;
}
