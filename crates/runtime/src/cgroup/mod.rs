//! Control groups, version 1 (also hybrid) and 2: one group for each container, with the same path
//! below each hierarchy's root.

mod devices;
mod layout;
mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::container_plan::Limits;
use crate::process::sys;
pub(crate) use devices::DeviceRule;
pub use devices::{DevicePolicy, restrict_v2};
pub use layout::Layout;

/// How long killed processes may take to be gone before a group is given up on: one in an
/// uninterruptible wait for a dead disk may take for ever.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How often emptiness is looked at while waiting for it: the kernel tells by poll(2) on version 2
/// only.
const KILL_POLL: Duration = Duration::from_millis(5);

/// How often making a group is tried while others take its parents away. Each of them does that
/// once, when its container ends.
const MAKE_ATTEMPTS: u32 = 100;

/// A group could not be made, read, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There are no cgroups that could be used.
    #[error("find the mounted cgroup hierarchies")]
    Layout {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No group's.
    #[error("'{path}' is not the path of a cgroup")]
    Name {
        /// What was given.
        path: String,
    },
    /// A file or directory of a group.
    #[error("{action} '{}'", path.display())]
    File {
        /// `write '5' to`, `make`, `read`…
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a limit.
    #[error("set '{}' to '{value}'", path.display())]
    Limit {
        /// Which.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The controller that a limit needs is not there.
    #[error("the cgroup controller '{controller}' is not available, needed to limit {what}")]
    Missing {
        /// Which.
        controller: &'static str,
        /// `memory`, `the number of processes`…
        what: &'static str,
    },
    /// The program that guards devices on version 2.
    #[error("restrict devices by a program at '{}'", path.display())]
    Devices {
        /// The group.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes survive being killed.
    #[error("{count} killed processes in '{path}' do not end")]
    Stuck {
        /// The group.
        path: String,
        /// How many.
        count: usize,
    },
}

/// One container's group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    layout: Layout,
    path: String,
}

impl Cgroup {
    /// The group at `path` below every hierarchy's root; makes nothing.
    ///
    /// # Errors
    /// [`CgroupError::Name`], or [`CgroupError::Layout`] if no hierarchy is mounted.
    pub fn open(path: &str) -> Result<Self, CgroupError> {
        let path = valid(path)?;
        let layout = Layout::of_this_machine().map_err(|source| CgroupError::Layout { source })?;
        Ok(Self { layout, path })
    }

    /// The same where the hierarchies are known.
    ///
    /// # Errors
    /// [`CgroupError::Name`].
    pub fn within(layout: Layout, path: &str) -> Result<Self, CgroupError> {
        Ok(Self { layout, path: valid(path)? })
    }

    /// The hierarchies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The directory of the group in the hierarchy of `controller`.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<PathBuf> {
        self.layout.root_of(controller).map(|root| root.join(&self.path))
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.layout.roots().map(|root| root.join(&self.path))
    }

    /// Makes the group in every hierarchy and applies limits and device rules.
    ///
    /// # Errors
    /// The group cannot be made, a controller is missing for a limit, or the kernel refuses one.
    pub fn create(&self, limits: &Limits, devices: DevicePolicy) -> Result<(), CgroupError> {
        for root in self.layout.roots() {
            // The last container beside this one may be taking the parents away just now.
            let mut attempts = 1;
            while let Err(error) = self.make_below(root, limits) {
                if attempts == MAKE_ATTEMPTS || !is_gone(&error) {
                    return Err(error);
                }
                attempts += 1;
            }
        }
        limits::apply(self, limits)?;
        devices::apply(self, devices)
    }

    fn make_below(&self, root: &Path, limits: &Limits) -> Result<(), CgroupError> {
        let mut dir = root.to_owned();
        for part in Path::new(&self.path).components() {
            self.layout.enable_controllers(&dir, limits)?;
            let parent = dir.clone();
            dir.push(part);
            match fs::create_dir(&dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::File { action: "make", path: dir, source: e });
                }
                _ => {}
            }
            self.layout.inherit_cpuset(&parent, &dir)?;
        }
        Ok(())
    }

    /// Changes limits; what is `None` stays.
    ///
    /// # Errors
    /// A controller is missing, or the kernel refuses.
    pub fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits::apply(self, limits)
    }

    /// Puts a process into the group in every hierarchy.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        for dir in self.dirs() {
            write(&dir.join("cgroup.procs"), &pid.to_string(), "put a process into")?;
        }
        Ok(())
    }

    /// Every process in the group, by its id in this process's namespace.
    ///
    /// # Errors
    /// A list cannot be read; a group that does not exist has none.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            let mut found = Vec::new();
            collect(&dir, &mut found)?;
            pids.extend(found);
        }
        Ok(pids.into_iter().filter(|pid| *pid != 0).collect())
    }

    /// Stops or continues every process.
    ///
    /// # Errors
    /// There is no freezer, or it does not take effect in time.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let (file, on, off) = if self.layout.is_v2() {
            (self.dir("freezer").map(|d| d.join("cgroup.freeze")), "1", "0")
        } else {
            (self.dir("freezer").map(|d| d.join("freezer.state")), "FROZEN", "THAWED")
        };
        let file =
            file.ok_or(CgroupError::Missing { controller: "freezer", what: "running at all" })?;
        let wanted = if frozen { on } else { off };
        write(&file, wanted, "write the state of")?;
        let events = file.with_file_name("cgroup.events");
        let settled = || {
            if self.layout.is_v2() {
                let line = if frozen { "frozen 1" } else { "frozen 0" };
                read(&events).map(|text| text.lines().any(|l| l == line))
            } else {
                read(&file).map(|text| text.trim() == wanted)
            }
        };
        let deadline = Instant::now() + KILL_DEADLINE;
        while !settled()? {
            if Instant::now() > deadline {
                let source = io::ErrorKind::TimedOut.into();
                return Err(CgroupError::File { action: "wait for", path: file, source });
            }
            std::thread::sleep(KILL_POLL);
        }
        Ok(())
    }

    /// How often the kernel killed a process of the group for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = if self.layout.is_v2() { "memory.events" } else { "memory.oom_control" };
        self.dir("memory")
            .and_then(|dir| fs::read_to_string(dir.join(file)).ok())
            .and_then(|text| field(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// Sends a signal to every process of the group.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn signal(&self, signal: i32) -> Result<usize, CgroupError> {
        let pids = self.processes()?;
        for pid in &pids {
            // Ignored because: a process that ended in between needs no signal.
            let _ = sys::kill(*pid, signal);
        }
        Ok(pids.len())
    }

    /// Kills every process, waits until they are gone, and removes the group, and its parents where
    /// they are empty. Does nothing if the group does not exist.
    ///
    /// # Errors
    /// [`CgroupError::Stuck`], or the kernel refuses to remove the group.
    pub fn kill_and_remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            for dir in self.dirs() {
                // Version 2 kills a whole group at once, which no fork bomb outruns.
                // Ignored because: version 1 and kernels before 5.14 have no such file; the signals
                // that follow serve everywhere.
                let _ = fs::write(dir.join("cgroup.kill"), "1");
            }
            let count = self.signal(libc::SIGKILL)?;
            if count == 0 {
                break;
            }
            if self.dir("freezer").is_some_and(|dir| dir.exists()) {
                // Ignored because: a frozen process cannot die on version 1; when thawing fails the
                // deadline below tells.
                let _ = self.freeze(false);
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Stuck { path: self.path.clone(), count });
            }
            std::thread::sleep(KILL_POLL);
        }
        self.remove(deadline)
    }

    fn remove(&self, deadline: Instant) -> Result<(), CgroupError> {
        for root in self.layout.roots() {
            let dir = root.join(&self.path);
            loop {
                match remove_tree(&dir) {
                    Ok(()) => break,
                    // A process that just ended still counts for a moment.
                    Err(e)
                        if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
                    {
                        std::thread::sleep(KILL_POLL);
                    }
                    Err(source) => {
                        return Err(CgroupError::File { action: "remove", path: dir, source });
                    }
                }
            }
            for parent in Path::new(&self.path).ancestors().skip(1) {
                if parent.as_os_str().is_empty() || fs::remove_dir(root.join(parent)).is_err() {
                    break; // Another container still lives there.
                }
            }
        }
        Ok(())
    }

    /// The names of the groups directly below `parent`, in any hierarchy.
    #[must_use]
    pub fn children(parent: &str) -> BTreeSet<String> {
        let Ok(layout) = Layout::of_this_machine() else { return BTreeSet::new() };
        let mut names = BTreeSet::new();
        for root in layout.roots() {
            let Ok(entries) = fs::read_dir(root.join(parent)) else { continue };
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            names.extend(dirs.map(|e| e.file_name().to_string_lossy().into_owned()));
        }
        names
    }
}

/// Without a name it would be every process of the machine that is killed with the group.
fn valid(path: &str) -> Result<String, CgroupError> {
    let path = path.trim_matches('/');
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(CgroupError::Name { path: path.to_owned() });
    }
    Ok(path.to_owned())
}

/// Whether a directory that had just been there has been removed.
fn is_gone(error: &CgroupError) -> bool {
    let CgroupError::File { source, .. } = error else { return false };
    matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn collect(dir: &Path, pids: &mut Vec<u32>) -> Result<(), CgroupError> {
    let text = match read(&dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    pids.extend(text.lines().filter_map(|line| line.trim().parse::<u32>().ok()));
    // A container with a cgroup namespace of its own may have made groups below.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The number after `key ` in a file of `key value` lines.
pub(crate) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

fn write(path: &Path, value: &str, action: &'static str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::File {
        action,
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}
