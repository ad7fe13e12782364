//! One boot of the machine, from its kernel to its end or to the cut of its power.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kernels::Kernel;
use super::output;
use super::said::{self, Claim, Said};

/// What is asked of the emulator each time. The two networks are its own, and lead nowhere. One
/// thread takes turns for both processors: with one for each, the kernel dies now and then of a
/// breakpoint that it has set and removed to patch its own code (`Oops: int3`).
const MACHINE: &str = "-accel tcg,thread=single -cpu max -smp 2 -m 1536 -nodefaults -no-reboot \
    -display none -monitor none \
    -netdev user,id=card0,restrict=on,net=192.0.2.0/24,host=192.0.2.254 \
    -device virtio-net-pci,netdev=card0,romfile= \
    -netdev user,id=card1,restrict=on,net=198.51.100.0/24,host=198.51.100.254 \
    -device virtio-net-pci,netdev=card1,romfile=";
/// What the kernel is told each time. Messages that are no warnings would only cost time.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 rdinit=/init";
/// Size of the disk, most of which is never written.
const DISK: &str = "3G";
/// Size of the disk that is swapped to.
const SWAP: &str = "256M";
/// Longest that the machine may take from the end of its stage until it is off.
const OFF: Duration = Duration::from_secs(120);

/// What a boot is for.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// The stage, as `vm-guest` knows it.
    pub stage: String,
    /// Longest that it may take.
    pub deadline: Duration,
    /// The power is cut after so many acknowledged changes; 0: never.
    pub cut_after: u32,
    /// How many changes the boot before had acknowledged.
    pub acknowledged: u32,
}

impl Boot {
    /// A boot for a stage.
    pub fn of(stage: &str) -> Self {
        Self { stage: stage.to_owned(), ..Self::default() }
    }
}

/// What has come of a boot.
#[derive(Debug)]
pub struct Outcome {
    /// The stage.
    pub stage: String,
    claims: Vec<Claim>,
    /// How many changes were acknowledged.
    pub acknowledged: u32,
    /// Whether it came to the end that it was to have.
    pub done: bool,
    took: Duration,
}

impl Outcome {
    /// The claims that did not hold.
    pub fn failures(&self) -> Vec<String> {
        let failed = |claim: &Claim| {
            claim.failure.as_ref().map(|why| format!("{}: {}: {why}", self.stage, claim.name))
        };
        let mut failures: Vec<String> = self.claims.iter().filter_map(failed).collect();
        if !self.done {
            failures.push(format!("{}: the boot did not come to its end", self.stage));
        }
        failures
    }

    /// Its row of the table.
    pub fn row(&self) -> String {
        let held = self.claims.iter().filter(|claim| claim.failure.is_none()).count();
        let all = self.claims.len() + usize::from(!self.done);
        let cut = match self.acknowledged {
            0 => String::new(),
            changes => format!(", power cut after {changes} changes"),
        };
        let took = self.took.as_secs();
        format!("  {:<9} {held:>3} of {all:>3} claims held, {took:>4} s{cut}", self.stage)
    }
}

/// The machine's disks, which stay from boot to boot.
#[derive(Debug)]
pub struct Disks {
    disk: PathBuf,
    swap: PathBuf,
}

impl Disks {
    /// Makes them: ext4 with what is in `tree`, and an empty one to swap to.
    pub fn make(dir: &Path, tree: &Path) -> Result<Self> {
        let disks = Self { disk: dir.join("disk"), swap: dir.join("swap") };
        let tree = tree.to_string_lossy();
        let options = ["-q", "-F", "-d", &tree, "-E", "root_owner=0:0,lazy_itable_init=1"];
        output("mkfs.ext4", &[&options[..], &[&disks.disk.to_string_lossy(), DISK]].concat())?;
        output("truncate", &["-s", SWAP, &disks.swap.to_string_lossy()])?;
        Ok(disks)
    }
}

/// Where the console of a stage is kept, in the machine's folder.
pub fn console(stage: &str) -> String {
    format!("console-{stage}.log")
}

/// Boots, and follows what the machine says to its end.
///
/// # Errors
/// If the emulator cannot be run. A boot that fails is an outcome.
pub fn run(boot: &Boot, kernel: &Kernel, dir: &Path, disks: Option<&Disks>) -> Result<Outcome> {
    println!("\n=== boot '{}'", boot.stage);
    let mut emulator = Emulator::start(&mut command(boot, kernel, dir, disks))?;
    let lines = emulator.lines()?;
    let mut follower = Follower {
        boot,
        began: Instant::now(),
        cut_at: None,
        outcome: Outcome {
            stage: boot.stage.clone(),
            claims: Vec::new(),
            acknowledged: 0,
            done: false,
            took: Duration::ZERO,
        },
    };
    let ended = follower.follow(&lines);
    if ended == Ended::Done {
        follower.outcome.done = emulator.wait(OFF)?.is_some_and(|status| status.success());
    }
    if ended == Ended::Cut {
        emulator.kill();
        // What was said before still is in the pipe.
        for said in lines.iter().filter_map(|line| said::read(&line)) {
            follower.hear(said);
        }
        follower.outcome.done = true;
    }
    follower.outcome.took = follower.began.elapsed();
    println!("{}", follower.outcome.row());
    Ok(follower.outcome)
}

fn command(boot: &Boot, kernel: &Kernel, dir: &Path, disks: Option<&Disks>) -> Command {
    let archive = if disks.is_some() { "disk.cpio" } else { "all.cpio" };
    let root = if disks.is_some() { "disk" } else { "memory" };
    // The kernel kills the emulator when this program ends, however it ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(MACHINE.split_whitespace());
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(dir.join(archive));
    command.arg("-append").arg(format!(
        "{KERNEL} shoal.root={root} shoal.stage={} shoal.acknowledged={}",
        boot.stage, boot.acknowledged
    ));
    // The first serial line is the console, the second is this program's.
    command.arg("-serial").arg(format!("file:{}", dir.join(console(&boot.stage)).display()));
    command.args(["-serial", "stdio"]);
    for disk in disks.iter().flat_map(|disks| [&disks.disk, &disks.swap]) {
        // What the machine has written and not synced is in its own memory, and lost with it.
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// How following the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The stage came to its end.
    Done,
    /// It is time to cut the power.
    Cut,
    /// The machine ended by itself, or took too long.
    Failed,
}

struct Follower<'a> {
    boot: &'a Boot,
    began: Instant,
    cut_at: Option<Instant>,
    outcome: Outcome,
}

impl Follower<'_> {
    fn follow(&mut self, lines: &Receiver<String>) -> Ended {
        loop {
            let end = self.began + self.boot.deadline;
            let until = self.cut_at.map_or(end, |cut| cut.min(end));
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => match said::read(&line) {
                    Some(Said::Done) => return Ended::Done,
                    Some(said) => self.hear(said),
                    None => println!("         {line}"),
                },
                Err(RecvTimeoutError::Timeout) if self.cut_at.is_some() => return Ended::Cut,
                Err(_) => {
                    let after = self.began.elapsed().as_secs();
                    println!("  the machine says no more after {after} s");
                    return Ended::Failed;
                }
            }
        }
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Claim(claim) => {
                let at = self.began.elapsed().as_secs_f64();
                let mark = if claim.failure.is_none() { "ok  " } else { "FAIL" };
                println!("  {mark} [{at:6.1} s] {}", claim.name);
                if let Some(why) = &claim.failure {
                    println!("         {}", why.replace('\n', "\n         "));
                }
                self.outcome.claims.push(claim);
            }
            Said::Acknowledged(number) => {
                self.outcome.acknowledged = number;
                if self.boot.cut_after > 0 && number >= self.boot.cut_after {
                    // Somewhere within the next few changes.
                    let later = Duration::from_millis(u64::from(super::random() % 400));
                    self.cut_at.get_or_insert(Instant::now() + later);
                }
            }
            Said::Done => {}
        }
    }
}

/// Lines of the console that wait to be read; the emulator waits once there are more.
const LINES_MAX: usize = 1024;

/// The emulator's process, which never outlives this value.
struct Emulator(Child);

impl Emulator {
    fn start(command: &mut Command) -> Result<Self> {
        command.spawn().map(Self).context("start the emulator")
    }

    /// What it says, line by line, from a thread that ends with it.
    fn lines(&mut self) -> Result<Receiver<String>> {
        let output = self.0.stdout.take().context("the emulator's output")?;
        let (send, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(std::io::Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(lines)
    }

    /// Waits for its end; nothing if it takes too long.
    fn wait(&mut self, longest: Duration) -> Result<Option<ExitStatus>> {
        let until = Instant::now() + longest;
        loop {
            let ended = self.0.try_wait().context("wait for the emulator")?;
            if ended.is_some() || Instant::now() > until {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        // Ignored because: it has ended already if this fails.
        let _ = self.0.kill();
        // Ignored because: only its being gone matters.
        let _ = self.0.wait();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}
