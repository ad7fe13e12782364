//! The manifest of an image, as the ELF note that a monitor looks for. Made by [`crate::main!`].

use shoal_unikernel_abi::ABI_VERSION;
use shoal_unikernel_abi::manifest::{
    DEVICE_OPTIONAL, DEVICES_MAX, Device, DeviceKind, MAGIC, MANIFEST_BYTES, Manifest,
    NET_TAKES_OFFLOAD, NOTE_OWNER, NOTE_TYPE,
};

/// Least heap of an image that asks for none: enough for a few hundred connections.
pub const HEAP_BYTES_MIN: u64 = 2 << 20;
/// Stack of an image that asks for none. Only what is touched costs memory.
pub const STACK_BYTES: u64 = 256 << 10;

/// Bytes of the owner with its final zero, padded as in every ELF note.
const OWNER_BYTES: usize = (NOTE_OWNER.len() + 1).next_multiple_of(4);

/// An ELF note: header, owner, content. Packed because notes are aligned to 4 bytes.
#[repr(C, packed(4))]
pub struct Note {
    owner_bytes: u32,
    content_bytes: u32,
    kind: u32,
    owner: [u8; OWNER_BYTES],
    manifest: Manifest,
}

impl Note {
    /// The note of an image with these devices and needs.
    ///
    /// # Panics
    /// At compile time, if there are too many devices.
    #[must_use]
    pub const fn new(needed: &[Device], heap_bytes_min: u64, stack_bytes: u64) -> Self {
        assert!(needed.len() <= DEVICES_MAX, "too many devices");
        let mut devices = [Device::NONE; DEVICES_MAX];
        let mut owner = [0; OWNER_BYTES];
        let mut at = 0;
        while at < needed.len() {
            devices[at] = needed[at];
            at += 1;
        }
        at = 0;
        while at < NOTE_OWNER.len() {
            owner[at] = NOTE_OWNER.as_bytes()[at];
            at += 1;
        }
        Self {
            owner_bytes: NOTE_OWNER.len() as u32 + 1,
            content_bytes: MANIFEST_BYTES as u32,
            kind: NOTE_TYPE,
            owner,
            manifest: Manifest {
                magic: MAGIC,
                abi_version: ABI_VERSION,
                device_count: needed.len() as u32,
                features_needed: 0,
                heap_bytes_min,
                stack_bytes,
                devices,
            },
        }
    }

    /// What the note says.
    #[must_use]
    pub const fn manifest(&self) -> Manifest {
        self.manifest
    }
}

/// A network interface. The stack takes what a monitor may offer: long frames and checksums that
/// are still to be finished.
#[must_use]
pub const fn net(name: &str, optional: bool) -> Device {
    let flags = if optional { DEVICE_OPTIONAL } else { 0 };
    Device::new(DeviceKind::Net, name, flags | NET_TAKES_OFFLOAD)
}

/// A block device.
#[must_use]
pub const fn block(name: &str, optional: bool) -> Device {
    Device::new(DeviceKind::Block, name, if optional { DEVICE_OPTIONAL } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_what_elf_asks_for() {
        static NOTE: Note = Note::new(&[net("eth0", false), block("data", true)], 1 << 20, 65536);
        assert_eq!(size_of::<Note>(), 12 + 8 + MANIFEST_BYTES);
        assert_eq!((NOTE.owner_bytes, NOTE.content_bytes as usize), (6, MANIFEST_BYTES));
        assert_eq!(&NOTE.owner, b"Shoal\0\0\0");
        let manifest = NOTE.manifest();
        assert_eq!(manifest.device_count, 2);
        assert_eq!((manifest.devices[0].name(), manifest.devices[0].flags), ("eth0", 2));
        assert_eq!((manifest.devices[1].name(), manifest.devices[1].flags), ("data", 1));
    }
}
