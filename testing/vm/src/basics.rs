//! The machine itself, the demonstration, and a node that runs its first container.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::{
    answers, detached, docker, equal, eventually, kernel_says, remove, run, run_within, shell,
    start_daemon,
};
use crate::report::Claim;

/// What kind of machine this is.
pub const MACHINE: &[Claim] = &[
    ("cgroup version 2 alone", cgroup_2_alone),
    ("no module of ours is loaded yet", no_module_yet),
    ("doctor finds a machine that can do everything", doctor),
    ("the modules were loaded on demand", modules_on_demand),
];

/// The founding scenario.
pub const DEMO: &[Claim] = &[("the demonstration", demo)];

/// A node that starts and works.
pub const STARTS: &[Claim] = &[
    ("the daemon starts", || start_daemon("first")),
    ("an image is imported", import),
    ("a container runs", || equal(&shell(&[], "echo hello")?, "hello")),
];

/// Ports of its containers.
pub const PORTS: &[Claim] = &[
    ("a published port answers on both network cards", published),
    ("a port published on one card answers there alone", published_on_one),
];

/// Modules that a node needs and a bare machine has not loaded.
const MODULES: &[&str] = &["overlay", "nf_tables", "veth", "vxlan"];

/// How often as long as on a machine of today the demonstration may take.
const SLOWER: &str = "8";
/// Longest that all of it may take.
const DEMO_LONGEST: Duration = Duration::from_secs(600);

fn cgroup_2_alone() -> Result<()> {
    let mounts = kernel_says("/proc/mounts")?;
    let kinds: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .filter(|kind| kind.starts_with("cgroup"))
        .collect();
    equal(&kinds.join(" "), "cgroup2")
}

fn loaded() -> Result<Vec<&'static str>> {
    let modules = kernel_says("/proc/modules")?;
    let is_loaded = |name: &&str| modules.lines().any(|line| line.split(' ').next() == Some(*name));
    Ok(MODULES.iter().copied().filter(is_loaded).collect())
}

fn no_module_yet() -> Result<()> {
    equal(&loaded()?.join(" "), "")
}

fn modules_on_demand() -> Result<()> {
    eventually("they are loaded", || equal(&loaded()?.join(" "), &MODULES.join(" ")))
}

fn doctor() -> Result<()> {
    run("shoal", &["doctor"]).map(drop)
}

fn demo() -> Result<()> {
    let said = run_within(DEMO_LONGEST, "shoal", &["demo", "--json", "--slower", SLOWER])?;
    let last = said.lines().last().context("it said nothing")?;
    let last: Value = serde_json::from_str(last).context("read its summary")?;
    let held = last["held"].as_u64().unwrap_or(0);
    ensure!(held >= 23, "only {held} claims of the demonstration held");
    Ok(())
}

fn import() -> Result<()> {
    docker(&["import", "/images/busybox.tar", "busybox:vm"])?;
    Ok(())
}

fn published() -> Result<()> {
    detached("both", &["-p", "8081:80"], &["httpd", "-f", "-h", "/www"])?;
    for address in ["192.0.2.1", "198.51.100.1", "127.0.0.1"] {
        let at = format!("{address}:8081");
        eventually("the port answers", || answers(&at, "a page"))?;
    }
    remove("both")
}

fn published_on_one() -> Result<()> {
    detached("one", &["-p", "198.51.100.1:8082:80"], &["httpd", "-f", "-h", "/www"])?;
    eventually("the port answers", || answers("198.51.100.1:8082", "a page"))?;
    let other = answers("192.0.2.1:8082", "a page");
    ensure!(other.is_err(), "it answers on the other card, too");
    remove("one")
}
