//! A machine that is stopped in order, and starts again.

use anyhow::{Result, ensure};

use crate::cluster::{SERVICE, node_is_ready, running, secret};
use crate::node::{
    answers, detached, docker, equal, eventually, inspect, logged_errors, shell, start_daemon,
};
use crate::report::Claim;

/// What is left running.
pub const BEFORE: &[Claim] = &[("what is to be there after the next boot is made", leave)];

/// What is there after the next boot.
pub const AFTER: &[Claim] = &[
    ("the daemon starts after a reboot", || start_daemon("reboot")),
    ("the node is a ready leader again", || eventually("the node is ready", node_is_ready)),
    ("restart=always runs", || runs("always")),
    ("restart=unless-stopped runs", || runs("unless")),
    ("it answers on its published port", published),
    ("unless-stopped that was stopped does not run", || is("stopped", "exited")),
    ("a container without a policy does not run", || is("plain", "exited")),
    ("it can be started", start_plain),
    ("a volume has its data", volume),
    ("the service has its three tasks", || eventually("three tasks run", || running("web", 3))),
    ("the service answers on both network cards", service),
    ("its tasks have their secret", secret),
    ("limits hold as before", limits),
    ("the daemon logged no error", || quiet("reboot")),
];

fn leave() -> Result<()> {
    let httpd = ["httpd", "-f", "-h", "/www"];
    detached("always", &["--restart", "always", "-m", "40m"], &["sleep", "100000"])?;
    detached("unless", &["--restart", "unless-stopped", "-p", "8083:80"], &httpd)?;
    detached("stopped", &["--restart", "unless-stopped"], &["sleep", "100000"])?;
    docker(&["stop", "-t", "0", "stopped"])?;
    detached("plain", &[], &["sleep", "100000"])?;
    shell(&["-v", "kept:/data"], "echo kept > /data/file")?;
    Ok(())
}

fn is(container: &str, status: &str) -> Result<()> {
    equal(&inspect(container, ".State.Status")?, status)
}

/// That a container comes to run.
pub fn runs(container: &str) -> Result<()> {
    eventually("it runs", || is(container, "running"))?;
    docker(&["exec", container, "true"]).map(drop)
}

fn published() -> Result<()> {
    eventually("the port answers", || answers("http://192.0.2.1:8083/", "a page"))
}

fn start_plain() -> Result<()> {
    docker(&["start", "plain"])?;
    runs("plain")
}

fn volume() -> Result<()> {
    equal(&shell(&["-v", "kept:/data"], "cat /data/file")?, "kept")
}

fn service() -> Result<()> {
    for url in SERVICE {
        eventually("the port answers", || answers(url, "a page"))?;
    }
    Ok(())
}

fn limits() -> Result<()> {
    let found = docker(&["exec", "always", "cat", "/sys/fs/cgroup/memory.max"])?;
    equal(&found, "41943040")
}

/// That the daemon of a boot logged no error.
pub fn quiet(boot: &str) -> Result<()> {
    let errors = logged_errors(boot)?;
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    Ok(())
}
