//! What is done to a daemon in a burst, beside what users ask of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};

use crate::user::Ground;
use shoal_lab::reality::{Place, children};

/// One disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// kill -9 of the daemon.
    Daemon,
    /// kill -9 of one shim.
    Shim,
    /// kill -9 of the process of one container.
    Init,
    /// kill -9 of the resolver helper.
    Resolver,
    /// kill -9 of everything at once: what a power cut does to processes.
    Everything,
    /// The disk is full for the rest of the burst.
    Disk,
}

/// What happens in the next burst; nothing in a calm one.
pub fn choose(random: &mut StdRng) -> Vec<Act> {
    let mut acts = Vec::new();
    if random.random_ratio(1, 6) {
        return acts;
    }
    if random.random_ratio(1, 8) {
        acts.push(Act::Disk);
    }
    let small = [Act::Shim, Act::Shim, Act::Init, Act::Resolver];
    for _ in 0..random.random_range(0..3) {
        acts.push(small[random.random_range(0..small.len())]);
    }
    match random.random_range(0..12) {
        0..6 => acts.push(Act::Daemon),
        6 => acts.push(Act::Everything),
        _ => {}
    }
    acts
}

/// Kills something that belongs to containers or networks; what it may have changed is noted first,
/// so that no user is surprised.
pub fn strike(act: Act, place: &Place, ground: &Ground, random: &mut StdRng) {
    match act {
        Act::Shim => {
            let shims: Vec<(String, u32)> = place.shims().into_iter().collect();
            if let Some((id, pid)) = pick(&shims, random) {
                disturb(ground, id);
                end(ground, &format!("shim {pid} of {id}"), *pid);
            }
        }
        Act::Init => {
            let shims: BTreeSet<u32> = place.shims().into_values().collect();
            let groups: Vec<(String, BTreeSet<u32>)> = place.cgroups().into_iter().collect();
            let Some((id, pids)) = pick(&groups, random) else { return };
            if let Some(pid) = pids.iter().find(|pid| !shims.contains(pid)) {
                disturb(ground, id);
                end(ground, &format!("process {pid} of {id}"), *pid);
            }
        }
        Act::Resolver => {
            if let Some(pid) = place.resolver() {
                end(ground, "the resolver", pid);
            }
        }
        Act::Everything => {
            ground.all_disturbed.store(true, Ordering::SeqCst);
            let mut pids: BTreeSet<u32> = place.shims().into_values().collect();
            pids.extend(place.cgroups().into_values().flatten());
            pids.extend(place.resolver());
            for pid in pids {
                end(ground, "everything", pid);
            }
        }
        Act::Daemon | Act::Disk => {}
    }
}

fn pick<'a, T>(all: &'a [T], random: &mut StdRng) -> Option<&'a T> {
    if all.is_empty() { None } else { all.get(random.random_range(0..all.len())) }
}

fn disturb(ground: &Ground, id: &str) {
    let mut disturbed = ground.disturbed.lock().unwrap_or_else(PoisonError::into_inner);
    disturbed.insert(id.to_owned());
}

fn end(ground: &Ground, what: &str, pid: u32) {
    ground.journal.note(&format!("kill -9 {what}"));
    ground.journal.kills.fetch_add(1, Ordering::Relaxed);
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Ignored because: it may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Everything that a daemon may leave where nothing is any more.
pub fn remains(place: &Place) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut add = |what: &str, names: Vec<String>| {
        found.extend(names.into_iter().map(|name| format!("{what} {name}")));
    };
    add("exec/shims", children(&place.exec.join("shims")));
    add("exec/netns", children(&place.exec.join("netns")));
    add("data/containers", children(&place.data.join("containers")));
    add("data/volumes", children(&place.data.join("volumes")));
    add("data/images/l", children(&place.data.join("images/l")));
    add("data/images/ingest", children(&place.data.join("images/ingest")));
    add("cgroup", place.cgroups().into_keys().collect());
    add("shim", place.shims().into_keys().collect());
    found
}

/// What is no state file: content of containers, volumes and images, and what is made anew.
const CONTENT: [&str; 10] =
    ["upper", "work", "_data", "l", "blobs", "ingest", "netns", "lock", "rootfs", "ballast"];

/// A state file, picked at random.
pub fn state_file(place: &Place, random: &mut StdRng) -> Option<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![place.data.clone(), place.exec.join("shims")];
    while let Some(dir) = open.pop() {
        for name in children(&dir).into_iter().filter(|name| !CONTENT.contains(&name.as_str())) {
            let path = dir.join(name);
            match std::fs::symlink_metadata(&path) {
                Ok(about) if about.is_dir() => open.push(path),
                Ok(about) if about.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    pick(&files, random).cloned()
}

/// Damages a file; says how.
pub fn damage(path: &Path, random: &mut StdRng) -> std::io::Result<&'static str> {
    let bytes = std::fs::read(path)?;
    match random.random_range(0..4) {
        0 => std::fs::write(path, "").map(|()| "emptied"),
        1 => {
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            std::fs::write(path, half).map(|()| "cut short")
        }
        2 => std::fs::write(path, "\u{0}{[ nonsense").map(|()| "filled with nonsense"),
        _ => std::fs::remove_file(path).map(|()| "removed"),
    }
}
