//! Two versions of the program in one swarm: every node gets the next version while requests go on,
//! and what only that version can read is written once everybody can.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::http::{Outcome, Request};
use shoal_lab::{Cluster, DaemonOptions, Host, Load, eventually, leader, shoal_next};

/// How long the swarm may take for a step: an election, a slow machine.
const CHANGE: Duration = Duration::from_secs(60);
/// The formats that the two programs write.
const OLD: u64 = 1;
const NEXT: u64 = 2;

fn old() -> DaemonOptions {
    DaemonOptions { args: vec!["--live-restore".to_owned()], ..DaemonOptions::default() }
}

fn next() -> DaemonOptions {
    DaemonOptions { program: Some(shoal_next()), ..old() }
}

/// The format that the swarm writes, as this manager knows.
fn format(host: &Host) -> Option<u64> {
    match Request::new("GET", "/swarm").send(&host.place().socket) {
        Outcome::Answered(200, body) => {
            serde_json::from_str::<serde_json::Value>(&body).unwrap()["Format"].as_u64()
        }
        _ => None,
    }
}

fn wait_format(host: &Host, wanted: u64) {
    eventually(&format!("format {wanted} on {}", host.name()), CHANGE, || {
        let found = format(host);
        if found == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn make_network(host: &Host, name: &str) {
    host.docker(&format!("network create -d overlay {name}"));
}

fn has_network(host: &Host, name: &str) {
    eventually(&format!("network {name} on {}", host.name()), CHANGE, || {
        let list = host.docker("network ls --format {{.Name}}");
        if list.lines().any(|line| line == name) { Ok(()) } else { Err(list) }
    });
}

/// What `docker info` warns of, and the node's own trouble.
fn info(host: &Host) -> String {
    let out = host.try_docker("info");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&out.stdout) + &text(&out.stderr)
}

fn wait_info(host: &Host, part: &str) {
    eventually(&format!("'{part}' in docker info of {}", host.name()), CHANGE, || {
        let said = info(host);
        if said.contains(part) { Ok(()) } else { Err(said) }
    });
}

fn containers(cluster: &Cluster) -> Vec<String> {
    (1..=cluster.nodes).map(|index| cluster.node(index).docker("ps -q --no-trunc")).collect()
}

/// Three managers and `workers`, all with the program of before, and hosts for clients.
fn swarm(name: &str, workers: u8) -> Cluster {
    let cluster = Cluster::start_with(name, 3 + workers, 1, &old());
    cluster.manager().docker("node promote node-2 node-3");
    for index in 1..=3 {
        leader(cluster.node(index), 3, CHANGE);
    }
    cluster
}

/// Stops the daemon of a node, lets the other managers be asked, and starts it as `options` say.
fn replace(cluster: &Cluster, index: usize, options: &DaemonOptions, label: &str) {
    cluster.node(index).stop_daemon();
    for other in (1..=3).filter(|other| *other != index) {
        make_network(cluster.node(other), &format!("{label}-{other}"));
    }
    cluster.node(index).restart_with(options);
    for manager in 1..=3 {
        leader(cluster.node(manager), 3, CHANGE);
    }
    cluster.wait_ready(cluster.nodes);
    if index <= 3 {
        make_network(cluster.node(index), &format!("{label}-{index}"));
    }
    for manager in 1..=3 {
        for made in 1..=3 {
            has_network(cluster.node(manager), &format!("{label}-{made}"));
        }
    }
}

/// Daemons that keep their containers leave something behind.
fn finish(cluster: Cluster) {
    let last = DaemonOptions { program: Some(shoal_next()), ..DaemonOptions::default() };
    for index in (1..=cluster.nodes).rev() {
        cluster.node(index).restart_with(&last);
    }
    leader(cluster.node(1), 3, CHANGE);
    cluster.finish();
}

#[test]
fn every_node_is_upgraded_under_load_and_then_the_format_is_raised() {
    let cluster = swarm("upgrade", 1);
    cluster.manager().docker(
        "service create -d --name web --replicas 4 -l shoal.next-level=archive -p 8091:80 \
         shoal:lab shoal try whoami --keep-alive 10",
    );
    let tasks = cluster.wait_tasks("web", 4);
    cluster.wait_port(5, 8091);
    let held = containers(&cluster);
    let load = Load::many(&cluster, 5, 8091);
    let version = |index: usize| cluster.node(index).docker("version -f {{.Server.Version}}");
    let before = version(1);

    replace(&cluster, 4, &next(), "worker");
    assert_eq!(version(4), format!("{before}-next"));
    // The leader is the first manager with the next version, so an old one leads a newer one.
    let first = leader(cluster.node(1), 3, CHANGE);
    replace(&cluster, first, &next(), "first");
    let second = leader(cluster.node(1), 3, CHANGE);
    assert_ne!(second, first);
    assert_eq!(version(second), before);
    replace(&cluster, second, &next(), "second");
    // Now the other way round: the last one is old, and does not lead.
    let last = 6 - first - second;
    if leader(cluster.node(1), 3, CHANGE) == last {
        replace(&cluster, last, &old(), "again");
    }
    assert_ne!(leader(cluster.node(1), 3, CHANGE), last);
    let listed = cluster.node(last).docker("node ls --format {{.Hostname}}={{.EngineVersion}}");
    // What a node lacks stands behind its version.
    let words: Vec<&str> = listed.split_whitespace().collect();
    assert!(words.contains(&&*format!("node-{last}={before}")), "{listed}");
    assert!(words.contains(&&*format!("node-{first}={before}-next")), "{listed}");
    for index in 1..=3 {
        assert_eq!(format(cluster.node(index)), Some(OLD), "not everybody can read more");
    }
    assert_eq!(cluster.tasks("web"), tasks, "tasks were replaced");
    // One goes, and what becomes of it is a word of the next format.
    replace(&cluster, last, &next(), "last");
    for index in 1..=3 {
        wait_format(cluster.node(index), NEXT);
        make_network(cluster.node(index), &format!("raised-{index}"));
    }
    assert_eq!(cluster.tasks("web"), tasks, "tasks were replaced");
    assert_eq!(containers(&cluster), held, "containers were stopped or started");
    load.finish(&cluster, 5, 200);
    cluster.manager().docker("service scale -d web=3");
    cluster.manager().docker("service update -d --env-add CHANGED=yes web");
    eventually("an ended task in the next version's word", CHANGE, || {
        let out = cluster.node(2).docker("service ps web --format {{.CurrentState}}");
        if out.contains("Archived") { Ok(()) } else { Err(out) }
    });
    cluster.wait_tasks("web", 3);
    back_is_refused(&cluster);
    finish(cluster);
}

/// Back to the version before: no.
fn back_is_refused(cluster: &Cluster) {
    let worker = cluster.node(4);
    worker.restart_with(&old());
    wait_info(worker, "upgrade this node: the cluster writes format 2");
    wait_info(cluster.node(1), "node node-4: upgrade this node");
    let listed = cluster.node(1).docker("node ls --format {{.Hostname}}/{{.Status}}");
    assert!(listed.contains("node-4/Down"), "{listed}");
    worker.restart_with(&next());
    let follower = if leader(cluster.node(1), 3, CHANGE) == 3 { 2 } else { 3 };
    let asked = if follower == 3 { 2 } else { 3 };
    cluster.node(follower).restart_with(&old());
    wait_info(cluster.node(follower), "upgrade this manager");
    make_network(cluster.node(asked), "beside-a-downgrade");
    cluster.node(follower).restart_with(&next());
    has_network(cluster.node(follower), "beside-a-downgrade");
    wait_format(cluster.node(follower), NEXT);
    cluster.wait_ready(4);
}

#[test]
fn what_is_written_too_early_stops_the_old_manager_alone() {
    let cluster = swarm("upgrade_early", 0);
    make_network(cluster.node(3), "before");
    for index in 1..=2 {
        cluster.node(index).restart_with(&next());
        leader(cluster.node(index), 3, CHANGE);
    }
    if leader(cluster.node(1), 3, CHANGE) == 3 {
        cluster.node(3).restart_with(&old());
    }
    assert_ne!(leader(cluster.node(1), 3, CHANGE), 3);
    // For tests alone: the next version does not ask who can read it.
    cluster.node(1).docker("node update --label-add shoal.next-level=early node-1");
    for index in 1..=2 {
        wait_format(cluster.node(index), NEXT);
    }
    let third = cluster.node(3);
    wait_info(third, "upgrade this manager: the cluster writes format 2");
    let refused = third.docker_fails("network create -d overlay by-the-old-one");
    assert!(refused.contains("upgrade this manager"), "{refused}");
    let list = third.docker("network ls --format {{.Name}}");
    assert!(list.lines().any(|line| line == "before"), "{list}");
    wait_info(cluster.node(1), "node node-3: upgrade this node");
    eventually("the old node to be down", CHANGE, || {
        let list = cluster.node(1).docker("node ls --format {{.Hostname}}/{{.Status}}");
        if list.contains("node-3/Down") { Ok(()) } else { Err(list) }
    });
    // It keeps the log: with it there is a majority.
    cluster.node(2).stop_daemon();
    eventually("the first and the third to be enough", CHANGE, || {
        let out = cluster.node(1).try_docker("network create -d overlay by-two");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() || said.contains("already exists") { Ok(()) } else { Err(said) }
    });
    cluster.node(2).restart_with(&next());
    has_network(cluster.node(2), "by-two");
    // Upgraded, it goes on where it was.
    third.restart_with(&next());
    has_network(third, "by-two");
    wait_format(third, NEXT);
    for index in 1..=3 {
        leader(cluster.node(index), 3, CHANGE);
    }
    make_network(third, "by-the-third");
    has_network(cluster.node(1), "by-the-third");
    finish(cluster);
}
