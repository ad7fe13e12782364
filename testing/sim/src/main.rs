//! A deterministic simulation of managers: real stores, with their consensus and their files, in
//! one process, on a clock that jumps, over a network and disks that fail as the seed says.
//!
//! `cargo xtask sim [--seed N] [--seeds A..B] [--minutes M] [--trace] [--twice]` runs it. Each seed
//! is a process of its own, on one thread. Begin reading at [`run`]; [`check`] has what must hold,
//! [`net`] and [`disk`] have what goes wrong beneath. What was found is in docs/simulation.md.

mod chance;
mod check;
mod clients;
mod disk;
mod host;
mod many;
mod net;
mod run;
mod trace;
mod world;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use host::Hosts;
use many::Order;
use world::World;

const USAGE: &str = "shoal-sim [--seed N] [--seeds A..B] [--minutes M] [--trace] [--twice]";

/// The first panic of any task: the runtime catches it.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Order::read(&words) {
        Ok(Order::One { seed, shown }) => one(seed, shown),
        Ok(Order::Many(order)) => many::run(&order),
        Err(problem) => {
            eprintln!("sim: {problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Runs one seed in this process; its last line says how it ended.
fn one(seed: u64, shown: bool) -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    std::panic::set_hook(Box::new(|info| {
        let mut first = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| info.to_string().replace('\n', " "));
    }));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let (runtime, dir) = match (runtime, many::place()) {
        (Ok(runtime), Ok(dir)) => (runtime, dir),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("sim: cannot begin: {error}");
            return ExitCode::from(2);
        }
    };
    let (world, millis) = runtime.block_on(async {
        let world = World::new(seed, shown);
        let hosts = Hosts::new(&world, dir.path());
        tokio::select! {
            biased;
            _ = world.over() => {}
            () = run::run(&world, &hosts) => {}
        }
        // Only here the clock is the simulation's.
        let millis = world.lock().trace.now();
        (world, millis)
    });
    let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let finding = world.finding().or(panic.map(|text| format!("a task panicked: {text}")));
    let said = many::Said::of(seed, millis, &world, finding);
    println!("{}", said.line());
    // What is left of the processes is not waited for.
    runtime.shutdown_background();
    if said.finding.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
