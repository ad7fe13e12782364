//! What an image declares, checked against this tender and against what is attached.

use std::collections::BTreeMap;

use shoal_unikernel_abi::ABI_VERSION;
use shoal_unikernel_abi::manifest::{
    DEVICE_OPTIONAL, DEVICES_MAX, Device, DeviceKind, Manifest, NET_TAKES_OFFLOAD,
};

use crate::config::DeviceConfig;

/// Smallest stack in bytes.
pub const STACK_BYTES_MIN: u64 = 16 * 1024;
/// Largest stack in bytes.
pub const STACK_BYTES_MAX: u64 = 64 << 20;

/// Why a manifest does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Built for another version of the contract.
    #[error("it is for ABI version {stated}, this tender has {ours}; rebuild the image",
        ours = ABI_VERSION)]
    Abi {
        /// The version.
        stated: u32,
    },
    /// A field has a value that it cannot have.
    #[error("it is malformed: {what}")]
    Malformed {
        /// What.
        what: &'static str,
    },
    /// A device is of a kind that this tender does not know.
    #[error("its device '{name}' is of the unknown kind {kind}")]
    UnknownKind {
        /// Which device.
        name: String,
        /// The number.
        kind: u32,
    },
    /// The image needs something that this machine or its attachments do not have.
    #[error(
        "it needs the features {missing:#x}, which are not there (see unikernel-abi, features)"
    )]
    Features {
        /// The bits.
        missing: u64,
    },
    /// The heap is too small.
    #[error("it needs a heap of {needed} bytes and would get {given}; give it more memory")]
    Heap {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that it would get.
        given: u64,
    },
    /// Something is attached that the image does not declare.
    #[error("it declares no {kind} device '{name}'; leave the device out or use another image")]
    Undeclared {
        /// Which device.
        name: String,
        /// What was to be attached.
        kind: &'static str,
    },
    /// The image declares a device, and nothing is attached.
    #[error("it declares the {kind} device '{name}', and nothing is attached to it")]
    Unattached {
        /// Which device.
        name: String,
        /// What it is.
        kind: &'static str,
    },
}

/// A device of a checked manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredDevice {
    /// ASCII letters, digits and `-`; no other device of the image has it.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Whether the image runs without it.
    pub optional: bool,
    /// Whether the guest takes unfinished checksums and frames longer than the MTU.
    pub takes_offload: bool,
}

/// A checked manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The devices, in the order of their indices.
    pub devices: Vec<DeclaredDevice>,
    /// Bits of features without which the image does not run.
    pub features_needed: u64,
    /// Heap in bytes below which it does not run.
    pub heap_bytes_min: u64,
    /// Bytes of the stack, whole pages.
    pub stack_bytes: u64,
}

/// Name of a kind in messages.
#[must_use]
pub const fn kind_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net => "network",
        DeviceKind::Block => "block",
    }
}

impl Declared {
    /// Checks a manifest by itself.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(manifest: &Manifest) -> Result<Self, ManifestError> {
        let malformed = |what| ManifestError::Malformed { what };
        if manifest.abi_version != ABI_VERSION {
            return Err(ManifestError::Abi { stated: manifest.abi_version });
        }
        let count = usize::try_from(manifest.device_count).unwrap_or(usize::MAX);
        if count > DEVICES_MAX {
            return Err(malformed("it counts more devices than there can be"));
        }
        if manifest.devices.iter().skip(count).any(|device| *device != Device::NONE) {
            return Err(malformed("it has devices beyond their number"));
        }
        if !(STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&manifest.stack_bytes) {
            return Err(malformed("its stack is smaller than 16 KiB or larger than 64 MiB"));
        }
        let mut devices: Vec<DeclaredDevice> = Vec::with_capacity(count);
        for device in manifest.devices.iter().take(count) {
            let device = check_device(device)?;
            if devices.iter().any(|other| other.name == device.name) {
                return Err(malformed("two devices have one name"));
            }
            devices.push(device);
        }
        Ok(Self {
            devices,
            features_needed: manifest.features_needed,
            heap_bytes_min: manifest.heap_bytes_min,
            stack_bytes: manifest.stack_bytes.next_multiple_of(crate::elf::PAGE),
        })
    }

    /// Checks that exactly the declared devices are attached, and that the heap suffices.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn fits(
        &self,
        attached: &BTreeMap<String, DeviceConfig>,
        memory_bytes: u64,
    ) -> Result<(), ManifestError> {
        if memory_bytes < self.heap_bytes_min {
            let needed = self.heap_bytes_min;
            return Err(ManifestError::Heap { needed, given: memory_bytes });
        }
        for (name, config) in attached {
            let kind = match config {
                DeviceConfig::Net(_) => DeviceKind::Net,
                DeviceConfig::Block(_) => DeviceKind::Block,
            };
            if !self.devices.iter().any(|d| d.name == *name && d.kind == kind) {
                let kind = kind_name(kind);
                return Err(ManifestError::Undeclared { name: name.clone(), kind });
            }
        }
        let absent = |d: &&DeclaredDevice| !d.optional && !attached.contains_key(&d.name);
        match self.devices.iter().find(absent) {
            Some(device) => Err(ManifestError::Unattached {
                name: device.name.clone(),
                kind: kind_name(device.kind),
            }),
            None => Ok(()),
        }
    }

    /// Checks that all needed features are offered.
    ///
    /// # Errors
    /// [`ManifestError::Features`].
    pub const fn features(&self, offered: u64) -> Result<(), ManifestError> {
        match self.features_needed & !offered {
            0 => Ok(()),
            missing => Err(ManifestError::Features { missing }),
        }
    }
}

fn check_device(device: &Device) -> Result<DeclaredDevice, ManifestError> {
    let malformed = |what| ManifestError::Malformed { what };
    let name = device.name();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(malformed("a device's name is not of letters, digits and '-'"));
    }
    if device.name.iter().skip(name.len()).any(|byte| *byte != 0) {
        return Err(malformed("a device's name is not padded with zeros"));
    }
    let kind = DeviceKind::from_number(device.kind)
        .ok_or_else(|| ManifestError::UnknownKind { name: name.to_owned(), kind: device.kind })?;
    let known = match kind {
        DeviceKind::Net => DEVICE_OPTIONAL | NET_TAKES_OFFLOAD,
        DeviceKind::Block => DEVICE_OPTIONAL,
    };
    if device.flags & !known != 0 {
        return Err(malformed("a device has unknown flags"));
    }
    Ok(DeclaredDevice {
        name: name.to_owned(),
        kind,
        optional: device.flags & DEVICE_OPTIONAL != 0,
        takes_offload: device.flags & NET_TAKES_OFFLOAD != 0,
    })
}
