//! What is really there, whatever the daemon says of it, and whether the two agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::http::get;

/// Where a host's daemon keeps its things.
#[derive(Clone, Debug)]
pub struct Place {
    /// The socket.
    pub socket: PathBuf,
    /// Data root.
    pub data: PathBuf,
    /// Exec root.
    pub exec: PathBuf,
    /// Name of the host's network namespace.
    pub netns: String,
}

impl Place {
    /// The instance id.
    #[must_use]
    pub fn instance(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("instance")).unwrap_or_default();
        text.trim().to_owned()
    }

    /// Shims that live: pid by container.
    #[must_use]
    pub fn shims(&self) -> BTreeMap<String, u32> {
        let marker = self.exec.join("shims").to_string_lossy().into_owned() + "/";
        let mut found = BTreeMap::new();
        for (pid, words) in processes() {
            let is_shim = words.get(1).is_some_and(|word| word == "shim");
            let dir = words.get(2).and_then(|dir| dir.strip_prefix(&marker));
            // The shim's children carry its command line until they become something else; the
            // oldest is the shim itself.
            if let (true, Some(id)) = (is_shim, dir) {
                let entry = found.entry(id.to_owned()).or_insert(pid);
                *entry = (*entry).min(pid);
            }
        }
        found
    }

    /// The resolver helper, if it lives.
    #[must_use]
    pub fn resolver(&self) -> Option<u32> {
        let marker = self.exec.to_string_lossy().into_owned();
        let is = |words: &[String]| {
            words.get(1).is_some_and(|word| word == "resolver")
                && words.iter().any(|word| word.starts_with(&marker))
        };
        processes().into_iter().find(|(_, words)| is(words)).map(|(pid, _)| pid)
    }

    /// Control groups of containers, with the processes in each.
    #[must_use]
    pub fn cgroups(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let parent = format!("shoal-{}", self.instance());
        let mut found: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        let hierarchies = children(Path::new("/sys/fs/cgroup")).into_iter();
        let mut parents: Vec<PathBuf> =
            hierarchies.map(|name| Path::new("/sys/fs/cgroup").join(name).join(&parent)).collect();
        parents.push(Path::new("/sys/fs/cgroup").join(&parent));
        for parent in parents {
            for id in children(&parent) {
                let group = parent.join(&id);
                if !group.is_dir() {
                    continue;
                }
                let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                let pids = text.lines().filter_map(|line| line.parse::<u32>().ok());
                found.entry(id).or_default().extend(pids);
            }
        }
        found
    }

    /// Links and mounts of this daemon on its host, without what differs from time to time.
    fn links(&self) -> Vec<String> {
        let out = Command::new("ip").args(["-n", &self.netns, "-o", "link"]).output();
        let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        text.unwrap_or_default().lines().filter_map(name).filter(|n| n.starts_with("sh")).collect()
    }
}

/// Everything that is not as it should be, one line each.
#[must_use]
pub fn compare(place: &Place) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(list) = get(&place.socket, "/containers/json?all=1") else {
        return vec!["the list of containers is not answered".to_owned()];
    };
    let records = records(&list, &mut wrong);
    let alive = |id: &str| {
        records.get(id).is_some_and(|(_, state)| matches!(state.as_str(), "running" | "paused"))
    };
    let said = |id: &str| records.get(id).map_or("nothing", |(_, state)| state.as_str()).to_owned();
    let shims = place.shims();
    let cgroups = place.cgroups();
    for (id, (name, state)) in records.iter().filter(|(id, _)| alive(id)) {
        if !shims.contains_key(id) {
            wrong.push(format!("[runtime] recorded {state} without a shim: {name} {id}"));
        }
        if cgroups.get(id).is_none_or(BTreeSet::is_empty) {
            wrong.push(format!("[runtime] recorded {state} without a process: {name} {id}"));
        }
    }
    for (id, pid) in &shims {
        if !alive(id) {
            wrong.push(format!("[engine] a shim runs (pid {pid}), recorded {}: {id}", said(id)));
        }
    }
    for (id, pids) in &cgroups {
        if !pids.is_empty() && !alive(id) {
            wrong.push(format!("[engine] processes run, recorded {}: {id}", said(id)));
        } else if !alive(id) && said(id) != "restarting" {
            wrong.push(format!("[runtime] a cgroup is left, recorded {}: {id}", said(id)));
        }
    }
    for id in children(&place.exec.join("shims")) {
        if !alive(&id) && said(&id) != "restarting" {
            wrong
                .push(format!("[engine] a shim's directory is left, recorded {}: {id}", said(&id)));
        }
    }
    let known: BTreeSet<String> = records.keys().cloned().collect();
    for id in children(&place.data.join("containers")) {
        if !known.contains(&id) {
            wrong.push(format!("[engine] a directory in containers/ without a record: {id}"));
        }
    }
    networks(place, &|id| alive(id) || said(id) == "restarting", &said, &mut wrong);
    volumes(place, &mut wrong);
    wrong
}

/// Id to name and state.
fn records(list: &Value, wrong: &mut Vec<String>) -> BTreeMap<String, (String, String)> {
    let mut found = BTreeMap::new();
    let mut names = BTreeSet::new();
    for one in list.as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (id, name, state) = (text(&one["Id"]), text(&one["Names"][0]), text(&one["State"]));
        if !names.insert(name.clone()) {
            wrong.push(format!("[engine] two containers are called {name}"));
        }
        if matches!(state.as_str(), "removing" | "dead") {
            wrong.push(format!("[engine] {name} stays {state}: {id}"));
        }
        found.insert(id, (name, state));
    }
    found
}

fn networks(
    place: &Place,
    alive: &dyn Fn(&str) -> bool,
    said: &dyn Fn(&str) -> String,
    wrong: &mut Vec<String>,
) {
    let listed = get(&place.socket, "/networks").unwrap_or_default();
    let ids: BTreeSet<String> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["Id"].as_str().map(str::to_owned))
        .collect();
    let mut namespaces = 0;
    for entry in children(&place.exec.join("netns")) {
        if let Some(id) = entry.strip_prefix("c-") {
            if !alive(id) {
                wrong.push(format!("[network] sandbox left, recorded {}: {id}", said(id)));
            }
        } else if let Some(id) = entry.strip_prefix("n-") {
            namespaces += 1;
            if !ids.contains(id) {
                wrong.push(format!("[network] namespace of an unknown network: {id}"));
            }
        }
    }
    let links = place.links().len();
    if links > namespaces {
        wrong.push(format!("[network] {links} host links for {namespaces} networks"));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let exec = place.exec.to_string_lossy().into_owned();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if mount.starts_with(&exec) && !Path::new(mount).starts_with(place.exec.join("netns")) {
            wrong.push(format!("[runtime] a mount is left on the host: {mount}"));
        }
    }
}

fn volumes(place: &Place, wrong: &mut Vec<String>) {
    let listed = get(&place.socket, "/volumes").unwrap_or_default();
    let names: BTreeSet<String> = listed["Volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["Name"].as_str().map(str::to_owned))
        .collect();
    for name in children(&place.data.join("volumes")) {
        if !names.contains(&name) {
            wrong.push(format!("[engine] a directory in volumes/ that is no volume: {name}"));
        }
    }
}

/// Names in a directory; none if it is not there.
#[must_use]
pub fn children(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Process ids with their command lines.
#[must_use]
pub fn processes() -> Vec<(u32, Vec<String>)> {
    let mut found = Vec::new();
    for name in children(Path::new("/proc")) {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = raw.split(|byte| *byte == 0);
        let words: Vec<String> = words.map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        found.push((pid, words));
    }
    found
}
