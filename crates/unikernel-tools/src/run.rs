//! Starts the tender with a user-mode network, and stays until it ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags};
use shoal_tender::config::{
    Attach, BackendChoice, BlockConfig, Config, DeviceConfig, FORMAT, Ipv4Prefix, JailChoice, Mac,
    MountConfig, NetConfig,
};
use shoal_tender::manifest::Declared;
use shoal_unikernel_abi::manifest::DeviceKind;
use shoal_usernet::config::Config as NetworkConfig;
use shoal_usernet::link;
use shoal_usernet::network::{Network, Running};
use shoal_usernet::publish::Publish;

use crate::error::ToolError;
use crate::source::Image;

/// Heap of an instance unless another is asked for. Only what it touches costs memory.
pub const MEMORY_BYTES: u64 = 64 << 20;
/// Packets of the user-mode network: no wire limits them, and large ones are cheap.
const MTU: u16 = 16_384;
/// The guest's hardware address; there is one guest in each such network.
const GUEST_MAC: Mac = Mac([0x02, 0x53, 0x48, 0x00, 0x02, 0x0f]);
/// How long a guest that was asked to stop may take.
const GRACE: Duration = Duration::from_secs(10);
/// Exit status of what a signal ended: 128 and the signal, as shells have it.
const SIGNALLED: i32 = 128;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the guest runs.
    pub backend: BackendChoice,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Mounts: path in the guest, folder or archive here.
    pub mounts: Vec<(String, PathBuf)>,
    /// Files of block devices: name, file, whether it is read-only.
    pub blocks: Vec<(String, PathBuf, bool)>,
    /// Heap in bytes; 0: [`MEMORY_BYTES`] or what the image needs, whichever is more.
    pub memory_bytes: u64,
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Host name.
    pub hostname: String,
    /// Whether the guest may open connections beyond this host.
    pub no_outside: bool,
    /// Whether the gateway's address leads nowhere instead of to the host's loopback.
    pub no_host_loopback: bool,
}

/// An instance that runs. Dropping it ends the guest.
#[derive(Debug)]
pub struct Instance {
    child: Child,
    /// Readable once it has ended, whoever asks first.
    ended: OwnedFd,
    network: Option<Running>,
    stats: PathBuf,
    // Removed last: the tender has read everything in it by then.
    _folder: tempfile::TempDir,
}

/// How to start the tender: a program and its first arguments.
#[derive(Clone, Debug)]
pub struct TenderCommand(pub Vec<OsString>);

impl TenderCommand {
    /// This program again, with the word `tender`.
    ///
    /// # Errors
    /// [`ToolError::Tender`].
    pub fn own() -> Result<Self, ToolError> {
        let own = std::env::current_exe()
            .map_err(|source| ToolError::Tender { action: "find the program of", source })?;
        Ok(Self(vec![own.into(), "tender".into()]))
    }
}

/// Starts an image. Its output goes to `output`, twice if it is one for both streams.
///
/// # Errors
/// [`ToolError::Rules`], [`ToolError::Usage`], [`ToolError::Network`], [`ToolError::Tender`].
pub fn start(
    image: &Image,
    options: &Options,
    tender: &TenderCommand,
    output: impl Fn() -> Stdio,
) -> Result<Instance, ToolError> {
    let declared = declared(&image.bytes)?;
    let folder = tempfile::tempdir().map_err(ToolError::file("make", &std::env::temp_dir()))?;
    let path = match &image.path {
        Some(path) => path.clone(),
        None => write_image(&image.bytes, folder.path())?,
    };
    let stats = folder.path().join("stats");
    let (devices, guest, network) = attach(&declared, options)?;
    let config = Config {
        format: FORMAT,
        image: path,
        backend: options.backend,
        memory_bytes: match options.memory_bytes {
            0 => MEMORY_BYTES.max(declared.heap_bytes_min),
            bytes => bytes,
        },
        args: options.args.clone(),
        env: options.env.clone(),
        hostname: options.hostname.clone(),
        devices,
        mounts: mounts(options)?,
        crash_file: None,
        stats_file: Some(stats.clone()),
        uid: None,
        gid: None,
        busy_poll_us: 0,
        jail: JailChoice::Auto,
    };
    let file = folder.path().join("config.json");
    write_config(&config, &file)?;
    let child = spawn(tender, &file, output)?;
    // The tender has its own copy: the network must see it close.
    drop(guest);
    let ended = watch(&child)?;
    Ok(Instance { child, ended, network, stats, _folder: folder })
}

fn declared(image: &[u8]) -> Result<Declared, ToolError> {
    let parsed = shoal_tender::elf::Image::parse(image)
        .map_err(|error| ToolError::Rules(Box::new(error)))?;
    Declared::check(&parsed.manifest).map_err(|error| ToolError::Rules(Box::new(error)))
}

fn write_image(bytes: &[u8], folder: &Path) -> Result<PathBuf, ToolError> {
    let path = folder.join("unikernel");
    fs::write(&path, bytes)
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o500)))
        .map_err(ToolError::file("write", &path))?;
    Ok(path)
}

fn write_config(config: &Config, file: &Path) -> Result<(), ToolError> {
    let mut out = fs::File::create_new(file).map_err(ToolError::file("write", file))?;
    serde_json::to_writer_pretty(&mut out, config)
        .map_err(std::io::Error::from)
        .and_then(|()| out.flush())
        .map_err(ToolError::file("write", file))
}

fn spawn(
    tender: &TenderCommand,
    config: &Path,
    output: impl Fn() -> Stdio,
) -> Result<Child, ToolError> {
    let mut words = tender.0.iter();
    let mut command = Command::new(words.next().map_or("shoal-tender".as_ref(), |w| w.as_os_str()));
    command.args(words).arg(config).stdin(Stdio::null()).stdout(output()).stderr(output());
    // A group of its own: the terminal's interrupt comes here, and the guest is asked politely.
    command.process_group(0);
    command.spawn().map_err(|source| ToolError::Tender { action: "start", source })
}

fn watch(child: &Child) -> Result<OwnedFd, ToolError> {
    rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .map_err(|error| ToolError::Tender { action: "watch", source: error.into() })
}

type Attached = (BTreeMap<String, DeviceConfig>, Option<OwnedFd>, Option<Running>);

/// A device for each that the image declares.
fn attach(declared: &Declared, options: &Options) -> Result<Attached, ToolError> {
    let mut devices = BTreeMap::new();
    let mut guest = None;
    let mut network = None;
    for (name, path, read_only) in &options.blocks {
        let config = BlockConfig { path: absolute(path)?, read_only: *read_only };
        devices.insert(name.clone(), DeviceConfig::Block(config));
    }
    for device in &declared.devices {
        match device.kind {
            DeviceKind::Net if network.is_none() => {
                let (config, fd, running) = user_network(options)?;
                devices.insert(device.name.clone(), DeviceConfig::Net(config));
                (guest, network) = (Some(fd), Some(running));
            }
            DeviceKind::Net if !device.optional => {
                let text = format!(
                    "the image has a second network device '{}': run it in a cluster, with a \
                     network for each",
                    device.name
                );
                return Err(ToolError::Usage(text));
            }
            DeviceKind::Net => {}
            DeviceKind::Block if device.optional || devices.contains_key(&device.name) => {}
            DeviceKind::Block => {
                let text = format!("give the block device a file: --block {0}=FILE", device.name);
                return Err(ToolError::Usage(text));
            }
        }
    }
    if network.is_none() && !options.publish.is_empty() {
        let text = "the image has no network device, so no port can be published: leave -p out";
        return Err(ToolError::Usage(text.to_owned()));
    }
    Ok((devices, guest, network))
}

fn user_network(options: &Options) -> Result<(NetConfig, OwnedFd, Running), ToolError> {
    let config = NetworkConfig {
        mtu: MTU,
        published: options.publish.clone(),
        outside: !options.no_outside,
        host_loopback: !options.no_host_loopback,
        ..NetworkConfig::default()
    };
    let (fd, ours) = link::pair().map_err(ToolError::Network)?;
    let net = NetConfig {
        attach: Attach::Fd { number: fd.as_raw_fd(), offload: true },
        mac: GUEST_MAC,
        mtu: MTU,
        ipv4: Some(Ipv4Prefix { address: config.guest, len: config.prefix_len }),
        gateway: Some(config.gateway),
        dns: vec![config.dns],
    };
    rustix::io::fcntl_setfd(&fd, FdFlags::empty())
        .map_err(|error| ToolError::Tender { action: "pass a socket to", source: error.into() })?;
    let running = Network::bind(config).and_then(|network| network.start(ours));
    Ok((net, fd, running.map_err(ToolError::Network)?))
}

fn mounts(options: &Options) -> Result<Vec<MountConfig>, ToolError> {
    options
        .mounts
        .iter()
        .map(|(path, source)| Ok(MountConfig { path: path.clone(), source: absolute(source)? }))
        .collect()
}

fn absolute(path: &Path) -> Result<PathBuf, ToolError> {
    fs::canonicalize(path).map_err(ToolError::file("find", path))
}

/// How a wait ended.
enum Woken {
    Ended,
    Asked,
    TimedOut,
}

impl Instance {
    /// Where the published ports listen.
    #[must_use]
    pub fn addresses(&self) -> &[std::net::SocketAddr] {
        self.network.as_ref().map_or(&[], Running::addresses)
    }

    /// The file with the instance's counters.
    #[must_use]
    pub fn stats(&self) -> &Path {
        &self.stats
    }

    /// The tender's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the tender writes, if it was started with pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Asks the guest to stop.
    ///
    /// # Errors
    /// [`ToolError::Tender`].
    pub fn ask_to_stop(&self) -> Result<(), ToolError> {
        self.signal(rustix::process::Signal::TERM)
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<(), ToolError> {
        // By the descriptor: the number could be another process's by now.
        match rustix::process::pidfd_send_signal(&self.ended, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                Err(ToolError::Tender { action: "send a signal to", source: error.into() })
            }
        }
    }

    /// Waits until it ends; `signals` asks it to stop, and a second time, or when it takes too
    /// long, ends it. Answers its exit status.
    ///
    /// # Errors
    /// [`ToolError::Tender`].
    pub fn wait(&mut self, signals: &Signals) -> Result<u8, ToolError> {
        let failed = |source| ToolError::Tender { action: "wait for", source };
        let mut asked = false;
        loop {
            let limit = asked.then_some(GRACE);
            match wake(&self.ended, signals, limit).map_err(failed)? {
                Woken::Ended => break,
                Woken::Asked if !asked => {
                    self.ask_to_stop()?;
                    asked = true;
                }
                Woken::Asked | Woken::TimedOut => {
                    self.signal(rustix::process::Signal::KILL)?;
                    break;
                }
            }
        }
        self.child.wait().map(status).map_err(failed)
    }
}

fn wake(pidfd: &OwnedFd, signals: &Signals, limit: Option<Duration>) -> std::io::Result<Woken> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
    let timeout = limit.and_then(|limit| limit.try_into().ok());
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => return Ok(Woken::TimedOut),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if !fds[0].revents().is_empty() {
        return Ok(Woken::Ended);
    }
    // Took one signal out, so that the next one is the second.
    Ok(match signals.0.read_signal()? {
        Some(_) => Woken::Asked,
        None => Woken::TimedOut,
    })
}

fn status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    u8::try_from(number.unwrap_or(1)).unwrap_or(1)
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Ignored because: it has ended already, or cannot be ended by anybody.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The signals that ask to stop, taken as they come instead of ending this program.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// From now on they are taken. Threads started later take them, too.
    ///
    /// # Errors
    /// [`ToolError::Tender`].
    pub fn take() -> Result<Self, ToolError> {
        let failed = |error: nix::errno::Errno| ToolError::Tender {
            action: "take signals for",
            source: error.into(),
        };
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).map(Self).map_err(failed)
    }
}
