//! Which cgroup hierarchies are mounted where.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::{CgroupError, read, write};
use crate::container_plan::Limits;

/// Controllers of version 1 that a container's group is made in, if they are mounted.
const V1_CONTROLLERS: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "freezer",
    "blkio",
    "devices",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
];

/// The mounted hierarchies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Controller (or `name=…`) to mount point, version 1. Empty on a pure version 2 machine.
    v1: BTreeMap<String, PathBuf>,
    /// The mount point of version 2; used for limits only if `v1` is empty.
    v2: Option<PathBuf>,
}

impl Layout {
    /// The hierarchies, looked for once: nobody mounts them elsewhere under a running daemon, and
    /// the table of mounts grows with every container.
    ///
    /// # Errors
    /// As [`Self::detect`]; the next call tries again.
    pub fn of_this_machine() -> io::Result<Self> {
        static FOUND: OnceLock<Layout> = OnceLock::new();
        if let Some(layout) = FOUND.get() {
            return Ok(layout.clone());
        }
        let layout = Self::detect()?;
        Ok(FOUND.get_or_init(|| layout).clone())
    }

    /// Reads this thread's mount table.
    ///
    /// # Errors
    /// It cannot be read, or no hierarchy is mounted.
    pub fn detect() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/thread-self/mountinfo")?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "none is mounted"))
    }

    /// From the text of a mount table; `None` if it has no hierarchy.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mut layout = Self { v1: BTreeMap::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" if layout.v2.is_none() => layout.v2 = Some(PathBuf::from(point)),
                "cgroup" => {
                    for option in options.split(',') {
                        if V1_CONTROLLERS.contains(&option) || option.starts_with("name=") {
                            let entry = layout.v1.entry(option.to_owned());
                            entry.or_insert_with(|| PathBuf::from(point));
                        }
                    }
                }
                _ => {}
            }
        }
        (layout.v2.is_some() || !layout.v1.is_empty()).then_some(layout)
    }

    /// Whether limits go through version 2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        !self.v1.keys().any(|name| V1_CONTROLLERS.contains(&name.as_str()))
    }

    /// The root of the hierarchy that has `controller`. On version 2 `freezer`, `devices` and
    /// `cpuacct` are part of the core.
    #[must_use]
    pub fn root_of(&self, controller: &str) -> Option<&Path> {
        if !self.is_v2() {
            return self.v1.get(controller).map(PathBuf::as_path);
        }
        let root = self.v2.as_deref()?;
        let core = matches!(controller, "freezer" | "devices" | "cpuacct");
        (core || self.v2_controllers().iter().any(|c| c == controller)).then_some(root)
    }

    /// Every hierarchy's root, each once.
    pub fn roots(&self) -> impl Iterator<Item = &Path> {
        let mut roots: Vec<&Path> =
            self.v1.values().map(PathBuf::as_path).chain(self.v2.as_deref()).collect();
        roots.sort_unstable();
        roots.dedup();
        roots.into_iter()
    }

    /// Mount points of version 1 with the options that mount the same hierarchy again.
    #[must_use]
    pub fn v1_mounts(&self) -> Vec<(PathBuf, String)> {
        let mut by_point: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
        for (name, point) in &self.v1 {
            by_point.entry(point).or_default().push(name);
        }
        by_point.into_iter().map(|(point, names)| (point.to_owned(), names.join(","))).collect()
    }

    fn v2_controllers(&self) -> Vec<String> {
        let Some(root) = &self.v2 else { return Vec::new() };
        // Ignored because: a hierarchy whose controllers cannot be read has none that could be
        // used, and a limit that needs one says so.
        let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// On version 2 a group's controllers are switched on by its parent.
    pub(super) fn enable_controllers(
        &self,
        parent: &Path,
        limits: &Limits,
    ) -> Result<(), CgroupError> {
        if !self.is_v2() {
            return Ok(());
        }
        for controller in ["cpu", "memory", "pids", "io", "cpuset"] {
            if self.root_of(controller).is_none() {
                continue;
            }
            let file = parent.join("cgroup.subtree_control");
            let result = write(&file, &format!("+{controller}"), "switch a controller on in");
            let needed = match controller {
                "memory" => limits.memory_bytes.is_some(),
                "pids" => limits.pids.is_some(),
                "cpu" => limits.cpu_quota_us.is_some() || limits.cpu_shares.is_some(),
                "cpuset" => limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some(),
                _ => false,
            };
            // A controller that cannot be switched on (the parent has processes of its own, for
            // example) matters only for a limit that needs it.
            if needed {
                result?;
            }
        }
        Ok(())
    }

    /// On version 1 a new cpuset group is empty and takes no process before it has CPUs and memory.
    pub(super) fn inherit_cpuset(&self, parent: &Path, dir: &Path) -> Result<(), CgroupError> {
        let ours = self.v1.get("cpuset").is_some_and(|root| dir.starts_with(root));
        if !ours {
            return Ok(());
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read(&dir.join(file))?.trim().is_empty() {
                let value = read(&parent.join(file))?;
                write(&dir.join(file), value.trim(), "write")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_limits_through_version_1() {
        let text = "\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let layout = Layout::parse(text).unwrap();
        assert!(!layout.is_v2());
        assert_eq!(layout.root_of("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.root_of("pids"), None);
        assert_eq!(layout.roots().count(), 4);
        let mounts = layout.v1_mounts();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts.first().unwrap().1, "cpu,cpuacct");
    }

    #[test]
    fn only_version_2() {
        let text = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let layout = Layout::parse(text).unwrap();
        assert!(layout.is_v2());
        assert_eq!(layout.root_of("devices"), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(Layout::parse("1 0 8:1 / / rw - ext4 /dev/vda rw"), None);
    }
}
