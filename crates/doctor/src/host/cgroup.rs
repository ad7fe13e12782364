//! Control groups: which version, which controllers, whether limits can be set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use shoal_model::check::Need;

use super::{Finding, HostCheck, read};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that limits need, each with a file of version 1 and a value to try.
const CONTROLLERS: [(&str, &str, &str); 5] = [
    ("memory", "memory.limit_in_bytes", "67108864"),
    ("cpu", "cpu.cfs_quota_us", "50000"),
    ("pids", "pids.max", "50"),
    ("devices", "devices.deny", ""),
    ("freezer", "freezer.state", ""),
];
/// Controllers of version 2; devices are a BPF program there and freezing is always possible.
const UNIFIED: [(&str, &str, &str); 3] = [
    ("memory", "memory.max", "67108864"),
    ("cpu", "cpu.max", "50000 100000"),
    ("pids", "pids.max", "50"),
];

pub(super) fn checks() -> Vec<HostCheck> {
    vec![
        HostCheck::new("SH-DOC-120", "control groups", Need::Containers, groups),
        HostCheck::new("SH-DOC-121", "limits", Need::Limits, limits),
    ]
}

/// Which hierarchies there are.
enum Mode {
    Unified,
    /// Controllers with the directories of their hierarchies.
    Legacy(Vec<(String, PathBuf)>),
    None,
}

fn mode() -> Mode {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return Mode::Unified;
    }
    let mounted = legacy_mounts(&read("/proc/mounts").unwrap_or_default());
    if mounted.is_empty() { Mode::None } else { Mode::Legacy(mounted) }
}

/// The directories in which a check makes its groups.
pub(crate) fn group_roots() -> Vec<PathBuf> {
    match mode() {
        Mode::Unified => vec![PathBuf::from(ROOT)],
        Mode::Legacy(mounted) => mounted.into_iter().map(|(_, path)| path).collect(),
        Mode::None => Vec::new(),
    }
}

/// Controllers of version 1 and where each is mounted.
fn legacy_mounts(mounts: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, path, "cgroup", options, ..] = words.as_slice() {
            let known = |option: &&str| CONTROLLERS.iter().any(|(name, ..)| name == option);
            for controller in options.split(',').filter(known) {
                found.push((controller.to_owned(), PathBuf::from(path)));
            }
        }
    }
    found
}

/// A group that is removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(parent: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("shoal-check-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Ignored because: an empty group can be removed, and nothing was put into it.
        let _ = fs::remove_dir(&self.0);
    }
}

fn groups() -> Finding {
    let remedy = "mount control groups below /sys/fs/cgroup and run as root; inside a container, \
                  privileged and with '--cgroupns=host' or writable groups";
    match mode() {
        Mode::None => Finding::fail("none are mounted", remedy),
        Mode::Unified => match Group::new(Path::new(ROOT)) {
            Ok(_) => Finding::ok("version 2"),
            Err(error) => Finding::fail(format!("version 2: make a group: {error}"), remedy),
        },
        Mode::Legacy(mounted) => {
            for (controller, path) in &mounted {
                if let Err(error) = Group::new(path) {
                    let text = format!("version 1: make a group for '{controller}': {error}");
                    return Finding::fail(text, remedy);
                }
            }
            Finding::ok("version 1")
        }
    }
}

fn limits() -> Finding {
    let missing = match mode() {
        Mode::None => return Finding::fail("there are no control groups", "see SH-DOC-120"),
        Mode::Unified => missing_unified(),
        Mode::Legacy(mounted) => missing_legacy(&mounted),
    };
    if missing.is_empty() {
        return Finding::ok("memory, CPU and processes can be limited");
    }
    Finding::fail(
        missing.join("; "),
        "enable the controllers (boot with 'cgroup_enable=memory' on Debian and Raspberry Pi)",
    )
}

fn missing_legacy(mounted: &[(String, PathBuf)]) -> Vec<String> {
    let attempt = |(name, file, value): &(&str, &str, &str)| {
        let path = mounted.iter().find(|(controller, _)| controller == name).map(|(_, path)| path);
        let Some(path) = path else { return Some(format!("'{name}' is not there")) };
        let group = match Group::new(path) {
            Ok(group) => group,
            Err(error) => return Some(format!("make a group for '{name}': {error}")),
        };
        set(&group, file, value).err().map(|error| format!("set '{file}': {error}"))
    };
    CONTROLLERS.iter().filter_map(attempt).collect()
}

/// On version 2 a controller is there if the root has it; if it is enabled for children already,
/// its limit is tried.
fn missing_unified() -> Vec<String> {
    let have = read(&format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    let group = match Group::new(Path::new(ROOT)) {
        Ok(group) => group,
        Err(error) => return vec![format!("make a group: {error}")],
    };
    let attempt = |(name, file, value): &(&str, &str, &str)| {
        if !have.split_whitespace().any(|controller| controller == *name) {
            return Some(format!("'{name}' is not there"));
        }
        if !group.0.join(file).exists() {
            return None;
        }
        set(&group, file, value).err().map(|error| format!("set '{file}': {error}"))
    };
    UNIFIED.iter().filter_map(attempt).collect()
}

fn set(group: &Group, file: &str, value: &str) -> io::Result<()> {
    let path = group.0.join(file);
    if value.is_empty() {
        return fs::metadata(path).map(|_| ());
    }
    // Not `fs::write`, which would create a file that is not there.
    let mut open = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut open, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_version_1_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      tmpfs /run tmpfs rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
        let cpu = ("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(legacy_mounts(mounts), [cpu]);
    }
}
