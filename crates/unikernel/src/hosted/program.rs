//! An application as an ordinary program.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shoal_unikernel_abi::boot::NetInfo;
use shoal_unikernel_abi::manifest::{DEVICE_OPTIONAL, Device, DeviceKind, Manifest};
use shoal_unikernel_abi::ring;

use shoal_usernet::network::{Network, Running};
use shoal_usernet::{config as usernet, link};

use super::{Block, Config, Net, run};
use crate::main_::Outcome;

/// Hardware address in the user-mode network, whose only other machine is the gateway.
const MAC: [u8; 6] = [0x02, 0x53, 0x48, 0x00, 0x02, 0x0f];

/// Heap that limits are computed from; an ordinary program takes memory as it needs it.
const HEAP_BYTES: u64 = 256 << 20;

/// Runs an application as an ordinary program; called by [`crate::main!`].
///
/// Arguments and environment are the program's own. `SIGTERM` and `SIGINT` ask it to stop. Its
/// network is a user-mode one; `SHOAL_PUBLISH=8080:80,5353:53/udp` publishes ports. A block device
/// named `data` is the file in `SHOAL_BLOCK_DATA` (read-only if its value ends in `:ro`).
/// `SHOAL_MOUNT=/srv=DIR,/zones=FILE.tar` gives it files.
pub fn run_program<F, M>(manifest: Manifest, main: M) -> ExitCode
where
    F: Future<Output: Outcome> + 'static,
    M: FnOnce() -> F,
{
    let answer = configure(&manifest).and_then(|(config, networks)| {
        let status = run(config, main)?;
        // Until here they had to run; published ports close now.
        drop(networks);
        Ok(status)
    });
    match answer {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn configure(manifest: &Manifest) -> Result<(Config, Vec<Running>), Failure> {
    let mut networks = Vec::new();
    let stop = stop_signals()?;
    let mut config = Config {
        args: std::env::args().collect(),
        env: std::env::vars().collect(),
        hostname: nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        heap_bytes: HEAP_BYTES,
        mounts: mounts()?,
        stop: Some(stop),
        ..Config::default()
    };
    for device in manifest.devices.iter().take(manifest.device_count as usize) {
        match DeviceKind::from_number(device.kind) {
            Some(DeviceKind::Net) => {
                let (net, running) = net(device)?;
                config.nets.push(net);
                networks.push(running);
            }
            Some(DeviceKind::Block) => config.blocks.extend(block(device)?),
            None => {}
        }
    }
    Ok((config, networks))
}

/// Blocks the signals that ask to stop; they are read from the descriptor instead.
fn stop_signals() -> Result<OwnedFd, Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    Ok(std::os::fd::AsFd::as_fd(&descriptor).try_clone_to_owned()?)
}

/// The archives that the program is given, from the environment: folders are packed first.
fn mounts() -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let text = std::env::var("SHOAL_MOUNT").unwrap_or_default();
    let mut mounts = Vec::new();
    for one in text.split(',').filter(|one| !one.is_empty()) {
        let (path, source) = one
            .split_once('=')
            .ok_or_else(|| format!("'{one}' in SHOAL_MOUNT is not of the form PATH=DIR"))?;
        let failed = |error| format!("read '{source}' for '{path}': {error}");
        let archive = if std::fs::metadata(source).map_err(failed)?.is_dir() {
            let mut packed = tar::Builder::new(Vec::new());
            packed.append_dir_all("", source).map_err(failed)?;
            packed.into_inner().map_err(failed)?
        } else {
            std::fs::read(source).map_err(failed)?
        };
        mounts.push((path.to_owned(), archive));
    }
    Ok(mounts)
}

/// The file of a block device, from the environment.
fn block(device: &Device) -> Result<Option<Block>, Failure> {
    let name = device.name().to_owned();
    let variable = format!("SHOAL_BLOCK_{}", name.to_uppercase().replace('-', "_"));
    let Ok(value) = std::env::var(&variable) else {
        let optional = device.flags & DEVICE_OPTIONAL != 0;
        let missing = format!("block device '{name}' has no file: set {variable}");
        return if optional { Ok(None) } else { Err(missing.into()) };
    };
    let (path, read_only) = match value.strip_suffix(":ro") {
        Some(path) => (path.to_owned(), true),
        None => (value, false),
    };
    Ok(Some(Block { name, path: path.into(), read_only }))
}

/// A network interface of the user-mode network.
fn net(device: &Device) -> Result<(Net, Running), Failure> {
    let published = std::env::var("SHOAL_PUBLISH").unwrap_or_default();
    let published = published.split(',').map(str::trim).filter(|one| !one.is_empty());
    let config = usernet::Config {
        published: published.map(str::parse).collect::<Result<_, _>>()?,
        ..usernet::Config::default()
    };
    let info = NetInfo {
        mac: MAC,
        mtu: config.mtu,
        ipv4: config.guest.octets(),
        gateway: config.gateway.octets(),
        dns: [config.dns.octets(), [0; 4], [0; 4]],
        prefix_len: config.prefix_len,
        reserved: [0; 3],
    };
    let (socket, link) = link::pair()?;
    let ports: Vec<u16> = config.published.iter().map(|one| one.guest_port).collect();
    let running = Network::bind(config)?.start(link)?;
    for (address, port) in running.addresses().iter().zip(ports) {
        eprintln!("published: {address} leads to port {port}");
    }
    let name = device.name().to_owned();
    Ok((Net { name, socket, info, capacity: ring::CAPACITY_DEFAULT }, running))
}
