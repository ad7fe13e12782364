//! What docs/operations.md tells operators to do when managers are lost, tried on real daemons.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use shoal_lab::{CONVERGE, Cluster, Host, eventually, import_shoal, shoal};

const WEB: &str = "--publish 8080:80 shoal:lab shoal try whoami";
const PASSPHRASE: &str = "correct horse battery";

/// `shoal …` on a host, against its daemon.
fn try_shoal(host: &Host, args: &[&str]) -> Output {
    let mut command = host.command(&shoal().to_string_lossy());
    command.args(args).args(["-H", &host.socket()]).stdin(Stdio::null()).output().unwrap()
}

fn shoal_does(host: &Host, args: &[&str]) -> String {
    let out = try_shoal(host, args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "shoal {args:?}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[track_caller]
fn shoal_fails(host: &Host, args: &[&str], id: &str) {
    let out = try_shoal(host, args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains(id), "shoal {args:?}: {said}");
}

/// A client that goes on asking; what it says at the end is how many requests failed.
fn keep_asking(host: &Host, url: &str) -> Child {
    let line = format!(
        "n=0; while read -t 0.05 x; [ $? -gt 128 ]; do \
         curl -sS -m 5 -o /dev/null {url} || n=$((n+1)); done; echo $n"
    );
    let mut command = host.command("bash");
    command.args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Ends it; how many failed.
fn failures(mut client: Child) -> u32 {
    drop(client.stdin.take());
    let out = client.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
}

fn tasks(host: &Host, node: &str) -> BTreeSet<String> {
    let line = format!("node ps -q --no-trunc -f desired-state=running {node}");
    host.docker(&line).lines().map(str::to_owned).collect()
}

fn wait_managers(host: &Host, wanted: &[&str]) {
    eventually(&format!("managers to be {wanted:?}"), CONVERGE, || {
        let list = host.docker("node ls --format {{.ManagerStatus}}");
        let mut said: Vec<&str> = list.lines().filter(|line| !line.is_empty()).collect();
        said.sort_unstable();
        if said == wanted { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// Waits until what the client prints as warnings has `part`.
fn wait_warning(host: &Host, part: &str) {
    eventually(&format!("a warning with '{part}'"), CONVERGE, || {
        let said = String::from_utf8_lossy(&host.try_docker("info").stderr).into_owned();
        if said.contains(part) { Ok(()) } else { Err(said) }
    });
}

fn wait_ready(host: &Host, node: &str) {
    eventually(&format!("{node} to be ready"), CONVERGE, || {
        let list = host.docker("node ls --format {{.Hostname}}={{.Status}}");
        let wanted = format!("{node}=Ready");
        if list.lines().any(|line| line == wanted) { Ok(()) } else { Err(list) }
    });
}

fn join(host: &Host, role: &str, to: &Host) {
    let token = to.docker(&format!("swarm join-token -q {role}"));
    host.docker(&format!("swarm join --token {token} {}:2377", to.address()));
}

#[test]
fn a_swarm_that_lost_its_majority_goes_on_from_one_manager() {
    let cluster = Cluster::managers("recovery_force", 4, 2);
    let (last, behind) = (cluster.node(3), cluster.node(4));
    let (worker, client) = (cluster.lab.host(5), cluster.lab.host(6));
    worker.daemon();
    import_shoal(worker);
    wait_managers(last, &["Leader", "Reachable", "Reachable", "Reachable"]);
    join(worker, "worker", last);
    last.docker(&format!("service create -d --mode global --name web {WEB}"));
    cluster.wait_tasks("web", 5);
    cluster.wait_port(6, 8080);
    // Not while the managers are a majority.
    let refused = last.docker_fails("swarm init --force-new-cluster");
    assert!(refused.contains("SH-NOD-020"), "{refused}");
    cluster.lab.cut(4);
    cluster.manager().docker("network create -d overlay acknowledged");
    eventually("the network on the last manager", CONVERGE, || {
        let list = last.docker("network ls --format {{.Name}}");
        if list.lines().any(|l| l == "acknowledged") { Ok(()) } else { Err(list) }
    });
    let tokens = |host: &Host| {
        ["worker", "manager"].map(|role| host.docker(&format!("swarm join-token -q {role}")))
    };
    let (known, own, others) = (tokens(last), tasks(last, "node-3"), tasks(last, "node-5"));

    let asking = keep_asking(client, &format!("http://{}:8080/", worker.address()));
    cluster.node(1).kill_daemon();
    cluster.node(2).kill_daemon();
    cluster.lab.mend(4);
    wait_warning(last, "no majority");
    // Nor where something would be lost that another one has.
    eventually("the one behind to be refused", CONVERGE, || {
        let refused = behind.docker_fails("swarm init --force-new-cluster");
        let named = refused.contains("SH-NOD-023") && refused.contains("node-3 (");
        if named { Ok(()) } else { Err(refused) }
    });
    last.docker("swarm init --force-new-cluster");
    wait_managers(last, &["Leader"]);
    assert_eq!(tokens(last), known);
    let list = last.docker("network ls --format {{.Name}}");
    assert!(list.lines().any(|l| l == "acknowledged"), "{list}");
    last.docker("network create -d overlay afterwards");
    eventually("the lost managers to be down, and the worker ready", CONVERGE, || {
        let list = last.docker("node ls --format {{.Hostname}}={{.Status}}");
        let is = |line: &str| list.lines().any(|l| l == line);
        let done = is("node-1=Down") && is("node-2=Down") && is("node-5=Ready");
        if done { Ok(()) } else { Err(list) }
    });
    assert_eq!((tasks(last, "node-3"), tasks(last, "node-5")), (own, others));
    assert_eq!(failures(asking), 0);

    // The lost ones come back, disturb nobody, and are workers: the new epoch's manager says so.
    for index in [1, 2, 4] {
        let lost = cluster.node(index);
        if index != 4 {
            lost.restart();
        }
        eventually(&format!("node-{index} to be a worker"), CONVERGE, || {
            let said = lost.docker("info -f {{.Swarm.LocalNodeState}}/{{.Swarm.ControlAvailable}}");
            if said == "active/false" { Ok(()) } else { Err(said) }
        });
        wait_ready(last, &format!("node-{index}"));
        last.docker(&format!("node promote node-{index}"));
    }
    wait_managers(last, &["Leader", "Reachable", "Reachable", "Reachable"]);
    cluster.wait_tasks("web", 5);
    last.docker("network create -d overlay by_all");
    let seen = cluster.node(1).docker("network ls --format {{.Name}}");
    for name in ["acknowledged", "afterwards"] {
        assert!(seen.lines().any(|line| line == name), "{seen}");
    }
    cluster.finish();
}

#[test]
fn a_backup_restores_into_a_fresh_machine() {
    let cluster = Cluster::start("recovery_backup", 2, 2);
    let (manager, worker) = (cluster.manager(), cluster.node(2));
    let (fresh, client) = (cluster.lab.host(3), cluster.lab.host(4));
    fresh.daemon();
    import_shoal(fresh);
    let dir = cluster.lab.dir().to_path_buf();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    std::fs::write(path("hidden"), "what nobody may read").unwrap();
    for kind in ["secret", "config"] {
        manager.docker(&format!("{kind} create of-{kind} {}", path("hidden")));
    }
    manager.docker(&format!(
        "service create -d --name web --replicas 2 --constraint node.hostname==node-2 \
         --secret of-secret --config of-config {WEB}"
    ));
    let before = cluster.wait_tasks("web", 2);
    cluster.wait_port(4, 8080);
    let (file, key) = (path("swarm.backup"), path("passphrase"));
    std::fs::write(&key, format!("{PASSPHRASE}\n")).unwrap();

    shoal_fails(manager, &["backup", &file], "--plain");
    assert!(!Path::new(&file).exists());
    let said = shoal_does(manager, &["backup", "--json", "--passphrase-file", &key, &file]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["Sealed"], true);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    shoal_fails(manager, &["backup", "--passphrase-file", &key, &file], "--replace");
    shoal_fails(worker, &["backup", "--passphrase-file", &key, &path("b")], "not a swarm manager");
    let shown = shoal_does(fresh, &["restore", "--show", &file]);
    assert!(shown.contains(said["Cluster"].as_str().unwrap()), "{shown}");

    let bad = path("bad");
    std::fs::write(&bad, "another passphrase").unwrap();
    shoal_fails(fresh, &["restore", "--passphrase-file", &bad, &file], "SH-STO-044");
    shoal_fails(fresh, &["restore", &file], "SH-STO-045");
    let bytes = std::fs::read(&file).unwrap();
    let cut = path("cut");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    shoal_fails(fresh, &["restore", "--passphrase-file", &key, &cut], "SH-STO-043");
    shoal_fails(manager, &["restore", "--passphrase-file", &key, &file], "already part of a swarm");

    // All that a user can see of the swarm.
    let all = |host: &Host| {
        [
            "service inspect web",
            "secret ls --format {{.ID}}={{.Name}}",
            "config inspect of-config",
            "network ls -f scope=swarm --format {{.ID}}={{.Name}}",
            "swarm join-token -q worker",
            "swarm join-token -q manager",
        ]
        .map(|line| host.docker(line))
    };
    let containers = worker.docker("ps -q --no-trunc");
    let known = all(manager);
    let asking = keep_asking(client, &format!("http://{}:8080/", worker.address()));
    // All that the only manager had is gone; a machine that is in no swarm has its address.
    manager.docker("swarm leave --force");
    let addr = manager.address();
    let line = ["restore", "--advertise-addr", addr, "--passphrase-file", &key, &file];
    shoal_does(manager, &line);
    wait_managers(manager, &["Leader"]);
    cluster.wait_ready(2);
    assert_eq!(all(manager), known);
    let after = cluster.wait_tasks("web", 2);
    assert_eq!(after, before, "the tasks were replaced");
    assert_eq!(worker.docker("ps -q --no-trunc"), containers, "the containers were replaced");
    assert_eq!(failures(asking), 0);
    // It is a swarm like any other.
    manager.docker("service scale -d web=3");
    cluster.wait_tasks("web", 3);
    join(fresh, "manager", manager);
    wait_managers(manager, &["Leader", "Reachable"]);
    cluster.finish();
}
