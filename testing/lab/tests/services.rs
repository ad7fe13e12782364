//! What users do with services from day to day: ports of every kind, updates, drain, logs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use shoal_lab::{CONVERGE, Cluster, backends, eventually};

/// Sends a datagram to the whoami server and gives its answer.
const ASK_UDP: &str = "import socket,sys\n\
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
    s.settimeout(1)\n\
    s.sendto(b'?',(sys.argv[1],int(sys.argv[2])))\n\
    print(s.recv(200).decode().strip())\n";

#[test]
fn ports_of_every_kind_answer() {
    let cluster = Cluster::start("ports", 2, 1);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    host.docker(
        "service create -d --replicas 2 --name web --network mynet1 \
         --publish published=8053,target=80,protocol=udp \
         --publish published=8091,target=80 shoal:lab",
    );
    host.docker(
        "service create -d --mode global --name direct \
         --publish mode=host,published=8085,target=80 shoal:lab",
    );
    cluster.wait_tasks("web", 2);
    cluster.wait_tasks("direct", 2);
    let script = cluster.lab.dir().join("ask.py");
    std::fs::write(&script, ASK_UDP).unwrap();
    let outside = cluster.lab.host(3);
    for index in 1..=2 {
        let address = cluster.node(index).address();
        // UDP through the mesh, with the client's own address. A first packet may be lost.
        let said = eventually("an answer over UDP", CONVERGE, || {
            let out = outside.try_sh(&format!("python3 {} {address} 8053", script.display()));
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            if out.status.success() { Ok(text) } else { Err(format!("{out:?}")) }
        });
        assert!(said.ends_with("sees 198.51.100.3"), "{said}");
        // A host-mode port leads to the task of that node, and to no other.
        let said = eventually("the host-mode port", CONVERGE, || {
            let out = outside.try_sh(&format!("curl -sS -m 3 http://{address}:8085/"));
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            if out.status.success() { Ok(text) } else { Err(format!("{out:?}")) }
        });
        let here = cluster.container(index, "direct");
        assert!(said.starts_with(&here[..12]), "node {index}: {said}");
        assert!(said.ends_with("sees 198.51.100.3"), "{said}");
    }
    // A task reaches its own service, itself included.
    let task = cluster.container(1, "web");
    let said = host.docker(&format!("exec {task} shoal try get http://web/ -n 20"));
    assert!(!said.contains("failed") && said.lines().count() >= 2, "{said}");
    cluster.finish();
}

#[test]
fn services_on_the_nodes_own_networks() {
    let cluster = Cluster::start("own_networks", 2, 1);
    let host = cluster.manager();
    let create = "service create -d --mode global";
    // In the node's namespace: no address of its own, no mesh, no virtual address.
    host.docker(&format!("{create} --name direct --network host shoal:lab"));
    host.docker(&format!("{create} --name lonely --network none shoal:lab shoal try pause"));
    host.docker(&format!("{create} --name plain --network bridge -p 8091:80 shoal:lab"));
    for name in ["direct", "lonely", "plain"] {
        cluster.wait_tasks(name, 2);
    }
    cluster.wait_port(3, 80);
    cluster.wait_port(3, 8091);
    let vips = host.docker("service inspect direct -f {{.Endpoint.VirtualIPs}}");
    assert_eq!(vips.trim(), "[]");
    for (name, network) in [("direct", "host"), ("lonely", "none"), ("plain", "bridge")] {
        let task = cluster.container(2, name);
        let mode = "inspect -f {{.HostConfig.NetworkMode}}";
        assert_eq!(cluster.node(2).docker(&format!("{mode} {task}")).trim(), network);
    }
    let node = cluster.node(2);
    let own = node.sh("readlink /proc/self/ns/net");
    let task = cluster.container(2, "direct");
    assert_eq!(node.docker(&format!("exec {task} busybox readlink /proc/self/ns/net")), own);
    let devices = format!("exec {} ls /sys/class/net", cluster.container(2, "lonely"));
    assert_eq!(node.docker(&devices).trim(), "lo");
    // The plain one is on the bridge and, for the port, on the ingress network.
    let devices = format!("exec {} ls /sys/class/net", cluster.container(2, "plain"));
    assert_eq!(node.docker(&devices).lines().count(), 3);
    // A daemon that was killed gives the task's address on its bridge back, too.
    node.kill_daemon();
    node.restart();
    cluster.wait_ready(2);
    host.docker("service rm plain");
    // The first address of the bridge, which the task had, goes to the next container.
    eventually("the task's address", CONVERGE, || {
        let said = node.docker("run --rm shoal:lab ip -4 addr show eth0");
        if said.contains("172.17.0.2/") { Ok(()) } else { Err(said) }
    });
    // Nothing is accepted without effect.
    for (words, why) in [
        ("--network host -p 80:80", "listens on the node's own ports"),
        ("--network none -p 80:80", "nothing reaches a task on it"),
        ("--network host --network bridge", "can be on no other network"),
        ("--network host --sysctl net.core.somaxconn=9", "net.core.somaxconn"),
    ] {
        let said = host.docker_fails(&format!("service create -d {words} shoal:lab"));
        assert!(said.contains(why), "{words}: {said}");
    }
    cluster.finish();
}

#[test]
fn a_port_that_a_program_of_the_host_holds_is_said_on_the_task() {
    const HOLD: &str = "import socket, sys; s = socket.create_server(('0.0.0.0', 8093)); \
                        print('held', flush=True); sys.stdin.read()";
    let cluster = Cluster::start("port_held", 1, 0);
    let host = cluster.manager();
    let mut holder = host
        .command("python3")
        .args(["-c", HOLD])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    host.docker("service create -d --name web -p 8093:80 --restart-delay 1s shoal:lab");
    let said = eventually("the task to say who holds its port", CONVERGE, || {
        let list = host.docker("service ps web --no-trunc --format {{.CurrentState}}|{{.Error}}");
        if list.contains("python3") { Ok(list) } else { Err(list) }
    });
    let pid = holder.id();
    assert!(said.contains(&format!("(pid {pid})")) && said.contains("SH-NET-010"), "{said}");
    assert!(!said.contains("Running"), "{said}");
    let warnings = host.docker("info -f {{.Warnings}}");
    assert!(warnings.contains(&format!("(pid {pid})")), "{warnings}");
    // It ends with its standard input.
    drop(holder.stdin.take());
    holder.wait().unwrap();
    cluster.wait_tasks("web", 1);
    cluster.wait_port(1, 8093);
    cluster.finish();
}

#[test]
fn an_update_rolls_and_can_be_taken_back() {
    let cluster = Cluster::start("update", 2, 1);
    let host = cluster.manager();
    host.docker("service create -d --replicas 3 --name web -e COLOUR=red -p 8091:80 shoal:lab");
    let before = cluster.wait_tasks("web", 3);
    let colour = |index: usize| {
        let task = cluster.container(index, "web");
        // The task may just be going: then it has no colour.
        let out = cluster.node(index).try_docker(&format!("exec {task} env"));
        let all = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = all.lines().find_map(|line| line.strip_prefix("COLOUR="));
        line.unwrap_or_default().to_owned()
    };
    assert_eq!((colour(1), colour(2)), ("red".to_owned(), "red".to_owned()));
    let said = host.docker("service update --update-monitor 500ms --env-add COLOUR=blue web");
    assert!(said.contains("converged"), "{said}");
    let after = cluster.wait_tasks("web", 3);
    assert!(before.keys().all(|id| !after.contains_key(id)), "{before:?} {after:?}");
    assert_eq!((colour(1), colour(2)), ("blue".to_owned(), "blue".to_owned()));
    // Labels and scale concern no running task.
    host.docker("service update -d --label-add a=b web");
    host.docker("service scale -d web=4");
    let scaled = cluster.wait_tasks("web", 4);
    assert!(after.keys().all(|id| scaled.contains_key(id)), "{after:?} {scaled:?}");
    host.docker("service update --force -d web");
    eventually("every task to be replaced", CONVERGE, || {
        let now = cluster.tasks("web");
        let old = now.keys().filter(|id| scaled.contains_key(*id)).count();
        if now.len() == 4 && old == 0 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    host.docker("service update -d --env-add COLOUR=green web");
    eventually("green tasks", CONVERGE, || {
        let (one, two) = (colour(1), colour(2));
        if (one.as_str(), two.as_str()) == ("green", "green") { Ok(()) } else { Err(one + &two) }
    });
    eventually("the update to be complete", CONVERGE, || {
        let state = host.docker("service inspect web --format {{.UpdateStatus.State}}");
        if state == "completed" { Ok(()) } else { Err(state) }
    });
    host.docker("service rollback -d web");
    eventually("blue tasks again", CONVERGE, || {
        let (one, two) = (colour(1), colour(2));
        if (one.as_str(), two.as_str()) == ("blue", "blue") { Ok(()) } else { Err(one + &two) }
    });
    cluster.finish();
}

#[test]
fn a_drained_node_hands_its_tasks_over() {
    let cluster = Cluster::start("drain", 2, 1);
    let host = cluster.manager();
    host.docker("service create -d --replicas 4 --name web -p 8091:80 shoal:lab");
    cluster.wait_tasks("web", 4);
    host.docker("node update --availability drain node-2");
    eventually("the tasks to move", CONVERGE, || {
        let tasks = cluster.tasks("web");
        let here = tasks.values().filter(|node| *node == "node-1").count();
        if here == 4 && tasks.len() == 4 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    cluster.wait_port(3, 8091);
    // The drained node still answers for the others.
    let answers = cluster.ask_from_host(3, "http://198.51.100.2:8091/", 20);
    assert!(answers.iter().all(|a| a.contains("sees 198.51.100.3")), "{answers:?}");
    assert!(backends(&answers) >= 2, "{answers:?}");
    host.docker("node update --availability active node-2");
    host.docker("service create -d --mode global --name everywhere shoal:lab");
    cluster.wait_tasks("everywhere", 2);
    cluster.finish();
}

#[test]
fn logs_come_from_every_node() {
    let cluster = Cluster::start("service_logs", 2, 0);
    let host = cluster.manager();
    host.docker_args(&[
        "service",
        "create",
        "-d",
        "--mode",
        "global",
        "--name",
        "talk",
        "--hostname",
        "{{.Node.Hostname}}",
        "shoal:lab",
        "sh",
        "-c",
        "echo out from $(hostname); echo err from $(hostname) >&2; sleep 1000",
    ]);
    cluster.wait_tasks("talk", 2);
    let text = eventually("four lines", CONVERGE, || {
        let out = host.try_docker("service logs talk");
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        if text.lines().count() == 4 { Ok(text) } else { Err(text) }
    });
    for node in ["node-1", "node-2"] {
        for stream in ["out", "err"] {
            assert!(text.contains(&format!("{stream} from {node}")), "{text}");
        }
    }
    // A lost node costs one line, not the whole answer.
    cluster.lab.cut(2);
    eventually("the node to be down", CONVERGE, || {
        let list = host.docker("node ls --format {{.Hostname}}/{{.Status}}");
        if list.contains("node-2/Down") { Ok(()) } else { Err(list) }
    });
    let out = host.try_docker("service logs talk");
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(text.contains("out from node-1"), "{text}");
    assert!(text.contains("node-2"), "the missing node is not named: {text}");
    cluster.lab.mend(2);
    cluster.wait_ready(2);
    cluster.finish();
}
