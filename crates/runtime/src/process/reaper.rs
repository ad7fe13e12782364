//! The minimal init of containers with `--init`: starts one program, hands signals on to it, and
//! reaps whatever processes end.

use std::os::fd::AsFd;

use rustix::process::{Pid, WaitOptions, wait};

use super::sys;

/// In the program's process: leads a process group of its own, so that the terminal's signals reach
/// it once and not again through init.
pub(crate) fn lead_group(tty: bool) {
    // Ignored because: without a group of its own the program gets some signals twice, no more.
    let _ = rustix::process::setpgid(None, None);
    if tty {
        let own = rustix::process::getpid();
        // A process in the background that takes the terminal is stopped for it (SIGTTOU), unless
        // that signal is blocked; the program starts with none blocked.
        sys::block_signals();
        // Ignored because: as above.
        let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin().as_fd(), own);
    }
}

/// In the init process: returns the exit status of the process `child` when it has ended.
pub(crate) fn run(child: u32) -> i32 {
    sys::block_signals();
    // The streams must end with the program, not with init.
    sys::close_from(0);
    let Some(child) = Pid::from_raw(child.cast_signed()) else { return 1 };
    loop {
        let signal = sys::wait_signal();
        if signal != libc::SIGCHLD {
            // Ignored because: a program that has just ended is reaped next.
            let _ = sys::kill(child.as_raw_nonzero().get().cast_unsigned(), signal);
            continue;
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == child {
                let code = status.exit_status();
                return code.or(status.terminating_signal().map(|s| 128 + s)).unwrap_or(1);
            }
        }
    }
}
