//! Many instances of one image on one machine, each on a port of its own, every one answering.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::ground::{Ground, Guest, address};
use super::process::{Running, meminfo_kib, rollup_kib};
use crate::steps::output;

/// How long the last of them may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What many instances cost.
#[derive(Clone, Copy, Debug)]
pub struct Density {
    /// How many ran and answered.
    pub count: u32,
    /// Starts a second, from the first start to the last answer.
    pub starts_per_second: f64,
    /// Memory of one, its share of shared pages included, in KiB: the mean.
    pub pss_kib: f64,
    /// Memory that the kernel holds for each, in KiB: what became unavailable, less the above.
    pub kernel_kib: f64,
}

/// Starts instances 1 to `count` and asks each once.
///
/// # Errors
/// If one does not answer.
pub fn measure(ground: &Ground, backend: &str, guest: &Guest<'_>, count: u32) -> Result<Density> {
    ground.add_taps(1, count)?;
    let before = meminfo_kib("MemAvailable")?;
    let began = Instant::now();
    let mut instances: Vec<Running> = Vec::new();
    for number in 1..=count {
        instances.push(ground.start(number, backend, guest)?);
    }
    ask_all(ground, count)?;
    let took = began.elapsed().as_secs_f64();
    let after = meminfo_kib("MemAvailable")?;
    let mut pss = 0;
    for instance in &mut instances {
        ensure!(instance.is_alive(), "an instance of {count} has ended");
        pss += rollup_kib(instance.id(), "Pss")?;
    }
    drop(instances);
    ground.remove_taps(1, count)?;
    let each = |kib: f64| kib / f64::from(count);
    let pss = pss as f64;
    Ok(Density {
        count,
        starts_per_second: f64::from(count) / took,
        pss_kib: each(pss),
        kernel_kib: each((before.saturating_sub(after)) as f64 - pss),
    })
}

/// Asks every instance until it has answered once.
fn ask_all(ground: &Ground, count: u32) -> Result<()> {
    let urls: String = (1..=count)
        .map(|n| format!("url = \"http://{}/index.html\"\noutput = /dev/null\n", address(n)))
        .collect();
    let file = ground.dir.join("urls");
    std::fs::write(&file, urls).context("write the list of instances")?;
    let seconds = PATIENCE.as_secs().to_string();
    output(
        ground
            .in_client("curl")
            .args(["-sSf", "--parallel", "--parallel-max", "50", "--retry", "20"])
            .args(["--retry-connrefused", "--retry-delay", "1", "--retry-max-time", &seconds, "-K"])
            .arg(&file),
    )
    .context("ask every instance")
    .map(drop)
}
