//! Unikernels: what the tender is told, in place of a container's namespaces and mounts.
//!
//! The shim starts the tender as its workload, in the cgroup of the plan; the tender locks itself
//! in. What it is told is a file in the shim's directory, written by the daemon.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_tender::config::{
    Attach, BackendChoice, BlockConfig, Config, DeviceConfig, FORMAT, Ipv4Prefix, JailChoice, Mac,
    MountConfig, NetConfig,
};
use shoal_tender::elf::Image;
use shoal_tender::manifest::{self, ManifestError};
use shoal_tender::stats::reader::{Reader, Snapshot};
use shoal_unikernel_abi::{block, boot, ring};

use crate::container_plan::ContainerPlan;
use crate::stats::InterfaceStats;

/// The tender's configuration in a shim's directory.
pub const CONFIG_FILE: &str = "tender.json";
/// The tender's counters in a shim's directory.
pub const STATS_FILE: &str = "stats";

/// What one unikernel is, completely resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnikernelPlan {
    /// Program and first arguments of the tender; the path of its configuration is appended.
    /// Empty: the runtime fills it in.
    pub tender: Vec<String>,
    /// The image's ELF on the host.
    pub image: PathBuf,
    /// Where it runs.
    pub backend: Backend,
    /// Bytes of its heap.
    pub heap_bytes: u64,
    /// The user and group that the tender becomes: nobody else's.
    pub uid: u32,
    /// Its network interface.
    pub net: Option<GuestNet>,
    /// Its block devices, by name.
    pub blocks: Vec<GuestBlock>,
    /// Files that it sees, read-only.
    pub files: Vec<GuestFiles>,
    /// Where a record of its crash is written, beside its log.
    pub crash_file: Option<PathBuf>,
}

/// A unikernel's network interface: a TAP device that is there already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNet {
    /// The device's name in the image's manifest.
    pub device: String,
    /// The network namespace that the TAP device is in.
    pub netns: PathBuf,
    /// The TAP device's name there.
    pub tap: String,
    /// Its hardware address.
    pub mac: shoal_model::net::Mac,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Its address and the length of its network's prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Its name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// A file of the host as a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestBlock {
    /// The device's name in the image's manifest.
    pub device: String,
    /// The file.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A directory or tar archive of the host whose files a unikernel sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFiles {
    /// Absolute path in the guest.
    pub path: String,
    /// The directory or archive.
    pub source: PathBuf,
}

/// What an image declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// The device's name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Whether the image runs without it too.
    pub optional: bool,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A network interface.
    Net,
    /// A block device.
    Block,
}

impl DeviceKind {
    /// Bytes of the rings between tender and guest for one such device.
    #[must_use]
    pub const fn ring_bytes(self) -> u64 {
        let bytes = match self {
            Self::Net => ring::region_bytes(ring::CAPACITY_DEFAULT, ring::CAPACITY_DEFAULT),
            Self::Block => block::REGION_BYTES,
        };
        bytes as u64
    }
}

/// Why the program in an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its file cannot be read.
    #[error("read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It breaks a rule for images.
    #[error("check '{}'", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// Which rule.
        #[source]
        source: shoal_tender::elf::ElfError,
    },
    /// What it says that it needs makes no sense here.
    #[error("check the manifest in '{}'", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
}

/// What a running unikernel says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GuestFacts {
    /// Where it runs: `kvm` or `process`.
    pub backend: String,
    /// Nanoseconds from the start of its tender to its first instruction.
    pub start_ns: u64,
    /// The file of its counters, for tools.
    pub stats_file: PathBuf,
}

/// The largest image that is looked at: the ones that ship have some hundred KiB.
const IMAGE_BYTES_MAX: u64 = 256 << 20;

/// Reads what the image at `path` declares.
///
/// # Errors
/// It cannot be read, or is no image.
pub fn declared(path: &Path) -> Result<Vec<Declared>, ImageError> {
    let path = || path.to_owned();
    let bytes = shoal_durable::read(&path(), IMAGE_BYTES_MAX)
        .and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|source| ImageError::Read { path: path(), source })?;
    let image = Image::parse(&bytes).map_err(|source| ImageError::Elf { path: path(), source })?;
    let checked = manifest::Declared::check(&image.manifest);
    let checked = checked.map_err(|source| ImageError::Manifest { path: path(), source })?;
    Ok(checked
        .devices
        .into_iter()
        .map(|device| Declared {
            name: device.name,
            kind: match device.kind {
                shoal_unikernel_abi::manifest::DeviceKind::Net => DeviceKind::Net,
                shoal_unikernel_abi::manifest::DeviceKind::Block => DeviceKind::Block,
            },
            optional: device.optional,
        })
        .collect())
}

/// The counters of the unikernel whose shim has the directory `dir`; nothing before it runs.
pub(crate) fn counters(dir: &Path) -> Option<Snapshot> {
    Reader::open(&dir.join(STATS_FILE)).ok().map(|reader| reader.snapshot())
}

/// What [`GuestFacts`] are in its counters.
pub(crate) fn facts(dir: &Path) -> Option<GuestFacts> {
    let counters = counters(dir)?;
    Some(GuestFacts {
        backend: if counters.backend == boot::Backend::Kvm as u32 { "kvm" } else { "process" }
            .to_owned(),
        start_ns: counters.start_ns,
        stats_file: dir.join(STATS_FILE),
    })
}

/// Where a unikernel runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// As a virtual machine where that is possible, else as a process.
    #[default]
    Auto,
    /// As a virtual machine.
    Kvm,
    /// As a seccomp-locked process.
    Process,
}

/// Its network devices as a container's interfaces.
pub(crate) fn interfaces(counters: &Snapshot) -> BTreeMap<String, InterfaceStats> {
    let net = shoal_unikernel_abi::manifest::DeviceKind::Net as u64;
    let devices = counters.devices.iter().filter(|device| device.kind == net);
    devices
        .map(|device| {
            let [rx_packets, rx_bytes, rx_dropped] = device.received;
            let [tx_packets, tx_bytes, tx_dropped] = device.sent;
            let stats = InterfaceStats {
                rx_bytes,
                rx_packets,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_dropped,
                ..InterfaceStats::default()
            };
            (device.name.clone(), stats)
        })
        .collect()
}

/// Writes what the tender of `plan` is told into the shim's directory `dir`.
pub(crate) async fn write_config(dir: &Path, plan: &ContainerPlan) -> io::Result<()> {
    let Some(unikernel) = &plan.unikernel else { return Ok(()) };
    let text = serde_json::to_vec(&config(plan, unikernel, dir))?;
    crate::runtime::write_private(&dir.join(CONFIG_FILE), &text).await
}

fn config(plan: &ContainerPlan, unikernel: &UnikernelPlan, dir: &Path) -> Config {
    let net = unikernel.net.iter().map(|net| {
        let config = NetConfig {
            attach: Attach::Tap { netns: Some(net.netns.clone()), name: net.tap.clone() },
            mac: Mac(net.mac.0),
            mtu: net.mtu,
            ipv4: net.ipv4.map(|(address, len)| Ipv4Prefix { address, len }),
            gateway: net.gateway,
            dns: net.dns.clone(),
        };
        (net.device.clone(), DeviceConfig::Net(config))
    });
    let blocks = unikernel.blocks.iter().map(|block| {
        let config = BlockConfig { path: block.path.clone(), read_only: block.read_only };
        (block.device.clone(), DeviceConfig::Block(config))
    });
    let mounts = unikernel
        .files
        .iter()
        .map(|files| MountConfig { path: files.path.clone(), source: files.source.clone() });
    Config {
        format: FORMAT,
        image: unikernel.image.clone(),
        backend: match unikernel.backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Kvm => BackendChoice::Kvm,
            Backend::Process => BackendChoice::Process,
        },
        memory_bytes: unikernel.heap_bytes,
        args: plan.process.argv.clone(),
        env: plan.process.env.clone(),
        hostname: plan.hostname.clone(),
        devices: net.chain(blocks).collect(),
        mounts: mounts.collect(),
        crash_file: unikernel.crash_file.clone(),
        stats_file: Some(dir.join(STATS_FILE)),
        uid: Some(unikernel.uid),
        gid: Some(unikernel.uid),
        busy_poll_us: 0,
        jail: JailChoice::Full,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        // Nothing of it is on the disk: its length alone is looked at.
        std::fs::File::create(&path).unwrap().set_len(IMAGE_BYTES_MAX + 1).unwrap();
        let error = declared(&path).unwrap_err();
        let too_large = matches!(&error, ImageError::Read { source, .. }
            if source.kind() == io::ErrorKind::FileTooLarge);
        assert!(too_large, "{error:?}");
    }
}
