//! From the configuration to the guest's first instruction.

use core::sync::atomic::AtomicU32;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use shoal_unikernel_abi::boot::Backend;
use shoal_unikernel_abi::clock::ClockPage;
use shoal_unikernel_abi::control::ControlPage;
use shoal_unikernel_abi::{block, features, ring};

use crate::bootinfo::{self, Facts};
use crate::clock::{Clock, Moment};
use crate::config::{BackendChoice, Config, DeviceConfig};
use crate::crash::Context;
use crate::devices::{Device, block as block_device, net::Net, tap};
use crate::elf::{self, Image};
use crate::error::{STATUS_REFUSED, TenderError};
use crate::filter::Allowed;
use crate::guest::Guest;
use crate::kvm::{self, Machine, setup};
use crate::layout::{Layout, Purpose, Sizes};
use crate::manifest::Declared;
use crate::memory::{self, Placement, Space};
use crate::mounts::{self, Archive};
use crate::process::{self, Start};
use crate::stats::Stats;
use crate::{filter, jail, signals, sys};

/// Where the control page begins in the page that it shares with the clock page.
const CONTROL_OFFSET: u64 = 2048;
/// How often a layout is drawn if its addresses are taken: that is already unlikely once.
const DRAWS_MAX: usize = 8;

const _: () = {
    assert!(size_of::<ClockPage>() <= CONTROL_OFFSET as usize);
    assert!(size_of::<ControlPage>() <= (elf::PAGE - CONTROL_OFFSET) as usize);
    assert!(size_of::<AtomicU32>() == 4);
};

/// What a program does that is a tender: runs the configuration at `path`, or says on standard
/// error why it does not.
pub fn main(path: Option<&OsStr>) -> ExitCode {
    let started = Moment::now();
    let result = match path {
        Some(path) => Config::read(Path::new(path)).and_then(|config| run(&config, started)),
        None => Err(TenderError::NoConfig),
    };
    match result {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::from(STATUS_REFUSED)
        }
    }
}

/// The image, checked.
struct Loaded {
    image: Image,
    declared: Declared,
    file: File,
    bytes: &'static [u8],
}

fn load(config: &Config) -> Result<Loaded, TenderError> {
    let path = || config.image.clone();
    let read = |source| TenderError::ReadImage { path: path(), source };
    // A FIFO under this name must not be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&config.image);
    let file = file.map_err(read)?;
    let about = file.metadata().map_err(read)?;
    if !about.is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        return Err(read(source));
    }
    let len = about.len();
    let bytes = memory::file_bytes(&file, len)?;
    let image =
        Image::parse(bytes).map_err(|source| TenderError::CheckImage { path: path(), source })?;
    let manifest = |source| TenderError::CheckManifest { path: path(), source };
    let declared = Declared::check(&image.manifest).map_err(manifest)?;
    declared.fits(&config.devices, config.memory_bytes).map_err(manifest)?;
    Ok(Loaded { image, declared, file, bytes })
}

/// What is attached to the devices, in the manifest's order.
struct Attachments {
    net: Vec<(usize, tap::Attached, u16, bool)>,
    block: Vec<(usize, block_device::Opened, bool)>,
}

fn attach(config: &Config, declared: &Declared) -> Result<Attachments, TenderError> {
    let mut attached = Attachments { net: Vec::new(), block: Vec::new() };
    for (index, device) in declared.devices.iter().enumerate() {
        match config.devices.get(&device.name) {
            Some(DeviceConfig::Net(net)) => {
                let offload = device.takes_offload;
                let file = tap::attach(&device.name, &net.attach, offload)?;
                attached.net.push((index, file, net.mtu, offload));
            }
            Some(DeviceConfig::Block(block)) => {
                let opened = block_device::open(&device.name, block)?;
                attached.block.push((index, opened, block.read_only));
            }
            None => {}
        }
    }
    Ok(attached)
}

/// The features that this machine and the attachments have.
fn offered(attached: &Attachments, machine: Option<&Machine>) -> u64 {
    let mut bits = machine.map_or_else(process::features, Machine::features);
    if attached.net.iter().all(|(_, file, _, _)| file.offers_offload) {
        bits |= features::NET_OFFLOAD;
    }
    bits
}

fn sizes(
    config: &Config,
    loaded: &Loaded,
    attached: &Attachments,
    archives: &[Archive],
    virtual_: bool,
) -> Sizes {
    let net = ring::region_bytes(ring::CAPACITY_DEFAULT, ring::CAPACITY_DEFAULT) as u64;
    let block = block::REGION_BYTES as u64;
    let mut devices: Vec<(usize, u64)> = Vec::new();
    devices.extend(attached.net.iter().map(|(index, ..)| (*index, net)));
    devices.extend(attached.block.iter().map(|(index, ..)| (*index, block)));
    Sizes {
        info: bootinfo::bytes_needed(config, &loaded.declared),
        hypercall: if virtual_ { elf::PAGE } else { 0 },
        stack: loaded.declared.stack_bytes,
        heap: config.memory_bytes,
        devices,
        mounts: archives.iter().map(|archive| archive.bytes).collect(),
    }
}

/// Draws addresses until they are free.
fn reserve(image: &Image, sizes: &Sizes, virtual_: bool) -> Result<(Layout, Space), TenderError> {
    let mut last = None;
    for _ in 0..DRAWS_MAX {
        let mut random = || sys::random_bytes().map_or(0, u64::from_le_bytes);
        let layout = Layout::draw(image, sizes, &mut random);
        let placement = if virtual_ {
            Placement::Anywhere { front: Machine::front(&layout) }
        } else {
            Placement::Identity
        };
        match Space::reserve(&layout, placement) {
            Ok(space) => return Ok((layout, space)),
            Err(error) => last = Some(error),
        }
    }
    let source = std::io::ErrorKind::AddrInUse.into();
    Err(last.unwrap_or(TenderError::Memory { action: "drawing addresses", source }))
}

fn random<const N: usize>() -> Result<[u8; N], TenderError> {
    sys::random_bytes().ok_or_else(|| TenderError::Memory {
        action: "drawing random bytes",
        source: std::io::Error::last_os_error(),
    })
}

/// The virtual machine, if the guest is to run in one.
fn machine(choice: BackendChoice) -> Result<Option<Machine>, TenderError> {
    match choice {
        BackendChoice::Process => Ok(None),
        BackendChoice::Kvm => Machine::open().map(Some),
        BackendChoice::Auto => match Machine::open() {
            // Where there is no KVM, or this user may not have it, that is how the machine was set
            // up; which backend it is then is told in the counters and in crash records.
            Err(error) if error.is_absence_of_kvm() => Ok(None),
            // Anything else must not weaken the isolation in silence.
            opened => opened.map(Some),
        },
    }
}

/// The guest's memory, filled and sealed.
struct Built {
    layout: Layout,
    space: Space,
    time_page: *mut u8,
    start: Start,
}

fn build(
    config: &Config,
    loaded: &Loaded,
    attached: &Attachments,
    machine: Option<&Machine>,
) -> Result<Built, TenderError> {
    let archives: Vec<Archive> =
        config.mounts.iter().map(|mount| mounts::open(&mount.source)).collect::<Result<_, _>>()?;
    let offered = offered(attached, machine);
    loaded
        .declared
        .features(offered)
        .map_err(|source| TenderError::CheckManifest { path: config.image.clone(), source })?;
    let sizes = sizes(config, loaded, attached, &archives, machine.is_some());
    let (layout, mut space) = reserve(&loaded.image, &sizes, machine.is_some())?;
    space.map_image(&loaded.image, &loaded.file, loaded.bytes, layout.image.start)?;
    let (time_file, time_page) = memory::shared_page()?;
    map_data(&space, &time_file, &archives)?;

    let address = |purpose| layout.find(purpose).map_or(0, |region| region.start);
    let time = address(Purpose::Time);
    let sectors: Vec<(usize, u64)> =
        attached.block.iter().map(|(index, opened, _)| (*index, opened.sectors)).collect();
    let lengths: Vec<u64> = archives.iter().map(|archive| archive.bytes).collect();
    let virtual_ = machine.is_some();
    let facts = Facts {
        backend: if virtual_ { Backend::Kvm } else { Backend::Process },
        features: offered,
        hypercall: if virtual_ {
            address(Purpose::Hypercall)
        } else {
            process::hypercall_address()
        },
        declared: &loaded.declared,
        sectors: &sectors,
        archives: &lengths,
        layout: &layout,
        clock: time,
        control: time + CONTROL_OFFSET,
        seed: random()?,
    };
    if let Some(window) = space.find(Purpose::Info) {
        bootinfo::write(window, config, &facts);
    }
    space.seal()?;
    let stack_top = layout.find(Purpose::Stack).map_or(0, |region| region.start + region.len);
    let entry = layout.image.start + loaded.image.entry;
    let start = Start { entry, stack_top, boot: address(Purpose::Info) };
    Ok(Built { layout, space, time_page, start })
}

/// Runs an instance. Does not return unless it could not be started; `started` is when the program
/// began.
///
/// # Errors
/// Everything in [`TenderError`].
pub fn run(config: &Config, started: Moment) -> Result<std::convert::Infallible, TenderError> {
    // Large pages would be filled for a guest that touches a few bytes.
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    let loaded = load(config)?;
    let machine = machine(config.backend)?;
    let backend = if machine.is_some() { Backend::Kvm } else { Backend::Process };
    let attached = attach(config, &loaded.declared)?;
    let built = build(config, &loaded, &attached, machine.as_ref())?;

    let mut stats = Stats::create(config.stats_file.as_deref(), backend)?;
    for (index, device) in loaded.declared.devices.iter().enumerate() {
        stats.name_device(index, &device.name, device.kind as u64);
    }
    let crash_file = crash_file(config)?;
    let (devices, mut allowed) = serve(&built.space, attached);
    allowed.log = vec![libc::STDOUT_FILENO, libc::STDERR_FILENO];
    allowed.log.extend(crash_file);
    let control = built.time_page.wrapping_add(CONTROL_OFFSET as usize);
    signals::show_stop_at(control.cast::<ControlPage>());
    // SAFETY: the page stays mapped until the process ends.
    let clock = unsafe { Clock::start(built.time_page.cast::<ClockPage>(), started) };
    let guest = Guest {
        space: built.space,
        clock,
        devices,
        device_names: loaded.declared.devices.iter().map(|device| device.name.clone()).collect(),
        stats,
        crash: Context {
            backend,
            image_path: config.image.to_string_lossy().into_owned(),
            image: loaded.bytes,
            image_base: built.layout.image.start,
            image_span: built.layout.image.len,
            file: crash_file,
        },
        busy_poll_ns: u64::from(config.busy_poll_us) * 1000,
        stop_told: false,
    };
    let guest = Box::leak(Box::new(guest));
    match machine {
        Some(machine) => {
            let random = u64::from_le_bytes(random()?);
            let processor = machine.build(&guest.space, built.start, random)?;
            allowed.vcpu = Some(setup::allowed(&processor));
            signals::install(None)?;
            lock_in(config, &allowed)?;
            guest.stats.entered(started.ns());
            kvm::run(guest, processor)
        }
        None => {
            process::prepare(guest)?;
            lock_in(config, &allowed)?;
            process::enter(built.start, started.ns())
        }
    }
}

/// Gives everything up that is not needed any more.
fn lock_in(config: &Config, allowed: &Allowed) -> Result<(), TenderError> {
    let mut keep: Vec<i32> =
        [&allowed.net, &allowed.block, &allowed.log].into_iter().flatten().copied().collect();
    keep.extend(allowed.vcpu.as_ref().map(|(fd, _)| *fd));
    jail::close_files(&keep)?;
    let folder = config.image.parent().filter(|path| !path.as_os_str().is_empty());
    jail::lock_in(config, folder.unwrap_or(Path::new(".")))?;
    filter::apply(allowed)
}

/// Maps everything but the image.
fn map_data(space: &Space, time: &File, archives: &[Archive]) -> Result<(), TenderError> {
    for window in &space.windows {
        match window.region.purpose {
            Purpose::Image => {}
            Purpose::Hypercall => {
                space.map_zeros(window)?;
                setup::write_entry(window.host);
            }
            Purpose::Time => space.map_file(window, time, true)?,
            Purpose::Mount(index) => {
                if let Some(archive) = archives.get(index) {
                    space.map_file(window, &archive.file, false)?;
                }
            }
            Purpose::Info | Purpose::Stack | Purpose::Device(_) | Purpose::Heap => {
                space.map_zeros(window)?;
            }
        }
    }
    Ok(())
}

/// Opens the crash file.
fn crash_file(config: &Config) -> Result<Option<i32>, TenderError> {
    let Some(path) = &config.crash_file else { return Ok(None) };
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(|source| TenderError::MakeFile { path: path.clone(), source })?;
    Ok(Some(file.into_raw_fd()))
}

/// Devices at their regions, and the files that they use, which stay open until the process ends.
fn serve(space: &Space, attached: Attachments) -> (Vec<Device>, Allowed) {
    let mut devices = Vec::new();
    let mut allowed = Allowed::default();
    let region = |index| space.find(Purpose::Device(index)).map(|window| window.host);
    for (index, file, mtu, takes_offload) in attached.net {
        let Some(region) = region(index) else { continue };
        let fd = OwnedFd::into_raw_fd(file.fd);
        // SAFETY: the region was mapped for two rings of this capacity, which is a power of two.
        let mut net = unsafe { Net::new(index, fd, region, ring::CAPACITY_DEFAULT as u64, mtu) };
        if takes_offload && file.offers_offload {
            net.take_offload();
        }
        allowed.net.push(fd);
        devices.push(Device::Net(net));
    }
    for (index, opened, read_only) in attached.block {
        let Some(region) = region(index) else { continue };
        // SAFETY: the region was mapped with the size of a block device's.
        let device = unsafe { block_device::Block::new(index, &opened, read_only, region) };
        allowed.block.push(opened.file.as_raw_fd());
        devices.push(Device::Block(device));
        // The device has its number now: it stays open for as long as the process runs.
        let _ = opened.file.into_raw_fd();
    }
    devices.sort_by_key(Device::index);
    (devices, allowed)
}
