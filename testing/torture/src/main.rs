//! The torture: random users against a real daemon whose processes are killed at random, whose disk
//! fills up, and whose clients hang up. After each burst what is recorded is compared with what is
//! really there, and what was acknowledged with what is.
//!
//! `cargo xtask torture [--seed N] [--minutes M]` runs it, in a mount namespace of its own; the
//! daemon is a host of the lab, in a network namespace. Begin reading at [`torture`]; [`user`] has
//! what users do, [`chaos`] what is done to the daemon, [`check`] and `shoal_lab::reality` what
//! must hold.

#![forbid(unsafe_code)]

mod chaos;
mod check;
mod journal;
mod model;
mod torture;
mod user;

use std::process::ExitCode;
use std::time::Duration;

/// How long it goes on if nobody says.
const MINUTES: f64 = 2.0;
/// Longest: some weeks.
const MINUTES_MAX: f64 = 100_000.0;

fn main() -> ExitCode {
    let (mut seed, mut minutes) = (None, MINUTES);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        match word.as_str() {
            "--seed" => seed = value.parse().ok(),
            "--minutes" => minutes = value.parse().unwrap_or(f64::NAN),
            other => {
                eprintln!("torture: unknown argument '{other}'");
                return ExitCode::from(2);
            }
        }
        if (word == "--seed" && seed.is_none()) || !(0.0..=MINUTES_MAX).contains(&minutes) {
            eprintln!("torture: '{word} {value}' is not understood");
            return ExitCode::from(2);
        }
    }
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    println!("torture: seed {seed}, {minutes} minutes");
    match torture::run(seed, Duration::from_secs_f64(minutes * 60.0)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(kinds) => {
            println!("\ntorture: {kinds} kinds of findings with seed {seed}");
            ExitCode::FAILURE
        }
        Err(problem) => {
            eprintln!("torture: {problem}");
            ExitCode::FAILURE
        }
    }
}
