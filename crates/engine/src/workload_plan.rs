//! From a record to what the runtime runs.

use std::path::PathBuf;

use shoal_model::spec::container::HostConfig;
use shoal_runtime::caps;
use shoal_runtime::container_plan::{
    ContainerPlan, IpcMode, Limits, LogPlan, NetworkNamespace, ProcessPlan, Rlimit, Rootfs,
    SeccompMode, TtySize,
};

use crate::admission::check_security;
use crate::attacher::Attachment;
use crate::error::EngineError;
use crate::record::{Files, Record};

/// Where programs are looked up if the image does not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The size that a log file may have by default is unlimited, as Docker's.
const LOG_FILES: u32 = 1;

/// What of a start is not in the record.
pub(crate) struct Surroundings<'a> {
    /// Layers of the image, topmost first.
    pub layers: Vec<PathBuf>,
    pub files: &'a Files<'a>,
    /// The container whose `/etc` files it shares; its own unless it shares a network.
    pub etc: &'a Files<'a>,
    pub attachment: &'a Attachment,
    pub mounts: Vec<shoal_runtime::container_plan::MountPlan>,
}

/// The whole plan.
pub(crate) fn container(
    record: &Record,
    around: Surroundings<'_>,
) -> Result<ContainerPlan, EngineError> {
    let host = &record.host;
    let word = |name: &str| host.extra.get(name).and_then(|v| v.as_str()).unwrap_or_default();
    let security = check_security(host.security_opt.as_deref().unwrap_or(&[]))?;
    let privileged = host.privileged.unwrap_or(false);
    let network = match &around.attachment.netns {
        Some(path) => NetworkNamespace::Path(path.clone()),
        None if record.network_mode() == "none" => NetworkNamespace::Private,
        None => NetworkNamespace::Host,
    };
    Ok(ContainerPlan {
        id: record.id.clone(),
        rootfs: Rootfs::Overlay {
            lower: around.layers,
            upper: around.files.upper(),
            work: around.files.work(),
        },
        readonly_rootfs: host.readonly_rootfs.unwrap_or(false),
        process: process(record)?,
        init: host.init.unwrap_or(false),
        hostname: record.config.hostname.clone().unwrap_or_default(),
        domainname: record.config.domainname.clone().unwrap_or_default(),
        network,
        ipc: if word("IpcMode") == "host" { IpcMode::Host } else { IpcMode::Private },
        host_pid: word("PidMode") == "host",
        mounts: around.mounts,
        hosts_file: Some(around.etc.hosts()),
        hostname_file: Some(around.etc.hostname()),
        resolv_conf_file: Some(around.etc.resolv_conf()),
        shm_bytes: host.shm_size.and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
        privileged,
        masked_paths: host.masked_paths.clone().unwrap_or_default(),
        readonly_paths: host.readonly_paths.clone().unwrap_or_default(),
        seccomp: if privileged || security.unfiltered {
            SeccompMode::Unconfined
        } else {
            SeccompMode::Default
        },
        sysctls: host.sysctls.clone().unwrap_or_default(),
        limits: limits(host),
        log: log(record, around.files),
        stdin_once: record.config.stdin_once.unwrap_or(false),
        ..ContainerPlan::default()
    })
}

/// The first process.
pub(crate) fn process(record: &Record) -> Result<ProcessPlan, EngineError> {
    let (config, host) = (&record.config, &record.host);
    let security = check_security(host.security_opt.as_deref().unwrap_or(&[]))?;
    let score = host.oom_score_adj.unwrap_or(0);
    Ok(ProcessPlan {
        argv: record.argv(),
        env: environment(record),
        cwd: config.working_dir.clone().unwrap_or_default(),
        user: config.user.clone().unwrap_or_default(),
        groups: host.group_add.clone().unwrap_or_default(),
        capabilities: capabilities(host)?,
        no_new_privileges: security.no_new_privileges,
        rlimits: rlimits(host),
        oom_score_adj: i32::try_from(score).ok(),
        tty: record.tty(),
        tty_size: console_size(host),
        open_stdin: config.open_stdin.unwrap_or(false),
    })
}

/// Defaults first, then what image and client say.
pub(crate) fn environment(record: &Record) -> Vec<String> {
    let mut below = vec![DEFAULT_PATH.to_owned()];
    if let Some(hostname) = &record.config.hostname {
        below.push(format!("HOSTNAME={hostname}"));
    }
    if record.tty() {
        below.push("TERM=xterm".to_owned());
    }
    crate::merge::merge_env(Some(&below), record.config.env.as_deref())
}

fn capabilities(host: &HostConfig) -> Result<Vec<String>, EngineError> {
    let list = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let privileged = host.privileged.unwrap_or(false);
    caps::resolve(privileged, &list(&host.cap_add), &list(&host.cap_drop))
        .map_err(|e| EngineError::invalid(e.to_string()))
}

fn rlimits(host: &HostConfig) -> Vec<Rlimit> {
    // Docker's -1 means: no limit.
    let amount = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    host.ulimits
        .iter()
        .flatten()
        .map(|limit| Rlimit {
            name: limit.name.clone(),
            soft: amount(limit.soft),
            hard: amount(limit.hard),
        })
        .collect()
}

fn console_size(host: &HostConfig) -> Option<TtySize> {
    let size: [u16; 2] = serde_json::from_value(host.extra.get("ConsoleSize")?.clone()).ok()?;
    let [rows, columns] = size;
    (rows > 0 && columns > 0).then_some(TtySize { rows, columns })
}

/// Limits of memory, CPU and processes; zero means none.
pub(crate) fn limits(host: &HostConfig) -> Limits {
    let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let extra = |name: &str| host.extra.get(name);
    let text = |name: &str| {
        extra(name).and_then(|v| v.as_str()).filter(|t| !t.is_empty()).map(str::to_owned)
    };
    Limits {
        memory_bytes: positive(host.memory),
        memory_swap_bytes: host.memory_swap.filter(|n| *n != 0),
        memory_reservation_bytes: positive(
            extra("MemoryReservation").and_then(serde_json::Value::as_i64),
        ),
        cpu_quota_us: host.cpu_quota.filter(|n| *n > 0),
        cpu_period_us: positive(host.cpu_period),
        cpu_shares: positive(host.cpu_shares),
        cpuset_cpus: text("CpusetCpus"),
        cpuset_mems: text("CpusetMems"),
        pids: positive(host.pids_limit),
    }
    .with_nano_cpus(host.nano_cpus.unwrap_or(0))
}

pub(crate) fn log(record: &Record, files: &Files<'_>) -> LogPlan {
    let config = record.host.log_config.clone().unwrap_or_default();
    if config.driver == "none" {
        return LogPlan { path: None, max_bytes: None, max_files: LOG_FILES };
    }
    let option = |name: &str| config.config.get(name);
    LogPlan {
        path: Some(files.log(&record.id)),
        max_bytes: option("max-size").and_then(|text| crate::logs::parse_size(text)),
        max_files: option("max-file").and_then(|n| n.parse().ok()).unwrap_or(LOG_FILES),
    }
}
