//! The program: command line, daemon, and the helpers that it re-executes itself as.
//!
//! This crate is the composition root: it reads the configuration, makes clock, random source and
//! listeners, and hands them to the crates that do the work. Nobody imports it. Begin reading at
//! [`cli`] (what can be typed) and [`daemon`] (how one node is put together).

#![forbid(unsafe_code)]

mod backup;
mod cli;
mod client;
mod daemon;
mod demo;
mod doctor;
mod output;
mod tools;
mod unikernel;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let word = args.get(1).map(|word| word.to_string_lossy().into_owned());
    // The helpers come first: a shim must stay small, so it sets up nothing that it does not need.
    match word.as_deref() {
        Some("shim") => {
            let dir = args.get(2).map(std::path::PathBuf::from).unwrap_or_default();
            return shoal_runtime::shim::main(&dir);
        }
        Some("tender") => return shoal_unikernel_tools::cli::tender(&args.split_off(2)),
        Some("resolver") => return shoal_network::resolver::main(args.split_off(2)),
        _ => {}
    }
    match cli::parse(args) {
        Ok(command) => cli::run(command),
        Err(error) => {
            // Ignored because: there is nobody left to tell if stderr is closed.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}
