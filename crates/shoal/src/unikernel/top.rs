//! `shoal unikernel top`: rates from two looks at the counters.

use std::fs;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use shoal_tender::stats::reader::{Reader, Snapshot};

use super::find::{HostArgs, Target};

/// Kernel ticks in a second, on every machine that Linux runs on.
const TICKS_PER_SEC: f64 = 100.0;
/// A device kind of the manifest.
const KIND_NET: u64 = 1;
/// Backend of a virtual machine in the counters.
const BACKEND_KVM: u32 = 1;

/// Options of `shoal unikernel top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Container or task; all unikernels of this node if unsaid.
    task: Vec<String>,
    /// Print JSON, one line for each look.
    #[arg(long)]
    json: bool,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// End after so many looks; without a terminal after one.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    host: HostArgs,
}

/// What is shown of one unikernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
struct Row {
    name: String,
    id: String,
    backend: &'static str,
    /// Milliseconds from the start of the tender to the guest's first instruction.
    start_ms: f64,
    /// Percent of one CPU.
    cpu_percent: f64,
    /// Its share of memory in bytes, tender included.
    memory_bytes: u64,
    /// Each second: calls that wait, and times that it slept.
    waits: f64,
    sleeps: f64,
    /// Each second, to the guest and from it.
    received_frames: f64,
    received_bytes: f64,
    sent_frames: f64,
    sent_bytes: f64,
    /// Since its start.
    dropped_frames: u64,
    refused_calls: u64,
    log_bytes: u64,
    devices: Vec<DeviceRow>,
}

/// One device, since the start.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct DeviceRow {
    name: String,
    kind: &'static str,
    received: [u64; 3],
    sent: [u64; 3],
}

/// One look.
#[derive(Clone, Debug)]
struct Look {
    counters: Snapshot,
    cpu_ticks: u64,
    memory_bytes: u64,
}

/// Prints looks until it is told to stop.
pub async fn run(args: TopArgs) -> Result<()> {
    if !(0.05..=3600.0).contains(&args.interval) {
        bail!("an interval has 0.05 to 3600 seconds");
    }
    let terminal = std::io::stdout().is_terminal() && !args.json;
    let looks = args.count.unwrap_or(if terminal { u64::MAX } else { 1 });
    let mut watched = Vec::new();
    for target in targets(&args).await? {
        let opened = Reader::open(&target.stats_file);
        let reader = opened.with_context(|| format!("open the counters of '{}'", target.name))?;
        watched.push((target, reader));
    }
    let interval = Duration::from_secs_f64(args.interval);
    let mut before: Vec<Option<Look>> = watched.iter().map(|(t, r)| look(t, r)).collect();
    for _ in 0..looks {
        tokio::select! {
            stopped = tokio::signal::ctrl_c() => return stopped.context("wait for a signal"),
            () = tokio::time::sleep(interval) => {}
        }
        let now: Vec<Option<Look>> = watched.iter().map(|(t, r)| look(t, r)).collect();
        let pairs = watched.iter().zip(before.iter().zip(&now));
        let rows: Vec<Row> = pairs
            .filter_map(|((target, _), (old, new))| {
                Some(row(target, old.as_ref()?, new.as_ref()?, args.interval))
            })
            .collect();
        print(&rows, args.json, terminal)?;
        if rows.is_empty() {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

async fn targets(args: &TopArgs) -> Result<Vec<Target>> {
    if args.task.is_empty() {
        return args.host.all().await;
    }
    let mut found = Vec::new();
    for word in &args.task {
        found.push(args.host.find(word).await?);
    }
    Ok(found)
}

/// `None` once it has ended.
fn look(target: &Target, reader: &Reader) -> Option<Look> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", target.pid)).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", target.pid)).ok()?;
    Some(Look {
        counters: reader.snapshot(),
        cpu_ticks: cpu_ticks(&stat),
        memory_bytes: pss_bytes(&rollup),
    })
}

/// User and system time in a line of `/proc/PID/stat`; the name before them may have spaces.
fn cpu_ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// The proportional share in `/proc/PID/smaps_rollup`.
fn pss_bytes(rollup: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn row(target: &Target, old: &Look, new: &Look, seconds: f64) -> Row {
    let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let sum = |look: &Look, of: &dyn Fn(&[u64; 3], &[u64; 3]) -> u64| {
        let devices = look.counters.devices.iter().filter(|device| device.kind == KIND_NET);
        devices.map(|device| of(&device.received, &device.sent)).sum::<u64>()
    };
    let rate_of = |of: &dyn Fn(&[u64; 3], &[u64; 3]) -> u64| rate(sum(old, of), sum(new, of));
    let counters = &new.counters;
    Row {
        name: target.name.clone(),
        id: target.id.clone(),
        backend: if counters.backend == BACKEND_KVM { "kvm" } else { "process" },
        start_ms: counters.start_ns as f64 / 1e6,
        cpu_percent: rate(old.cpu_ticks, new.cpu_ticks) / TICKS_PER_SEC * 100.0,
        memory_bytes: new.memory_bytes,
        waits: rate(old.counters.waits, counters.waits),
        sleeps: rate(old.counters.sleeps, counters.sleeps),
        received_frames: rate_of(&|received, _| received[0]),
        received_bytes: rate_of(&|received, _| received[1]),
        sent_frames: rate_of(&|_, sent| sent[0]),
        sent_bytes: rate_of(&|_, sent| sent[1]),
        dropped_frames: sum(new, &|received, sent| received[2] + sent[2]),
        refused_calls: counters.refused,
        log_bytes: counters.log_bytes,
        devices: counters
            .devices
            .iter()
            .map(|device| DeviceRow {
                name: device.name.clone(),
                kind: if device.kind == KIND_NET { "net" } else { "block" },
                received: device.received,
                sent: device.sent,
            })
            .collect(),
    }
}

fn print(rows: &[Row], json: bool, terminal: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string(rows).context("write JSON")? + "\n"
    } else if rows.is_empty() {
        "no unikernel runs here\n".to_owned()
    } else {
        table(rows)
    };
    let mut out = std::io::stdout().lock();
    if terminal {
        // Home, and clear what is below.
        write!(out, "\x1b[H\x1b[J").context("write")?;
    }
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write")
}

fn table(rows: &[Row]) -> String {
    let head = [
        "NAME", "BACKEND", "START", "CPU", "MEMORY", "WAITS/s", "IN/s", "IN B/s", "OUT/s",
        "OUT B/s", "DROPPED", "REFUSED",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.backend.to_owned(),
            format!("{:.1} ms", row.start_ms),
            format!("{:.1} %", row.cpu_percent),
            size(row.memory_bytes as f64),
            format!("{:.0}", row.waits),
            format!("{:.0}", row.received_frames),
            size(row.received_bytes),
            format!("{:.0}", row.sent_frames),
            size(row.sent_bytes),
            row.dropped_frames.to_string(),
            row.refused_calls.to_string(),
        ]
    }));
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes with a unit.
fn size(bytes: f64) -> String {
    let units = ["B", "KB", "MB", "GB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{value:.digits$} {}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use shoal_tender::stats::reader::DeviceSnapshot;

    use super::*;

    fn look(frames: u64, ticks: u64) -> Look {
        let device = |name: &str, kind| DeviceSnapshot {
            name: name.to_owned(),
            kind,
            received: [frames, frames * 100, 1],
            sent: [frames * 2, frames * 50, 2],
        };
        let counters = Snapshot {
            backend: 2,
            pid: 1,
            start_ns: 1_500_000,
            entered_ns: 0,
            waits: frames * 3,
            sleeps: frames,
            log_bytes: 10,
            log_dropped: 0,
            refused: 0,
            devices: vec![device("net", KIND_NET), device("data", 2)],
        };
        Look { counters, cpu_ticks: ticks, memory_bytes: 600 << 10 }
    }

    #[test]
    fn rates_are_differences_of_the_network_devices() {
        let target = Target { name: "web".into(), id: "i".into(), pid: 1, stats_file: "/s".into() };
        let row = row(&target, &look(10, 100), &look(30, 150), 2.0);
        assert_eq!((row.received_frames, row.sent_bytes, row.waits), (10.0, 500.0, 30.0));
        assert_eq!((row.cpu_percent, row.dropped_frames, row.backend), (25.0, 3, "process"));
        let text = table(std::slice::from_ref(&row));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME  BACKEND") && lines[1].starts_with("web   process"));
        assert!(lines[1].contains("1.5 ms") && lines[1].contains("614.4 KB"), "{text}");
    }

    #[test]
    fn the_kernels_files_read() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 10 0 0 0 7 5 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), 12);
        assert_eq!(pss_bytes("Rss:  900 kB\nPss:   600 kB\n"), 600 << 10);
        assert_eq!((size(12.0).as_str(), size(1500.0).as_str()), ("12 B", "1.5 KB"));
    }
}
