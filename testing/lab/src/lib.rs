//! The lab: real daemons as hosts in network namespaces of this machine, driven by the real docker
//! CLI.
//!
//! [`Lab::start`] lays out an underlay (a bridge in a namespace of its own) with hosts on it;
//! [`Host::daemon`] runs one daemon there, [`Host::docker`] the docker CLI against it. Everything
//! carries the test's name and process id; dropping the lab removes it all, and
//! [`Lab::finish`] then proves that nothing is left. When a test fails, evidence (logs, rulesets,
//! connection tables) is kept below `target/lab-failures/`.
//!
//! Nothing here sends a packet outside its own namespaces.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;
mod daemon;
mod disk;
mod evidence;
mod host;
pub mod http;
mod images;
mod leaks;
mod load;
pub mod reality;
mod topology;
mod wait;

pub use cluster::{CONVERGE, Cluster, backends, leader};
pub use daemon::{Daemon, DaemonOptions};
pub use disk::Disk;
pub use host::Host;
pub use images::{
    busybox_rootfs, import_busybox, import_dns, import_guest, import_nginx, import_shoal,
    import_unikernel,
};
pub use load::Load;
pub use topology::Lab;
pub use wait::{eventually, within};

use std::path::PathBuf;
use std::process::{Command, Output};

/// The program under test: beside the test's own executable, where `cargo build` puts it.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn shoal() -> PathBuf {
    if let Some(path) = std::env::var_os("SHOAL_BIN") {
        return PathBuf::from(path);
    }
    let me = std::env::current_exe().unwrap();
    there(me.parent().and_then(|deps| deps.parent()).unwrap().join("shoal"))
}

/// The program that stands for the next version: built with the feature `next-level`, beside
/// [`shoal`].
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn shoal_next() -> PathBuf {
    if let Some(path) = std::env::var_os("SHOAL_BIN_NEXT") {
        return PathBuf::from(path);
    }
    built("shoal-next")
}

/// The unikernel of the lab, `testing/guest` as an image's ELF: `cargo xtask lab` builds it.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn guest() -> PathBuf {
    if let Some(path) = std::env::var_os("SHOAL_LAB_GUEST") {
        return PathBuf::from(path);
    }
    built("lab-guest.unikernel")
}

/// The DNS appliance, `unikernels/dns` as an image's ELF: `cargo xtask lab` builds it.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn dns() -> PathBuf {
    built("lab-dns.unikernel")
}

fn built(name: &str) -> PathBuf {
    there(shoal().with_file_name(name))
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "'{}' is missing: run the lab by `cargo xtask lab`", path.display());
    path
}

/// Runs a command to its end and gives what it printed.
///
/// # Panics
/// If it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Runs a command that must succeed; gives its standard output without the last line end.
///
/// # Panics
/// If it fails, with everything it printed.
pub fn must(command: &mut Command) -> String {
    let output = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a command that must fail; gives everything it printed.
///
/// # Panics
/// If it succeeds.
pub fn must_fail(command: &mut Command) -> String {
    let output = run(command);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success(), "{command:?} succeeded: {text}");
    text
}
