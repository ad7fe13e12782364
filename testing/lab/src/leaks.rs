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
        let disk = crate::disk::at(dir).to_string_lossy().into_owned();
        let mounted = mounts().into_iter().filter(|m| m.starts_with(&own) && *m != disk);
        add("mount", mounted.collect());
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
    pids.into_iter().for_each(kill);
}

fn kill(pid: u32) {
    run(Command::new("kill").args(["-9", &pid.to_string()]));
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

/// What a lab's things are called: by its process, so that a later one can tell whether it lives,
/// and its number within that.
pub(crate) fn tag(pid: u32, number: u32) -> String {
    format!("lab{pid}x{number}")
}

/// The process of the lab that a thing with this name belongs to.
fn owner(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix("lab")?.split_once('x')?;
    rest.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    pid.parse().ok()
}

/// Removes what test programs left that were ended by a signal: nothing is unwound then, so nobody
/// cleaned up. Labs of processes that live are left alone.
pub(crate) fn sweep_dead_labs() {
    let is_dead =
        |name: &str| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    let namespaces = lines(Command::new("ip").args(["netns", "list"]), |line| {
        line.split_whitespace().next().filter(|name| is_dead(name)).map(str::to_owned)
    });
    let dirs: Vec<PathBuf> = std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry.file_name().to_string_lossy().strip_prefix("shoal-").is_some_and(is_dead)
        })
        .map(|entry| entry.path())
        .collect();
    for dir in &dirs {
        let marker = dir.to_string_lossy();
        processes(&marker).into_iter().for_each(|(pid, _)| kill(pid));
    }
    for netns in &namespaces {
        kill_processes(netns, netns);
        run(Command::new("ip").args(["netns", "del", netns]));
    }
    for dir in &dirs {
        sweep(dir, &instances_below(dir));
        // Ignored because: what is still busy is tried again by the next lab.
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// The instance ids of the daemons whose folders are below a lab's folder.
fn instances_below(dir: &Path) -> Vec<String> {
    let inside = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let daemons = inside(dir).into_iter().flat_map(|host| inside(&host));
    let files = daemons.map(|daemon| daemon.join("data/instance"));
    files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|id| id.trim().to_owned())
        .collect()
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::must;

    #[test]
    fn what_a_killed_test_program_left_is_swept_and_nothing_else() {
        let mut dead = Command::new("true").spawn().unwrap();
        let pid = dead.id();
        dead.wait().unwrap();
        let (left, living) = (tag(pid, 0), tag(std::process::id(), u32::MAX));
        let name = |tag: &str| format!("{tag}-u");
        let dir = |tag: &str| std::env::temp_dir().join(format!("shoal-{tag}-test"));
        for tag in [&left, &living] {
            must(Command::new("ip").args(["netns", "add", &name(tag)]));
            std::fs::create_dir(dir(tag)).unwrap();
        }
        let mut stray = Command::new("ip")
            .args(["netns", "exec", &name(&left), "sleep", "1000"])
            .spawn()
            .unwrap();
        crate::eventually("the stray process", crate::CONVERGE, || {
            let there = run(Command::new("ip").args(["netns", "pids", &name(&left)]));
            if there.stdout.is_empty() { Err("not there yet".to_owned()) } else { Ok(()) }
        });
        sweep_dead_labs();
        assert!(!stray.wait().unwrap().success(), "it was killed");
        let exists = |tag: &str| Path::new("/run/netns").join(name(tag)).exists();
        assert_eq!((exists(&left), dir(&left).exists()), (false, false));
        assert_eq!((exists(&living), dir(&living).exists()), (true, true));
        must(Command::new("ip").args(["netns", "del", &name(&living)]));
        std::fs::remove_dir(dir(&living)).unwrap();
    }
}
