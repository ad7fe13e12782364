//! The process that becomes a tender, between its fork and its program.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::Signal;

use super::channel::{Channel, Note};
use super::init::Stdio;
use super::{During, Step, describe, finish, sys};
use crate::protocol::{Failure, FailureKind};

/// Runs `command` with the file `config` as its last argument. Never returns.
pub(crate) fn run(command: &[String], config: &Path, stdio: Stdio, channel: Channel) -> ! {
    if channel.wait_go().is_err() {
        sys::exit_now(1); // The shim is gone.
    }
    let failure = match prepare(command, config, stdio) {
        Ok((program, argv)) => {
            let error = sys::execve(&program, &argv, &[]);
            let what = format!(
                "run the tender '{}': {}",
                String::from_utf8_lossy(program.as_bytes()),
                describe(&error)
            );
            Failure::new(FailureKind::Internal, what)
        }
        Err(failure) => failure,
    };
    // Ignored because: without a shim there is nobody to tell.
    let _ = channel.report(&Note::Failed(failure), None);
    sys::exit_now(1)
}

fn prepare(command: &[String], config: &Path, stdio: Stdio) -> Step<(CString, Vec<CString>)> {
    let bad = |_| Failure::new(FailureKind::Invalid, "a word of the command contains a zero byte");
    let missing = || Failure::new(FailureKind::Internal, "no tender is configured");
    let mut argv: Vec<CString> =
        command.iter().map(|word| CString::new(word.as_str()).map_err(bad)).collect::<Step<_>>()?;
    let program = argv.first().cloned().ok_or_else(missing)?;
    argv.push(CString::new(config.as_os_str().as_bytes()).map_err(bad)?);
    rustix::process::setsid().during("begin a session")?;
    if let Some(ends) = &stdio {
        finish::connect(ends)?;
    }
    // The tender changes its user, which clears this; it then asks for it again.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .during("tie the process to its shim")?;
    sys::reset_signals();
    sys::close_on_exec_from(3).during("close what the tender must not have")?;
    Ok((program, argv))
}
