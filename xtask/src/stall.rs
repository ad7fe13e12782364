//! The tests on a machine that has too much to do and stands still now and then: whatever waits for
//! time instead of a condition, or shares a name with another test, fails here before it does so in
//! CI.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::steps::{cargo, cargo_command};

/// Between two standstills at least, and how much longer at most.
const RUNS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// The shortest standstill.
const SHORTEST: Duration = Duration::from_millis(200);
/// The longest one, unless the command line says otherwise: nodes that are silent for three seconds
/// count as lost.
const LONGEST: Duration = Duration::from_millis(2000);
/// Busy loops, unless the command line says otherwise.
const BUSY: usize = 3;

/// Runs `cargo xtask stall`.
///
/// # Errors
/// If a test fails, or there is no freezer.
pub fn run(args: &[String]) -> Result<()> {
    let (mut seed, mut busy, mut longest) = (None, BUSY, LONGEST);
    let mut tests: Vec<&str> = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seed" => seed = Some(value()?.parse().context("understand the seed")?),
            "--busy" => busy = value()?.parse().context("understand the number of loops")?,
            "--longest" => {
                let millis = value()?.parse().context("understand the milliseconds")?;
                longest = Duration::from_millis(millis);
            }
            other => tests.push(other),
        }
    }
    if tests.is_empty() {
        tests.extend(["--workspace", "--exclude", "shoal-lab"]);
    }
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let seed = seed.unwrap_or_else(now);
    println!("seed {seed}, {busy} busy loops, standstills of up to {longest:?}");
    // The builds are no part of it.
    cargo(&["build", "--quiet", "--package", "shoal"])?;
    cargo(&[&["test", "--quiet", "--no-run"], tests.as_slice()].concat())?;
    let group = Group::make()?;
    let _busy = Busy::start(busy)?;
    let mut command = cargo_command(&["test"]);
    command.args(&tests).arg("--no-fail-fast");
    let mut child = group.spawn(&mut command)?;
    // Dropped when the tests have ended; nothing is ever sent.
    let (done, ended) = sync_channel(0);
    let status = std::thread::scope(|scope| {
        let group = &group;
        scope.spawn(move || group.stand_still_at_times(seed, longest, &ended));
        let status = child.wait();
        drop(done);
        status
    })?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// A control group that can be frozen.
struct Group {
    dir: PathBuf,
    /// The file that freezes it, and the words for both states.
    switch: (PathBuf, &'static str, &'static str),
}

impl Group {
    fn make() -> Result<Self> {
        let name = format!("shoal-stall-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let (dir, switch) = if root.join("freezer").is_dir() {
            (root.join("freezer").join(name), ("freezer.state", "FROZEN", "THAWED"))
        } else if root.join("cgroup.controllers").exists() {
            (root.join(name), ("cgroup.freeze", "1", "0"))
        } else {
            bail!("no freezer below '{}'; mount the control groups", root.display());
        };
        fs::create_dir(&dir).with_context(|| format!("make '{}'", dir.display()))?;
        let switch = (dir.join(switch.0), switch.1, switch.2);
        Ok(Self { dir, switch })
    }

    /// Starts a program in the group.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let procs = self.dir.join("cgroup.procs");
        let mut enter = Command::new("sh");
        enter.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(procs);
        enter.arg(command.get_program()).args(command.get_args()).spawn()
    }

    /// Freezes the group now and then until the other end of `ended` is dropped.
    fn stand_still_at_times(&self, seed: u64, longest: Duration, ended: &Receiver<()>) {
        let (file, frozen, thawed) = &self.switch;
        let mut random = Random(seed | 1);
        loop {
            let runs = RUNS.0 + random.up_to(RUNS.1);
            if ended.recv_timeout(runs) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let still = SHORTEST + random.up_to(longest.saturating_sub(SHORTEST));
            // Ignored because: a group that cannot be frozen makes an easier run, nothing worse;
            // that it can be was seen when it was made.
            let _ = fs::write(file, frozen);
            std::thread::sleep(still);
            // Ignored because: as above.
            let _ = fs::write(file, thawed);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Ignored because: what a test left in the group keeps it, and is in the test's own report.
        let _ = fs::write(&self.switch.0, self.switch.2);
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Loops that take all the time they get.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Result<Self> {
        let mut all = Self(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).process_group(0);
            all.0.push(command.spawn().context("start a busy loop")?);
        }
        Ok(all)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Ignored because: a loop ends no other way.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Numbers that follow from a seed (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.0 % limit.max(1))
    }
}
