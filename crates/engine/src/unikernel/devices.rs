//! Whether what an image needs is there: its devices and its heap. Its labels say enough to refuse
//! a container when it is made; at each start the program itself is asked.

use shoal_model::spec::StringMap;
use shoal_runtime::unikernel::{Declared, DeviceKind};

use super::tender_plan::block_name;
use crate::error::EngineError;
use crate::mounts::{MountRecord, MountSource};

/// Label of an image: its devices, `name=kind`, with a question mark if it runs without.
const DEVICES: &str = "shoal.unikernel.devices";
/// Label of an image: bytes of heap below which it does not run.
const HEAP: &str = "shoal.unikernel.heap-bytes-min";

/// The smallest heap: with less the smallest memory limit would leave none.
const HEAP_BYTES_MIN: u64 = 1 << 20;
/// The heap of a unikernel without a memory limit. Never touched memory costs nothing.
const HEAP_BYTES_DEFAULT: u64 = 128 << 20;
/// What the tender needs of a memory limit for itself, the program and the stack.
const TENDER_BYTES: u64 = 4 << 20;
/// The share of a limit that goes to page tables: eight bytes for each page of 4 KiB, of the
/// process, of the guest, and once more of KVM, are less than a 128th.
const TABLES_SHARE: u64 = 128;

/// What the labels of an image declare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Declaration {
    /// Nothing if no label speaks of devices, or not in words that this version knows.
    devices: Option<Vec<Declared>>,
    heap_bytes_min: u64,
}

/// What a container gives its unikernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    /// Its mounts.
    pub mounts: &'a [MountRecord],
    /// Whether it has a network.
    pub has_network: bool,
    /// Its memory limit.
    pub memory_bytes: Option<u64>,
}

impl Declaration {
    /// Reads the labels of an image.
    pub fn of(labels: Option<&StringMap>) -> Self {
        let label = |name: &str| labels.and_then(|labels| labels.get(name));
        Self {
            devices: label(DEVICES).and_then(|text| devices(text)),
            heap_bytes_min: label(HEAP).and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }

    /// Refuses what is known not to fit.
    ///
    /// # Errors
    /// A device is missing or too many, or the heap is too small.
    pub fn check(&self, given: Given<'_>) -> Result<(), EngineError> {
        let Some(devices) = &self.devices else { return Ok(()) };
        check_blocks(devices, given.mounts)?;
        let net = devices.iter().find(|d| d.kind == DeviceKind::Net && !d.optional);
        if let Some(device) = net.filter(|_| !given.has_network) {
            return Err(no_network(device));
        }
        let blocks = given.mounts.iter().filter(|mount| block_name(&mount.target).is_some());
        let has_net = given.has_network && devices.iter().any(|d| d.kind == DeviceKind::Net);
        let rings = ring_bytes(has_net, blocks.count());
        check_heap(self.heap_bytes_min, heap_bytes(given.memory_bytes, rings)?, rings)
    }
}

/// Reads `net=network,data=block?`.
fn devices(text: &str) -> Option<Vec<Declared>> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let device = |part: &str| {
        let (name, kind) = part.split_once('=')?;
        let (kind, optional) = match kind.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (kind, false),
        };
        let kind = match kind {
            "network" => DeviceKind::Net,
            "block" => DeviceKind::Block,
            _ => return None,
        };
        Some(Declared { name: name.to_owned(), kind, optional })
    };
    parts.map(device).collect()
}

/// Whether block devices and mounts below `/dev` belong together.
///
/// # Errors
/// A mount without a device, or a device without a mount.
pub(crate) fn check_blocks(
    devices: &[Declared],
    mounts: &[MountRecord],
) -> Result<(), EngineError> {
    let blocks = || devices.iter().filter(|device| device.kind == DeviceKind::Block);
    let volumes = mounts.iter().filter(|m| matches!(m.source, MountSource::Volume { .. }));
    let given: Vec<&str> = volumes.filter_map(|mount| block_name(&mount.target)).collect();
    if let Some(name) = given.iter().find(|name| !blocks().any(|device| device.name == **name)) {
        let known: Vec<&str> = blocks().map(|device| device.name.as_str()).collect();
        let remedy = if known.is_empty() {
            format!("leave the mount at '/dev/{name}' out")
        } else {
            format!("mount the volume at one of its own: /dev/{}", known.join(", /dev/"))
        };
        return Err(needs(format!("no block device '{name}' is in the image"), remedy));
    }
    match blocks().find(|device| !device.optional && !given.contains(&device.name.as_str())) {
        Some(Declared { name, .. }) => Err(needs(
            format!("block device '{name}' has no volume, and the image needs it"),
            format!("give it one: -v VOLUME:/dev/{name}"),
        )),
        None => Ok(()),
    }
}

/// A network device and no network.
pub(crate) fn no_network(device: &Declared) -> EngineError {
    needs(
        format!("no network for the device '{}', and the image needs it", device.name),
        "leave '--network none' out, or name a network",
    )
}

/// Bytes of the rings between tender and guest.
pub(crate) fn ring_bytes(has_net: bool, blocks: usize) -> u64 {
    let nets = u64::from(has_net) * DeviceKind::Net.ring_bytes();
    nets + blocks as u64 * DeviceKind::Block.ring_bytes()
}

/// The heap below a memory limit, of which `besides` goes to rings and files.
///
/// # Errors
/// Nothing is left for a heap.
pub(crate) fn heap_bytes(limit: Option<u64>, besides: u64) -> Result<u64, EngineError> {
    let Some(limit) = limit else { return Ok(HEAP_BYTES_DEFAULT) };
    let heap = (limit - limit / TABLES_SHARE).saturating_sub(TENDER_BYTES + besides);
    if heap < HEAP_BYTES_MIN {
        return Err(too_small(besides, HEAP_BYTES_MIN));
    }
    Ok(heap)
}

/// Whether the heap is as large as the image needs it.
fn check_heap(needed: u64, heap: u64, besides: u64) -> Result<(), EngineError> {
    if heap < needed { Err(too_small(besides, needed)) } else { Ok(()) }
}

fn too_small(besides: u64, heap: u64) -> EngineError {
    let tender = TENDER_BYTES + besides;
    needs(
        format!(
            "memory limit is too small: tender, rings and files take {tender} bytes, and the \
             heap needs {heap}"
        ),
        // One more than the share takes: it is rounded down.
        format!(
            "give it at least --memory {}b",
            (tender + heap) * TABLES_SHARE / (TABLES_SHARE - 1) + 1
        ),
    )
}

fn needs(problem: String, remedy: impl Into<String>) -> EngineError {
    EngineError::UnikernelNeeds { problem, remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels(devices: &str, heap: &str) -> StringMap {
        StringMap::from([(DEVICES.into(), devices.into()), (HEAP.into(), heap.into())])
    }

    fn volume(target: &str) -> MountRecord {
        MountRecord {
            target: target.into(),
            read_only: false,
            mode: String::new(),
            source: MountSource::Volume {
                name: "v".into(),
                copy_up: true,
                anonymous: false,
                labels: StringMap::default(),
            },
        }
    }

    fn verdict(devices: &str, mounts: &[MountRecord], network: bool) -> Result<(), String> {
        let declared = Declaration::of(Some(&labels(devices, "1048576")));
        let given = Given { mounts, has_network: network, memory_bytes: None };
        declared.check(given).map_err(|error| error.to_string())
    }

    #[test]
    fn labels_without_words_that_are_known_say_nothing() {
        for text in ["net", "net=wireless", "net=network,data"] {
            assert_eq!(Declaration::of(Some(&labels(text, "x"))), Declaration::default());
        }
        assert_eq!(Declaration::of(None), Declaration::default());
        verdict("gpu=gpu", &[volume("/dev/data")], false).unwrap();
    }

    #[test]
    fn devices_and_mounts_belong_together() {
        let data = [volume("/dev/data"), volume("/files")];
        verdict("net=network,data=block", &data, true).unwrap();
        verdict("net=network?,data=block?", &[], false).unwrap();
        for (devices, mounts, network, said) in [
            ("net=network", &data[..], true, "no block device 'data'"),
            ("data=block?,log=block", &data[..], true, "block device 'log' has no"),
            ("data=block", &[][..], true, "block device 'data' has no"),
            ("net=network", &[][..], false, "no network for the device 'net'"),
        ] {
            let error = verdict(devices, mounts, network).unwrap_err();
            assert!(error.starts_with(said), "{devices}: {error}");
        }
    }

    #[test]
    fn a_memory_limit_is_heap_and_what_is_around_it() {
        assert_eq!(heap_bytes(None, 0).unwrap(), HEAP_BYTES_DEFAULT);
        assert_eq!(heap_bytes(Some(128 << 20), 1 << 20).unwrap(), 122 << 20);
        // Docker's smallest limit is enough for a network device.
        heap_bytes(Some(6 << 20), ring_bytes(true, 0)).unwrap();
        assert!(heap_bytes(Some(6 << 20), 2 << 20).is_err());
        let declared = Declaration::of(Some(&labels("net=network", "33554432")));
        let given =
            |mib: u64| Given { mounts: &[], has_network: true, memory_bytes: Some(mib << 20) };
        declared.check(given(64)).unwrap();
        let error = declared.check(given(32)).unwrap_err().to_string();
        assert!(error.starts_with("memory limit is too small: "), "{error}");
        // Who follows the advice gets what is needed.
        let advice = |heap: u64, besides: u64| {
            let EngineError::UnikernelNeeds { remedy, .. } = too_small(besides, heap) else {
                panic!("another error");
            };
            let digits: String = remedy.chars().filter(|c| c.is_ascii_digit()).collect();
            digits.parse::<u64>().unwrap()
        };
        for (heap, besides) in [(1 << 20, 0), (32 << 20, 528_384), (1 << 30, 12 << 20)] {
            assert!(heap_bytes(Some(advice(heap, besides)), besides).unwrap() >= heap, "{heap}");
        }
    }
}
