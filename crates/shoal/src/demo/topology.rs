//! The machines of the demonstration: an underlay bridge and four namespaces on it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rustix::mount::{UnmountFlags, unmount};
use shoal_netlink::link::{LinkChange, LinkOptions};
use shoal_netlink::netns::{self, NetnsHandle};

use super::machine::{Machine, kill_all};

/// Where demonstrations live; their names begin like this.
const PREFIX: &str = "/run/shoal-demo-";
/// The underlay is TEST-NET-2 (RFC 5737): no real network has these addresses.
const UNDERLAY: &str = "198.51.100";
/// Machines that become nodes.
const NODES: u8 = 3;
/// The last part of the outside client's address.
const OUTSIDE: u8 = 9;

/// The machines.
#[derive(Debug)]
pub struct Topology {
    dir: PathBuf,
    underlay: PathBuf,
    /// The nodes, in order.
    pub nodes: Vec<std::sync::Mutex<Machine>>,
    /// A machine that runs no daemon.
    pub outside: Machine,
    done: bool,
}

impl Topology {
    /// Lays everything out; nothing runs yet.
    pub fn build(dir: Option<PathBuf>) -> Result<Self> {
        let dir = dir.unwrap_or_else(|| PathBuf::from(format!("{PREFIX}{}", std::process::id())));
        std::fs::create_dir_all(dir.join("netns"))
            .with_context(|| format!("make '{}'", dir.display()))?;
        let underlay = dir.join("netns").join("underlay");
        let machine = |name: &str, last: u8| {
            let netns = dir.join("netns").join(name);
            Machine::new(name, format!("{UNDERLAY}.{last}"), netns, dir.join(name))
        };
        let topology = Self {
            underlay: underlay.clone(),
            nodes: (1..=NODES).map(|n| machine(&format!("node-{n}"), n).into()).collect(),
            outside: machine("outside", OUTSIDE),
            dir: dir.clone(),
            done: false,
        };
        netns::create(&underlay).context("make the underlay's namespace")?;
        let wires = NetnsHandle::open(&underlay).context("enter the underlay")?;
        wires
            .create_bridge("br0", &LinkOptions::default())
            .context("make the underlay's bridge")?;
        wires.set_up("br0").context("start the underlay's bridge")?;
        for node in &topology.nodes {
            let node = node.lock().map_err(|_| anyhow::anyhow!("a step panicked"))?;
            plug_in(&wires, &node)?;
        }
        plug_in(&wires, &topology.outside)?;
        Ok(topology)
    }

    /// Pulls a machine's cable.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let wires = NetnsHandle::open(&self.underlay).context("enter the underlay")?;
        let change = LinkChange { up: Some(false), ..LinkChange::default() };
        wires.set_link(name, &change).with_context(|| format!("unplug {name}"))
    }

    /// Lets everything run on after this process.
    pub fn keep(&mut self) {
        for node in &mut self.nodes {
            if let Ok(node) = node.get_mut() {
                node.let_go();
            }
        }
        self.done = true;
    }

    /// How to use what was kept.
    pub fn how_to_use(&self) -> String {
        let mut text = String::from("\nThe cluster runs on. Point docker at a node:\n");
        for node in &self.nodes {
            if let Ok(node) = node.lock() {
                let socket = node.socket();
                text.push_str(&format!("  docker -H unix://{} node ls\n", socket.display()));
            }
        }
        text.push_str(&format!(
            "Reach a published port from outside:\n  nsenter --net={} curl http://{UNDERLAY}.1:8091/\n\
             Remove it all:\n  shoal demo --clean",
            self.outside.netns.display()
        ));
        text
    }

    /// Moves the daemons' logs out of the way of [`Self::remove`].
    pub fn save_logs(&self) -> Option<PathBuf> {
        let to = std::env::temp_dir().join(format!("shoal-demo-logs-{}", std::process::id()));
        std::fs::create_dir_all(&to).ok()?;
        for node in &self.nodes {
            let node = node.lock().ok()?;
            // Ignored because: a node that never started has no log, and what failed is said even
            // without one.
            let _ = std::fs::copy(node.log(), to.join(format!("{}.log", node.name)));
        }
        Some(to)
    }

    /// Stops the daemons and removes everything.
    pub fn remove(&mut self) -> Result<()> {
        self.done = true;
        let mut first = Ok(());
        for node in &mut self.nodes {
            if let Ok(node) = node.get_mut() {
                first = first.and(node.stop());
            }
        }
        first.and(remove_dir(&self.dir))
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.remove()
        {
            eprintln!("shoal demo: not everything could be removed: {error:#}");
        }
    }
}

fn plug_in(wires: &NetnsHandle, machine: &Machine) -> Result<()> {
    let name = machine.name.as_str();
    let failed = || format!("plug {name} in");
    netns::create(&machine.netns).with_context(failed)?;
    let own = NetnsHandle::open(&machine.netns).with_context(failed)?;
    let options = LinkOptions::default();
    wires.create_veth(name, &options, &own, "eth0", &options).with_context(failed)?;
    let change = LinkChange { up: Some(true), master: Some("br0"), ..LinkChange::default() };
    wires.set_link(name, &change).with_context(failed)?;
    let address: IpNet = format!("{}/24", machine.address).parse().with_context(failed)?;
    own.add_address("eth0", address).with_context(failed)?;
    own.set_up("eth0").with_context(failed)
}

/// Removes a demonstration's folder with everything that is mounted or runs below it.
fn remove_dir(dir: &Path) -> Result<()> {
    kill_all(dir);
    let prefix = dir.to_string_lossy().into_owned();
    let table = std::fs::read_to_string("/proc/self/mounts").context("read the mount table")?;
    let mut below: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|mount| mount.starts_with(&prefix))
        .collect();
    below.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
    for mount in below {
        unmount(mount, UnmountFlags::DETACH).with_context(|| format!("unmount '{mount}'"))?;
    }
    std::fs::remove_dir_all(dir).with_context(|| format!("remove '{}'", dir.display()))
}

/// Removes every demonstration that was kept.
pub fn clean_kept() -> Result<()> {
    let mut found = 0;
    for entry in std::fs::read_dir("/run").context("read '/run'")?.flatten() {
        let path = entry.path();
        if path.to_string_lossy().starts_with(PREFIX) {
            stop_daemons(&path);
            remove_dir(&path)?;
            println!("removed {}", path.display());
            found += 1;
        }
    }
    if found == 0 {
        bail!("no demonstration is running");
    }
    Ok(())
}

/// Asks the daemons to stop, so that they take their kernel objects along, and waits for them.
fn stop_daemons(dir: &Path) {
    let marker = dir.to_string_lossy().into_owned();
    let running = || {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_string_lossy().parse::<i32>().ok()?;
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let ours = line.contains(&marker) && line.contains(" daemon ");
                rustix::process::Pid::from_raw(pid).filter(|_| ours)
            })
            .collect::<Vec<_>>()
    };
    for pid in running() {
        // Ignored because: it may just have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let began = std::time::Instant::now();
    while !running().is_empty() && began.elapsed() < std::time::Duration::from_secs(10) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
