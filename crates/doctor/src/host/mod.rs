//! Checks of the host itself: kernel, storage, limits, ports, other people's firewalls.

mod cgroup;
mod kernel;
mod network;
mod ports;
mod storage;

use std::path::PathBuf;

pub(crate) use cgroup::group_roots;
use ipnet::IpNet;
use shoal_model::check::{Check, CheckResult, Need, Verdict};
pub(crate) use storage::{existing as scratch_base, remove_scratch};

/// What the checks need to know of the daemon.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where images and containers are; a parent of it must exist.
    pub data_root: PathBuf,
    /// Address ranges that overlay networks take their subnets from.
    pub pools: Vec<IpNet>,
    /// The port for managers, TCP.
    pub manager_port: u16,
    /// The port for probes and tunnels between nodes, UDP.
    pub tunnel_port: u16,
    /// The port for VXLAN, UDP.
    pub vxlan_port: u16,
}

impl HostConfig {
    /// The usual ports and address ranges.
    #[must_use]
    pub fn new(data_root: impl Into<PathBuf>) -> Self {
        let ten = IpNet::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0).into(), 8);
        Self {
            data_root: data_root.into(),
            pools: vec![ten],
            manager_port: 2377,
            tunnel_port: 7946,
            vxlan_port: 4789,
        }
    }
}

/// All checks of this crate.
#[must_use]
pub fn checks(config: &HostConfig) -> Vec<Box<dyn Check>> {
    let mut checks = kernel::checks();
    checks.extend(storage::checks(config));
    checks.extend(cgroup::checks());
    checks.extend(network::checks(config));
    checks.extend(ports::checks(config));
    checks.into_iter().map(|check| Box::new(check) as Box<dyn Check>).collect()
}

/// One check of the host.
struct HostCheck {
    id: &'static str,
    name: String,
    need: Need,
    attempt: Box<dyn Fn() -> Finding + Send + Sync>,
}

impl HostCheck {
    fn new(
        id: &'static str,
        name: impl Into<String>,
        need: Need,
        attempt: impl Fn() -> Finding + Send + Sync + 'static,
    ) -> Self {
        Self { id, name: name.into(), need, attempt: Box::new(attempt) }
    }
}

impl Check for HostCheck {
    fn run(&self) -> CheckResult {
        let Finding { verdict, detail, remedy } = (self.attempt)();
        CheckResult {
            id: self.id.into(),
            name: self.name.clone(),
            verdict,
            detail,
            remedy,
            needed_for: self.need,
        }
    }

    fn label(&self) -> String {
        self.name.clone()
    }
}

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    detail: String,
    remedy: String,
}

impl Finding {
    fn ok(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn skipped(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, detail: detail.into(), remedy: String::new() }
    }

    fn warn(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

/// A small file of `/proc` or `/sys`, without white space at its ends.
fn read(path: &str) -> std::io::Result<String> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned())
}

/// The same as a number.
fn read_number(path: &str) -> Option<u64> {
    read(path).ok()?.parse().ok()
}
