//! Several managers, driven by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use shoal_lab::{CONVERGE, Cluster, Host, backends, eventually};

/// Three nodes, all of them managers that vote.
fn three(name: &str) -> Cluster {
    let cluster = Cluster::managers(name, 3, 1);
    for index in 1..=3 {
        wait_statuses(cluster.node(index), &["Leader", "Reachable", "Reachable"]);
    }
    cluster
}

/// What `node ls` says of managers, sorted.
fn statuses(host: &Host) -> Vec<String> {
    let list = host.docker("node ls --format {{.ManagerStatus}}");
    let mut said: Vec<String> = list.lines().map(str::to_owned).collect();
    said.retain(|status| !status.is_empty());
    said.sort();
    said
}

fn wait_statuses(host: &Host, wanted: &[&str]) {
    eventually(&format!("managers to be {wanted:?} on {}", host.name()), CONVERGE, || {
        let said = statuses(host);
        if said == wanted { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

#[test]
fn a_second_and_a_third_manager_join_and_answer_everything() {
    let cluster = three("managers_join");
    let info = |index: usize, what: &str| cluster.node(index).docker(&format!("info -f {what}"));
    for index in 1..=3 {
        assert_eq!(info(index, "{{.Swarm.ControlAvailable}}"), "true");
        assert_eq!(info(index, "{{.Swarm.Managers}}/{{.Swarm.Nodes}}"), "3/3");
    }
    // What is written on one is read on all, at once.
    for index in 1..=3 {
        let name = format!("net{index}");
        cluster.node(index).docker(&format!("network create -d overlay {name}"));
        let own = cluster.node(index).docker("network ls --format {{.Name}}");
        assert!(own.lines().any(|line| line == name), "node {index} has not read its write: {own}");
    }
    let service = "service create -d --name web --replicas 3 -p 8080:80 shoal:lab shoal try whoami";
    cluster.node(2).docker(service);
    cluster.node(3).docker("service scale -d web=4");
    cluster.wait_tasks("web", 4);
    let wrong = |index: usize| cluster.node(index).docker_fails("service create --name web x:1");
    assert_eq!(wrong(1), wrong(2));
    assert_eq!(wrong(1), wrong(3));
    let listed: BTreeSet<String> =
        (1..=3).map(|index| cluster.node(index).docker("service ls")).collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
    cluster.finish();
}

#[test]
fn the_leader_is_killed_and_another_one_goes_on() {
    let cluster = three("managers_kill");
    let service = "service create -d --name web --replicas 3 -p 8080:80 shoal:lab shoal try whoami";
    cluster.manager().docker(service);
    cluster.wait_tasks("web", 3);
    cluster.wait_port(4, 8080);
    cluster.manager().kill_daemon();
    let second = cluster.node(2);
    eventually("another manager to lead", CONVERGE, || {
        let said = statuses(second);
        let leads = said == ["Leader", "Reachable", "Unreachable"];
        if leads { Ok(()) } else { Err(format!("{said:?}")) }
    });
    for index in 2..=3 {
        let name = format!("after{index}");
        cluster.node(index).docker(&format!("network create -d overlay {name}"));
    }
    let services = second.docker("service ls --format {{.Name}}");
    assert_eq!(services, "web");
    let answers = cluster.ask_from_host(4, "http://198.51.100.2:8080/", 12);
    assert!(!answers.iter().any(|a| a == "FAILED"), "{answers:?}");
    assert!(backends(&answers) >= 2, "{answers:?}");
    // It comes back as one of three, and has what was written meanwhile.
    cluster.manager().restart();
    wait_statuses(cluster.manager(), &["Leader", "Reachable", "Reachable"]);
    eventually("what was written meanwhile", CONVERGE, || {
        let list = cluster.manager().docker("network ls --format {{.Name}}");
        let has = ["after2", "after3"].iter().all(|name| list.lines().any(|l| l == *name));
        if has { Ok(()) } else { Err(list) }
    });
    cluster.finish();
}

#[test]
fn without_a_majority_reads_answer_and_writes_say_who_is_missing() {
    let cluster = three("managers_quorum");
    cluster.manager().docker("network create -d overlay before");
    let last = cluster.node(3);
    eventually("the network on the last manager", CONVERGE, || {
        let list = last.docker("network ls --format {{.Name}}");
        if list.lines().any(|l| l == "before") { Ok(()) } else { Err(list) }
    });
    cluster.node(1).kill_daemon();
    cluster.node(2).kill_daemon();
    eventually("a write to be refused for want of a majority", CONVERGE, || {
        let out = last.try_docker("network create -d overlay after");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if !out.status.success() && said.contains("majority") { Ok(()) } else { Err(said) }
    });
    let said = last.docker_fails("network create -d overlay again");
    for missing in ["node-1", "node-2"] {
        assert!(said.contains(missing), "{missing} is not named: {said}");
    }
    let list = last.docker("network ls --format {{.Name}}");
    assert!(list.lines().any(|l| l == "before"), "{list}");
    assert!(!list.lines().any(|l| l == "after" || l == "again"), "{list}");
    // The client prints warnings to its standard error.
    let info = String::from_utf8_lossy(&last.try_docker("info").stderr).into_owned();
    assert!(info.contains("node-1") && info.contains("node-2"), "{info}");
    // With one of them back everything goes on.
    cluster.node(1).restart();
    eventually("writes to succeed again", CONVERGE, || {
        let out = last.try_docker("network create -d overlay later");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(said) }
    });
    // Nothing of the last one is looked for: it does not come back.
    cluster.node(2).cut_power();
    cluster.finish();
}

#[test]
fn a_worker_follows_other_leaders_and_a_dead_manager_is_removed() {
    // A worker that joins while there is one manager; the others come later.
    let cluster = Cluster::start("managers_worker", 2, 2);
    let token = cluster.manager().docker("swarm join-token -q manager");
    for index in 3..=4 {
        let host = cluster.lab.host(index);
        host.daemon();
        host.docker(&format!("swarm join --token {token} {}:2377", cluster.manager().address()));
    }
    let follower = cluster.lab.host(4);
    wait_statuses(follower, &["Leader", "Reachable", "Reachable"]);
    let service = "service create -d --name say --constraint node.hostname==node-2 \
                   shoal:lab shoal try whoami";
    follower.docker(service);
    let before = cluster.wait_tasks("say", 1);
    eventually("the log through a manager that follows", CONVERGE, || {
        let out = follower.try_docker("service logs say");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if said.contains("say.1") { Ok(()) } else { Err(format!("{out:?}")) }
    });
    cluster.manager().kill_daemon();
    eventually("another leader that has the worker", CONVERGE, || {
        let said = statuses(follower);
        let list = follower.docker("node ls");
        let ready = |name: &str| {
            let mut lines = list.lines();
            lines.any(|line| line.contains(name) && line.contains("Ready"))
        };
        let down = list.lines().any(|line| line.contains("node-1") && line.contains("Down"));
        let leads = said == ["Leader", "Reachable", "Unreachable"];
        if leads && ready("node-2") && down { Ok(()) } else { Err(list) }
    });
    let tasks = follower.docker("service ps say -q --no-trunc");
    let ids: BTreeSet<&str> = tasks.lines().collect();
    assert_eq!(ids, before.keys().map(String::as_str).collect(), "its task was replaced");
    let refused = follower.docker_fails("node rm node-1");
    assert!(refused.contains("must be demoted"), "{refused}");
    follower.docker("node rm --force node-1");
    wait_statuses(follower, &["Leader", "Reachable"]);
    // Two are left, and both are needed from here on.
    let info = String::from_utf8_lossy(&follower.try_docker("info").stderr).into_owned();
    assert!(info.contains("the swarm has 2 managers"), "{info}");
    follower.docker("service scale -d say=2");
    cluster.manager().cut_power();
    cluster.finish();
}
