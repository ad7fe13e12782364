//! Managers that are locked after a restart, driven by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::process::Stdio;

use shoal_lab::{CONVERGE, Cluster, DaemonOptions, Host, Lab, eventually, import_shoal, shoal};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \
                      \"docker swarm unlock\" to unlock it.";
const WRONG: &str = "SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8";

fn file(host: &Host, name: &str) -> String {
    let path = host.place().data.join("swarm").join(name);
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Waits until a manager's files are all wrapped by a key of before or after, as `holds` says of
/// the key file, and nothing is half done.
fn wait_sealed(host: &Host, what: &str, holds: impl Fn(&str) -> bool) {
    eventually(&format!("the files of {} to be {what}", host.name()), CONVERGE, || {
        let (keys, identity) = (file(host, "store/store.key"), file(host, "identity.json"));
        let wrapped = keys.contains("\"wrapped\":true");
        let whole = keys.matches("generation").count() <= 1;
        let fits = identity.contains("PRIVATE KEY") != wrapped;
        if whole && fits && holds(&keys) { Ok(()) } else { Err(format!("{keys}\n{identity}")) }
    });
}

fn wait_locked_on_disk(host: &Host) {
    wait_sealed(host, "wrapped", |keys| keys.contains("\"wrapped\":true"));
}

/// Whether the files are wrapped for the cluster as it was at the same time as those of another.
fn revision(host: &Host) -> String {
    let keys = file(host, "store/store.key");
    let after = keys.split_once("\"revision\":").map(|(_, after)| after.to_owned());
    after.unwrap_or_default().split(',').next().unwrap().to_owned()
}

/// `docker swarm unlock` with a key; what it says, if it fails.
fn unlock(host: &Host, key: &str) -> Result<(), String> {
    let mut command = host.docker_cmd(&["swarm", "unlock"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{key}\n").as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).into_owned())
}

fn kill_and_restart(host: &Host) {
    host.kill_daemon();
    host.restart();
}

fn state(host: &Host) -> String {
    host.docker("info -f {{.Swarm.LocalNodeState}}")
}

fn wait_managers(host: &Host, wanted: &[&str]) {
    eventually(&format!("managers to be {wanted:?} on {}", host.name()), CONVERGE, || {
        let out = host.try_docker("node ls --format {{.ManagerStatus}}");
        let list = String::from_utf8_lossy(&out.stdout).into_owned();
        let mut said: Vec<&str> = list.lines().filter(|line| !line.is_empty()).collect();
        said.sort_unstable();
        if said == wanted { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// The key in what a command prints for its user.
fn printed_key(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| line.starts_with("SWMKEY-1-"));
    line.unwrap_or_else(|| panic!("no key: {text}")).to_owned()
}

fn containers(host: &Host) -> String {
    let ids = host.docker("ps -q --no-trunc");
    let mut args = vec!["inspect", "-f", "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}"];
    args.extend(ids.lines());
    host.docker_args(&args)
}

const THREE: [&str; 3] = ["Leader", "Reachable", "Reachable"];

#[test]
fn three_managers_are_locked_unlocked_and_their_key_is_rotated() {
    let cluster = Cluster::managers("autolock_three", 3, 1);
    let [first, second, third] = [1, 2, 3].map(|index| cluster.node(index));
    let all = [first, second, third];
    for host in all {
        wait_managers(host, &THREE);
        wait_sealed(host, "in clear", |keys| !keys.contains("wrapped"));
    }
    first.docker("service create -d --name web --replicas 3 -p 8080:80 shoal:lab shoal try whoami");
    cluster.wait_tasks("web", 3);
    cluster.wait_port(4, 8080);
    let refused = first.docker_fails("swarm unlock-key --rotate");
    assert!(refused.contains("autolock is not turned on"), "{refused}");
    assert!(unlock(first, WRONG).unwrap_err().contains("swarm is not locked"));
    let key = printed_key(&second.docker("swarm update --autolock=true"));
    for host in all {
        wait_locked_on_disk(host);
        assert_eq!(host.docker("swarm unlock-key -q"), key);
    }

    // Locked, it answers for itself, and what runs goes on.
    let before = containers(second);
    kill_and_restart(second);
    assert_eq!(state(second), "locked");
    let info = second.docker("info");
    assert!(info.contains("Swarm: locked"), "{info}");
    for command in [
        "node ls",
        "service ls",
        "swarm join-token worker",
        "swarm unlock-key",
        "swarm update --autolock=false",
    ] {
        let said = second.docker_fails(command);
        assert!(said.contains(LOCKED), "{command}: {said}");
    }
    assert_eq!(containers(second), before);
    let url = format!("http://{}:8080/", second.address());
    let answers = cluster.ask_from_host(4, &url, 6);
    assert!(!answers.iter().any(|a| a == "FAILED"), "{answers:?}");
    let said = second.docker_fails("swarm leave");
    assert!(said.contains("Swarm is encrypted and locked"), "{said}");
    let said = unlock(second, WRONG).unwrap_err();
    assert!(said.contains("swarm could not be unlocked: invalid key provided"), "{said}");
    let said = unlock(second, "open sesame").unwrap_err();
    assert!(said.contains("invalid unlock key"), "{said}");
    assert_eq!(state(second), "locked");
    unlock(second, &key).unwrap();
    wait_managers(second, &THREE);
    assert_eq!(containers(second), before);

    // One is off while the key is rotated.
    third.kill_daemon();
    let wanted = ["Leader", "Reachable", "Unreachable"];
    wait_managers(first, &wanted);
    let said = first.docker("swarm unlock-key --rotate");
    let rotated = printed_key(&said);
    assert_ne!(rotated, key);
    let asked = revision(third);
    for host in [first, second] {
        wait_sealed(host, "rotated", |_| revision(host) != asked);
        assert_eq!(host.docker("swarm unlock-key -q"), rotated);
    }
    kill_and_restart(second);
    let said = unlock(second, &key).unwrap_err();
    assert!(said.contains("invalid key provided"), "{said}");
    unlock(second, &rotated).unwrap();
    third.restart();
    assert_eq!(state(third), "locked");
    assert!(unlock(third, &rotated).is_err());
    unlock(third, &key).unwrap();
    wait_managers(third, &THREE);
    // It catches up, and its files are wrapped by the new one.
    wait_sealed(third, "rotated", |_| revision(third) == revision(first));
    kill_and_restart(third);
    assert!(unlock(third, &key).is_err());
    unlock(third, &rotated).unwrap();

    // All of them at once.
    for host in all {
        host.kill_daemon();
    }
    for host in all {
        host.restart();
        assert_eq!(state(host), "locked");
    }
    for host in all {
        unlock(host, &rotated).unwrap();
    }
    for host in all {
        wait_managers(host, &THREE);
    }
    cluster.wait_tasks("web", 3);
    third.docker("swarm update --autolock=false");
    for host in all {
        wait_sealed(host, "in clear", |keys| !keys.contains("\"wrapped\":true"));
        kill_and_restart(host);
        assert_eq!(state(host), "active");
        wait_managers(host, &THREE);
    }
    assert!(first.docker_fails("swarm unlock-key -q").contains("no unlock key is set"));
    cluster.wait_tasks("web", 3);
    cluster.finish();
}

fn join(host: &Host, role: &str, to: &Host) {
    let token = to.docker(&format!("swarm join-token -q {role}"));
    host.docker(&format!("swarm join --token {token} {}:2377", to.address()));
}

#[test]
fn who_becomes_a_manager_of_a_locked_swarm_is_locked_and_who_stops_being_one_is_not() {
    let lab = Lab::start("autolock_roles", 4);
    let [first, worker, third, fresh] = [1, 2, 3, 4].map(|index| lab.host(index));
    for host in [first, worker, third, fresh] {
        host.daemon_with(&DaemonOptions::default());
        import_shoal(host);
    }
    let said = first.docker(&format!("swarm init --autolock --advertise-addr {}", first.address()));
    let key = printed_key(&said);
    wait_locked_on_disk(first);
    assert_eq!(first.docker("swarm unlock-key -q"), key);
    join(worker, "worker", first);
    kill_and_restart(worker);
    assert_eq!(state(worker), "active");

    // A worker that is promoted, and a manager that joins.
    first.docker("node promote node-2");
    wait_locked_on_disk(worker);
    join(third, "manager", first);
    wait_managers(first, &THREE);
    wait_locked_on_disk(third);
    for host in [worker, third] {
        kill_and_restart(host);
        assert_eq!(state(host), "locked");
        unlock(host, &key).unwrap();
        wait_managers(host, &THREE);
    }
    // Demoted, it has neither store nor key.
    eventually("the demotion to be taken", CONVERGE, || {
        // The node has only just come back: what is said of it may change between the client's
        // reading and its writing.
        let out = first.try_docker("node demote node-2");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(said) }
    });
    eventually("the store and its key to be gone", CONVERGE, || {
        let (identity, keys) = (file(worker, "identity.json"), file(worker, "store/store.key"));
        let clear = identity.contains("PRIVATE KEY") && keys.is_empty();
        if clear { Ok(()) } else { Err(format!("{keys}\n{identity}")) }
    });
    kill_and_restart(worker);
    assert_eq!(state(worker), "active");
    assert!(worker.docker_fails("node ls").contains("not a swarm manager"));

    // The majority is lost, and what is left is locked.
    let backup = lab.dir().join("swarm.backup").to_string_lossy().into_owned();
    let shoal_does = |host: &Host, args: &[&str]| {
        let mut command = host.command(&shoal().to_string_lossy());
        let out = command.args(args).args(["-H", &host.socket()]).stdin(Stdio::null()).output();
        out.unwrap()
    };
    assert!(shoal_does(first, &["backup", "--plain", &backup]).status.success());
    third.kill_daemon();
    kill_and_restart(first);
    let out = shoal_does(first, &["backup", "--plain", &format!("{backup}2")]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("needs to be unlocked"), "{out:?}");
    let said = first.docker_fails("swarm init --force-new-cluster");
    assert!(said.contains(LOCKED), "{said}");
    unlock(first, &key).unwrap();
    first.docker("swarm init --force-new-cluster");
    wait_managers(first, &["Leader"]);
    assert_eq!(first.docker("swarm unlock-key -q"), key);
    kill_and_restart(first);
    assert_eq!(state(first), "locked");
    unlock(first, &key).unwrap();

    // The other one is left without its key: it leaves all the same.
    third.restart();
    assert_eq!(state(third), "locked");
    third.docker("swarm leave --force");
    assert_eq!(state(third), "inactive");
    // A swarm from a backup is locked by the key of then.
    let args = ["restore", "--advertise-addr", fresh.address(), &backup];
    let out = shoal_does(fresh, &args);
    assert!(out.status.success(), "{out:?}");
    wait_locked_on_disk(fresh);
    kill_and_restart(fresh);
    assert_eq!(state(fresh), "locked");
    unlock(fresh, &key).unwrap();
    assert_eq!(fresh.docker("swarm unlock-key -q"), key);
    lab.finish();
}
