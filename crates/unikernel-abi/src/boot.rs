//! What the guest finds when it starts.
//!
//! The tender enters the image's entry point with the address of a [`BootInfo`] in `rdi`, `rsp` at
//! the top of the stack (16-byte aligned, then a zero return address is pushed), direction flag
//! clear, default MXCSR and x87 state, and no other register defined. Everything that the boot
//! information points to is mapped read-only, except heap, stack and device regions.

use crate::manifest::NAME_MAX;

/// First word of [`BootInfo`].
pub const BOOT_MAGIC: u64 = 0x4c4f_4f42_414f_4853;

/// Which monitor runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Backend {
    /// A virtual machine; the guest is in ring 3.
    Kvm = 1,
    /// A process without privileges under a system call filter.
    Process = 2,
    /// An ordinary program, for development.
    Hosted = 3,
}

/// An address and a length in bytes, in the guest's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Everything a guest is told.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`] of the tender.
    pub abi_version: u32,
    /// A [`Backend`].
    pub backend: u32,
    /// Offered bits of [`crate::features`].
    pub features: u64,
    /// Address of the hypercall entry: `extern "C" fn(number, a, b, c) -> i64`, see
    /// [`crate::call`].
    pub hypercall: u64,
    /// Where the image lies; its base is not fixed.
    pub image: Span,
    /// Zeroed memory for the heap. Touched lazily: what is never used costs nothing.
    pub heap: Span,
    /// The stack, guard page not included.
    pub stack: Span,
    /// Arguments, each ended by a zero byte; the first is the program's name.
    pub args: Span,
    /// Environment, `KEY=value`, each ended by a zero byte.
    pub env: Span,
    /// Host name, UTF-8.
    pub hostname: Span,
    /// Array of [`DeviceInfo`] (the span is in bytes), in the manifest's order; absent optional
    /// devices have no region.
    pub devices: Span,
    /// Array of [`MountInfo`]; the span is in bytes.
    pub mounts: Span,
    /// Address of a [`crate::clock::ClockPage`].
    pub clock: u64,
    /// Address of a [`crate::control::ControlPage`].
    pub control: u64,
    /// Random bytes, different for every start.
    pub seed: [u8; 32],
}

/// A device as it was attached.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DeviceInfo {
    /// A [`crate::manifest::DeviceKind`].
    pub kind: u32,
    /// 1 if it is attached, 0 if it is optional and absent.
    pub present: u32,
    /// Its name, padded with zeros.
    pub name: [u8; NAME_MAX + 1],
    /// The memory that guest and tender share for it.
    pub region: Span,
    /// Counts for [`crate::manifest::DeviceKind::Net`].
    pub net: NetInfo,
    /// Counts for [`crate::manifest::DeviceKind::Block`].
    pub block: BlockInfo,
}

/// Static configuration of an interface: no DHCP.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct NetInfo {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Own IPv4 address; zeros: none.
    pub ipv4: [u8; 4],
    /// IPv4 address of the gateway; zeros: none.
    pub gateway: [u8; 4],
    /// Name servers, in order; zeros: none.
    pub dns: [[u8; 4]; 3],
    /// Length of the IPv4 network's prefix in bits.
    pub prefix_len: u8,
    /// Must be zero.
    pub reserved: [u8; 3],
}

/// Geometry of a block device.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BlockInfo {
    /// Size in sectors of [`crate::block::SECTOR_BYTES`].
    pub sectors: u64,
    /// 1 if writes are refused.
    pub read_only: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Files given at start, as an uncompressed tar archive (POSIX ustar) in memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MountInfo {
    /// Where they appear: an absolute path, UTF-8.
    pub path: Span,
    /// The archive; names in it are relative to the path.
    pub archive: Span,
}
