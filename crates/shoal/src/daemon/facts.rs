//! What the machine is: for the node's description and for `docker info`.

use std::collections::BTreeMap;

use shoal_api::backend::system::Facts;
use shoal_model::check::{CheckResult, Verdict};
use shoal_model::id::InstanceId;
use shoal_model::object::NodeDescription;
use shoal_model::spec::generic::GenericResource;
use shoal_model::spec::task::{Platform, Resources};
use shoal_model::time::Timestamp;
use shoal_runtime::checks::{UNIKERNEL_KVM, UNIKERNEL_PROCESS};

use super::settings::Settings;

/// The program's version.
#[cfg(not(feature = "next-level"))]
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The same, of the program that stands for the next version in tests.
#[cfg(feature = "next-level")]
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-next");

/// What this node tells its cluster about itself.
pub fn describe_host(
    name: &str,
    labels: &[String],
    generic: &[GenericResource],
    checks: Vec<CheckResult>,
) -> NodeDescription {
    let labels: BTreeMap<String, String> = labels
        .iter()
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    NodeDescription {
        hostname: name.to_owned(),
        platform: Platform { architecture: machine(), os: "linux".to_owned() },
        resources: Resources {
            nano_cpus: Some(i64::from(cpus()) * 1_000_000_000),
            memory_bytes: i64::try_from(memory()).ok(),
            // Cannot fail: texts and numbers only.
            generic_resources: (!generic.is_empty())
                .then(|| generic.iter().filter_map(|one| serde_json::to_value(one).ok()).collect()),
            ..Resources::default()
        },
        engine_version: VERSION.to_owned(),
        engine_labels: labels,
        checks,
        reads: shoal_model::level::READS,
        ..NodeDescription::default()
    }
}

/// What `docker info` and `docker version` say.
pub fn facts(
    settings: &Settings,
    instance: &InstanceId,
    started_at: Timestamp,
    checks: &[CheckResult],
) -> Facts {
    let release = os_release();
    let read = |key: &str| release.get(key).cloned().unwrap_or_default();
    Facts {
        version: VERSION.to_owned(),
        commit: option_env!("SHOAL_COMMIT").unwrap_or_default().to_owned(),
        id: instance.to_string(),
        name: settings.node_name.clone(),
        labels: settings.labels.clone(),
        generic_resources: settings.generic_resources.clone(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        os: read("PRETTY_NAME"),
        os_version: read("VERSION_ID"),
        architecture: machine(),
        cpus: cpus(),
        memory: memory(),
        data_root: settings.data_root.display().to_string(),
        debug: settings.debug,
        insecure_registries: settings.insecure_registries.clone(),
        started_at,
        default_init: settings.default_init,
        unikernel_backends: unikernel_backends(checks),
    }
}

/// How unikernels can run here, as the checks found; the tender prefers a virtual machine.
fn unikernel_backends(checks: &[CheckResult]) -> Vec<(String, String)> {
    let ways = [("kvm", UNIKERNEL_KVM), ("process", UNIKERNEL_PROCESS)];
    ways.into_iter()
        .filter_map(|(name, id)| {
            let found = checks.iter().find(|c| c.id == id && c.verdict == Verdict::Ok)?;
            Some((name.to_owned(), found.detail.clone()))
        })
        .collect()
}

fn machine() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Bytes of memory.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

fn os_release() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}
