//! Boots an image many times and says how long it took.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use shoal_tender::config::BackendChoice;
use shoal_tender::kvm::flavour::flavour;
use shoal_tender::stats::reader::Reader;

use crate::error::ToolError;
use crate::run::{self, Instance, Options, TenderCommand};
use crate::source::Image;

/// Longest that one boot may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes of a boot's output that are looked at.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// Bars of a histogram are at most this wide.
const BAR_WIDTH: usize = 50;

/// How long boots of one backend took, ascending, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Boots {
    /// The backend.
    pub backend: String,
    /// Whether KVM runs a guest's ring 0 in hardware or emulates it in software.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<&'static str>,
    /// From just before the tender's program is started to the guest's first instruction.
    pub to_guest_us: Vec<u64>,
    /// From there to the first byte of output.
    pub to_output_us: Vec<u64>,
}

/// Boots `count` times.
///
/// # Errors
/// [`ToolError::Boot`], and those of [`run::start`].
pub fn boots(
    image: &Image,
    backend: BackendChoice,
    options: &Options,
    count: usize,
    tender: &TenderCommand,
) -> Result<Boots, ToolError> {
    let options = Options { backend, ..options.clone() };
    let kvm = match backend {
        BackendChoice::Kvm => flavour().ok().map(|flavour| flavour.name()),
        BackendChoice::Auto | BackendChoice::Process => None,
    };
    let name = backend_name(backend).to_owned();
    let mut boots = Boots { backend: name, kvm, ..Boots::default() };
    for number in 1..=count {
        let failed = |reason: String| ToolError::Boot {
            number,
            backend: backend_name(backend).to_owned(),
            reason,
        };
        let before = monotonic_ns();
        let mut instance = run::start(image, &options, tender, Stdio::piped)?;
        let entered = boot(&mut instance).map_err(failed)?;
        boots.to_guest_us.push(entered.guest_ns.saturating_sub(before) / 1000);
        boots.to_output_us.push(entered.output_ns.saturating_sub(before) / 1000);
    }
    boots.to_guest_us.sort_unstable();
    boots.to_output_us.sort_unstable();
    Ok(boots)
}

/// When one boot reached what, on the monotonic clock.
struct Entered {
    guest_ns: u64,
    output_ns: u64,
}

fn boot(instance: &mut Instance) -> Result<Entered, String> {
    let stats = instance.stats().to_owned();
    let child = instance.child();
    let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("it has no output".to_owned());
    };
    let mut first = [0; 1];
    let read = out.read(&mut first).map_err(|error| error.to_string())?;
    let output_ns = monotonic_ns();
    if read == 0 {
        let mut said = String::new();
        // Ignored because: what it said is only a help.
        let _ = (&mut err).take(OUTPUT_BYTES_MAX).read_to_string(&mut said);
        return Err(format!("it wrote nothing to standard output; standard error: {said}"));
    }
    let guest_ns = Reader::open(&stats).map_err(|error| error.to_string())?.snapshot().entered_ns;
    Ok(Entered { guest_ns, output_ns })
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// A backend's name.
#[must_use]
pub const fn backend_name(backend: BackendChoice) -> &'static str {
    match backend {
        BackendChoice::Auto => "auto",
        BackendChoice::Kvm => "kvm",
        BackendChoice::Process => "process",
    }
}

/// The backend on which a started instance runs, or nothing if it has ended before.
#[must_use]
pub fn backend_of(instance: &mut Instance) -> Option<&'static str> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(reader) = Reader::open(instance.stats()) {
            let snapshot = reader.snapshot();
            if snapshot.entered_ns != 0 {
                return Some(if snapshot.backend == 1 { "kvm" } else { "process" });
            }
        }
        if !matches!(instance.child().try_wait(), Ok(None)) {
            return None;
        }
        std::thread::yield_now();
    }
    None
}

impl Boots {
    /// Both medians and a histogram, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("backend {}, {} boots\n", self.backend, self.to_guest_us.len());
        for (what, times) in
            [("start to guest", &self.to_guest_us), ("start to output", &self.to_output_us)]
        {
            out.push_str(&format!(
                "  {what}: median {} us, 90 % {} us, 99 % {} us, least {} us, most {} us\n",
                part(times, 50),
                part(times, 90),
                part(times, 99),
                part(times, 0),
                part(times, 100),
            ));
        }
        out.push_str(&histogram(&self.to_guest_us));
        out
    }
}

/// The time below which so many of a hundred lie.
fn part(sorted: &[u64], percent: usize) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}

/// Bars for classes of times, each 1.25 times the one before.
fn histogram(sorted: &[u64]) -> String {
    let mut classes: Vec<(u64, usize)> = Vec::new();
    let mut rest = sorted;
    let mut end = sorted.first().map_or(0, |least| least.max(&1) * 5 / 4 + 1);
    while !rest.is_empty() {
        let inside = rest.partition_point(|time| *time < end);
        classes.push((end, inside));
        rest = rest.get(inside..).unwrap_or_default();
        end = end * 5 / 4 + 1;
    }
    let most = classes.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    classes
        .into_iter()
        .map(|(end, count)| {
            let bar = "#".repeat((count * BAR_WIDTH).div_ceil(most));
            format!("    < {end:>8} us {count:>5} {bar}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_holds_every_boot() {
        let times: Vec<u64> = vec![900, 950, 1000, 1100, 1500, 4000];
        let text = histogram(&times);
        let sum: usize = text
            .lines()
            .filter_map(|line| line.split("us").nth(1)?.split_whitespace().next()?.parse().ok())
            .collect::<Vec<usize>>()
            .iter()
            .sum();
        assert_eq!(sum, times.len(), "{text}");
        assert_eq!((part(&times, 0), part(&times, 50), part(&times, 100)), (900, 1000, 4000));
        assert_eq!(histogram(&[]), "");
    }
}
