//! `docker stats`: samples of what a container uses.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use shoal_model::time::Timestamp;
use shoal_runtime::stats as raw;

use crate::container::Container;
use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::start::runtime_error;
use crate::view::stats::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats, Stats,
    Throttling,
};

/// The pause between two samples, as Docker's.
const PERIOD: Duration = Duration::from_secs(1);

/// Nanoseconds of one kernel tick.
const TICK_NS: u64 = 10_000_000;

impl Engine {
    /// One sample now; all zero if the container does not run.
    ///
    /// # Errors
    /// No such container, or the kernel's figures cannot be read.
    pub async fn stats(&self, word: &str) -> Result<Stats, EngineError> {
        let container = self.find(word)?;
        self.sample(&container).await
    }

    /// One sample each second, the first at once; ends when the container is gone.
    ///
    /// # Errors
    /// No such container.
    pub async fn stats_stream(&self, word: &str) -> Result<BoxStream<'static, Stats>, EngineError> {
        let container = self.find(word)?;
        let start = (self.clone(), container, None::<Stats>);
        let samples = stream::unfold(start, |(engine, container, last)| async move {
            if last.is_some() {
                tokio::time::sleep(PERIOD).await;
            }
            if container.live(|live| live.gone) || engine.inner.closing.is_cancelled() {
                return None;
            }
            let mut sample = engine.sample(&container).await.ok()?;
            if let Some(last) = last {
                sample.preread = last.read;
                sample.precpu_stats = last.cpu_stats;
            }
            Some((sample.clone(), (engine, container, Some(sample))))
        });
        Ok(samples.boxed())
    }

    async fn sample(&self, container: &Arc<Container>) -> Result<Stats, EngineError> {
        let empty = Stats {
            name: format!("/{}", container.name()),
            id: container.id.to_string(),
            ..Stats::default()
        };
        let Ok(shim) = container.running_shim() else { return Ok(empty) };
        let raw = match shim.stats().await {
            Ok(raw) => raw,
            // It ended between the look and the reading.
            Err(_) if !container.phase().is_alive() => return Ok(empty),
            Err(error) => return Err(runtime_error("read the figures of", container, error)),
        };
        let system = blocking("read the CPU's figures", || Ok(system_cpu_ns())).await?;
        Ok(fill(empty, &raw, system, self.now()))
    }
}

fn fill(mut stats: Stats, raw: &raw::Stats, system_cpu_usage: u64, now: Timestamp) -> Stats {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    stats.read = now;
    stats.cpu_stats = CpuStats {
        cpu_usage: CpuUsage {
            total_usage: raw.cpu.usage_ns,
            usage_in_kernelmode: raw.cpu.system_ns,
            usage_in_usermode: raw.cpu.user_ns,
        },
        system_cpu_usage,
        online_cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        throttling_data: Throttling {
            periods: raw.cpu.periods,
            throttled_periods: raw.cpu.throttled_periods,
            throttled_time: raw.cpu.throttled_ns,
        },
    };
    stats.memory_stats = MemoryStats {
        usage: raw.memory.usage,
        stats: raw.memory.details.clone(),
        limit: raw.memory.limit,
    };
    stats.pids_stats = PidsStats { current: Some(raw.pids.current), limit: raw.pids.limit };
    let entries = raw.blkio.iter().flat_map(|disk| {
        [("read", disk.read_bytes), ("write", disk.write_bytes)].map(|(op, value)| BlkioEntry {
            major: disk.major,
            minor: disk.minor,
            op: op.to_owned(),
            value,
        })
    });
    stats.blkio_stats = BlkioStats { io_service_bytes_recursive: Some(entries.collect()) };
    let link = |(name, link): (&String, &raw::InterfaceStats)| {
        let figures = NetworkStats {
            rx_bytes: link.rx_bytes,
            rx_packets: link.rx_packets,
            rx_errors: link.rx_errors,
            rx_dropped: link.rx_dropped,
            tx_bytes: link.tx_bytes,
            tx_packets: link.tx_packets,
            tx_errors: link.tx_errors,
            tx_dropped: link.tx_dropped,
        };
        (name.clone(), figures)
    };
    stats.networks = raw.networks.iter().map(link).collect();
    stats
}

/// What all CPUs of the host have done, in nanoseconds.
fn system_cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    // Guest time is counted within user time already: the first eight figures are all of it.
    let ticks: u64 = line
        .map(|l| l.split_whitespace().take(8).filter_map(|n| n.parse::<u64>().ok()).sum())
        .unwrap_or(0);
    ticks.saturating_mul(TICK_NS)
}
