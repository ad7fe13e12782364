//! What a container uses, read from the kernel's files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, field};

/// What a container uses, and how much it may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Disks; best effort.
    pub blkio: Vec<BlkioEntry>,
    /// By interface in the container's network namespace, without loopback.
    pub networks: BTreeMap<String, InterfaceStats>,
}

/// Processor time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// All of it.
    pub usage_ns: u64,
    /// In the program.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// On each CPU; version 1 only.
    pub per_cpu_ns: Vec<u64>,
    /// Periods of a quota that have passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// How long it was held back.
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Used, with the page cache.
    pub usage: u64,
    /// The most that was ever used; 0 where the kernel does not say.
    pub max_usage: u64,
    /// The limit; the machine's memory if there is none.
    pub limit: u64,
    /// The kernel's detailed figures by their names there.
    pub details: BTreeMap<String, u64>,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None`: no limit.
    pub limit: Option<u64>,
}

/// Traffic of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioEntry {
    /// The device's numbers.
    pub major: u64,
    /// See `major`.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Traffic of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Transmit errors.
    pub tx_errors: u64,
    /// Packets dropped on transmission.
    pub tx_dropped: u64,
}

/// A figure could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read '{}'", path.display())]
pub struct StatsError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Reads everything of the container in `cgroup` whose first process is `pid`. Controllers that are
/// not there count as zero.
///
/// # Errors
/// The group's processor time cannot be read: it does not exist.
pub fn read(cgroup: &Cgroup, pid: u32) -> Result<Stats, StatsError> {
    let mut stats = Stats::default();
    if cgroup.layout().is_v2() {
        read_v2(cgroup, &mut stats)?
    } else {
        read_v1(cgroup, &mut stats)?
    }
    let machine = total_memory();
    if stats.memory.limit == 0 || stats.memory.limit > machine {
        stats.memory.limit = machine;
    }
    // Ignored because: a process that just ended has no interfaces any more.
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    stats.networks = interfaces(&table);
    Ok(stats)
}

fn text(path: &Path) -> Result<String, StatsError> {
    fs::read_to_string(path).map_err(|source| StatsError { path: path.to_owned(), source })
}

/// A number in a file of an optional controller; absent files and `max` give `None`.
fn number(dir: Option<&Path>, file: &str) -> Option<u64> {
    fs::read_to_string(dir?.join(file)).ok()?.trim().parse().ok()
}

fn read_v1(cgroup: &Cgroup, stats: &mut Stats) -> Result<(), StatsError> {
    /// What one tick in `cpuacct.stat` is: USER_HZ is 100 on every machine that Linux runs on.
    const NS_PER_TICK: u64 = 10_000_000;
    let dir = |name: &str| cgroup.dir(name);
    if let Some(dir) = dir("cpuacct") {
        let usage = text(&dir.join("cpuacct.usage"))?;
        stats.cpu.usage_ns = usage.trim().parse().unwrap_or(0);
        let split = text(&dir.join("cpuacct.stat"))?;
        stats.cpu.user_ns = field(&split, "user").unwrap_or(0) * NS_PER_TICK;
        stats.cpu.system_ns = field(&split, "system").unwrap_or(0) * NS_PER_TICK;
        let each = text(&dir.join("cpuacct.usage_percpu"))?;
        stats.cpu.per_cpu_ns = each.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    }
    if let Some(dir) = dir("cpu") {
        let quota = text(&dir.join("cpu.stat"))?;
        stats.cpu.periods = field(&quota, "nr_periods").unwrap_or(0);
        stats.cpu.throttled_periods = field(&quota, "nr_throttled").unwrap_or(0);
        stats.cpu.throttled_ns = field(&quota, "throttled_time").unwrap_or(0);
    }
    let memory = dir("memory");
    let memory = memory.as_deref();
    stats.memory.usage = number(memory, "memory.usage_in_bytes").unwrap_or(0);
    stats.memory.max_usage = number(memory, "memory.max_usage_in_bytes").unwrap_or(0);
    stats.memory.limit = number(memory, "memory.limit_in_bytes").unwrap_or(0);
    stats.memory.failures = number(memory, "memory.failcnt").unwrap_or(0);
    if let Some(dir) = memory {
        stats.memory.details = pairs(&text(&dir.join("memory.stat"))?);
    }
    stats.pids.current = number(dir("pids").as_deref(), "pids.current").unwrap_or(0);
    stats.pids.limit = number(dir("pids").as_deref(), "pids.max");
    if let Some(dir) = dir("blkio") {
        let bytes = fs::read_to_string(dir.join("blkio.throttle.io_service_bytes"));
        let count = fs::read_to_string(dir.join("blkio.throttle.io_serviced"));
        stats.blkio = blkio_v1(&bytes.unwrap_or_default(), &count.unwrap_or_default());
    }
    Ok(())
}

fn read_v2(cgroup: &Cgroup, stats: &mut Stats) -> Result<(), StatsError> {
    const NS_PER_US: u64 = 1000;
    let Some(dir) = cgroup.dir("cpuacct") else { return Ok(()) };
    let cpu = text(&dir.join("cpu.stat"))?;
    let micros = |key: &str| field(&cpu, key).unwrap_or(0) * NS_PER_US;
    stats.cpu.usage_ns = micros("usage_usec");
    stats.cpu.user_ns = micros("user_usec");
    stats.cpu.system_ns = micros("system_usec");
    stats.cpu.throttled_ns = micros("throttled_usec");
    stats.cpu.periods = field(&cpu, "nr_periods").unwrap_or(0);
    stats.cpu.throttled_periods = field(&cpu, "nr_throttled").unwrap_or(0);
    let dir = Some(dir.as_path());
    stats.memory.usage = number(dir, "memory.current").unwrap_or(0);
    stats.memory.max_usage = number(dir, "memory.peak").unwrap_or(0);
    stats.memory.limit = number(dir, "memory.max").unwrap_or(0);
    let optional = |file: &str| {
        let read = dir.map(|dir| fs::read_to_string(dir.join(file)));
        read.and_then(Result::ok).unwrap_or_default()
    };
    stats.memory.failures = field(&optional("memory.events"), "max").unwrap_or(0);
    stats.memory.details = pairs(&optional("memory.stat"));
    stats.pids.current = number(dir, "pids.current").unwrap_or(0);
    stats.pids.limit = number(dir, "pids.max");
    stats.blkio = blkio_v2(&optional("io.stat"));
    Ok(())
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn device(word: &str) -> Option<(u64, u64)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn blkio_v1(bytes: &str, count: &str) -> Vec<BlkioEntry> {
    let mut entries: BTreeMap<(u64, u64), BlkioEntry> = BTreeMap::new();
    for (text, counts) in [(bytes, false), (count, true)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some((major, minor)) = words.next().and_then(device) else { continue };
            let (Some(what), Some(value)) = (words.next(), words.next()) else { continue };
            let value = value.parse().unwrap_or(0);
            let entry = entries.entry((major, minor)).or_default();
            (entry.major, entry.minor) = (major, minor);
            match (what, counts) {
                ("Read", false) => entry.read_bytes = value,
                ("Write", false) => entry.write_bytes = value,
                ("Read", true) => entry.reads = value,
                ("Write", true) => entry.writes = value,
                _ => {}
            }
        }
    }
    entries.into_values().collect()
}

fn blkio_v2(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (major, minor) = device(name)?;
        let mut entry = BlkioEntry { major, minor, ..BlkioEntry::default() };
        for (key, value) in rest.split(' ').filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.write_bytes = value,
                "rios" => entry.reads = value,
                "wios" => entry.writes = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

fn interfaces(table: &str) -> BTreeMap<String, InterfaceStats> {
    let line = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> =
            figures.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        let at = |index: usize| figures.get(index).copied().unwrap_or(0);
        let stats = InterfaceStats {
            rx_bytes: at(0),
            rx_packets: at(1),
            rx_errors: at(2),
            rx_dropped: at(3),
            tx_bytes: at(8),
            tx_packets: at(9),
            tx_errors: at(10),
            tx_dropped: at(11),
        };
        let name = name.trim();
        (name != "lo").then(|| (name.to_owned(), stats))
    };
    table.lines().filter_map(line).collect()
}

/// The machine's memory in bytes.
fn total_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_read() {
        let table = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12\n  \
                     eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        assert_eq!(found.get("eth0").unwrap().tx_dropped, 12);
        let disks = blkio_v1("8:0 Read 5\n8:0 Write 6\nTotal 11", "8:0 Read 1\n8:0 Write 2");
        assert_eq!(disks.first().unwrap().write_bytes, 6);
        assert_eq!(blkio_v2("8:0 rbytes=5 wbytes=6 rios=1 wios=2"), disks);
    }
}
