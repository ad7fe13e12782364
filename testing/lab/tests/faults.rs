//! Faults, and the bounds within which users may notice them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use shoal_lab::{CONVERGE, Cluster, DaemonOptions, eventually};
use shoal_stopwatch::Stopwatch;

/// Sends requests from a host for a while, one connection each, 20 ms apart; each line of the
/// result is `STATUS SECONDS SECONDS`: until the connection was there (0 if it never was), and in
/// all; status 000 for a request that failed.
fn load(cluster: &Cluster, host: usize, url: &str, count: u32) -> std::process::Child {
    let line = format!(
        "for i in $(seq {count}); do curl -s -m 10 -o /dev/null \
         -w '%{{http_code}} %{{time_connect}} %{{time_total}}\\n' {url}; sleep 0.02; done"
    );
    cluster
        .lab
        .host(host)
        .command("sh")
        .args(["-c", &line])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

/// Longest time of a request in seconds, its answer included, and how many failed.
fn outcome(child: std::process::Child) -> (f64, usize, String) {
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let total = |line: &str| line.split_whitespace().nth(2)?.parse::<f64>().ok();
    let longest = text.lines().filter_map(total).fold(0.0, f64::max);
    let failed = text.lines().filter(|l| !l.starts_with("200 ")).count();
    (longest, failed, text)
}

/// Opens idle connections from a host, each to whichever task the balancer chose.
fn idle_connections(cluster: &Cluster, host: usize, to: &str, count: u32) -> std::process::Child {
    let script = format!(
        "import json, select, socket, sys, time
idle = [socket.create_connection(('{to}', 8091), 3) for _ in range({count})]
print('open', flush=True)
sys.stdin.readline()
began, closed = time.monotonic(), []
while idle and time.monotonic() < began + 8:
    for gone in select.select(idle, [], [], 0.1)[0]:
        idle.remove(gone)
        closed.append(time.monotonic() - began)
answered = 0
for one in idle:
    one.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')
    answered += one.recv(100).startswith(b'HTTP/1.1 200')
print(json.dumps({{'closed': closed, 'answered': answered}}))"
    );
    cluster
        .lab
        .host(host)
        .command("python3")
        .args(["-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_backend_makes_nobody_wait() {
    let cluster = Cluster::start("killed_backend", 2, 1);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker(
        "service create -d --replicas 4 --name web --network mynet1 -p 8091:80 \
         --restart-delay 1s shoal:lab",
    );
    cluster.wait_tasks("web", 4);
    cluster.clients("mynet1");
    cluster.wait_port(3, 8091);
    let watch = Stopwatch::start();
    let child = load(&cluster, 3, "http://198.51.100.1:8091/", 150);
    let victim = cluster.container(2, "web");
    let pid = cluster.node(2).docker(&format!("inspect -f {{{{.State.Pid}}}} {victim}"));
    cluster.node(2).sh(&format!("kill -9 {pid}"));
    // From a task, through the virtual address, while it happens.
    let client = cluster.container(1, "client");
    let line = format!("exec {client} shoal try get http://web/ -n 200 --pause-ms 5 --json");
    let out = host.try_docker(&line);
    let seen: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let (longest, failed, text) = outcome(child);
    // The clients' clocks count what is not ours: a machine that stands still.
    let still = watch.standstill();
    let within = |bound_ms: u64| u128::from(bound_ms) + still.as_millis();
    assert!(u128::from(seen["longest_ms"].as_u64().unwrap()) <= within(3000), "{seen} {still:?}");
    assert!(u128::from(seen["failing_ms"].as_u64().unwrap()) <= within(500), "{seen} {still:?}");
    assert!(longest <= 3.0 + still.as_secs_f64(), "a connection waited {longest} s:\n{text}");
    // Refusals are possible for at most 500 ms: 25 requests at 20 ms.
    assert!(failed as u128 <= within(500) / 20, "{failed} failed, {still:?}:\n{text}");
    cluster.wait_tasks("web", 4);
    let history = host.docker("service ps web --no-trunc --format {{.CurrentState}}|{{.Error}}");
    assert!(history.contains("Failed") && history.contains("non-zero exit (137)"), "{history}");
    cluster.finish();
}

#[test]
fn a_power_cut_is_over_within_five_seconds() {
    let cluster = Cluster::start("power_cut", 3, 1);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --replicas 3 --name web --network mynet1 -p 8091:80 shoal:lab");
    cluster.wait_tasks("web", 3);
    cluster.clients("mynet1");
    // An established connection to the task on the node that dies: an idle client must hear of it.
    let client = cluster.container(1, "client");
    let lost = cluster.container(3, "web");
    let address = cluster.node(3).docker_json(&format!("inspect {lost}"))[0]["NetworkSettings"]
        ["Networks"]["mynet1"]["IPAddress"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut idle = host
        .docker_cmd(&["exec", "-i", &client, "nc", &address, "80"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = host.docker(&format!("inspect -f {{{{.State.Pid}}}} {client}"));
    eventually("the idle connection", CONVERGE, || {
        let table = host.sh(&format!("nsenter -t {pid} -n ss -tn state established"));
        if table.contains(&address) { Ok(()) } else { Err(table) }
    });
    cluster.wait_port(4, 8091);
    // Clients from outside that wait for nothing: nobody but the network can tell them.
    let mut outside = idle_connections(&cluster, 4, "198.51.100.2", 24);
    let mut told = BufReader::new(outside.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "open\n");
    let child = load(&cluster, 4, "http://198.51.100.1:8091/", 250);
    outside.stdin.take().unwrap().write_all(b"cut\n").unwrap();
    cluster.lab.cut(3);
    cluster.node(3).cut_power();
    let began = Stopwatch::start();
    eventually("the idle connection to be reset", Duration::from_secs(8), || {
        let table = host.sh(&format!("nsenter -t {pid} -n ss -tn state established"));
        if table.contains(&address) { Err(table) } else { Ok(()) }
    });
    let reset_after = began.elapsed();
    eventually("the tasks to be replaced", CONVERGE, || {
        let tasks = cluster.tasks("web");
        let alive = tasks.values().filter(|node| *node != "node-3").count();
        if alive == 3 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    let replaced_after = began.elapsed();
    let (longest, _, text) = outcome(child);
    let bound = 5.0 + began.standstill().as_secs_f64();
    assert!(longest <= bound, "a connection waited {longest} s:\n{text}");
    assert!(reset_after <= Duration::from_secs(5), "reset after {reset_after:?}");
    // Three heartbeats of a second each, then the start: five seconds, and a margin for the poll.
    assert!(replaced_after <= Duration::from_secs(6), "replaced after {replaced_after:?}");
    let told: serde_json::Value = serde_json::from_reader(told).unwrap();
    outside.wait().unwrap();
    let closed: Vec<f64> = serde_json::from_value(told["closed"].clone()).unwrap();
    let answered = told["answered"].as_u64().unwrap();
    assert!(!closed.is_empty() && answered > 0, "they were not spread over the tasks: {told}");
    assert_eq!(closed.len() as u64 + answered, 24, "survivors must not notice: {told}");
    assert!(closed.iter().all(|after| *after <= bound), "heard too late: {told}");
    // A dead idle client of the test itself: docker exec ends with its connection.
    drop(idle.stdin.take());
    idle.wait().unwrap();
    let down = host.docker("node ls --format {{.Hostname}}/{{.Status}}");
    assert!(down.contains("node-3/Down"), "{down}");
    cluster.finish();
}

#[test]
fn a_node_that_comes_back_is_reconciled() {
    let cluster = Cluster::start("comes_back", 2, 0);
    let host = cluster.manager();
    host.docker("service create -d --replicas 4 --name web shoal:lab");
    cluster.wait_tasks("web", 4);
    cluster.lab.cut(2);
    eventually("its tasks to be replaced", CONVERGE, || {
        let tasks = cluster.tasks("web");
        let here = tasks.values().filter(|node| *node == "node-1").count();
        if here == 4 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    // It keeps working without a manager.
    assert_eq!(cluster.node(2).docker("ps -q").lines().count(), 2);
    cluster.lab.mend(2);
    cluster.wait_ready(2);
    eventually("its old tasks to end", CONVERGE, || {
        let left = cluster.node(2).docker("ps -q");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(cluster.tasks("web").len(), 4);
    cluster.finish();
}

#[test]
fn the_death_of_a_daemon_stops_no_container() {
    let cluster = Cluster::start("daemon_killed", 2, 1);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --replicas 2 --name web --network mynet1 -p 8091:80 shoal:lab");
    cluster.wait_tasks("web", 2);
    host.docker("run -d --name byhand shoal:lab sleep 1000");
    let started = |index: usize| {
        let ids = cluster.node(index).docker("ps -q --no-trunc");
        let ids: Vec<&str> = ids.lines().collect();
        let mut args = vec!["inspect", "-f", "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}"];
        args.extend(&ids);
        let mut lines: Vec<String> =
            cluster.node(index).docker_args(&args).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before: Vec<_> = (1..=2).map(started).collect();
    for index in 1..=2 {
        cluster.node(index).kill_daemon();
    }
    // The data plane works on without the daemons.
    let answers = cluster.ask_from_host(3, "http://198.51.100.2:8091/", 10);
    assert!(answers.iter().all(|a| a.contains("sees 198.51.100.3")), "{answers:?}");
    for index in 1..=2 {
        cluster.node(index).restart();
    }
    cluster.wait_ready(2);
    let after: Vec<_> = (1..=2).map(started).collect();
    assert_eq!(before, after, "containers were stopped or started");
    cluster.wait_tasks("web", 2);
    let logs = host.docker("logs byhand");
    assert_eq!(logs, "");
    host.docker("service scale -d web=3");
    cluster.wait_tasks("web", 3);
    host.docker("rm -f byhand");
    cluster.finish();
}

/// With `--live-restore` a daemon that is stopped lets its containers live on: nobody notices that
/// it is upgraded.
#[test]
fn a_daemon_that_is_upgraded_keeps_its_tasks() {
    let args = vec!["--live-restore".to_owned()];
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    let cluster = Cluster::start_with("upgraded", 2, 1, &options);
    let host = cluster.manager();
    host.docker("service create -d --replicas 2 --name web -p 8091:80 shoal:lab");
    let before = cluster.wait_tasks("web", 2);
    cluster.wait_port(3, 8091);
    let containers = |index: usize| cluster.node(index).docker("ps -q --no-trunc");
    let held: Vec<String> = (1..=2).map(containers).collect();
    for index in [2, 1] {
        cluster.node(index).stop_daemon();
        if index == 2 {
            eventually("the manager to know", CONVERGE, || {
                let list = host.docker("node ls --format {{.Hostname}}/{{.Status}}");
                if list.contains("node-2/Unknown") { Ok(()) } else { Err(list) }
            });
        }
        // For longer than three heartbeats, through both nodes.
        for url in ["http://198.51.100.1:8091/", "http://198.51.100.2:8091/"] {
            let (_, failed, text) = outcome(load(&cluster, 3, url, 120));
            assert_eq!(failed, 0, "node {index} was upgraded:\n{text}");
        }
        cluster.node(index).restart();
        cluster.wait_ready(2);
        let history = host.docker("service ps web --no-trunc");
        assert_eq!(cluster.tasks("web"), before, "node {index}: tasks were replaced:\n{history}");
    }
    assert_eq!((1..=2).map(containers).collect::<Vec<_>>(), held);
    // Those daemons would leave everything where it is.
    for index in [2, 1] {
        cluster.node(index).restart_with(&DaemonOptions::default());
    }
    cluster.finish();
}

#[test]
fn the_store_survives_kill_nine() {
    let cluster = Cluster::start("store_killed", 1, 0);
    let host = cluster.manager();
    for round in 0..3 {
        host.docker(&format!("service create -d --replicas 0 --name s{round} shoal:lab"));
        host.docker(&format!("network create -d overlay n{round}"));
        host.kill_daemon();
        host.restart();
        let services = host.docker("service ls --format {{.Name}}");
        let networks = host.docker("network ls --format {{.Name}}");
        for earlier in 0..=round {
            assert!(services.contains(&format!("s{earlier}")), "{services}");
            assert!(networks.contains(&format!("n{earlier}")), "{networks}");
        }
    }
    cluster.wait_ready(1);
    cluster.finish();
}

#[test]
fn a_crashing_task_is_restarted_with_a_delay_and_its_history_is_kept() {
    let cluster = Cluster::start("crashing", 1, 0);
    let host = cluster.manager();
    host.docker_args(&[
        "service",
        "create",
        "-d",
        "--name",
        "bad",
        "--restart-delay",
        "500ms",
        "--restart-max-attempts",
        "2",
        "shoal:lab",
        "sh",
        "-c",
        "echo dying; exit 3",
    ]);
    let list = eventually("three attempts", CONVERGE, || {
        let list = host.docker("service ps bad --no-trunc --format {{.CurrentState}}|{{.Error}}");
        if list.matches("non-zero exit (3)").count() == 3 { Ok(list) } else { Err(list) }
    });
    assert!(list.lines().all(|l| l.starts_with("Failed")), "{list}");
    let logs = host.docker("service logs --raw bad");
    assert_eq!(logs.matches("dying").count(), 3, "{logs}");
    cluster.finish();
}
