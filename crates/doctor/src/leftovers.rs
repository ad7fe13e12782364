//! What checks of a killed program left behind: scratch directories, groups and namespaces, each
//! with the number of its process in its name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host;

/// What every scratch name of a check begins with, of this crate, of `netlink` and of `runtime`.
const PREFIX: &str = "shoal-check-";

/// Removes what is left of checks whose process is gone. `data_root` need not exist. Gives what
/// cannot be removed, and why: nobody uses it, and the next run tries again.
#[must_use]
pub fn sweep(data_root: &Path) -> Vec<String> {
    let mut stays = Vec::new();
    let mut say = |path: &Path, why: &dyn std::fmt::Display| {
        let what = "left by a check that was killed, and cannot be removed";
        stays.push(format!("'{}' was {what}: {why}; remove it by hand", path.display()));
    };
    for path in of_the_dead(host::scratch_base(data_root)) {
        gone(host::remove_scratch(&path)).unwrap_or_else(|why| say(&path, &why));
    }
    for root in host::group_roots() {
        for group in of_the_dead(&root) {
            gone(remove_groups(&group)).unwrap_or_else(|why| say(&group, &why));
        }
    }
    for path in of_the_dead(&std::env::temp_dir()) {
        shoal_netlink::netns::delete(&path).unwrap_or_else(|why| say(&path, &why));
    }
    stays
}

/// Somebody else may sweep at the same time.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Entries of a directory that checks of ended processes made.
fn of_the_dead(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(process).is_some_and(|pid| !is_alive(pid))
    });
    left.map(|entry| entry.path()).collect()
}

/// The process that a scratch name speaks of: `[.]shoal-check-PID[-COUNT]`.
fn process(name: &str) -> Option<u32> {
    let rest = name.strip_prefix('.').unwrap_or(name).strip_prefix(PREFIX)?;
    let mut numbers = rest.splitn(2, '-');
    let pid = numbers.next()?.parse().ok()?;
    match numbers.next() {
        Some(count) if count.parse::<u32>().is_err() => None,
        _ => Some(pid),
    }
}

/// Whether it runs. A number that was given to another process since keeps what is left until that
/// has ended, too.
fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Removes an empty control group and those in it.
fn remove_groups(group: &Path) -> io::Result<()> {
    for child in fs::read_dir(group)? {
        let child = child?;
        if child.file_type()?.is_dir() {
            gone(remove_groups(&child.path()))?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_checks_give_are_read() {
        assert_eq!(process(".shoal-check-41-0"), Some(41));
        assert_eq!(process("shoal-check-41"), Some(41));
        for foreign in ["shoal-check-", "shoal-check-x-1", "shoal-check-41-x", "shoal-41", "41"] {
            assert_eq!(process(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_the_living_use_stays() {
        let root = tempfile::tempdir().unwrap();
        // No process has this number: it is above what Linux gives (`pid_max`, 2^22 at most).
        let dead = root.path().join(".shoal-check-4194305-0");
        let mine = root.path().join(format!(".shoal-check-{}-7", std::process::id()));
        let foreign = root.path().join("shoal-check-notes");
        for path in [&dead, &mine, &foreign] {
            fs::create_dir_all(path.join("lower")).unwrap();
        }
        assert_eq!(sweep(root.path()), Vec::<String>::new());
        assert!(!dead.exists());
        assert!(mine.exists() && foreign.exists());
    }
}
