//! The manifest: an ELF note that names what an image needs, checked before anything of it runs.
//!
//! The note is in section `.note.shoal` (segment `PT_NOTE`), owner [`NOTE_OWNER`], type
//! [`NOTE_TYPE`]. Its content is one [`Manifest`]. Only what is declared here is attached, and all
//! of it must be: an undeclared device cannot be reached.

/// Owner of the note, without the final zero.
pub const NOTE_OWNER: &str = "Shoal";
/// Type of the note.
pub const NOTE_TYPE: u32 = 1;
/// First bytes of the note's content.
pub const MAGIC: [u8; 8] = *b"SHOALUK1";
/// Most devices of one image. Bits of the answer to `wait` name devices, and some are spare.
pub const DEVICES_MAX: usize = 32;
/// Longest name of a device in bytes.
pub const NAME_MAX: usize = 23;

/// Content of the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::ABI_VERSION`] of the library that the image was built with.
    pub abi_version: u32,
    /// How many of `devices` count; the rest is zero.
    pub device_count: u32,
    /// Bits of [`crate::features`] without which the image does not run.
    pub features_needed: u64,
    /// Heap in bytes below which the image does not run.
    pub heap_bytes_min: u64,
    /// Size of the stack in bytes.
    pub stack_bytes: u64,
    /// The devices, in the order of their indices.
    pub devices: [Device; DEVICES_MAX],
}

/// One declared device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// A [`DeviceKind`]; zero means none.
    pub kind: u32,
    /// [`DEVICE_OPTIONAL`], and [`NET_TAKES_OFFLOAD`] for a network interface.
    pub flags: u32,
    /// ASCII letters, digits and `-`, padded with zeros.
    pub name: [u8; NAME_MAX + 1],
}

/// Bit of [`Device::flags`]: the image runs without the device too.
pub const DEVICE_OPTIONAL: u32 = 1;
/// Bit of [`Device::flags`] of a network interface: the guest takes unfinished checksums and frames
/// longer than the MTU, so that the tender asks its peer for them.
pub const NET_TAKES_OFFLOAD: u32 = 2;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// A network interface for Ethernet frames; shares a [`crate::ring`] region.
    Net = 1,
    /// A block device; shares a [`crate::block`] region.
    Block = 2,
}

impl DeviceKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Net),
            2 => Some(Self::Block),
            _ => None,
        }
    }
}

impl Device {
    /// No device.
    pub const NONE: Self = Self { kind: 0, flags: 0, name: [0; NAME_MAX + 1] };

    /// A device called `name`.
    ///
    /// # Panics
    /// At compile time, if the name is too long.
    #[must_use]
    pub const fn new(kind: DeviceKind, name: &str, flags: u32) -> Self {
        let from = name.as_bytes();
        assert!(from.len() <= NAME_MAX, "the name of a device is too long");
        let mut to = [0; NAME_MAX + 1];
        let mut at = 0;
        while at < from.len() {
            to[at] = from[at];
            at += 1;
        }
        Self { kind: kind as u32, flags, name: to }
    }

    /// Its name, up to the first zero.
    #[must_use]
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        core::str::from_utf8(&self.name[..end]).unwrap_or_default()
    }
}

/// Size of [`Manifest`] in bytes.
pub const MANIFEST_BYTES: usize = core::mem::size_of::<Manifest>();
const _: () = assert!(MANIFEST_BYTES == 40 + DEVICES_MAX * 32);
