//! What a lab leaves behind: nothing, proven by counting before and after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// Everything on this machine that a daemon could leave behind.
#[derive(Debug, Default)]
pub(crate) struct Census {
    things: BTreeSet<String>,
}

impl Census {
    /// Counts. Processes are told by the lab's `tag`, which is part of every path they are given,
    /// control groups by the `instances` of its daemons: other tests may run beside this one.
    pub(crate) fn take(tag: &str, dir: &Path, instances: &[String]) -> Self {
        let mut things = BTreeSet::new();
        let own = dir.to_string_lossy().into_owned();
        let ours = |line: &str| instances.iter().any(|id| line.contains(id.as_str()));
        let mut add = |kind: &str, lines: Vec<String>| {
            things.extend(lines.into_iter().map(|line| format!("{kind} {line}")));
        };
        let named = |(pid, line): (u32, String)| format!("{pid} {line}");
        add("process", processes(&own).into_iter().map(named).collect());
        add("mount", mounts().into_iter().filter(|m| m.starts_with(&own)).collect());
        add("cgroup", cgroups(instances));
        let whole = |line: &str| ours(line).then(|| line.to_owned());
        add("link", lines(Command::new("ip").args(["-o", "link"]), whole));
        add("table", lines(Command::new("nft").args(["list", "tables"]), whole));
        add(
            "netns",
            lines(Command::new("ip").args(["netns", "list"]), |line| {
                let name = line.split_whitespace().next()?;
                name.contains(tag).then(|| name.to_owned())
            }),
        );
        Self { things }
    }

    /// Everything that was found, one line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.things.iter().cloned().collect()
    }
}

fn lines(command: &mut Command, pick: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let output = run(command);
    String::from_utf8_lossy(&output.stdout).lines().filter_map(pick).collect()
}

/// Process ids and command lines that contain `marker`.
fn processes(marker: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let raw = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if pid != std::process::id() && line.contains(marker) {
            found.push((pid, line));
        }
    }
    found
}

/// Kills every process in the namespace `netns`, and every one whose command line names `marker`.
pub(crate) fn kill_processes(netns: &str, marker: &str) {
    let in_namespace = run(Command::new("ip").args(["netns", "pids", netns]));
    let mut pids: BTreeSet<u32> = String::from_utf8_lossy(&in_namespace.stdout)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    pids.extend(processes(marker).into_iter().map(|(pid, _)| pid));
    // Containers live in namespaces of their own; their parent is a shim that is killed here, and
    // a container does not outlive its shim.
    for pid in pids {
        run(Command::new("kill").args(["-9", &pid.to_string()]));
    }
}

fn mounts() -> Vec<String> {
    std::fs::read_to_string("/proc/self/mounts")
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
        .collect()
}

/// Removes what killed daemons left: mounts below `dir`, so that it can be removed, and empty
/// control groups.
pub(crate) fn sweep(dir: &Path, instances: &[String]) {
    let prefix = dir.to_string_lossy().into_owned();
    let mut below: Vec<String> = mounts().into_iter().filter(|m| m.starts_with(&prefix)).collect();
    below.sort_by_key(|m| std::cmp::Reverse(m.len()));
    for mount in below {
        run(Command::new("umount").args(["-l", &mount]));
    }
    for group in cgroups(instances) {
        run(Command::new("find")
            .args([&group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]));
    }
}

/// Control groups of these daemons, two levels deep in every hierarchy.
fn cgroups(instances: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if instances.iter().any(|id| name == format!("shoal-{id}")) {
                found.push(path.display().to_string());
            }
            if depth < 2 {
                open.push((path, depth + 1));
            }
        }
    }
    found
}

/// What is left in a host's network namespace beside what the lab put there.
pub(crate) fn inside(netns: &str) -> Vec<String> {
    let links = lines(Command::new("ip").args(["-n", netns, "-o", "link"]), |line| {
        let name = line.split(':').nth(1)?.trim().split('@').next()?.to_owned();
        (!["lo", "eth0"].contains(&name.as_str())).then_some(name)
    });
    let path = format!("--net=/run/netns/{netns}");
    let tables = lines(Command::new("nsenter").args([&path, "nft", "list", "tables"]), |l| {
        Some(l.to_owned())
    });
    links.into_iter().chain(tables).map(|thing| format!("{netns}: {thing}")).collect()
}
