//! `shoal-tender CONFIG.json`: runs one unikernel, see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_tender::main(std::env::args_os().nth(1).as_deref())
}
