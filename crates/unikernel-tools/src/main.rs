//! `shoal-unikernel`: the command group `shoal unikernel` as a small program of its own.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use shoal_unikernel_tools::cli::{self, Command};

/// Make, build, run and measure unikernels.
#[derive(Debug, Parser)]
#[command(name = "shoal-unikernel", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    // The tender must stay small: it sets up nothing that it does not need.
    if args.get(1).is_some_and(|word| word == "tender") {
        return cli::tender(args.get(2..).unwrap_or_default());
    }
    cli::run(Cli::parse_from(args).command)
}
