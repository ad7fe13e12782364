//! Damaged state keeps nothing down: the daemon starts, names the damage, and what does not depend
//! on it goes on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_lab::http::get;
use shoal_lab::{CONVERGE, Host, Lab, eventually, import_busybox, must};

/// How long a daemon may take to start on what it finds.
const START: Duration = Duration::from_secs(60);
/// What is never damaged by itself: content of containers, volumes and images, locks that are held,
/// logs, namespaces, which are mounts, and files that each start of a container makes anew.
const CONTENT: [&str; 12] = [
    "upper",
    "work",
    "_data",
    "l",
    "netns",
    "lock",
    "log",
    "shim.err",
    "rootfs",
    "hosts",
    "hostname",
    "resolv.conf",
];

/// What is done to a file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Empty,
    CutShort,
    Garbage,
    Gone,
    /// A stray file beside the others.
    Stray,
}

fn apply(path: &Path, damage: Damage) {
    match damage {
        Damage::Empty => std::fs::write(path, "").unwrap(),
        Damage::CutShort => {
            let bytes = std::fs::read(path).unwrap();
            // Records are padded.
            let bytes = bytes.trim_ascii_end();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }
        Damage::Garbage => std::fs::write(path, "\u{0}\u{1}{[ nonsense").unwrap(),
        Damage::Gone if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Damage::Gone => std::fs::remove_file(path).unwrap(),
        Damage::Stray => std::fs::write(path.join("stray"), "who put this here?").unwrap(),
    }
}

/// State files and directories below `dir`, without content.
fn state(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let about = std::fs::symlink_metadata(&path).unwrap();
        let odd = about.file_type().is_socket() || about.file_type().is_symlink();
        if odd || CONTENT.contains(&name.as_str()) {
            continue;
        }
        found.push(path.clone());
        if about.is_dir() {
            state(&path, found);
        }
    }
}

/// Of many files of one kind one is enough: names with ids are alike.
fn kind_of(path: &Path, root: &Path) -> String {
    let inside = path.strip_prefix(root).unwrap();
    let words = inside.iter().map(|word| {
        let word = word.to_string_lossy();
        let stem = word.split('.').next().unwrap_or_default();
        let id = stem.len() >= 12 && stem.bytes().all(|b| b.is_ascii_alphanumeric());
        if id { "ID".to_owned() } else { word.into_owned() }
    });
    words.collect::<Vec<_>>().join("/")
}

/// A host whose daemon has some of everything.
fn furnish(host: &Host) {
    import_busybox(host);
    host.docker("tag busybox:lab other:one");
    host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    host.docker("network create own");
    host.docker("volume create things");
    host.docker(
        "run -d --name one --restart always --network own -v things:/v busybox:lab sleep 999",
    );
    host.docker("run -d --name two --restart always busybox:lab sleep 999");
    host.docker("create --name three busybox:lab true");
    host.docker("service create -d --name svc busybox:lab sleep 999");
    eventually("the service's task", CONVERGE, || {
        let list = host.docker("service ps --format {{.CurrentState}} svc");
        if list.starts_with("Running") { Ok(()) } else { Err(list) }
    });
}

/// A lab of one host that is furnished.
fn furnished(name: &str) -> Lab {
    let lab = Lab::start(name, 1);
    lab.host(1).daemon();
    furnish(lab.host(1));
    lab
}

fn copy(from: &Path, to: &Path) {
    must(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
}

/// One kind of damage to one thing: stopped daemon, damaged copy, start, and what holds then.
fn survives(host: &Host, kind: &str, path: &Path, damage: Damage) -> Result<(), String> {
    let place = host.place();
    let log_len = std::fs::metadata(&host.logs()[0]).unwrap().size();
    host.kill_daemon();
    apply(path, damage);
    host.try_restart(START).map_err(|problem| {
        let last = problem.lines().rfind(|line| !line.contains("DEBUG"));
        format!("it does not start: {}", last.unwrap_or_default())
    })?;
    let info = get(&place.socket, "/info").ok_or("info is not answered")?;
    let log = std::fs::read(&host.logs()[0]).unwrap();
    let new = String::from_utf8_lossy(&log[usize::try_from(log_len).unwrap()..]).into_owned();
    let said = info["Warnings"].as_array().is_some_and(|list| !list.is_empty())
        || info["Swarm"]["LocalNodeState"] == "error"
        || new.contains("ERROR");
    let spoilt = matches!(damage, Damage::Garbage | Damage::CutShort);
    if !said && spoilt && NAMED.contains(&kind) {
        return Err("nobody says so".to_owned());
    }
    Ok(())
}

/// State that nothing else holds: its damage has to be said. The rest is made anew or healed from
/// a copy, or is gone without a trace.
const NAMED: [&str; 5] = [
    "agent/assignment.json",
    "agent/networks.json",
    "containers/ID/record.json",
    "images/index.json",
    "swarm/node.json",
];

#[test]
fn no_damaged_file_keeps_the_daemon_down() {
    let lab = furnished("damage");
    let host = lab.host(1);
    let place = host.place();
    let roots = [place.data.clone(), place.exec.clone()];
    let mut things = Vec::new();
    for root in &roots {
        let mut found = Vec::new();
        state(root, &mut found);
        let mut kinds = std::collections::BTreeMap::new();
        for path in found {
            kinds.entry(kind_of(&path, root)).or_insert(path);
        }
        things.extend(kinds);
    }
    let backup = lab.dir().join("backup");
    let mut wrong = Vec::new();
    for (kind, path) in things {
        let damages: &[Damage] = if path.is_dir() {
            &[Damage::Stray]
        } else {
            &[Damage::Empty, Damage::CutShort, Damage::Garbage, Damage::Gone]
        };
        for damage in damages.iter().filter(|_| path.exists()) {
            if *damage != Damage::Stray {
                copy(&path, &backup);
            }
            if let Err(problem) = survives(host, &kind, &path, *damage) {
                wrong.push(format!("{kind} {damage:?}: {problem}"));
            }
            // As it was, for the next one.
            host.kill_daemon();
            if *damage == Damage::Stray {
                // Ignored because: the daemon may have moved it out of the way.
                let _ = std::fs::remove_file(path.join("stray"));
            } else if path.parent().is_some_and(|dir| !dir.exists()) {
                // The directory of a task that was replaced meanwhile is gone, and rightly so.
                must(std::process::Command::new("rm").arg("-rf").arg(&backup));
            } else {
                must(std::process::Command::new("mv").arg("-T").arg(&backup).arg(&path));
            }
            if let Err(problem) = host.try_restart(START) {
                panic!("{kind} {damage:?}: not even when it is as it was: {problem}");
            }
        }
    }
    assert!(wrong.is_empty(), "not survived:\n  {}", wrong.join("\n  "));
    for name in ["one", "two"] {
        eventually("the undamaged to run", CONVERGE, || {
            let state = host.docker(&format!("inspect -f {{{{.State.Status}}}} {name}"));
            if state == "running" { Ok(()) } else { Err(state) }
        });
    }
    // Ignored because: with its membership's record gone, the node left by itself.
    let _ = host.try_docker("swarm leave --force");
    // Ignored because: without its record, what was never started is a creation that was cut off.
    let _ = host.try_docker("rm -f three");
    host.docker("rm -f one two");
    lab.finish();
}

#[test]
fn nobody_but_root_reads_a_daemons_files() {
    let lab = furnished("private");
    let host = lab.host(1);
    let place = host.place();
    let mut open: Vec<PathBuf> = Vec::new();
    for root in [&place.data, &place.exec] {
        let rights = std::fs::metadata(root).unwrap().mode() & 0o777;
        assert_eq!(rights, 0o700, "{}", root.display());
    }
    host.docker("swarm leave --force");
    host.docker("rm -f one two three");
    for root in [&place.data, &place.exec] {
        let mut found = Vec::new();
        state(root, &mut found);
        let root_mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().mode();
        open.extend(found.into_iter().filter(|path| root_mode(path) & 0o004 != 0));
    }
    // Images are public as far as Shoal is concerned; sockets and helpers' files lie below the
    // roots, which nobody else enters.
    let elsewhere = [place.data.join("images"), place.exec.clone()];
    open.retain(|path: &PathBuf| !elsewhere.iter().any(|dir| path.starts_with(dir)));
    assert!(open.is_empty(), "readable by everybody: {open:?}");
    lab.finish();
}
