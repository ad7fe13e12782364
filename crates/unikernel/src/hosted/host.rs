//! The monitor inside of a hosted program: boot information, and the calls.

use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shoal_unikernel_abi::boot::{
    BOOT_MAGIC, Backend, BlockInfo, BootInfo, DeviceInfo, MountInfo, NetInfo, Span,
};
use shoal_unikernel_abi::manifest::{Device, DeviceKind};
use shoal_unikernel_abi::{ABI_VERSION, call, features};

use super::block::BlockDevice;
use super::network::Network;
use super::{Config, region};
use crate::{boot, clock, executor};

/// What the monitor of this thread's instance holds.
struct Host {
    devices: Vec<HostDevice>,
    stop: Option<OwnedFd>,
    stopping: bool,
}

enum HostDevice {
    Net(Network),
    Block(BlockDevice),
}

std::thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

fn zero_ended(strings: impl Iterator<Item = String>) -> Span {
    let mut bytes = Vec::new();
    for string in strings {
        bytes.extend_from_slice(string.as_bytes());
        bytes.push(0);
    }
    region::leak(bytes)
}

fn device_info(kind: DeviceKind, name: &str, region: Span) -> DeviceInfo {
    DeviceInfo {
        kind: kind as u32,
        present: 1,
        name: Device::new(kind, name, 0).name,
        region,
        net: NetInfo::default(),
        block: BlockInfo::default(),
    }
}

/// Random bytes of the system.
fn random(to: &mut [u8]) -> bool {
    let file = std::fs::File::open("/dev/urandom");
    file.and_then(|mut file| std::io::Read::read_exact(&mut file, to)).is_ok()
}

/// Makes this thread an instance.
pub(super) fn start(config: Config) -> std::io::Result<()> {
    assert!(boot::info().is_none(), "this thread runs an instance already");
    let mut infos = Vec::new();
    let mut devices = Vec::new();
    for net in config.nets {
        let region = region::net_region(net.capacity);
        devices.push(HostDevice::Net(Network::new(net.socket, region)?));
        infos.push(DeviceInfo { net: net.info, ..device_info(DeviceKind::Net, &net.name, region) });
    }
    for block in config.blocks {
        let (device, region, info) = BlockDevice::open(&block.path, block.read_only)?;
        devices.push(HostDevice::Block(device));
        let base = device_info(DeviceKind::Block, &block.name, region);
        infos.push(DeviceInfo { block: info, ..base });
    }
    let mounts = config.mounts.into_iter().map(|(path, archive)| MountInfo {
        path: region::leak(path.into_bytes()),
        archive: region::leak(archive),
    });
    let mut seed = [0; 32];
    if !random(&mut seed) {
        return Err(std::io::Error::other("no random bytes from /dev/urandom"));
    }
    let info = BootInfo {
        magic: BOOT_MAGIC,
        abi_version: ABI_VERSION,
        backend: Backend::Hosted as u32,
        features: if config.offload { features::NET_OFFLOAD } else { 0 },
        hypercall: entry as *const () as u64,
        image: Span::default(),
        heap: Span { start: 0, len: config.heap_bytes },
        stack: Span::default(),
        args: zero_ended(config.args.into_iter()),
        env: zero_ended(config.env.into_iter().map(|(key, value)| format!("{key}={value}"))),
        hostname: region::leak(config.hostname.into_bytes()),
        devices: region::leak_array(infos),
        mounts: region::leak_array(mounts.collect()),
        clock: 0,
        control: 0,
        seed,
    };
    let host = Host { devices, stop: config.stop, stopping: false };
    HOST.with(|cell| *cell.borrow_mut() = Some(host));
    boot::set(Some(Box::leak(Box::new(info))));
    Ok(())
}

/// Ends this thread's instance: its tasks, connections and devices.
pub(super) fn end() {
    executor::clear();
    crate::net::clear();
    crate::block::clear();
    crate::fs::clear();
    HOST.with(|cell| *cell.borrow_mut() = None);
    boot::set(None);
}

/// The calls of this thread's monitor.
extern "C" fn entry(number: u64, a: u64, b: u64, c: u64) -> i64 {
    // SAFETY: the instance and its monitor are one program; the caller passes a slice's parts.
    let bytes = |address: u64, len: u64| unsafe {
        core::slice::from_raw_parts_mut(address as *mut u8, len as usize)
    };
    match number {
        call::WAIT => HOST.with(|cell| cell.borrow_mut().as_mut().map_or(0, |host| host.wait(a))),
        call::LOG => {
            // Ignored because: a program whose output nobody takes runs on.
            let _ = if c == 1 {
                std::io::stdout().write_all(bytes(a, b))
            } else {
                std::io::stderr().write_all(bytes(a, b))
            };
            0
        }
        #[expect(clippy::disallowed_methods, reason = "the guest's call to end is just this")]
        call::EXIT => std::process::exit(a as i32),
        call::ENTROPY if random(bytes(a, b)) => 0,
        call::ENTROPY => call::Refusal::BadArgument as i64,
        _ => call::Refusal::UnknownCall as i64,
    }
}

impl Host {
    /// Serves all rings, then sleeps as [`call::WAIT`] says.
    fn wait(&mut self, deadline_ns: u64) -> i64 {
        loop {
            let mut ready = self.serve();
            if self.stopping {
                ready |= call::STOP;
            }
            let now = clock::monotonic_ns();
            if ready & !call::STOP != 0 || now >= deadline_ns {
                return ready as i64;
            }
            if self.sleep(deadline_ns - now) {
                self.stopping = true;
                self.stop = None;
                return (ready | call::STOP) as i64;
            }
        }
    }

    /// Moves data of all devices; answers the bits of those that have something for the guest.
    fn serve(&mut self) -> u64 {
        let mut ready = 0;
        for (index, device) in self.devices.iter_mut().enumerate() {
            let has = match device {
                HostDevice::Net(network) => {
                    network.serve();
                    network.has_frames()
                }
                HostDevice::Block(block) => block.serve(),
            };
            ready |= u64::from(has) << index;
        }
        ready
    }

    /// Sleeps until a socket has something or the time is over. Whether to stop.
    fn sleep(&self, most_ns: u64) -> bool {
        let sockets: Vec<_> = self
            .devices
            .iter()
            .filter_map(|device| match device {
                HostDevice::Net(network) => network.waits_for(),
                HostDevice::Block(_) => None,
            })
            .collect();
        let mut fds: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|(socket, is_full)| {
                let room = if *is_full { PollFlags::POLLOUT } else { PollFlags::empty() };
                PollFd::new(socket.as_fd(), PollFlags::POLLIN | room)
            })
            .collect();
        let stop: Option<BorrowedFd<'_>> = self.stop.as_ref().map(AsFd::as_fd);
        fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
        // Rounded up, so that the deadline has passed afterwards.
        let milliseconds = most_ns.div_ceil(1_000_000);
        let timeout = if most_ns >= u64::MAX / 2 {
            PollTimeout::NONE
        } else {
            PollTimeout::from(u16::try_from(milliseconds).unwrap_or(u16::MAX))
        };
        // Ignored because: an interrupted sleep is over, and the caller looks again.
        let _ = poll(&mut fds, timeout);
        let told = fds.last().and_then(PollFd::any).unwrap_or(false);
        stop.is_some() && told
    }
}
