//! What one container is, completely resolved: nothing in here needs a look at an image, a volume
//! store or a network any more. The daemon writes it as JSON into the shim's directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_model::id::ContainerId;
use shoal_model::sysctl::{self, OwnNamespaces};

use crate::cgroup::Layout;
use crate::protocol::{Failure, FailureKind};
use crate::unikernel::UnikernelPlan;

/// The format of the plan file and of everything else in a shim's directory.
pub const FORMAT_VERSION: u32 = 1;

/// What Docker hides from every container that is not privileged.
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What Docker lets no container write that is not privileged.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's size of `/dev/shm`.
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// What one container is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerPlan {
    /// [`FORMAT_VERSION`] of the writer.
    pub version: u32,
    /// The container.
    pub id: ContainerId,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Whether the root is read-only for it.
    pub readonly_rootfs: bool,
    /// The process: program, arguments, environment, user.
    pub process: ProcessPlan,
    /// Whether a minimal init is PID 1, which reaps zombies and forwards signals.
    pub init: bool,
    /// Host name inside.
    pub hostname: String,
    /// Domain name inside; empty: none.
    pub domainname: String,
    /// The network namespace.
    pub network: NetworkNamespace,
    /// The IPC namespace.
    pub ipc: IpcMode,
    /// Whether it sees the host's processes.
    pub host_pid: bool,
    /// Mounts beyond the standard ones. Made in the order of their depth.
    pub mounts: Vec<MountPlan>,
    /// Host file that is `/etc/hosts` inside.
    pub hosts_file: Option<PathBuf>,
    /// Host file that is `/etc/hostname` inside.
    pub hostname_file: Option<PathBuf>,
    /// Host file that is `/etc/resolv.conf` inside.
    pub resolv_conf_file: Option<PathBuf>,
    /// Bytes of `/dev/shm`.
    pub shm_bytes: u64,
    /// Every device, no filter, nothing masked. `process.capabilities` still says which.
    pub privileged: bool,
    /// Paths hidden from it; ignored if privileged.
    pub masked_paths: Vec<String>,
    /// Paths it may only read; ignored if privileged.
    pub readonly_paths: Vec<String>,
    /// The system call filter.
    pub seccomp: SeccompMode,
    /// Kernel settings of its namespaces, `net.core.somaxconn` and the like.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of memory, CPU and processes.
    pub limits: Limits,
    /// Its cgroup below each hierarchy's root, two levels: `shoal-<instance>/<id>`. Empty: the
    /// runtime fills it in.
    pub cgroup_path: String,
    /// The machine's cgroup hierarchies; the runtime fills them in. Without them the shim looks.
    pub cgroups: Option<Layout>,
    /// Where output goes.
    pub log: LogPlan,
    /// Whether standard input closes when the first client that was attached to it goes away.
    pub stdin_once: bool,
    /// Set for a unikernel: the tender runs it, and of the rest of the plan only arguments,
    /// environment, host name, limits and log count.
    pub unikernel: Option<UnikernelPlan>,
}

impl Default for ContainerPlan {
    fn default() -> Self {
        Self {
            version: FORMAT_VERSION,
            id: ContainerId::new(""),
            rootfs: Rootfs::Directory(PathBuf::new()),
            readonly_rootfs: false,
            process: ProcessPlan::default(),
            init: false,
            hostname: String::new(),
            domainname: String::new(),
            network: NetworkNamespace::Private,
            ipc: IpcMode::Private,
            host_pid: false,
            mounts: Vec::new(),
            hosts_file: None,
            hostname_file: None,
            resolv_conf_file: None,
            shm_bytes: DEFAULT_SHM_BYTES,
            privileged: false,
            masked_paths: DEFAULT_MASKED_PATHS.map(str::to_owned).to_vec(),
            readonly_paths: DEFAULT_READONLY_PATHS.map(str::to_owned).to_vec(),
            seccomp: SeccompMode::Default,
            sysctls: BTreeMap::new(),
            limits: Limits::default(),
            cgroup_path: String::new(),
            cgroups: None,
            log: LogPlan::default(),
            stdin_once: false,
            unikernel: None,
        }
    }
}

impl ContainerPlan {
    /// The files below `/proc/sys` that its kernel settings are, with their values; only those that
    /// the kernel keeps for a namespace that is the container's own.
    ///
    /// # Errors
    /// One would change the host.
    pub fn check_sysctls(&self) -> Result<Vec<(String, &str)>, Failure> {
        let own = OwnNamespaces {
            network: self.network != NetworkNamespace::Host,
            ipc: self.ipc != IpcMode::Host,
            uts: true,
        };
        let each = self.sysctls.iter().map(|(name, value)| {
            let file = sysctl::check(name, value, own);
            let file = file.map_err(|e| Failure::new(FailureKind::Invalid, e.to_string()))?;
            Ok((file, value.as_str()))
        });
        each.collect()
    }
}

/// A root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// Read-only layers below one writable directory. Mounted in the container's own mount
    /// namespace only, so it can never be left behind.
    Overlay {
        /// Layers, the topmost first.
        lower: Vec<PathBuf>,
        /// What the container writes.
        upper: PathBuf,
        /// Overlayfs's own directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// A prepared directory, used as it is.
    Directory(PathBuf),
}

/// One process in a container: its first one or an exec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessPlan {
    /// Program and arguments; the program is looked up in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// `NAME=value`, complete; only `HOME` is added if missing.
    pub env: Vec<String>,
    /// Working directory, made if missing; empty: `/`.
    pub cwd: String,
    /// `user[:group]`, names or numbers, looked up in the container's own files; empty: root.
    pub user: String,
    /// Additional groups, names or numbers.
    pub groups: Vec<String>,
    /// `CAP_…` names: the bounding set, and for root also the effective and permitted sets.
    pub capabilities: Vec<String>,
    /// Whether the process and its children may never gain privileges.
    pub no_new_privileges: bool,
    /// Process limits.
    pub rlimits: Vec<Rlimit>,
    /// Added to the kernel's out-of-memory score; `None`: 0.
    pub oom_score_adj: Option<i32>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// The terminal's first size.
    pub tty_size: Option<TtySize>,
    /// Whether its standard input is a pipe (or the terminal) rather than `/dev/null`.
    pub open_stdin: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// One process limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// For example `nofile`, as in Docker's `--ulimit`.
    pub name: String,
    /// The limit in force; `u64::MAX`: none.
    pub soft: u64,
    /// How far the process may raise it; `u64::MAX`: none.
    pub hard: u64,
}

/// The network namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkNamespace {
    /// The daemon's.
    Host,
    /// Joined by its path.
    Path(PathBuf),
    /// A new one with nothing but a loopback interface (`--network none`).
    Private,
}

/// The IPC namespace of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpcMode {
    /// The daemon's.
    Host,
    /// A new one.
    Private,
}

/// The system call filter of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompMode {
    /// Docker's default profile, by the capabilities of the process.
    Default,
    /// None.
    Unconfined,
}

/// A mount beyond the standard ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether it may only be read, with everything below it.
    pub read_only: bool,
    /// What is mounted.
    pub kind: MountKind,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A directory or file of the host; volumes as well.
    Bind {
        /// Its path on the host.
        source: PathBuf,
        /// Whether mounts below the source come along.
        recursive: bool,
        /// How later mounts travel.
        propagation: Propagation,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size in bytes; `None`: half of the memory.
        size_bytes: Option<u64>,
        /// The mode of its root.
        mode: u32,
        /// Docker's mount options: `exec`, `noexec`, `suid`, `dev`, `uid=…`, `gid=…`, …
        options: Vec<String>,
    },
}

/// How later mounts travel between host and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Not at all.
    #[default]
    Rprivate,
    /// This mount: not at all.
    Private,
    /// From the host into the container.
    Rslave,
    /// From the host into the container, this mount only.
    Slave,
    /// Both ways.
    Rshared,
    /// Both ways, this mount only.
    Shared,
}

/// Limits of memory, CPU and processes. `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory and swap together; -1: no limit; `None`: twice `memory_bytes`, as Docker's.
    pub memory_swap_bytes: Option<i64>,
    /// Bytes that it is pushed back to when memory is scarce.
    pub memory_reservation_bytes: Option<u64>,
    /// Microseconds of CPU time in each period.
    pub cpu_quota_us: Option<i64>,
    /// The period in microseconds; 100 000 if unsaid.
    pub cpu_period_us: Option<u64>,
    /// Relative weight, 2 to 262144; 1024 is the default.
    pub cpu_shares: Option<u64>,
    /// For example `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// The limit that `--cpus` sets: billionths of a CPU.
    #[must_use]
    pub fn with_nano_cpus(mut self, nano_cpus: i64) -> Self {
        /// Docker's period for `--cpus`, in microseconds.
        const PERIOD_US: i64 = 100_000;
        if nano_cpus > 0 {
            self.cpu_period_us = Some(PERIOD_US.unsigned_abs());
            self.cpu_quota_us = Some(nano_cpus / (1_000_000_000 / PERIOD_US));
        }
        self
    }
}

/// Where a container's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogPlan {
    /// The log file in Docker's json-file format; `None`: no log.
    pub path: Option<PathBuf>,
    /// The file is set aside when it would grow beyond this.
    pub max_bytes: Option<u64>,
    /// How many files are kept, the current one among them; 0 counts as 1.
    pub max_files: u32,
}

/// A further process in a running container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecPlan {
    /// The exec's id, unique within the container.
    pub id: String,
    /// The process. If `capabilities` is empty it gets the container's; likewise `user`, `cwd` and
    /// `env` when empty. `rlimits` are always the container's.
    pub process: ProcessPlan,
    /// Whether it gets every capability.
    pub privileged: bool,
    /// Whether its standard output and error go to the caller; otherwise nowhere.
    pub attach_output: bool,
}
