//! Runs the workspace's test programs beside each other. Cargo runs one after the other, and most
//! of what they do is wait: for a deadline, a process, a clock.

use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::steps::cargo_command;

/// Programs at a time for each processor.
const EACH: usize = 2;

/// What cargo says of something that it built; other lines have none of this.
#[derive(Deserialize)]
struct Built {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// A test program.
struct Program {
    path: PathBuf,
    /// The directory of its package, where cargo runs it.
    home: PathBuf,
}

/// How one ended.
struct Ended<'a> {
    program: &'a Program,
    output: std::io::Result<Output>,
    took: Duration,
}

/// Builds the test programs that `packages` (arguments of cargo) says, and runs them. What each
/// says is printed when it ends.
///
/// # Errors
/// If one cannot be built or fails; all are run first.
pub fn run(packages: &[&str]) -> Result<()> {
    let programs = build(packages)?;
    let places = thread::available_parallelism().map_or(1, NonZeroUsize::get) * EACH;
    println!("{} test programs, {places} at a time", programs.len());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..places.min(programs.len()) {
            scope.spawn(|| {
                while let Some(program) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ended = start(program);
                    if !ended.report() {
                        let mut failed = failed.lock().unwrap_or_else(|it| it.into_inner());
                        failed.push(program.path.display().to_string());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|it| it.into_inner());
    ensure!(failed.is_empty(), "test programs failed: {}", failed.join(", "));
    Ok(())
}

fn build(packages: &[&str]) -> Result<Vec<Program>> {
    let mut command = cargo_command(&["test", "--no-run", "--message-format=json"]);
    command.args(packages).stdout(Stdio::piped());
    println!("$ {command:?}");
    let mut cargo = command.spawn().with_context(|| format!("start {command:?}"))?;
    let said = cargo.stdout.take().context("read what cargo says")?;
    let mut found = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.context("read what cargo says")?;
        let Ok(built) = serde_json::from_str::<Built>(&line) else { continue };
        found.extend(built.program());
    }
    let status = cargo.wait().context("wait for cargo")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    ensure!(!found.is_empty(), "{command:?} built no test program");
    Ok(found)
}

impl Built {
    fn program(self) -> Option<Program> {
        let is_test = self.profile.is_some_and(|profile| profile.test);
        let (path, manifest) = (self.executable.filter(|_| is_test)?, self.manifest_path?);
        Some(Program { path, home: manifest.parent().map(Path::to_owned)? })
    }
}

fn start(program: &Program) -> Ended<'_> {
    let began = Instant::now();
    let output =
        Command::new(&program.path).current_dir(&program.home).stdin(Stdio::null()).output();
    Ended { program, output, took: began.elapsed() }
}

impl Ended<'_> {
    /// Prints what it said, whole, so that programs do not talk into each other; whether all is
    /// well.
    fn report(&self) -> bool {
        let Self { program, output, took } = self;
        let mut text = format!("\n     Running {}", program.path.display()).into_bytes();
        let passed = match output {
            Ok(output) => {
                text.push(b'\n');
                text.extend_from_slice(&output.stdout);
                text.extend_from_slice(&output.stderr);
                let (status, s) = (output.status, took.as_secs_f64());
                text.extend_from_slice(format!("{status} after {s:.1} s\n").as_bytes());
                status.success()
            }
            Err(error) => {
                text.extend_from_slice(format!(": {error}\n").as_bytes());
                false
            }
        };
        // Ignored because: who closed this program's output does not read it.
        let _ = std::io::stdout().lock().write_all(&text);
        passed
    }
}
