//! The shim by itself: what the tests of this crate run in place of `shoal shim <dir>`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(dir) => shoal_runtime::shim::main(Path::new(&dir)),
        None => {
            eprintln!("usage: shoal-runtime-shim <dir>");
            ExitCode::FAILURE
        }
    }
}
