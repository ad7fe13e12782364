//! The underlay and its hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::disk::{self, Disk};
use crate::host::Host;
use crate::{evidence, leaks, must, run};

/// Labs of this process so far: part of every name.
static LABS: AtomicU32 = AtomicU32::new(0);

/// The underlay is TEST-NET-2 (RFC 5737): no real network has these addresses.
const UNDERLAY: &str = "198.51.100";

/// Some hosts on one underlay.
#[derive(Debug)]
pub struct Lab {
    name: String,
    tag: String,
    dir: tempfile::TempDir,
    underlay: String,
    hosts: Vec<Host>,
}

impl Lab {
    /// Lays out `hosts` hosts, `198.51.100.1` and up. The last is usually used as an outside
    /// client: a host is only a node once it runs a daemon.
    ///
    /// # Panics
    /// If this process may not make namespaces.
    #[must_use]
    pub fn start(name: &str, hosts: u8) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            leaks::sweep_dead_labs();
        }
        let tag = leaks::tag(std::process::id(), number);
        let dir = tempfile::Builder::new().prefix(&format!("shoal-{tag}-")).tempdir().unwrap();
        let underlay = format!("{tag}-u");
        let mut lab = Self {
            name: name.to_owned(),
            tag: tag.clone(),
            dir,
            underlay: underlay.clone(),
            hosts: Vec::new(),
        };
        ip(&["netns", "add", &underlay]);
        ip(&["-n", &underlay, "link", "set", "lo", "up"]);
        ip(&["-n", &underlay, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &underlay, "link", "set", "br0", "up"]);
        for index in 1..=hosts {
            lab.add_host(index);
        }
        lab
    }

    fn add_host(&mut self, index: u8) {
        let netns = format!("{}-{index}", self.tag);
        let port = format!("h{index}");
        let address = format!("{UNDERLAY}.{index}");
        ip(&["netns", "add", &netns]);
        // A new namespace has the machine's own setting otherwise.
        let quiet = "echo 0 > /proc/sys/net/ipv4/ip_forward";
        ip(&["netns", "exec", &netns, "sh", "-c", quiet]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        ip(&[
            "-n",
            &self.underlay,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &netns,
        ]);
        ip(&["-n", &self.underlay, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        ip(&["-n", &netns, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        let dir = self.dir.path().join(format!("node-{index}"));
        std::fs::create_dir(&dir).unwrap();
        self.hosts.push(Host::new(format!("node-{index}"), netns, address, dir));
    }

    /// Host number `index`, from 1.
    ///
    /// # Panics
    /// If there is no such host.
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index - 1]
    }

    /// A folder that lives as long as the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file system of `mib` MiB in the lab's folder, which can be filled up. One for each lab.
    ///
    /// # Panics
    /// If there is one already.
    #[must_use]
    pub fn disk(&self, mib: u32) -> Disk {
        Disk::mount(self.dir.path(), mib)
    }

    /// Cuts a host's underlay link, as pulling its cable would.
    pub fn cut(&self, index: usize) {
        ip(&["-n", &self.underlay, "link", "set", &format!("h{index}"), "down"]);
    }

    /// Nothing that a host sends arrives anywhere; what others send reaches it.
    pub fn cut_outgoing(&self, index: usize) {
        self.drop_frames(&format!("iifname h{index} drop"));
    }

    /// Nothing that others send reaches a host; what it sends arrives.
    pub fn cut_incoming(&self, index: usize) {
        self.drop_frames(&format!("oifname h{index} drop"));
    }

    /// Drops what matches on its way through the underlay's bridge, until [`mend`](Self::mend).
    fn drop_frames(&self, rule: &str) {
        let chain = "{ type filter hook forward priority 0; }";
        let rules = format!(
            "table bridge cut\ndelete table bridge cut\nadd table bridge cut\n\
             add chain bridge cut frames {chain}\nadd rule bridge cut frames {rule}\n"
        );
        self.nft(&rules);
    }

    /// Puts the cable back, and takes every rule away that drops frames.
    pub fn mend(&self, index: usize) {
        ip(&["-n", &self.underlay, "link", "set", &format!("h{index}"), "up"]);
        self.nft("table bridge cut\ndelete table bridge cut\n");
    }

    fn nft(&self, rules: &str) {
        let path = self.dir.path().join("underlay.nft");
        std::fs::write(&path, rules).unwrap();
        ip(&["netns", "exec", &self.underlay, "nft", "-f", &path.to_string_lossy()]);
    }

    /// Stops every daemon, removes everything, and proves that nothing is left: no process,
    /// namespace, mount, link, cgroup or ruleset.
    ///
    /// # Panics
    /// If something is left.
    pub fn finish(mut self) {
        for host in self.hosts.iter().filter(|host| host.is_dead()) {
            host.kill_everything();
            leaks::sweep(host.dir(), &host.instances());
        }
        let living = self.hosts.iter().filter(|host| !host.is_dead());
        let instances: Vec<String> = living.flat_map(Host::instances).collect();
        for host in &self.hosts {
            host.stop_all();
        }
        // The namespaces are still there: what a daemon leaves in them must be seen.
        let mut left = leaks::Census::take(&self.tag, self.dir.path(), &instances).lines();
        left.retain(|line| !line.starts_with("netns "));
        for host in self.hosts.iter().filter(|host| !host.is_dead()) {
            left.extend(leaks::inside(host.netns()));
        }
        self.remove();
        left.extend(leaks::Census::take(&self.tag, self.dir.path(), &instances).lines());
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }

    fn remove(&mut self) {
        for host in &self.hosts {
            host.kill_everything();
        }
        for host in &self.hosts {
            run(Command::new("ip").args(["netns", "del", host.netns()]));
        }
        run(Command::new("ip").args(["netns", "del", &self.underlay]));
        disk::unmount(self.dir.path());
        self.hosts.clear();
    }

    fn evidence_dir(&self) -> PathBuf {
        let target = crate::shoal().parent().map(Path::to_path_buf).unwrap_or_default();
        target.join("lab-failures").join(&self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = self.evidence_dir();
            eprintln!("evidence is kept in {}", dir.display());
            evidence::keep(&dir, &self.hosts);
        }
        let instances: Vec<String> = self.hosts.iter().flat_map(Host::instances).collect();
        self.remove();
        leaks::sweep(self.dir.path(), &instances);
    }
}

fn ip(args: &[&str]) {
    must(Command::new("ip").args(args));
}
