//! From a record to what the runtime tells the tender.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_model::spec::StringMap;
use shoal_runtime::container_plan::{ContainerPlan, ProcessPlan};
use shoal_runtime::unikernel::{
    Backend, Declared, DeviceKind, GuestBlock, GuestNet, UnikernelPlan, declared,
};

use super::devices;
use super::files::{self, Shown};
use crate::attacher::{Attachment, TapPlace};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::memory;
use crate::mounts::MountSource;
use crate::record::{Files, Record};
use crate::request::InjectedFile;

/// Where the image has its program.
const PROGRAM: &str = "unikernel";
/// Label: `auto`, `kvm` or `process`.
const BACKEND: &str = "shoal.backend";
/// Label: size of the block device NAME's file when it is made.
const BLOCK: &str = "shoal.block.";
/// Size of a block device whose size nobody says. The file is sparse.
const BLOCK_BYTES_DEFAULT: u64 = 64 << 20;
/// A volume's file that is a block device.
const BLOCK_FILE: &str = "block.img";

/// The name of the block device that a mount at `target` is: `/dev/NAME`.
pub(crate) fn block_name(target: &str) -> Option<&str> {
    target.strip_prefix("/dev/").filter(|name| !name.is_empty() && !name.contains('/'))
}

/// Refuses labels that nobody can follow.
pub(crate) fn check_labels(labels: Option<&StringMap>) -> Result<(), EngineError> {
    for (name, value) in labels.into_iter().flatten() {
        let fine = match name.as_str() {
            BACKEND => backend(value).is_some(),
            name if name.starts_with(BLOCK) => crate::logs::parse_size(value).is_some(),
            _ => true,
        };
        if !fine {
            let text = format!("invalid label {name}='{value}': see 'shoal unikernel --help'");
            return Err(EngineError::invalid(text));
        }
    }
    Ok(())
}

/// What of a start is not in the record.
pub(crate) struct Surroundings<'a> {
    /// Layers of the image, topmost first.
    pub layers: &'a [PathBuf],
    pub attachment: &'a Attachment,
    /// Files that must not reach a disk.
    pub injected: &'a [InjectedFile],
    /// A directory of this instance on a memory file system.
    pub memory: &'a Path,
}

/// The whole plan. Blocks.
///
/// # Errors
/// The image does not hold what its label says, or does not fit what is asked for.
pub(crate) fn container(
    engine: &Engine,
    record: &Record,
    files: &Files<'_>,
    around: &Surroundings<'_>,
) -> Result<ContainerPlan, EngineError> {
    let image = program(around.layers).ok_or_else(|| {
        let text = format!("the image '{}' has no file /{PROGRAM}", record.image);
        EngineError::invalid(text)
    })?;
    let declared = declared(&image).map_err(|source| EngineError::UnikernelImage {
        reference: record.image.clone(),
        source: Box::new(source),
    })?;
    if !around.injected.is_empty() {
        // The archives that hold them lie in it.
        memory::make(around.memory)?;
    }
    super::end::forget(files).map_err(EngineError::io("remove", files.crash()))?;
    let limits = crate::workload_plan::limits(&record.host);
    let net = net(&declared, around.attachment)?;
    let blocks = blocks(engine, record, &declared)?;
    let guest_files = files::assemble(around.memory, &shown(engine, record), around.injected)?;
    let rings = devices::ring_bytes(net.is_some(), blocks.len());
    let besides = rings + files::packed_bytes(&guest_files);
    let unikernel = UnikernelPlan {
        tender: Vec::new(),
        backend: label(record, BACKEND).and_then(backend).unwrap_or_default(),
        heap_bytes: devices::heap_bytes(limits.memory_bytes, besides)?,
        uid: super::uid(&record.id),
        net,
        blocks,
        files: guest_files,
        crash_file: Some(files.crash()),
        image,
    };
    Ok(ContainerPlan {
        id: record.id.clone(),
        process: ProcessPlan {
            argv: record.argv(),
            env: record.config.env.clone().unwrap_or_default(),
            oom_score_adj: record.host.oom_score_adj.and_then(|score| i32::try_from(score).ok()),
            ..ProcessPlan::default()
        },
        hostname: record.config.hostname.clone().unwrap_or_default(),
        log: crate::workload_plan::log(record, files),
        limits,
        unikernel: Some(unikernel),
        ..ContainerPlan::default()
    })
}

fn backend(word: &str) -> Option<Backend> {
    match word {
        "auto" => Some(Backend::Auto),
        "kvm" => Some(Backend::Kvm),
        "process" => Some(Backend::Process),
        _ => None,
    }
}

/// The program's file in the topmost layer that has it.
fn program(layers: &[PathBuf]) -> Option<PathBuf> {
    layers.iter().map(|layer| layer.join(PROGRAM)).find(|path| path.is_file())
}

fn label<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    record.config.labels.as_ref()?.get(name).map(String::as_str)
}

/// The image's network device on the container's TAP device.
fn net(declared: &[Declared], attachment: &Attachment) -> Result<Option<GuestNet>, EngineError> {
    let mut all = declared.iter().filter(|device| device.kind == DeviceKind::Net);
    let Some(device) = all.next() else { return Ok(None) };
    if all.any(|other| !other.optional) {
        return Err(EngineError::missing("unikernels with several network devices"));
    }
    let Some(tap) = &attachment.tap else {
        if device.optional {
            return Ok(None);
        }
        return Err(devices::no_network(device));
    };
    let TapPlace { netns, name, mtu, address, mac, gateway } = tap.clone();
    Ok(Some(GuestNet {
        device: device.name.clone(),
        netns,
        tap: name,
        mac,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        ipv4: Some(address),
        gateway,
        // The network's resolver answers there.
        dns: gateway.into_iter().collect(),
    }))
}

/// The volumes that are the image's block devices.
fn blocks(
    engine: &Engine,
    record: &Record,
    declared: &[Declared],
) -> Result<Vec<GuestBlock>, EngineError> {
    devices::check_blocks(declared, &record.mounts)?;
    let mut blocks = Vec::new();
    for mount in &record.mounts {
        let MountSource::Volume { name, .. } = &mount.source else { continue };
        let Some(device) = block_name(&mount.target) else { continue };
        let size = label(record, &format!("{BLOCK}{device}"));
        let size = size.and_then(crate::logs::parse_size).unwrap_or(BLOCK_BYTES_DEFAULT);
        let path = engine.inner.volumes.path(name).join(BLOCK_FILE);
        make_block(&path, size).map_err(EngineError::io("make the block device", &path))?;
        let read_only = mount.read_only;
        blocks.push(GuestBlock { device: device.to_owned(), path, read_only });
    }
    Ok(blocks)
}

/// A file that is there keeps its size and what it holds.
fn make_block(path: &Path, bytes: u64) -> io::Result<()> {
    let file = match fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    };
    file.set_len(bytes)
}

/// The mounts that show files.
fn shown(engine: &Engine, record: &Record) -> Vec<Shown> {
    let source = |source: &MountSource| match source {
        MountSource::Bind { path, .. } => Some(PathBuf::from(path)),
        MountSource::Volume { name, .. } => Some(engine.inner.volumes.path(name)),
        MountSource::Tmpfs { .. } => None,
    };
    record
        .mounts
        .iter()
        .filter(|mount| block_name(&mount.target).is_none())
        .filter_map(|mount| {
            Some(Shown { target: mount.target.clone(), source: source(&mount.source)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::Ipv4Addr;

    use super::*;

    fn device(name: &str, kind: DeviceKind, optional: bool) -> Declared {
        Declared { name: name.to_owned(), kind, optional }
    }

    fn attachment() -> Attachment {
        let tap = TapPlace {
            netns: "/run/n".into(),
            name: "p1".into(),
            mtu: 1450,
            address: (Ipv4Addr::new(10, 0, 1, 4), 24),
            mac: shoal_model::net::Mac([2, 0, 0, 0, 0, 1]),
            gateway: Some(Ipv4Addr::new(10, 0, 1, 1)),
        };
        Attachment { tap: Some(tap), ..Attachment::default() }
    }

    #[test]
    fn block_devices_are_mounts_below_dev() {
        assert_eq!(block_name("/dev/data"), Some("data"));
        for other in ["/dev", "/dev/", "/dev/a/b", "/data"] {
            assert_eq!(block_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_network_device_gets_the_tap() {
        let eth = device("net", DeviceKind::Net, false);
        let got = net(std::slice::from_ref(&eth), &attachment()).unwrap().unwrap();
        assert_eq!((got.device.as_str(), got.tap.as_str(), got.mtu), ("net", "p1", 1450));
        assert_eq!(got.dns, [Ipv4Addr::new(10, 0, 1, 1)]);
        assert_eq!(net(&[], &attachment()).unwrap(), None);
        let none = Attachment::default();
        assert!(net(std::slice::from_ref(&eth), &none).is_err());
        assert_eq!(net(&[device("net", DeviceKind::Net, true)], &none).unwrap(), None);
        let two = [eth, device("other", DeviceKind::Net, false)];
        assert!(matches!(net(&two, &attachment()), Err(EngineError::NotImplemented { .. })));
    }

    #[test]
    fn a_block_devices_file_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BLOCK_FILE);
        make_block(&path, 1 << 20).unwrap();
        make_block(&path, 2 << 20).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    }

    #[test]
    fn labels_are_checked() {
        let labels = |name: &str, value: &str| StringMap::from([(name.into(), value.into())]);
        check_labels(Some(&labels(BACKEND, "kvm"))).unwrap();
        check_labels(Some(&labels("shoal.block.data", "1g"))).unwrap();
        assert!(check_labels(Some(&labels(BACKEND, "xen"))).is_err());
        assert!(check_labels(Some(&labels("shoal.block.data", "big"))).is_err());
    }
}
