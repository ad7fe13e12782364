//! Makes the processes of a container: the only module with `unsafe`, each piece of it a plain
//! system call that no safe library offers in the form needed here.
//!
//! [`spawn::container`] and [`spawn::exec`] are called by the shim. [`init`] and [`enter`] run in
//! the new process before the workload's program: namespaces, mounts ([`mounts`], [`devices`]), and
//! last ([`finish`]) limits, system call filter, capabilities, user, and the program itself. The
//! shim has one thread, so a forked child may use the heap.

#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod channel;
mod devices;
mod enter;
mod finish;
mod init;
mod mounts;
mod overlay;
mod reaper;
pub(crate) mod spawn;
pub(crate) mod sys;
mod tender;
pub(crate) mod user;

use std::fmt::Display;
use std::io;

use crate::protocol::{Failure, FailureKind};

/// A step towards a running process.
pub(crate) type Step<T> = Result<T, Failure>;

/// Names the action that an error happened in.
pub(crate) trait During<T> {
    fn during(self, action: impl Display) -> Step<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: impl Display) -> Step<T> {
        self.map_err(|e| failure(action, &e))
    }
}

/// A failed step.
fn failure(action: impl Display, error: &io::Error) -> Failure {
    let chain = vec![action.to_string(), describe(error)];
    Failure { kind: FailureKind::Internal, chain }
}

impl<T> During<T> for rustix::io::Result<T> {
    fn during(self, action: impl Display) -> Step<T> {
        self.map_err(io::Error::from).during(action)
    }
}

/// The kernel's own words, as Docker's clients match them: lowercase and without a number.
fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::EPERM) => "operation not permitted".to_owned(),
        Some(libc::EISDIR) => "is a directory".to_owned(),
        Some(libc::ENOTDIR) => "not a directory".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    }
}

pub(crate) use devices::set_size;
pub(crate) use enter::Entry;
pub(crate) use mounts::exchange_root;
