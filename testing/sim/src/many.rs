//! Many seeds, each in a process of its own, as many at once as there are processors.

use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::world::World;

/// Seeds that are run if nobody says.
const SEEDS: (u64, u64) = (1, 200);
/// How long one seed may take, however slow the machine is: one that never ends is a finding.
const SEED_LIMIT: Duration = Duration::from_secs(300);
/// The word that begins a seed's last line.
const SAID: &str = "said";

/// What is to be done.
pub enum Order {
    One { seed: u64, shown: bool },
    Many(Many),
}

pub struct Many {
    from: u64,
    to: u64,
    until: Option<Duration>,
    /// Each seed is run a second time, in another process: it must go the same way.
    twice: bool,
}

impl Order {
    pub fn read(words: &[String]) -> Result<Self, String> {
        let (mut seed, mut seeds, mut until) = (None, None, None);
        let (mut shown, mut twice) = (false, false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut next = || words.next().ok_or(format!("'{word}' needs a value"));
            let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is no seed"));
            match word.as_str() {
                "--trace" => shown = true,
                "--twice" => twice = true,
                "--seed" => seed = Some(number(next()?)?),
                "--seeds" => {
                    let text = next()?;
                    let (from, to) = text.split_once("..").ok_or("--seeds wants A..B")?;
                    seeds = Some((number(from)?, number(to)?));
                }
                "--minutes" => {
                    let text = next()?;
                    let minutes: f64 = text.parse().map_err(|_| format!("'{text}' minutes?"))?;
                    let length = Duration::try_from_secs_f64(minutes * 60.0);
                    until = Some(length.map_err(|e| e.to_string())?);
                }
                other => return Err(format!("unknown argument '{other}'")),
            }
        }
        // Time alone ends what has no other end.
        let all = if until.is_some() { (SEEDS.0, u64::MAX) } else { SEEDS };
        let (from, to) = seeds.unwrap_or(all);
        Ok(match seed {
            Some(seed) if !twice => Self::One { seed, shown },
            Some(seed) => Self::Many(Many { from: seed, to: seed + 1, until, twice }),
            None => Self::Many(Many { from, to, until, twice }),
        })
    }
}

/// A directory for a run, in memory if there is such a place.
pub fn place() -> io::Result<TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        let prefix = format!("shoal-sim-{}-", std::process::id());
        builder.prefix(&prefix).tempdir_in("/dev/shm")
    };
    builder().or_else(|_| tempfile::tempdir())
}

/// How a seed ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    seed: u64,
    digest: String,
    millis: u64,
    events: u64,
    acknowledged: u64,
    elections: u64,
    pub finding: Option<String>,
}

impl Said {
    pub fn of(seed: u64, millis: u64, world: &World, finding: Option<String>) -> Self {
        let inner = world.lock();
        Self {
            seed,
            digest: inner.trace.digest(),
            millis,
            events: inner.trace.events(),
            acknowledged: inner.check.acknowledged,
            elections: inner.check.elections,
            finding,
        }
    }

    /// As one line.
    pub fn line(&self) -> String {
        let Self { seed, digest, millis, events, acknowledged, elections, finding } = self;
        let finding = finding.as_deref().unwrap_or("ok");
        format!("{SAID} {seed} {digest} {millis} {events} {acknowledged} {elections} {finding}")
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(SAID)?.trim_start().splitn(7, ' ');
        let seed = words.next()?.parse().ok()?;
        let digest = words.next()?.to_owned();
        let mut number = || words.next()?.parse::<u64>().ok();
        let (millis, events, acknowledged, elections) =
            (number()?, number()?, number()?, number()?);
        let finding = Some(words.next()?.to_owned()).filter(|text| text != "ok");
        Some(Self { seed, digest, millis, events, acknowledged, elections, finding })
    }
}

/// Runs `seed` in a process of its own.
fn child(seed: u64) -> Result<Said, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(me);
    command.args(["--seed", &seed.to_string()]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if begun.elapsed() < SEED_LIMIT => thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                // Ignored because: it may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err("it did not end in time".to_owned());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().rev().find_map(Said::read);
    said.ok_or(format!("it ended with {} and said nothing", output.status))
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    millis: u64,
    events: u64,
    acknowledged: u64,
    elections: u64,
    findings: u64,
}

/// Runs them all, and says what was found.
pub fn run(order: &Many) -> ExitCode {
    let (next, sum, begun) =
        (AtomicU64::new(order.from), Mutex::new(Sum::default()), Instant::now());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = order.until.is_some_and(|until| begun.elapsed() >= until);
                    if seed >= order.to || late {
                        return;
                    }
                    let said = child(seed).and_then(|said| again(order.twice, said));
                    note(&sum, seed, said);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let took = begun.elapsed().as_secs_f64();
    println!(
        "sim: {} seeds in {took:.1} s ({:.1} a second on {workers} processors): {:.2} hours of a \
         group, {} events, {} acknowledged writes, {} terms with a leader, {} findings",
        sum.seeds,
        sum.seeds as f64 / took.max(0.001),
        sum.millis as f64 / 3_600_000.0,
        sum.events,
        sum.acknowledged,
        sum.elections,
        sum.findings,
    );
    if sum.findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The same seed must go the same way.
fn again(twice: bool, said: Said) -> Result<Said, String> {
    if !twice {
        return Ok(said);
    }
    let second = child(said.seed)?;
    if second == said {
        return Ok(said);
    }
    Err(format!("it goes another way the second time: {} and {}", said.line(), second.line()))
}

fn note(sum: &Mutex<Sum>, seed: u64, said: Result<Said, String>) {
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    sum.seeds += 1;
    let found = match &said {
        Ok(said) => said.finding.as_ref(),
        Err(problem) => Some(problem),
    };
    if let Some(problem) = found {
        println!("sim: seed {seed}: {problem}\n     again: cargo xtask sim --seed {seed} --trace");
        sum.findings += 1;
    }
    if let Ok(said) = said {
        sum.millis += said.millis;
        sum.events += said.events;
        sum.acknowledged += said.acknowledged;
        sum.elections += said.elections;
    }
}
