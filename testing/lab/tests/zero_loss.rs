//! What an operator does to a service and to the nodes beneath it costs no client a request: fifty
//! with a new connection for each, and ten that keep theirs. The upgrade of daemons and the
//! rotation of the root, under the same load, are in `upgrade.rs` and `ca.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::{CONVERGE, Cluster, Load, eventually, leader};

/// How long a step may take: a slow machine, tasks that wait for their clients.
const STEP: Duration = Duration::from_secs(120);
const NODES: usize = 4;
const CLIENTS: usize = 5;

/// Waits until so many tasks run, and no others, none of them on a node that is not `there`.
fn converged(cluster: &Cluster, replicas: usize, there: &[&str]) {
    eventually(&format!("{replicas} tasks on {there:?}"), STEP, || {
        let tasks = cluster.tasks("web");
        let wanted = cluster.manager().docker("service ps web -q -f desired-state=running");
        let placed = tasks.values().all(|node| there.contains(&node.as_str()));
        let done = placed && tasks.len() == replicas && wanted.lines().count() == replicas;
        if done { Ok(()) } else { Err(format!("{tasks:?}\n{wanted}")) }
    });
}

#[test]
fn no_request_is_lost_by_what_operators_do() {
    let cluster = Cluster::start("zero_loss", 4, 1);
    let host = cluster.manager();
    host.docker("node promote node-2 node-3");
    leader(host, 3, CONVERGE);
    host.docker(
        "service create -d --name web --replicas 4 -e COLOUR=red -p 8091:80 \
         --stop-grace-period 20s --update-parallelism 2 --update-monitor 500ms \
         --rollback-parallelism 2 --rollback-monitor 500ms \
         shoal:lab shoal try whoami --keep-alive 10",
    );
    cluster.wait_tasks("web", 4);
    cluster.wait_port(CLIENTS, 8091);
    let load = Load::many(&cluster, CLIENTS, 8091);

    let all = ["node-1", "node-2", "node-3", "node-4"];
    for (line, replicas, there) in [
        ("service update --env-add COLOUR=blue web", 4, &all[..]),
        ("service update --update-order start-first --env-add COLOUR=green web", 4, &all),
        ("service rollback web", 4, &all),
        ("service scale web=8", 8, &all),
        ("service scale web=3", 3, &all),
        ("node update --availability drain node-4", 3, &all[..3]),
        ("node update --availability drain node-3", 3, &all[..2]),
        ("node update --availability active node-4", 3, &all),
        ("node update --availability active node-3", 3, &all),
        ("service update --force web", 3, &all),
    ] {
        eprintln!("{line}");
        host.docker(line);
        converged(&cluster, replicas, there);
    }
    let tasks = host.docker("service ps web -q --no-trunc -f desired-state=running");
    host.docker("node promote node-4");
    let first = leader(host, 4, CONVERGE);
    cluster.node(if first == 2 { 3 } else { 2 }).docker(&format!("node demote node-{first}"));
    let rest: Vec<usize> = (1..=NODES).filter(|index| *index != first).collect();
    let second = leader(cluster.node(rest[0]), 3, CONVERGE);
    assert_ne!(second, first);
    eprintln!("node-{second} leads, and is killed");
    let at = cluster.node(*rest.iter().find(|index| **index != second).unwrap());
    cluster.node(second).kill_daemon();
    let third = eventually("another leader", CONVERGE, || {
        let list = at.docker("node ls --format {{.Hostname}}/{{.ManagerStatus}}");
        let leads = list.lines().find_map(|line| line.strip_suffix("/Leader")).map(str::to_owned);
        leads.filter(|name| *name != format!("node-{second}")).ok_or(list)
    });
    eprintln!("{third} leads");
    cluster.node(second).restart();
    leader(at, 3, CONVERGE);
    let after = at.docker("service ps web -q --no-trunc -f desired-state=running");
    assert_eq!(after, tasks, "tasks were replaced");

    load.finish(&cluster, CLIENTS, 100);
    cluster.finish();
}
