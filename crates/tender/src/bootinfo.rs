//! Writes the boot information into the guest's memory.

use shoal_unikernel_abi::ABI_VERSION;
use shoal_unikernel_abi::boot::{
    BOOT_MAGIC, Backend, BlockInfo, BootInfo, DeviceInfo, MountInfo, NetInfo, Span,
};
use shoal_unikernel_abi::manifest::{DeviceKind, NAME_MAX};

use crate::config::{Config, NetConfig};
use crate::layout::{Layout, Purpose};
use crate::manifest::Declared;
use crate::memory::Window;

/// Everything in the boot information that is not in the configuration.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Where the guest runs.
    pub backend: Backend,
    /// Offered features.
    pub features: u64,
    /// Address of the hypercall entry.
    pub hypercall: u64,
    /// The image's devices.
    pub declared: &'a Declared,
    /// Sectors of each block device, by index in the manifest.
    pub sectors: &'a [(usize, u64)],
    /// Bytes of each mount's archive; its region is whole pages.
    pub archives: &'a [u64],
    /// Where everything lies.
    pub layout: &'a Layout,
    /// Address of the clock page.
    pub clock: u64,
    /// Address of the control page.
    pub control: u64,
    /// Random bytes.
    pub seed: [u8; 32],
}

/// The parts of the region: strings, each ended by a zero byte, and tables.
struct Parts {
    args: Vec<u8>,
    env: Vec<u8>,
    hostname: Vec<u8>,
    paths: Vec<Vec<u8>>,
}

fn parts(config: &Config) -> Parts {
    let joined =
        |strings: &[String]| strings.iter().flat_map(|s| s.bytes().chain([0])).collect::<Vec<u8>>();
    Parts {
        args: joined(&config.args),
        env: joined(&config.env),
        hostname: config.hostname.clone().into_bytes(),
        paths: config.mounts.iter().map(|mount| mount.path.clone().into_bytes()).collect(),
    }
}

/// Everything begins at multiples of this.
const ALIGN: usize = 16;

/// Bytes that the region needs.
#[must_use]
pub fn bytes_needed(config: &Config, declared: &Declared) -> u64 {
    let parts = parts(config);
    let strings = [&parts.args, &parts.env, &parts.hostname].into_iter().chain(&parts.paths);
    let strings: usize = strings.map(|bytes| bytes.len().next_multiple_of(ALIGN)).sum();
    let tables = size_of::<BootInfo>()
        + declared.devices.len() * size_of::<DeviceInfo>()
        + config.mounts.len() * size_of::<MountInfo>();
    // Each table is padded, too.
    (strings + tables + 3 * ALIGN) as u64
}

/// Puts values one behind the other into a window.
struct Placer<'a> {
    window: &'a Window,
    used: usize,
}

impl Placer<'_> {
    /// Room for `len` bytes: the tender's address and the guest's span.
    fn room(&mut self, len: usize) -> (*mut u8, Span) {
        let at = self.used;
        self.used = (at + len).next_multiple_of(ALIGN);
        assert!(self.used as u64 <= self.window.region.len, "bytes_needed counted too few");
        let span = Span { start: self.window.region.start + at as u64, len: len as u64 };
        (self.window.host.wrapping_add(at), span)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Span {
        let (to, span) = self.room(bytes.len());
        // SAFETY: `room` answers so many writable bytes.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        span
    }

    fn table<T: Copy>(&mut self, entries: &[T]) -> Span {
        let (to, span) = self.room(size_of_val(entries));
        // SAFETY: `room` answers so many writable bytes, aligned to 16.
        unsafe { to.cast::<T>().copy_from_nonoverlapping(entries.as_ptr(), entries.len()) };
        span
    }
}

/// Writes the boot information to the beginning of `window`, which has [`bytes_needed`] bytes.
pub fn write(window: &Window, config: &Config, facts: &Facts<'_>) {
    let parts = parts(config);
    let mut placer = Placer { window, used: 0 };
    let (head, _) = placer.room(size_of::<BootInfo>());
    let span = |purpose| {
        let region = facts.layout.find(purpose);
        region.map_or(Span::default(), |r| Span { start: r.start, len: r.len })
    };
    let devices: Vec<DeviceInfo> = (0..facts.declared.devices.len())
        .map(|index| device(index, config, facts, span(Purpose::Device(index))))
        .collect();
    let mounts: Vec<MountInfo> = parts
        .paths
        .iter()
        .enumerate()
        .map(|(index, path)| {
            let start = span(Purpose::Mount(index)).start;
            let len = facts.archives.get(index).copied().unwrap_or_default();
            MountInfo { path: placer.bytes(path), archive: Span { start, len } }
        })
        .collect();
    let image = facts.layout.image;
    let info = BootInfo {
        magic: BOOT_MAGIC,
        abi_version: ABI_VERSION,
        backend: facts.backend as u32,
        features: facts.features,
        hypercall: facts.hypercall,
        image: Span { start: image.start, len: image.len },
        heap: span(Purpose::Heap),
        stack: span(Purpose::Stack),
        args: placer.bytes(&parts.args),
        env: placer.bytes(&parts.env),
        hostname: placer.bytes(&parts.hostname),
        devices: placer.table(&devices),
        mounts: placer.table(&mounts),
        clock: facts.clock,
        control: facts.control,
        seed: facts.seed,
    };
    // SAFETY: the first bytes of the window, which begins a page, have room for it.
    unsafe { head.cast::<BootInfo>().write(info) };
}

fn device(index: usize, config: &Config, facts: &Facts<'_>, region: Span) -> DeviceInfo {
    let mut name = [0; NAME_MAX + 1];
    let mut info = DeviceInfo {
        kind: 0,
        present: u32::from(region.len > 0),
        name,
        region,
        net: NetInfo::default(),
        block: BlockInfo::default(),
    };
    let Some(declared) = facts.declared.devices.get(index) else { return info };
    for (to, from) in name.iter_mut().zip(declared.name.bytes()) {
        *to = from;
    }
    info.name = name;
    info.kind = declared.kind as u32;
    match config.devices.get(&declared.name) {
        Some(crate::config::DeviceConfig::Net(net)) => info.net = net_info(net),
        Some(crate::config::DeviceConfig::Block(block)) if declared.kind == DeviceKind::Block => {
            let sectors = facts.sectors.iter().find(|(at, _)| *at == index);
            info.block = BlockInfo {
                sectors: sectors.map_or(0, |(_, sectors)| *sectors),
                read_only: u32::from(block.read_only),
                reserved: 0,
            };
        }
        _ => {}
    }
    info
}

fn net_info(net: &NetConfig) -> NetInfo {
    let mut dns = [[0; 4]; 3];
    for (to, from) in dns.iter_mut().zip(&net.dns) {
        *to = from.octets();
    }
    NetInfo {
        mac: net.mac.0,
        mtu: net.mtu,
        ipv4: net.ipv4.map_or([0; 4], |prefix| prefix.address.octets()),
        gateway: net.gateway.map_or([0; 4], |address| address.octets()),
        dns,
        prefix_len: net.ipv4.map_or(0, |prefix| prefix.len),
        reserved: [0; 3],
    }
}
