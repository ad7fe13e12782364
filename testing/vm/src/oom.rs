//! Memory that runs out.

use anyhow::{Result, ensure};

use crate::node::{detached, docker, equal, eventually, inspect, remove, shell};
use crate::report::Claim;

/// What is claimed of memory that runs out.
pub const CLAIMS: &[Claim] = &[
    ("a container out of memory is killed, and that is said", killed),
    ("its policy starts it again", restarted),
    ("only a process of it may be killed: the container goes on", a_process_of_it),
    ("the machine goes on", || equal(&shell(&[], "echo well")?, "well")),
];

/// What lets a container have little memory and no swap.
const LITTLE: &[&str] = &["-m", "16m", "--memory-swap", "16m"];

fn killed() -> Result<()> {
    // Looks for a line's end that never comes, and keeps what it has read.
    detached("hungry", LITTLE, &["tail", "/dev/zero"])?;
    equal(&docker(&["wait", "hungry"])?, "137")?;
    equal(&inspect("hungry", ".State.OOMKilled")?, "true")?;
    remove("hungry")
}

fn restarted() -> Result<()> {
    let options = [LITTLE, &["--restart", "on-failure:2"]].concat();
    detached("again", &options, &["tail", "/dev/zero"])?;
    eventually("it was started twice more", || {
        let state = inspect("again", ".RestartCount")? + " " + &inspect("again", ".State.Status")?;
        equal(&state, "2 exited")
    })?;
    equal(&inspect("again", ".State.OOMKilled")?, "true")?;
    remove("again")
}

fn a_process_of_it() -> Result<()> {
    let script = "tail /dev/zero; echo child: $?; sleep 100000";
    detached("parent", LITTLE, &["sh", "-c", script])?;
    eventually("the child was killed", || {
        let log = docker(&["logs", "parent"])?;
        ensure!(log.contains("child: 137"), "{log}");
        Ok(())
    })?;
    equal(&inspect("parent", ".State.Status")?, "running")?;
    remove("parent")
}
