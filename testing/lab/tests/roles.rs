//! Nodes that become managers and workers again while they run, driven by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use shoal_lab::{Cluster, Host, Load, eventually};

/// How long a node may take to have its new role: an election, a snapshot, a slow machine.
const CHANGE: Duration = Duration::from_secs(60);

/// Host name to manager status, as `node ls` says on `host`.
fn statuses(host: &Host) -> Result<BTreeMap<String, String>, String> {
    let out = host.try_docker("node ls --format {{.Hostname}}/{{.ManagerStatus}}");
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once('/'));
    Ok(pairs.map(|(name, status)| (name.to_owned(), status.to_owned())).collect())
}

/// Waits until `host` says that exactly `managers` are managers that are reached; who leads.
fn wait_managers(host: &Host, managers: &[&str]) -> String {
    eventually(&format!("{managers:?} to be the managers on {}", host.name()), CHANGE, || {
        let said = statuses(host)?;
        let up = |status: &str| matches!(status, "Leader" | "Reachable");
        let fits = said.iter().all(|(name, status)| match managers.contains(&name.as_str()) {
            true => up(status),
            false => status.is_empty(),
        });
        let leader = said.iter().find(|(_, status)| *status == "Leader").map(|(name, _)| name);
        match leader {
            Some(leader) if fits => Ok(leader.clone()),
            _ => Err(format!("{said:?}")),
        }
    })
}

/// Waits until a node itself is a manager, or none.
fn wait_control(host: &Host, wanted: bool) {
    eventually(&format!("{} to be a manager: {wanted}", host.name()), CHANGE, || {
        let out = host.try_docker("info -f {{.Swarm.ControlAvailable}}|{{.Swarm.Error}}");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if said.starts_with(&format!("{wanted}|")) { Ok(()) } else { Err(said) }
    });
}

/// The refusal of a change, with its reason. The client says which version of the node it has read;
/// a manager that has just become reachable is another version, and then the client is to read
/// again.
fn wait_refused(host: &Host, line: &str, why: &str) {
    eventually(&format!("'{line}' to be refused: {why}"), CHANGE, || {
        let said = host.docker_fails(line);
        assert!(said.contains(why) || said.contains("update out of sequence"), "{said}");
        if said.contains(why) { Ok(()) } else { Err(said) }
    });
}

fn has_store(host: &Host) -> bool {
    host.place().data.join("swarm/store").exists()
}

/// The containers of a node, with when they were started.
fn containers(host: &Host) -> String {
    let ids = host.docker("ps -q --no-trunc");
    let mut args = vec!["inspect", "-f", "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}"];
    args.extend(ids.lines());
    if args.len() == 3 { String::new() } else { host.docker_args(&args) }
}

fn all_containers(cluster: &Cluster) -> Vec<String> {
    (1..=cluster.nodes).map(|index| containers(cluster.node(index))).collect()
}

fn web(cluster: &Cluster, replicas: usize) {
    cluster.manager().docker(&format!(
        "service create -d --name web --replicas {replicas} -p 8080:80 shoal:lab shoal try whoami"
    ));
    cluster.wait_tasks("web", replicas);
}

#[test]
fn workers_are_promoted_and_the_first_manager_is_killed() {
    let cluster = Cluster::start("roles_promote", 3, 1);
    web(&cluster, 3);
    cluster.wait_port(4, 8080);
    let before = all_containers(&cluster);
    cluster.manager().docker("node promote node-2 node-3");
    for index in 1..=3 {
        wait_control(cluster.node(index), true);
        wait_managers(cluster.node(index), &["node-1", "node-2", "node-3"]);
    }
    assert_eq!(all_containers(&cluster), before, "containers were stopped or started");
    // What is asked of a new one is done.
    cluster.node(3).docker("network create -d overlay made3");
    cluster.manager().kill_daemon();
    let second = cluster.node(2);
    eventually("another manager to lead", CHANGE, || {
        let said = statuses(second)?;
        let leads = ["node-2", "node-3"].iter().any(|name| said[*name] == "Leader");
        if leads && said["node-1"] == "Unreachable" { Ok(()) } else { Err(format!("{said:?}")) }
    });
    second.docker("network create -d overlay made2");
    cluster.manager().restart();
    wait_managers(cluster.manager(), &["node-1", "node-2", "node-3"]);
    // A promoted one is a manager after its own restart too.
    cluster.node(3).kill_daemon();
    cluster.node(3).restart();
    wait_managers(cluster.node(3), &["node-1", "node-2", "node-3"]);
    cluster.finish();
}

#[test]
fn a_follower_and_the_leader_are_demoted_and_the_last_is_not() {
    let cluster = Cluster::managers("roles_demote", 3, 1);
    wait_managers(cluster.manager(), &["node-1", "node-2", "node-3"]);
    web(&cluster, 3);
    cluster.wait_port(4, 8080);
    let before = all_containers(&cluster);
    let load = Load::start(&cluster, 4, 8080);
    cluster.node(2).docker("node demote node-3");
    wait_control(cluster.node(3), false);
    wait_managers(cluster.manager(), &["node-1", "node-2"]);
    assert!(cluster.node(3).docker_fails("node ls").contains("not a swarm manager"));
    eventually("the store to be gone", CHANGE, || {
        if has_store(cluster.node(3)) { Err("it is there".to_owned()) } else { Ok(()) }
    });
    let info = |index: usize| {
        let out = cluster.node(index).try_docker("info");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(info(1).contains("the swarm has 2 managers"), "{}", info(1));
    // The leader goes: the other one leads.
    cluster.manager().docker("node demote node-1");
    assert_eq!(wait_managers(cluster.node(2), &["node-2"]), "node-2");
    wait_control(cluster.manager(), false);
    wait_refused(cluster.node(2), "node demote node-2", "last manager");
    let refused = cluster.node(2).docker_fails("node rm node-1");
    assert!(refused.contains("is not down"), "{refused}");
    // They come again, under other numbers.
    cluster.node(2).docker("node promote node-1 node-3");
    wait_managers(cluster.node(1), &["node-1", "node-2", "node-3"]);
    wait_managers(cluster.node(3), &["node-1", "node-2", "node-3"]);
    // With two of three silent nobody is taken out of office.
    assert_eq!(all_containers(&cluster), before, "containers were stopped or started");
    cluster.node(3).kill_daemon();
    eventually("the third to be silent", CHANGE, || {
        let said = statuses(cluster.node(2))?;
        if said["node-3"] == "Unreachable" { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let why = "of the 2 managers that would remain only 1 can be reached";
    wait_refused(cluster.node(2), "node demote node-1", why);
    cluster.node(3).restart();
    wait_managers(cluster.node(3), &["node-1", "node-2", "node-3"]);
    load.finish(&cluster, 4, 20);
    cluster.finish();
}

/// A small reproducible source of chance (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
}

#[test]
fn promotions_and_demotions_in_any_order_disturb_no_service() {
    const ROUNDS: usize = 10;
    let cluster = Cluster::start("roles_orders", 4, 1);
    web(&cluster, 4);
    cluster.wait_port(5, 8080);
    let before = all_containers(&cluster);
    let load = Load::start(&cluster, 5, 8080);
    let names = ["node-1", "node-2", "node-3", "node-4"];
    let mut managers = vec![1_usize];
    let mut dice = Dice(8);
    for round in 0..ROUNDS {
        let at = managers[dice.below(managers.len())];
        let node = 1 + dice.below(names.len());
        let name = names[node - 1];
        match managers.iter().position(|index| *index == node) {
            Some(_) if managers.len() == 1 => continue,
            Some(place) => {
                cluster.node(at).docker(&format!("node demote {name}"));
                managers.remove(place);
            }
            None => {
                cluster.node(at).docker(&format!("node promote {name}"));
                managers.push(node);
            }
        }
        let wanted: Vec<&str> = managers.iter().map(|index| names[index - 1]).collect();
        eprintln!("round {round}: {name} by {}: {wanted:?}", names[at - 1]);
        wait_managers(cluster.node(managers[0]), &wanted);
        wait_control(cluster.node(node), managers.contains(&node));
    }
    load.finish(&cluster, 5, 20);
    assert_eq!(all_containers(&cluster), before, "containers were stopped or started");
    cluster.finish();
}

#[test]
fn a_node_that_dies_amid_a_change_of_its_role_goes_on_with_it() {
    let cluster = Cluster::start("roles_crash", 3, 0);
    // A node that dies every other second is not to be given up.
    cluster.manager().docker("swarm update --dispatcher-heartbeat 10s");
    web(&cluster, 3);
    cluster.manager().docker("node promote node-2");
    wait_managers(cluster.manager(), &["node-1", "node-2"]);
    let third = cluster.node(3);
    let before = containers(third);
    for pause in [0, 20, 60, 120, 250] {
        let die = |line: &str| {
            cluster.manager().docker(line);
            // When it dies is the point of it.
            std::thread::sleep(Duration::from_millis(pause));
            third.kill_daemon();
            third.restart();
        };
        die("node promote node-3");
        wait_managers(third, &["node-1", "node-2", "node-3"]);
        die("node demote node-3");
        wait_control(third, false);
        wait_managers(cluster.manager(), &["node-1", "node-2"]);
        eventually("the store to be gone", CHANGE, || {
            if has_store(third) { Err("it is there".to_owned()) } else { Ok(()) }
        });
    }
    assert_eq!(containers(third), before, "containers were stopped or started");
    // The leader dies amid it: the next one goes on with it.
    cluster.manager().docker("node promote node-3");
    wait_managers(third, &["node-1", "node-2", "node-3"]);
    cluster.node(2).docker("node demote node-3");
    cluster.manager().kill_daemon();
    cluster.manager().restart();
    wait_control(third, false);
    wait_managers(cluster.node(2), &["node-1", "node-2"]);
    cluster.finish();
}

#[test]
fn a_removed_node_is_told_and_shut_out_and_joins_again() {
    let cluster = Cluster::managers("roles_removed", 3, 1);
    wait_managers(cluster.manager(), &["node-1", "node-2", "node-3"]);
    let third = cluster.node(3);
    third.kill_daemon();
    eventually("the dead manager to be removed", CHANGE, || {
        let out = cluster.node(2).try_docker("node rm --force node-3");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(said) }
    });
    wait_managers(cluster.node(2), &["node-1", "node-2"]);
    // It has not heard of it, and is told as soon as it comes.
    third.restart();
    wait_control(third, false);
    let error = |host: &Host| host.docker("info -f {{.Swarm.Error}}");
    assert!(error(third).contains("removed"), "{}", error(third));
    eventually("the store to be gone", CHANGE, || {
        if has_store(third) { Err("it is there".to_owned()) } else { Ok(()) }
    });
    wait_managers(cluster.node(2), &["node-1", "node-2"]);
    third.docker("swarm leave");
    let token = cluster.node(2).docker("swarm join-token -q manager");
    third.docker(&format!("swarm join --token {token} {}:2377", cluster.node(2).address()));
    wait_managers(third, &["node-1", "node-2", "node-3"]);
    // A worker that is up is removed by force: it is told in its session.
    let worker = cluster.lab.host(4);
    worker.daemon();
    let token = cluster.node(2).docker("swarm join-token -q worker");
    worker.docker(&format!("swarm join --token {token} {}:2377", cluster.node(2).address()));
    eventually("the worker to be ready", CHANGE, || {
        let list = cluster.node(2).docker("node ls --format {{.Hostname}}/{{.Status}}");
        if list.contains("node-4/Ready") { Ok(()) } else { Err(list) }
    });
    cluster.node(2).docker("node rm --force node-4");
    eventually("the worker to know that it was removed", CHANGE, || {
        let said = error(worker);
        if said.contains("removed") { Ok(()) } else { Err(said) }
    });
    // No manager keeps a connection of it.
    eventually("its connections to be ended", CHANGE, || {
        let open = worker.sh("ss -Htn state established '( dport = :2377 )'");
        if open.is_empty() { Ok(()) } else { Err(open) }
    });
    worker.docker("swarm leave");
    cluster.finish();
}

#[test]
fn a_manager_that_leaves_takes_itself_out_of_the_group() {
    let cluster = Cluster::managers("roles_leave", 3, 0);
    wait_managers(cluster.manager(), &["node-1", "node-2", "node-3"]);
    let refused = cluster.node(3).docker_fails("swarm leave");
    assert!(refused.contains("leaves 2 managers out of 3"), "{refused}");
    cluster.node(3).docker("swarm leave --force");
    wait_managers(cluster.node(2), &["node-1", "node-2"]);
    // The leader leaves: the last one has everything, and needs nobody.
    cluster.manager().docker("swarm leave --force");
    assert_eq!(wait_managers(cluster.node(2), &["node-2"]), "node-2");
    for name in ["node-1", "node-3"] {
        eventually("a node that left to be removed", CHANGE, || {
            let out = cluster.node(2).try_docker(&format!("node rm {name}"));
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            if out.status.success() { Ok(()) } else { Err(said) }
        });
    }
    cluster.node(2).docker("network create -d overlay after");
    let refused = cluster.node(2).docker_fails("swarm leave");
    assert!(refused.contains("Removing the last manager erases"), "{refused}");
    cluster.finish();
}

#[test]
fn a_manager_whose_join_broke_off_is_forgotten() {
    let cluster = Cluster::start("roles_stray", 1, 1);
    let host = cluster.lab.host(2);
    host.daemon();
    // Somebody else has its port: the certificate is given, and then the join fails.
    let script = "import socket, sys\nport = socket.create_server(('', 2377))\n\
                  print('open', flush=True)\nsys.stdin.readline()";
    let mut command = host.command("python3");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = command.spawn().unwrap();
    let mut line = String::new();
    let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let token = cluster.manager().docker("swarm join-token -q manager");
    let join = format!("swarm join --token {token} {}:2377", cluster.manager().address());
    let refused = host.docker_fails(&join);
    assert!(refused.contains("2377"), "{refused}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    // The same node joins at once, and what is left of the first try goes by itself.
    host.docker(&join);
    eventually("only the two that are there", Duration::from_secs(120), || {
        let list = cluster.manager().docker("node ls");
        let said = statuses(cluster.manager())?;
        let names = list.lines().skip(1).count();
        if names == 2 && said.values().all(|s| !s.is_empty()) { Ok(()) } else { Err(list) }
    });
    wait_managers(host, &["node-1", "node-2"]);
    cluster.finish();
}
