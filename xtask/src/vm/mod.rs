//! `cargo xtask vm [KERNEL]`: the program on the kernels that people have.
//!
//! A stock kernel of Debian boots under qemu's software emulation: cgroup version 2 alone, modules
//! loaded on demand, two network cards, swap. It boots four times: without a disk; with a new one;
//! from that disk again, until its power is cut amid changes; and once more after that. The brief
//! form boots three times and cuts the power at the end of the second.
//! `testing/vm` is what runs inside and what it claims. No card leads to any network.

mod archive;
mod boot;
mod kernels;
mod said;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{packages, steps};
use boot::{Boot, Disks, Outcome};

/// Least number of acknowledged changes before the power is cut: two rounds of all kinds.
const CHANGES_MIN: u32 = 24;
/// The power is cut so many changes later at most.
const CHANGES_MORE: u32 = 48;
/// Longest that the shorter boots may take: several times what they take on two idle cores, for a
/// machine that emulates beside other work.
const DEADLINE: Duration = Duration::from_secs(900);
/// Longest that the boot with the demonstration may take.
const DEADLINE_OF_THE_FIRST: Duration = Duration::from_secs(1_800);
/// The form for every day.
const BRIEF: &str = "brief";

const HELP: &str = "\
cargo xtask vm [KERNEL] [--brief | --only NAME]

Boots a stock kernel of Debian and tries the program there. KERNEL is the beginning of its version,
for example 6.1; the newest if unsaid. `--list` tells the kernels. `--brief` is what CI has time
for: no devices, no demonstration, no reboot in order. Of the boots `--only NAME` does one that
needs no other: diskless or first.
";

/// Runs the command.
///
/// # Errors
/// If a claim did not hold, or the machine could not be made.
pub fn run(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--list"] => {
            for kernel in kernels::known()? {
                println!("{kernel}");
            }
            Ok(())
        }
        [] => try_kernel("", ""),
        ["--brief"] => try_kernel("", BRIEF),
        ["--only", boot @ ("diskless" | "first")] => try_kernel("", boot),
        [kernel] if !kernel.starts_with('-') => try_kernel(kernel, ""),
        [kernel, "--brief"] => try_kernel(kernel, BRIEF),
        [kernel, "--only", boot @ ("diskless" | "first")] => try_kernel(kernel, boot),
        _ => bail!("{HELP}"),
    }
}

/// One machine: where its files are, and what has come of its boots.
struct Machine {
    dir: tempfile::TempDir,
    kernel: kernels::Kernel,
    outcomes: Vec<Outcome>,
}

fn try_kernel(wanted: &str, only: &str) -> Result<()> {
    packages::install_for_machines()?;
    steps::programs_for_machines()?;
    let target = target()?;
    let kernel = kernels::fetch(wanted, &target.join("vm"))?;
    println!("{} under software emulation", kernel.version);
    let dir = tempfile::tempdir_in(target.join("vm")).context("make a folder for the machine")?;
    let tree = dir.path().join("tree");
    tree::build(&tree, &kernel)?;
    archive::write(&tree, &dir.path().join("all.cpio"), &|_| true)?;
    archive::write(&tree, &dir.path().join("disk.cpio"), &tree::needed_to_mount_the_disk)?;
    let mut machine = Machine { dir, kernel, outcomes: Vec::new() };
    machine.boots(only, &tree)?;
    machine.finish(&target)
}

impl Machine {
    fn boots(&mut self, only: &str, tree: &Path) -> Result<()> {
        if only != "first" {
            self.boot(&Boot { deadline: DEADLINE, ..Boot::of("diskless") }, None)?;
        }
        if only == "diskless" {
            return Ok(());
        }
        let disks = Disks::make(self.dir.path(), tree)?;
        if only == BRIEF {
            return self.until_the_power_is_cut_and_after(BRIEF, &disks);
        }
        let first = Boot { deadline: DEADLINE_OF_THE_FIRST, ..Boot::of("first") };
        if !self.boot(&first, Some(&disks))?.done || only == "first" {
            return Ok(());
        }
        self.until_the_power_is_cut_and_after("reboot", &disks)
    }

    /// A boot that ends amid changes, and the next.
    fn until_the_power_is_cut_and_after(&mut self, stage: &str, disks: &Disks) -> Result<()> {
        let cut_after = CHANGES_MIN + random() % CHANGES_MORE;
        let boot = Boot { deadline: DEADLINE, cut_after, ..Boot::of(stage) };
        let outcome = self.boot(&boot, Some(disks))?;
        let (done, acknowledged) = (outcome.done, outcome.acknowledged);
        if done {
            let cut = Boot { deadline: DEADLINE, acknowledged, ..Boot::of("cut") };
            self.boot(&cut, Some(disks))?;
        }
        Ok(())
    }

    fn boot(&mut self, boot: &Boot, disks: Option<&Disks>) -> Result<&Outcome> {
        let outcome = boot::run(boot, &self.kernel, self.dir.path(), disks)
            .with_context(|| format!("boot '{}'", boot.stage))?;
        self.outcomes.push(outcome);
        self.outcomes.last().context("an outcome was just kept")
    }

    /// The table; keeps the consoles if a claim failed.
    fn finish(&self, target: &Path) -> Result<()> {
        println!("\n{}", self.kernel.version);
        for outcome in &self.outcomes {
            println!("{}", outcome.row());
        }
        let failed: Vec<String> = self.outcomes.iter().flat_map(Outcome::failures).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let kept = target.join("vm-failures").join(&self.kernel.version);
        // Ignored because: an earlier run may or may not have left something.
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::create_dir_all(&kept).context("make a folder for the consoles")?;
        for outcome in &self.outcomes {
            let console = self.dir.path().join(boot::console(&outcome.stage));
            let to = kept.join(boot::console(&outcome.stage));
            std::fs::copy(console, to).context("keep a console")?;
        }
        bail!(
            "claims did not hold; the consoles are in {}:\n  {}",
            kept.display(),
            failed.join("\n  ")
        )
    }
}

/// The build's target directory: the outermost that this program is in.
fn target() -> Result<PathBuf> {
    let me = std::env::current_exe().context("find this program")?;
    let found = me.ancestors().filter(|dir| dir.join("CACHEDIR.TAG").exists());
    let target = found.last().context("find the target directory")?.to_owned();
    std::fs::create_dir_all(target.join("vm")).context("make a folder for machines")?;
    Ok(target)
}

/// When the power is cut need not be foreseen, only differ.
fn random() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| since.subsec_micros())
}

/// Runs a program to its end; gives what it printed.
fn output(program: &str, args: &[&str]) -> Result<String> {
    steps::output(std::process::Command::new(program).args(args))
}
