//! The steps of `cargo xtask ci`, each also a command of its own.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{packages, tests};

/// A step's name and what it does.
type Step = (&'static str, fn() -> Result<()>);

/// Cargo's settings for [`ci`]. What serves the next build or a debugger only fills the disk there:
/// a run from nothing failed for want of space once.
const LEAN: [(&str, &str); 2] = [("CARGO_INCREMENTAL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "none")];

/// Seeds of the simulation that are compared with themselves, and those that are run: as many as
/// there is time for, of those that a slower machine has run to the end. Both take less than four
/// minutes.
const SIM_TWICE: [&str; 5] = ["--twice", "--seeds", "1..21", "--minutes", "0.7"];
const SIM_SEEDS: [&str; 4] = ["--seeds", "1..201", "--minutes", "3"];

/// Everything, in the order in which failures are cheapest to find.
///
/// # Errors
/// The first step that fails.
pub fn ci() -> Result<()> {
    let (first, _) = LEAN[0];
    if std::env::var_os(first).is_none() {
        let me = std::env::current_exe().context("find this program")?;
        return run(Command::new(me).arg("ci").envs(LEAN));
    }
    let steps: &[Step] = &[
        ("packages", packages::install),
        ("format", fmt),
        ("lints", lint),
        ("tests", test),
        ("simulation", simulated),
        ("lab", || lab(&[])),
        ("torture", || torture(&[])),
        ("machine", || crate::vm::run(&["--brief".to_owned()])),
        ("docs", docs),
    ];
    let before = tree()?;
    for (name, step) in steps {
        println!("\n=== {name}");
        let began = Instant::now();
        step().with_context(|| format!("step '{name}'"))?;
        println!("=== {name}: passed in {} s", began.elapsed().as_secs());
    }
    let after = tree()?;
    ensure!(after == before, "the steps changed the tree: it was\n{before}\nand is\n{after}");
    Ok(())
}

/// What git says of files that are changed or that it does not track. A build or a test leaves its
/// products below the target directory or in directories that it removes. Of sources without
/// their history nobody can say.
fn tree() -> Result<String> {
    if !std::path::Path::new(".git").exists() {
        println!("not a checkout of git: whether the steps leave files behind is not checked");
        return Ok(String::new());
    }
    let mut status = Command::new("git");
    // Whoever runs this may not own the checkout.
    status.args(["-c", "safe.directory=*", "status", "--porcelain", "--untracked-files=all"]);
    let output = status.output().with_context(|| format!("start {status:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{status:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Checks the format.
///
/// # Errors
/// If a file is not formatted.
pub fn fmt() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])
}

/// Clippy on everything, warnings denied.
///
/// # Errors
/// If there is a warning.
pub fn lint() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
}

/// All tests but the lab; tidy is one of them.
///
/// # Errors
/// If a test fails.
pub fn test() -> Result<()> {
    cargo(&["build", "--quiet", "--package", "shoal"])?;
    let all = ["--workspace", "--exclude", "shoal-lab"];
    tests::run(&all)?;
    cargo(&[&["test", "--doc"][..], &all].concat())
}

/// The lab. One test at a time: each starts several daemons and measures how fast they react, and
/// there may be only two cores.
///
/// # Errors
/// If a test fails.
pub fn lab(filter: &[String]) -> Result<()> {
    next_version()?;
    cargo(&["build", "--quiet", "--package", "shoal"])?;
    guest("testing/guest", "lab-guest.unikernel")?;
    guest("unikernels/dns", "lab-dns.unikernel")?;
    let mut args = vec!["test", "--package", "shoal-lab", "--no-fail-fast"];
    args.push("--");
    args.push("--test-threads=1");
    args.extend(filter.iter().map(String::as_str));
    cargo(&args)
}

/// Random users, kills and full disks, for two minutes unless `rest` says otherwise. In a mount
/// namespace of its own, because it mounts a disk that can be full.
///
/// # Errors
/// If anything was found.
pub fn torture(rest: &[String]) -> Result<()> {
    cargo(&["build", "--quiet", "--package", "shoal", "--package", "shoal-torture"])?;
    let me = std::env::current_exe().context("find this program")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]);
    command.arg(me.with_file_name("shoal-torture")).args(rest);
    run(command.env("SHOAL_BIN", me.with_file_name("shoal")))
}

/// The simulation; `rest` says which seeds.
///
/// # Errors
/// If anything was found.
pub fn sim(rest: &[String]) -> Result<()> {
    cargo(&["build", "--quiet", "--package", "shoal-sim"])?;
    let me = std::env::current_exe().context("find this program")?;
    run(Command::new(me.with_file_name("shoal-sim")).args(rest))
}

/// The seeds that CI runs, after some of them were compared with themselves.
fn simulated() -> Result<()> {
    sim(&SIM_TWICE.map(str::to_owned))?;
    sim(&SIM_SEEDS.map(str::to_owned))
}

/// What runs in a machine with a kernel of its own. As the lab runs them: an optimised build would
/// take longer to make than it saves.
///
/// # Errors
/// If a build fails.
pub fn programs_for_machines() -> Result<()> {
    cargo(&["build", "--quiet", "--package", "shoal", "--package", "shoal-vm-guest"])?;
    guest("testing/guest", "lab-guest.unikernel")
}

/// The program that stands for the next version in tests of upgrades. Cargo keeps what it builds
/// with another feature beside the rest, and builds no third-party crate twice; only the program
/// itself has one place, so it is built first and copied.
fn next_version() -> Result<()> {
    let me = std::env::current_exe().context("find this program")?;
    cargo(&["build", "--quiet", "--package", "shoal", "--features", "shoal/next-level"])?;
    let (built, copy) = (me.with_file_name("shoal"), me.with_file_name("shoal-next"));
    // One that runs cannot be written over.
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(&built, &copy).with_context(|| format!("copy '{}'", built.display()))?;
    Ok(())
}

/// A unikernel of the lab, beside the program that the lab runs (which is beside this one), by the
/// command that users build with.
fn guest(project: &str, name: &str) -> Result<()> {
    let me = std::env::current_exe().context("find this program")?;
    let build = ["unikernel", "build", project, "--output"];
    run(Command::new(me.with_file_name("shoal")).args(build).arg(me.with_file_name(name)))
}

/// API documentation, warnings denied.
///
/// # Errors
/// If a link is broken or something public has no words.
pub fn docs() -> Result<()> {
    run(cargo_command(&["doc", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

/// The demonstration, optimised.
///
/// # Errors
/// If a claim of the demonstration did not hold.
pub fn demo(rest: &[String]) -> Result<()> {
    let mut args = vec!["run", "--release", "--package", "shoal", "--", "demo"];
    args.extend(rest.iter().map(String::as_str));
    cargo(&args)
}

/// Runs cargo to its end.
///
/// # Errors
/// If it cannot be started or fails.
pub fn cargo(args: &[&str]) -> Result<()> {
    run(&mut cargo_command(args))
}

/// The cargo that runs this, with arguments.
pub fn cargo_command(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args);
    command
}

fn run(command: &mut Command) -> Result<()> {
    println!("$ {command:?}");
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs a program to its end; its output.
///
/// # Errors
/// If it cannot be started or fails; its words are part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?} ended with {}: {said}", out.status);
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
