//! Which wishes of a client are fulfilled, which are refused, and what an absent one means.
//!
//! A member of `HostConfig` that would change what the container may do is never ignored: it is
//! either done or refused by name.

use serde_json::Value;
use shoal_model::spec::Extra;
use shoal_model::spec::container::{ContainerCreate, HostConfig, HostRestartPolicy, LogConfig};
use shoal_runtime::container_plan::{
    DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, DEFAULT_SHM_BYTES,
};

use crate::error::EngineError;

/// Docker's smallest memory limit: less does not hold a process and its kernel structures.
const MEMORY_BYTES_MIN: i64 = 6 << 20;

/// Members of `HostConfig` beyond the typed ones: what each may be.
#[derive(Clone, Copy)]
enum Rule {
    /// Any value: it does not change what the container may do.
    Any,
    /// Only absent, zero, false or empty.
    Unset,
    /// One of these words, or unset.
    Words(&'static [&'static str]),
    /// One of these numbers, or unset.
    Number(i64),
    /// Implemented: checked where it is used.
    Done,
}

const RULES: &[(&str, Rule)] = &[
    ("ContainerIDFile", Rule::Any),
    ("ConsoleSize", Rule::Done),
    ("Annotations", Rule::Any),
    ("VolumeDriver", Rule::Words(&["local"])),
    ("CgroupnsMode", Rule::Words(&["private"])),
    ("IpcMode", Rule::Words(&["private", "shareable", "host"])),
    ("PidMode", Rule::Words(&["host"])),
    ("UsernsMode", Rule::Words(&["host"])),
    ("Isolation", Rule::Words(&["default"])),
    ("Runtime", Rule::Words(&["runc", "io.containerd.runc.v2"])),
    ("MemorySwappiness", Rule::Number(-1)),
    ("MemoryReservation", Rule::Done),
    ("CpusetCpus", Rule::Done),
    ("CpusetMems", Rule::Done),
    ("VolumesFrom", Rule::Unset),
    ("Links", Rule::Unset),
    ("Cgroup", Rule::Unset),
    ("UTSMode", Rule::Unset),
    ("CgroupParent", Rule::Unset),
    ("Devices", Rule::Unset),
    ("DeviceCgroupRules", Rule::Unset),
    ("DeviceRequests", Rule::Unset),
    ("OomKillDisable", Rule::Unset),
    ("StorageOpt", Rule::Unset),
    ("BlkioWeight", Rule::Unset),
    ("BlkioWeightDevice", Rule::Unset),
    ("BlkioDeviceReadBps", Rule::Unset),
    ("BlkioDeviceWriteBps", Rule::Unset),
    ("BlkioDeviceReadIOps", Rule::Unset),
    ("BlkioDeviceWriteIOps", Rule::Unset),
    ("CpuRealtimePeriod", Rule::Unset),
    ("CpuRealtimeRuntime", Rule::Unset),
    ("KernelMemory", Rule::Unset),
    ("KernelMemoryTCP", Rule::Unset),
    ("CpuCount", Rule::Unset),
    ("CpuPercent", Rule::Unset),
    ("IOMaximumIOps", Rule::Unset),
    ("IOMaximumBandwidth", Rule::Unset),
];

/// Refuses what is not implemented and what cannot be right, before anything is made.
pub(crate) fn check(body: &ContainerCreate) -> Result<(), EngineError> {
    let host = &body.host_config;
    check_extra("HostConfig", &host.extra, RULES)?;
    for (network, settings) in &body.networking_config.endpoints_config {
        let Some(settings) = settings else { continue };
        for name in ["MacAddress", "Links", "DriverOpts", "GwPriority"] {
            if settings.extra.get(name).is_some_and(|value| !is_unset(value)) {
                return Err(EngineError::missing(format!("{name} on the network '{network}'")));
            }
        }
    }
    check_restart(host.restart_policy.as_ref(), host.auto_remove.unwrap_or(false))?;
    check_limits(host)?;
    check_log(host.log_config.as_ref())?;
    check_security(host.security_opt.as_deref().unwrap_or(&[]))?;
    check_network_mode(host)?;
    check_health(body)?;
    crate::ports::check(body)?;
    if let Some(signal) = body.config.stop_signal.as_deref().filter(|s| !s.is_empty()) {
        crate::signal::parse(signal)?;
    }
    Ok(())
}

/// Refuses members of `extra` that are set and that `rules` do not allow.
fn check_extra(what: &str, extra: &Extra, rules: &[(&str, Rule)]) -> Result<(), EngineError> {
    for (name, value) in extra {
        let rule = rules.iter().find(|(known, _)| known == name).map(|(_, rule)| *rule);
        let fine = match rule {
            _ if is_unset(value) => true,
            Some(Rule::Any | Rule::Done) => true,
            Some(Rule::Words(words)) => value.as_str().is_some_and(|word| words.contains(&word)),
            Some(Rule::Number(number)) => value.as_i64() == Some(number),
            Some(Rule::Unset) | None => false,
        };
        if !fine {
            return Err(EngineError::missing(format!("{what}.{name} = {value}")));
        }
    }
    Ok(())
}

/// Whether a value says nothing: `null`, zero, false, empty, or a list of only such values.
pub(crate) fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(is_unset),
        Value::Object(map) => map.is_empty(),
    }
}

/// Checks a restart policy.
pub(crate) fn check_restart(
    policy: Option<&HostRestartPolicy>,
    auto_remove: bool,
) -> Result<(), EngineError> {
    let Some(policy) = policy else { return Ok(()) };
    let count = policy.maximum_retry_count;
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" if count != 0 => {
            let text = "invalid restart policy: maximum retry count can only be used with \
                        'on-failure'";
            Err(EngineError::invalid(text))
        }
        "" | "no" => Ok(()),
        "on-failure" if count < 0 => Err(EngineError::invalid(
            "invalid restart policy: maximum retry count cannot be negative",
        )),
        "always" | "unless-stopped" | "on-failure" if auto_remove => {
            Err(EngineError::conflict("can't create 'AutoRemove' container with restart policy"))
        }
        "always" | "unless-stopped" | "on-failure" => Ok(()),
        other => Err(EngineError::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Checks the limits that are typed in `HostConfig`.
pub(crate) fn check_limits(host: &HostConfig) -> Result<(), EngineError> {
    let value = |n: Option<i64>| n.unwrap_or(0);
    let (memory, swap) = (value(host.memory), value(host.memory_swap));
    if memory != 0 && memory < MEMORY_BYTES_MIN {
        return Err(EngineError::invalid("Minimum memory limit allowed is 6MB"));
    }
    if swap > 0 && memory == 0 {
        let text = "You should always set the Memory limit when using Memoryswap limit, see usage";
        return Err(EngineError::invalid(text));
    }
    if swap > 0 && swap < memory {
        let text = "Minimum memoryswap limit should be larger than memory limit, see usage";
        return Err(EngineError::invalid(text));
    }
    let nano_cpus = value(host.nano_cpus);
    if nano_cpus != 0 && (value(host.cpu_period) != 0 || value(host.cpu_quota) != 0) {
        return Err(EngineError::invalid(
            "Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set",
        ));
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let most = i64::try_from(cpus).unwrap_or(1).saturating_mul(1_000_000_000);
    if nano_cpus < 0 || nano_cpus > most {
        return Err(EngineError::invalid(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    if value(host.shm_size) < 0 {
        return Err(EngineError::invalid("SHM size can not be less than 0"));
    }
    let score = value(host.oom_score_adj);
    if !(-1000..=1000).contains(&score) {
        return Err(EngineError::invalid(format!(
            "Invalid value {score}, range for oom score adj is [-1000, 1000]"
        )));
    }
    for limit in host.ulimits.as_deref().unwrap_or(&[]) {
        if limit.hard != -1 && (limit.soft > limit.hard || limit.soft == -1) {
            return Err(EngineError::invalid(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                limit.soft, limit.hard
            )));
        }
    }
    Ok(())
}

fn check_log(log: Option<&LogConfig>) -> Result<(), EngineError> {
    let Some(log) = log else { return Ok(()) };
    match log.driver.as_str() {
        "none" => return Ok(()),
        "" | "json-file" => {}
        other => return Err(EngineError::missing(format!("log driver '{other}'"))),
    }
    for (name, value) in &log.config {
        let bad = || EngineError::invalid(format!("invalid value for {name}: '{value}'"));
        match name.as_str() {
            "max-size" => {
                crate::logs::parse_size(value).ok_or_else(bad)?;
            }
            "max-file" => {
                value.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(bad)?;
            }
            "compress" if value == "false" => {}
            "mode" if value == "blocking" => {}
            _ => return Err(EngineError::missing(format!("log option '{name}={value}'"))),
        }
    }
    Ok(())
}

/// The security options that are understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Security {
    /// Never gain privileges.
    pub no_new_privileges: bool,
    /// No system call filter.
    pub unfiltered: bool,
}

/// Reads `SecurityOpt`.
pub(crate) fn check_security(options: &[String]) -> Result<Security, EngineError> {
    let mut security = Security::default();
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "unconfined") => security.unfiltered = true,
            ("seccomp", "builtin") => security.unfiltered = false,
            // No profile and no label is ever set, so these are already so.
            ("apparmor", "unconfined") | ("label", "disable") => {}
            _ => return Err(EngineError::missing(format!("security option '{option}'"))),
        }
    }
    Ok(security)
}

fn check_network_mode(host: &HostConfig) -> Result<(), EngineError> {
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let published = host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty());
    if mode.starts_with("container:") {
        if published || host.publish_all_ports.unwrap_or(false) {
            return Err(EngineError::invalid(
                "conflicting options: port publishing and the container type network mode",
            ));
        }
        if host.extra_hosts.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(EngineError::invalid(
                "conflicting options: custom host-to-IP mapping and the network mode",
            ));
        }
    }
    for line in host.extra_hosts.as_deref().unwrap_or(&[]) {
        if crate::files::parse_extra_host(line).is_none() {
            return Err(EngineError::invalid(format!("bad format for add-host: \"{line}\"")));
        }
    }
    Ok(())
}

/// The shortest span that Docker accepts in a health check, 1 ms, in nanoseconds.
const HEALTH_SPAN_MIN: i64 = 1_000_000;

fn check_health(body: &ContainerCreate) -> Result<(), EngineError> {
    let Some(health) = &body.config.healthcheck else { return Ok(()) };
    let spans = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, span) in spans {
        if span.is_some_and(|s| s.0 != 0 && s.0 < HEALTH_SPAN_MIN) {
            return Err(EngineError::invalid(format!(
                "{name} in Healthcheck cannot be less than 1ms"
            )));
        }
    }
    if health.retries.is_some_and(|n| n < 0) {
        return Err(EngineError::invalid("Retries in Healthcheck cannot be negative"));
    }
    match health.test.as_deref() {
        None | Some([]) => Ok(()),
        Some([kind, ..]) if matches!(kind.as_str(), "NONE" | "CMD" | "CMD-SHELL") => Ok(()),
        Some([kind, ..]) => Err(EngineError::invalid(format!("unknown healthcheck type '{kind}'"))),
    }
}

/// Fills in what an absent member means, so that clients read back what is in force.
pub(crate) fn normalise(mut host: HostConfig, default_init: bool) -> HostConfig {
    if host.network_mode.as_deref().is_none_or(|mode| mode.is_empty() || mode == "default") {
        host.network_mode = Some("bridge".into());
    }
    let policy = host.restart_policy.get_or_insert_default();
    if policy.name.is_empty() {
        policy.name = "no".into();
    }
    let log = host.log_config.get_or_insert_default();
    if log.driver.is_empty() {
        log.driver = "json-file".into();
    }
    if host.shm_size.unwrap_or(0) == 0 {
        host.shm_size = i64::try_from(DEFAULT_SHM_BYTES).ok();
    }
    if host.init.is_none() && default_init {
        host.init = Some(true);
    }
    if host.privileged.unwrap_or(false) {
        host.masked_paths = None;
        host.readonly_paths = None;
    } else {
        let list = |paths: &[&str]| paths.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        host.masked_paths.get_or_insert_with(|| list(&DEFAULT_MASKED_PATHS));
        host.readonly_paths.get_or_insert_with(|| list(&DEFAULT_READONLY_PATHS));
    }
    for (name, word) in [("IpcMode", "private"), ("CgroupnsMode", "private"), ("Runtime", "runc")] {
        let slot = host.extra.entry(name).or_insert(Value::Null);
        if is_unset(slot) {
            *slot = Value::from(word);
        }
    }
    host
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What the docker CLI 28 sends when nothing is asked for.
    const CLI_DEFAULTS: &str = r#"{"Binds":null,"ContainerIDFile":"","LogConfig":{"Type":"",
        "Config":{}},"NetworkMode":"default","PortBindings":{},"RestartPolicy":{"Name":"no",
        "MaximumRetryCount":0},"AutoRemove":false,"VolumeDriver":"","VolumesFrom":null,
        "ConsoleSize":[0,0],"CapAdd":null,"CapDrop":null,"CgroupnsMode":"","Dns":[],
        "DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"GroupAdd":null,"IpcMode":"","Cgroup":"",
        "Links":null,"OomScoreAdj":0,"PidMode":"","Privileged":false,"PublishAllPorts":false,
        "ReadonlyRootfs":false,"SecurityOpt":null,"UTSMode":"","UsernsMode":"","ShmSize":0,
        "Isolation":"","CpuShares":0,"Memory":0,"NanoCpus":0,"CgroupParent":"","BlkioWeight":0,
        "BlkioWeightDevice":[],"BlkioDeviceReadBps":[],"BlkioDeviceWriteBps":[],
        "BlkioDeviceReadIOps":[],"BlkioDeviceWriteIOps":[],"CpuPeriod":0,"CpuQuota":0,
        "CpuRealtimePeriod":0,"CpuRealtimeRuntime":0,"CpusetCpus":"","CpusetMems":"","Devices":[],
        "DeviceCgroupRules":null,"DeviceRequests":null,"MemoryReservation":0,"MemorySwap":0,
        "MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":0,"Ulimits":[],"CpuCount":0,
        "CpuPercent":0,"IOMaximumIOps":0,"IOMaximumBandwidth":0,"MaskedPaths":null,
        "ReadonlyPaths":null}"#;

    fn verdict(member: &str, value: Value) -> Result<(), EngineError> {
        let mut host: Value = serde_json::from_str(CLI_DEFAULTS).unwrap();
        host[member] = value;
        let body = serde_json::json!({ "Image": "x", "HostConfig": host });
        check(&serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_the_cli_sends_by_default_is_accepted() {
        verdict("Memory", Value::from(0)).unwrap();
        verdict("ConsoleSize", serde_json::json!([24, 80])).unwrap();
        verdict("IpcMode", Value::from("private")).unwrap();
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let device = serde_json::json!([{"PathOnHost": "/dev/kvm"}]);
        let cases = [
            ("Devices", device),
            ("UTSMode", Value::from("host")),
            ("CgroupnsMode", Value::from("host")),
            ("IpcMode", Value::from("container:x")),
            ("Runtime", Value::from("runsc")),
            ("MemorySwappiness", Value::from(50)),
            ("LogConfig", serde_json::json!({"Type": "syslog", "Config": {}})),
            ("SecurityOpt", serde_json::json!(["seccomp={}"])),
            ("Surprise", Value::from(1)),
        ];
        for (member, value) in cases {
            let error = verdict(member, value).unwrap_err();
            assert!(matches!(error, EngineError::NotImplemented { .. }), "{member}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        let cases = [
            ("Memory", Value::from(1024)),
            ("NanoCpus", Value::from(-1)),
            ("RestartPolicy", serde_json::json!({"Name": "sometimes"})),
            ("RestartPolicy", serde_json::json!({"Name": "always", "MaximumRetryCount": 3})),
            ("ExtraHosts", serde_json::json!(["nonsense"])),
            ("LogConfig", serde_json::json!({"Type": "", "Config": {"max-size": "-3"}})),
        ];
        for (member, value) in cases {
            let error = verdict(member, value).unwrap_err();
            assert!(matches!(error, EngineError::Invalid { .. }), "{member}: {error}");
        }
    }

    #[test]
    fn the_least_is_accepted_and_no_less() {
        verdict("Memory", Value::from(MEMORY_BYTES_MIN)).unwrap();
        verdict("Memory", Value::from(MEMORY_BYTES_MIN - 1)).unwrap_err();
        let every = |span: i64| {
            let health = serde_json::json!({ "Interval": span });
            let body = serde_json::json!({ "Image": "x", "Healthcheck": health, "HostConfig": {} });
            check(&serde_json::from_value(body).unwrap())
        };
        every(HEALTH_SPAN_MIN).unwrap();
        every(HEALTH_SPAN_MIN - 1).unwrap_err();
    }
}
