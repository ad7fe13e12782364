//! The founding scenario, row by row (the rows are those of the scenario's table), driven by the
//! real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::{CONVERGE, Cluster, DaemonOptions, Lab, backends, eventually, import_nginx};
use shoal_stopwatch::Stopwatch;

#[test]
fn row_01_init_prints_a_join_command() {
    let lab = Lab::start("row_01", 1);
    let host = lab.host(1);
    host.daemon();
    let said = host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    let token = said.split_whitespace().find(|w| w.starts_with("SWMTKN-1-")).unwrap();
    let parts: Vec<&str> = token.split('-').collect();
    assert_eq!((parts[2].len(), parts[3].len()), (50, 25), "{said}");
    assert!(said.contains(&format!("{}:2377", host.address())), "{said}");
    let manager = host.docker("swarm join-token -q manager");
    let manager_parts: Vec<&str> = manager.split('-').collect();
    assert_eq!(parts[2], manager_parts[2], "both tokens pin the same authority");
    assert_ne!(parts[3], manager_parts[3]);
    let rotated = host.docker("swarm join-token -q --rotate worker");
    assert_ne!(rotated, token);
    let again = host.docker_fails("swarm init --advertise-addr 198.51.100.1");
    assert!(again.contains("already part of a swarm"), "{again}");
    lab.finish();
}

#[test]
fn row_02_a_worker_joins_and_node_ls_shows_it() {
    let lab = Lab::start("row_02", 2);
    lab.host(1).daemon();
    lab.host(2).daemon();
    lab.host(1).docker("swarm init --advertise-addr 198.51.100.1");
    let shown = lab.host(1).docker("swarm join-token manager");
    assert!(shown.contains("docker swarm join --token SWMTKN-1-"), "{shown}");
    let token = lab.host(1).docker("swarm join-token -q worker");
    let said = lab.host(2).docker(&format!("swarm join --token {token} 198.51.100.1:2377"));
    assert_eq!(said, "This node joined a swarm as a worker.");
    let list = eventually("both nodes to be ready", CONVERGE, || {
        let list = lab.host(1).docker("node ls");
        if list.matches("Ready").count() == 2 { Ok(list) } else { Err(list) }
    });
    for column in ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS"] {
        assert!(list.contains(column), "{list}");
    }
    let own = list.lines().find(|line| line.contains(" * ")).unwrap();
    assert!(own.contains("node-1") && own.contains("Leader"), "{list}");
    let refused = lab.host(2).docker_fails("node ls");
    assert!(refused.contains("not a swarm manager"), "{refused}");
    let info =
        lab.host(2).docker("info --format {{.Swarm.LocalNodeState}}/{{.Swarm.ControlAvailable}}");
    assert_eq!(info, "active/false");
    lab.finish();
}

#[test]
fn row_03_an_overlay_network_is_created() {
    let cluster = Cluster::start("row_03", 1, 0);
    let host = cluster.manager();
    let before = host.docker("network ls --format {{.Name}}/{{.Driver}}/{{.Scope}}");
    assert!(before.contains("ingress/overlay/swarm"), "{before}");
    assert!(before.contains("bridge/bridge/local"), "{before}");
    let id = host.docker("network create -d overlay mynet1");
    assert_eq!(id.len(), 25, "{id}");
    let after = host.docker("network ls --format {{.Name}}/{{.Driver}}/{{.Scope}}");
    assert!(after.contains("mynet1/overlay/swarm"), "{after}");
    let inspected = host.docker_json("network inspect mynet1");
    let subnet = inspected[0]["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
    assert!(subnet.ends_with("/24"), "{subnet}");
    let twice = host.docker_fails("network create -d overlay mynet1");
    assert!(twice.contains("mynet1") && twice.contains("already exists"), "{twice}");
    host.docker("network rm mynet1");
    let gone = host.docker_fails("network inspect mynet1");
    assert!(gone.contains("not found"), "{gone}");
    cluster.finish();
}

#[test]
fn row_04_a_node_that_cannot_do_it_says_so_before_it_takes_a_task() {
    let lab = Lab::start("row_04", 1);
    let host = lab.host(1);
    // A machine whose file system cannot carry overlayfs: here another overlayfs.
    let dir = host.dir().join("strange");
    host.sh(&format!(
        "mkdir -p {0}/lower {0}/upper {0}/work {0}/merged && mount -t overlay overlay -o \
         lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work {0}/merged",
        dir.display()
    ));
    let data_root = dir.join("merged/data");
    host.daemon_with(&DaemonOptions { data_root: Some(data_root.clone()), ..Default::default() });
    host.docker("swarm init --advertise-addr 198.51.100.1");
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --name mytest --network mynet1 shoal:lab");
    let err = eventually("the task to be refused with a reason", CONVERGE, || {
        let line = "service ps mytest --no-trunc --format {{.Error}}";
        let err = host.docker(line).trim_matches('"').to_owned();
        if err.is_empty() { Err(host.docker("service ps mytest --no-trunc")) } else { Ok(err) }
    });
    let shown = host.docker("service ps mytest --format {{.Error}}");
    assert!(shown.contains("overlay file system missing"), "the cause is cut off: {shown}");
    assert!(err.contains("SH-DOC-"), "no id: {err}");
    let state = host.docker("service ps mytest --format {{.CurrentState}}");
    assert!(state.starts_with("Pending"), "it must not have been tried: {state}");
    let node = host.docker("node inspect self");
    assert!(node.contains("overlay file system"), "node inspect does not say it: {node}");
    // `shoal doctor` says it before the first service.
    let doctor = host.try_sh(&format!(
        "{} doctor --data-root {}",
        shoal_lab::shoal().display(),
        data_root.display()
    ));
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{said}");
    assert!(said.contains("overlay file system") && said.contains("fail"), "{said}");
    host.stop_daemon();
    host.sh(&format!("umount {}", dir.join("merged").display()));
    lab.finish();
}

#[test]
fn row_05_scale_and_remove() {
    let cluster = Cluster::start("row_05", 2, 0);
    let host = cluster.manager();
    host.docker("service create -d --replicas 2 --name mytest shoal:lab");
    cluster.wait_tasks("mytest", 2);
    let said = host.docker("service scale mytest=4");
    assert!(said.contains("converged") || said.contains("4/4"), "{said}");
    let tasks = cluster.wait_tasks("mytest", 4);
    let on_first = tasks.values().filter(|node| *node == "node-1").count();
    assert_eq!(on_first, 2, "tasks are spread: {tasks:?}");
    host.docker("service scale -d mytest=1");
    cluster.wait_tasks("mytest", 1);
    let began = Stopwatch::start();
    host.docker("service rm mytest");
    for index in 1..=2 {
        eventually("the containers to go", CONVERGE, || {
            let left = cluster.node(index).docker("ps -aq");
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
    assert!(began.elapsed() < Duration::from_secs(10), "removal took {:?}", began.elapsed());
    let gone = host.docker_fails("service ps mytest");
    assert!(gone.contains("no such service"), "{gone}");
    cluster.finish();
}

#[test]
fn row_06_a_service_with_a_bind_mount_runs_on_each_node() {
    let cluster = Cluster::start("row_06", 2, 0);
    let host = cluster.manager();
    let content = cluster.lab.dir().join("staticcontents");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("index.html"), "from the mount\n").unwrap();
    for index in 1..=2 {
        import_nginx(cluster.node(index));
    }
    host.docker("network create -d overlay mynet1");
    host.docker(&format!(
        "service create -d --replicas 2 --name mynginx --network mynet1 --mount \
         type=bind,source={},dst=/usr/share/nginx/html,ro=true nginx:lab",
        content.display()
    ));
    let tasks = cluster.wait_tasks("mynginx", 2);
    let mut nodes: Vec<&String> = tasks.values().collect();
    nodes.sort();
    assert_eq!(nodes, ["node-1", "node-2"], "one task on each node");
    let client = host.docker("run -d --network mynet1 shoal:lab shoal try pause");
    let answer = host.docker(&format!("exec {client} wget -qO- http://mynginx/"));
    assert_eq!(answer, "from the mount");
    let server = cluster.container(1, "mynginx");
    let write = host.try_docker(&format!("exec {server} touch /usr/share/nginx/html/x"));
    let said = String::from_utf8_lossy(&write.stderr).into_owned();
    assert!(said.contains("Read-only file system"), "{said}");
    host.docker(&format!("rm -f {client}"));
    cluster.finish();
}

#[test]
fn row_07_a_container_by_hand_joins_a_swarm_network() {
    let cluster = Cluster::start("row_07", 2, 0);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --replicas 2 --name web --network mynet1 shoal:lab");
    cluster.wait_tasks("web", 2);
    for index in 1..=2 {
        let node = cluster.node(index);
        let said =
            node.docker("run --rm --network mynet1 shoal:lab shoal try get http://web/ -n 20");
        assert!(!said.contains("failed"), "from node {index}: {said}");
        assert_eq!(said.lines().count(), 2, "both tasks answer: {said}");
    }
    // By its name it is reached from the other node, too.
    cluster.node(2).docker("run -d --name debug --network mynet1 shoal:lab");
    let said = host.docker("run --rm --network mynet1 shoal:lab shoal try get http://debug/");
    assert!(said.contains("sees 10."), "{said}");
    cluster.node(2).docker("rm -f debug");
    host.docker("service rm web");
    eventually("the network to be free", CONVERGE, || {
        let out = host.try_docker("network rm mynet1");
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
    });
    cluster.finish();
}

#[test]
fn row_08_names_resolve_inside_a_task() {
    let cluster = Cluster::start("row_08", 2, 0);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker(
        "service create -d --replicas 3 --name web --network name=mynet1,alias=www shoal:lab",
    );
    cluster.wait_tasks("web", 3);
    cluster.clients("mynet1");
    let vip =
        host.docker_json("service inspect web")[0]["Endpoint"]["VirtualIPs"][0]["Addr"].clone();
    let vip = vip.as_str().unwrap().split('/').next().unwrap().to_owned();
    for index in 1..=2 {
        let client = cluster.container(index, "client");
        let node = cluster.node(index);
        let resolve = |name: &str| node.docker(&format!("exec {client} shoal try resolve {name}"));
        for name in ["web", "www", "WEB", "web.mynet1"] {
            let said = resolve(name);
            assert!(said.contains(&vip) && said.contains("127.0.0.11"), "{name}: {said}");
        }
        let tasks = resolve("tasks.web");
        let addresses = tasks.lines().filter(|l| l.contains(" A ") || l.contains("\tA\t"));
        assert_eq!(addresses.count(), 3, "{tasks}");
        let pid = node.docker(&format!("inspect -f {{{{.State.Pid}}}} {client}"));
        let dig =
            node.sh(&format!("nsenter -t {pid} -n dig +noall +answer +comments @127.0.0.11 web"));
        let ttl: u32 = dig
            .lines()
            .find(|l| l.contains(&vip))
            .and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("{dig}"));
        assert!(ttl <= 60, "a long life for an address that may change: {dig}");
        let none = node.sh(&format!("nsenter -t {pid} -n dig +noall +comments @127.0.0.11 nosuch"));
        assert!(none.contains("NXDOMAIN"), "{none}");
    }
    cluster.finish();
}

#[test]
fn row_10_a_worker_leaves_and_no_request_fails() {
    let cluster = Cluster::start("row_10", 2, 1);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --replicas 2 --name web --network mynet1 -p 8091:80 shoal:lab");
    cluster.wait_tasks("web", 2);
    cluster.wait_port(3, 8091);
    let log = cluster.lab.dir().join("load");
    let load = format!(
        "for i in $(seq 400); do curl -s -m 5 -o /dev/null -w '%{{http_code}} %{{time_total}}\\n' \
         http://198.51.100.1:8091/; done > {}",
        log.display()
    );
    let mut background = cluster.lab.host(3).command("sh").args(["-c", &load]).spawn().unwrap();
    let said = cluster.node(2).docker("swarm leave");
    assert_eq!(said, "Node left the swarm.");
    let tasks = eventually("both tasks to run on the manager", CONVERGE, || {
        let tasks = cluster.tasks("web");
        let here = tasks.values().filter(|node| *node == "node-1").count();
        if here == 2 { Ok(tasks) } else { Err(format!("{tasks:?}")) }
    });
    assert_eq!(tasks.len(), 2);
    assert!(background.wait().unwrap().success());
    let lines = std::fs::read_to_string(&log).unwrap();
    let failed: Vec<&str> = lines.lines().filter(|l| !l.starts_with("200 ")).collect();
    assert_eq!(lines.lines().count(), 400);
    assert!(failed.is_empty(), "requests failed: {failed:?}");
    let list = host.docker("node ls --format {{.Hostname}}/{{.Status}}");
    assert!(list.contains("node-2/Down"), "{list}");
    host.docker("node rm node-2");
    cluster.finish();
}

#[test]
fn row_12_the_daemon_listens_on_the_published_port_of_every_node() {
    let cluster = Cluster::start("row_12", 3, 0);
    let host = cluster.manager();
    host.docker("service create -d --name web --publish 8091:80/tcp shoal:lab");
    cluster.wait_tasks("web", 1);
    for index in 1..=3 {
        let node = cluster.node(index);
        let pid = node.daemon_pid().to_string();
        eventually("the daemon to hold the port", CONVERGE, || {
            let out = node.try_sh("lsof -nP -i tcp:8091 -s tcp:LISTEN");
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let ours = text.lines().any(|l| l.split_whitespace().nth(1) == Some(pid.as_str()));
            if ours { Ok(()) } else { Err(text) }
        });
        // Loopback clients on the node itself are served as well.
        for to in ["127.0.0.1", "localhost", node.address()] {
            let said = node.sh(&format!("curl -sS -m 3 http://{to}:8091/"));
            assert!(said.contains("sees"), "{to}: {said}");
        }
    }
    host.docker("service rm web");
    eventually("the port to be free", CONVERGE, || {
        let out = host.try_sh("lsof -nP -i tcp:8091 -s tcp:LISTEN");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.is_empty() { Ok(()) } else { Err(text) }
    });
    cluster.finish();
}

#[test]
fn row_13_every_node_answers_and_the_backend_sees_the_client() {
    let cluster = Cluster::start("row_13", 3, 1);
    let host = cluster.manager();
    host.docker("service create -d --replicas 2 --name web --publish 8091:80/tcp shoal:lab");
    let tasks = cluster.wait_tasks("web", 2);
    assert!(tasks.values().any(|n| n != "node-1"), "{tasks:?}");
    cluster.wait_port(4, 8091);
    for index in 1..=3 {
        let url = format!("http://{}:8091/", cluster.node(index).address());
        let answers = cluster.ask_from_host(4, &url, 20);
        assert_eq!(answers.len(), 20);
        assert_eq!(backends(&answers), 2, "node {index}: {answers:?}");
        for answer in &answers {
            assert!(answer.ends_with("sees 198.51.100.4"), "node {index}: {answer}");
        }
    }
    cluster.finish();
}

#[test]
fn row_09_half_every_request_to_the_virtual_address_answers() {
    // Row 9 without its automatic second transport, which is not there yet.
    let cluster = Cluster::start("row_09", 2, 0);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --replicas 2 --name web --network mynet1 shoal:lab");
    let tasks = cluster.wait_tasks("web", 2);
    assert!(tasks.values().any(|n| n != "node-1"), "{tasks:?}");
    cluster.clients("mynet1");
    for index in 1..=2 {
        let answers = cluster.ask_from_task(index, "http://web/", 20);
        assert_eq!(answers.len(), 20, "{answers:?}");
        assert_eq!(backends(&answers), 2, "node {index}: {answers:?}");
        for answer in &answers {
            assert!(answer.contains("sees 10."), "{answer}");
        }
    }
    cluster.finish();
}
