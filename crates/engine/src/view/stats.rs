//! One sample of `GET /containers/{id}/stats`, cgroup v2.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_model::time::Timestamp;

/// One sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// With a leading slash.
    pub name: String,
    /// The container.
    pub id: String,
    /// When it was read.
    pub read: Timestamp,
    /// When the sample before was read.
    pub preread: Timestamp,
    /// Processes.
    pub pids_stats: PidsStats,
    /// Block devices.
    pub blkio_stats: BlkioStats,
    /// Windows only; always 0.
    pub num_procs: u32,
    /// Windows only; always empty.
    pub storage_stats: BTreeMap<String, u64>,
    /// CPU now.
    pub cpu_stats: CpuStats,
    /// CPU at the sample before.
    pub precpu_stats: CpuStats,
    /// Memory.
    pub memory_stats: MemoryStats,
    /// By link name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkStats>,
}

/// Processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// How many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// How many there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// Block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioStats {
    /// Bytes, by device and direction.
    pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
}

/// One device and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioEntry {
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// `read` or `write`.
    pub op: String,
    /// Bytes.
    pub value: u64,
}

/// CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    /// Use.
    pub cpu_usage: CpuUsage,
    /// All CPUs of the host, all modes, in nanoseconds.
    pub system_cpu_usage: u64,
    /// How many CPUs there are.
    pub online_cpus: u32,
    /// What the limit cost.
    pub throttling_data: Throttling,
}

/// CPU use in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// All.
    pub total_usage: u64,
    /// In the kernel.
    pub usage_in_kernelmode: u64,
    /// Outside it.
    pub usage_in_usermode: u64,
}

/// What a CPU limit cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// Periods.
    pub periods: u64,
    /// Periods that were cut.
    pub throttled_periods: u64,
    /// Nanoseconds lost.
    pub throttled_time: u64,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// In use, with caches.
    pub usage: u64,
    /// The lines of `memory.stat`.
    pub stats: BTreeMap<String, u64>,
    /// How much there may be.
    pub limit: u64,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors at receiving.
    pub rx_errors: u64,
    /// Packets dropped at receiving.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors at sending.
    pub tx_errors: u64,
    /// Packets dropped at sending.
    pub tx_dropped: u64,
}
