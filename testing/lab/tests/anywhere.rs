//! Containers of tasks, reached from any manager by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use shoal_lab::http::{Outcome, Request};
use shoal_lab::{CONVERGE, Cluster, Host, eventually, must, within};

/// What the task's container does: says something, then something again and again.
const SAYS: &str = "echo first; echo warned >&2; while :; do echo tick; sleep 1; done";
/// How long a client may be left in the dark about a node that is gone. Managers call it down after
/// three heartbeats; the rest is for slow machines.
const DARK_MAX: Duration = Duration::from_secs(30);

/// Node 1 leads, node 2 works, node 3 is a manager that follows; a task runs on node 2.
struct Seat {
    cluster: Cluster,
    container: String,
    task: String,
}

impl Seat {
    fn take(name: &str) -> Self {
        let cluster = Cluster::start(name, 2, 1);
        let leader = cluster.manager();
        let token = leader.docker("swarm join-token -q manager");
        let follower = cluster.lab.host(3);
        follower.daemon();
        follower.docker(&format!("swarm join --token {token} {}:2377", leader.address()));
        let create = ["service", "create", "-d", "--name", "web", "--constraint"];
        let rest = ["node.hostname==node-2", "shoal:lab", "sh", "-c", SAYS];
        leader.docker_args(&[&create[..], &rest[..]].concat());
        let task = cluster.wait_tasks("web", 1).into_keys().next().unwrap();
        let container = cluster.container(2, "web");
        let seat = Self { cluster, container, task };
        eventually("the follower to know the container", CONVERGE, || {
            let out = seat.follower().try_docker(&format!("inspect {}", seat.container));
            if out.status.success() { Ok(()) } else { Err(said(&out)) }
        });
        seat
    }

    fn leader(&self) -> &Host {
        self.cluster.manager()
    }

    fn worker(&self) -> &Host {
        self.cluster.node(2)
    }

    fn follower(&self) -> &Host {
        self.cluster.lab.host(3)
    }

    fn managers(&self) -> [&Host; 2] {
        [self.leader(), self.follower()]
    }

    /// A terminal by `host`, whose size is set through the other manager, by another request.
    fn resizes(&self, host: &Host, word: &str) {
        let sized = "until [ \"$(stty size 2>/dev/null)\" = \"33 99\" ]; do sleep 0.1; done; \
                     echo sized";
        let mut client = host.command("script");
        client.args(["-qec", &format!("docker exec -it {word} sh -c '{sized}'"), "/dev/null"]);
        client.env("DOCKER_HOST", host.socket()).env("DOCKER_CONFIG", host.dir().join("config"));
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let exec = eventually("the exec to be seen", CONVERGE, || {
            let seen = host.docker_json(&format!("container inspect {word}"));
            let id = seen[0]["ExecIDs"][0].as_str().map(str::to_owned);
            id.ok_or_else(|| seen[0]["ExecIDs"].to_string())
        });
        let other = if host.name() == "node-1" { self.follower() } else { self.leader() };
        let socket = other.socket();
        let socket = socket.trim_start_matches("unix://");
        // The client sets the size of its own terminal once, at a time of its choice.
        let status = eventually("the terminal to have its size", CONVERGE, || {
            let resize = format!(
                "curl -sS -m 20 --unix-socket {socket} -X POST \
                 'http://x/v1.47/exec/{exec}/resize?h=33&w=99'"
            );
            let out = other.try_sh(&resize);
            client.try_wait().unwrap().ok_or_else(|| said(&out))
        });
        assert!(status.success(), "{status}");
        assert_eq!(line(&mut client), "sized");
    }

    /// Every word by which the container is meant.
    fn words(&self) -> [String; 4] {
        let name = format!("web.1.{}", self.task);
        let short = self.container[..12].to_owned();
        [self.container.clone(), short, self.task.clone(), name]
    }
}

fn said(out: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}{}", text(&out.stdout), text(&out.stderr), out.status)
}

fn fed(host: &Host, args: &[&str], input: &[u8]) -> Output {
    let mut child = spawn(host, args);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn spawn(host: &Host, args: &[&str]) -> Child {
    let mut command = host.docker_cmd(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The next line that a client prints.
fn line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits for a client to end, and gives its status and what it wrote to standard error.
fn ended(mut child: Child, what: &str) -> (i32, String) {
    let status = eventually(what, DARK_MAX, || {
        child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
    });
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (status.code().unwrap_or(-1), text)
}

#[test]
fn a_process_is_run_in_a_tasks_container_from_every_manager() {
    let seat = Seat::take("any_exec");
    for host in seat.managers() {
        for word in seat.words() {
            assert_eq!(host.docker(&format!("exec {word} echo {word}")), word);
        }
        let word = &seat.words()[3];
        // The client's end of input reaches the process, whose output goes on.
        let out = fed(host, &["exec", "-i", word, "cat"], b"hi\n");
        assert_eq!((out.stdout.as_slice(), out.status.code()), (&b"hi\n"[..], Some(0)));
        let out = fed(host, &["exec", "-i", word, "sh", "-c", "cat >&2; exit 7"], b"oh\n");
        assert_eq!((out.stderr.as_slice(), out.status.code()), (&b"oh\n"[..], Some(7)));
        let missing = host.docker_fails(&format!("exec {word} no-such-program"));
        assert!(missing.contains("not found"), "{missing}");
        seat.resizes(host, word);
        host.docker(&format!("exec -d {word} touch /tmp/detached-{}", host.name()));
        eventually("the detached exec", CONVERGE, || {
            let out = host.try_docker(&format!("exec {word} ls /tmp/detached-{}", host.name()));
            if out.status.success() { Ok(()) } else { Err(said(&out)) }
        });
        // Its life is the cluster's.
        assert!(host.docker_fails(&format!("stop {word}")).contains("No such container"));
    }
    a_leaders_own(&seat);
    // A worker knows only its own.
    let own = seat.worker().docker(&format!("exec {} echo here", seat.container));
    assert_eq!(own, "here");
    seat.cluster.finish();
}

/// A task on the node that leads, from the manager that follows, and execs that both find.
fn a_leaders_own(seat: &Seat) {
    let create = ["service", "create", "-d", "--name", "boss", "--constraint"];
    let rest = ["node.hostname==node-1", "shoal:lab", "sh", "-c", SAYS];
    seat.leader().docker_args(&[&create[..], &rest[..]].concat());
    seat.cluster.wait_tasks("boss", 1);
    let container = seat.cluster.container(1, "boss");
    eventually("the follower to reach the leader's container", CONVERGE, || {
        let out = seat.follower().try_docker(&format!("exec {container} echo boss"));
        if out.stdout == b"boss\n" { Ok(()) } else { Err(said(&out)) }
    });
    let ask = |host: &Host, method: &'static str, path: String, body: Option<Value>| {
        let request = Request::new(method, path);
        let request = body.iter().fold(request, |request, body| request.json(body));
        let socket = host.socket();
        let answer = request.send(socket.trim_start_matches("unix://").as_ref());
        let Outcome::Answered(status, text) = answer else { panic!("{method}: {answer:?}") };
        assert!((200..300).contains(&status), "{method}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    // Made by one, started by another, looked at by a third.
    for (makes, starts) in [(seat.follower(), seat.leader()), (seat.leader(), seat.follower())] {
        let name = &seat.words()[3];
        for target in [container.as_str(), name] {
            let body = json!({ "Cmd": ["true"], "AttachStdout": true });
            let made = ask(makes, "POST", format!("/containers/{target}/exec"), Some(body));
            let exec = made["Id"].as_str().unwrap();
            if makes.name() == "node-1" && target == container {
                // Its own, and nobody else's: it was not passed on.
                assert!(!exec.contains('.'), "{exec}");
                continue;
            }
            let detached = json!({ "Detach": true });
            ask(starts, "POST", format!("/exec/{exec}/start"), Some(detached));
            eventually("the exec to end", CONVERGE, || {
                let seen = ask(makes, "GET", format!("/exec/{exec}/json"), None);
                assert_eq!(seen["ID"], exec, "{seen}");
                if seen["ExitCode"] == 0 { Ok(()) } else { Err(seen.to_string()) }
            });
        }
    }
}

#[test]
fn what_a_tasks_container_does_is_seen_from_every_manager() {
    let seat = Seat::take("any_see");
    for host in seat.managers() {
        let name = seat.words()[3].clone();
        for word in seat.words() {
            let seen = host.docker_json(&format!("inspect {word}"));
            assert_eq!(seen[0]["Id"], seat.container.as_str(), "{word}");
            assert_eq!(seen[0]["Name"], format!("/{name}"), "{word}");
        }
        // A task's own id still shows the task, too.
        let state = host.docker(&format!("inspect -f {{{{.Status.State}}}} {}", seat.task));
        assert_eq!(state, "running");
        let node = host.docker_json(&format!("inspect --type task {}", seat.task));
        assert_eq!(node[0]["Status"]["ContainerStatus"]["ContainerID"], seat.container.as_str());
        let out = host.try_docker(&format!("logs {name}"));
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), &out.stderr);
        assert!(stdout.starts_with("first\ntick\n"), "{stdout}");
        assert_eq!(stderr, b"warned\n");
        assert_eq!(host.docker(&format!("logs -n 3 {name}")).lines().last(), Some("tick"));
        let mut follow = spawn(host, &["logs", "-f", "-n", "0", &name]);
        assert_eq!((line(&mut follow), line(&mut follow)), ("tick".into(), "tick".into()));
        end(follow);
        let mut attached = spawn(host, &["attach", "--no-stdin", "--sig-proxy=false", &name]);
        assert_eq!((line(&mut attached), line(&mut attached)), ("tick".into(), "tick".into()));
        end(attached);
        let stats = host.docker(&format!("stats --no-stream --no-trunc {name}"));
        assert!(stats.contains(&seat.container), "{stats}");
        let top = host.docker(&format!("top {name}"));
        assert!(top.contains("PID") && top.contains("tick"), "{top}");
        // It is not one of this node's.
        assert_eq!(host.docker("ps -q"), "");
    }
    let unknown = seat.leader().docker_fails("logs nobody-has-this-name");
    assert!(unknown.contains("No such container"), "{unknown}");
    seat.cluster.finish();
}

#[test]
fn files_go_in_and_out_and_nothing_leaks() {
    let seat = Seat::take("any_copy");
    let name = seat.words()[3].clone();
    let descriptors =
        |host: &Host| std::fs::read_dir(format!("/proc/{}/fd", host.daemon_pid())).unwrap().count();
    // Whatever is opened once and kept is open from here on.
    for host in seat.managers() {
        host.docker(&format!("exec {name} true"));
    }
    let hosts = [seat.leader(), seat.worker(), seat.follower()];
    let before = hosts.map(descriptors);
    let file = seat.leader().dir().join("large");
    must(
        std::process::Command::new("dd")
            .args(["if=/dev/urandom", "bs=1M", "count=50"])
            .arg(format!("of={}", file.display())),
    );
    let digest = |path: &std::path::Path| {
        let text = must(std::process::Command::new("sha256sum").arg(path));
        text.split(' ').next().unwrap().to_owned()
    };
    let wanted = digest(&file);
    for host in seat.managers() {
        let there = format!("{name}:/tmp/large");
        host.docker_args(&["cp", "-q", &file.to_string_lossy(), &there]);
        let inside = host.docker(&format!("exec {name} busybox sha256sum /tmp/large"));
        assert_eq!(inside.split(' ').next(), Some(wanted.as_str()));
        let back = host.dir().join("back");
        host.docker_args(&["cp", "-q", &there, &back.to_string_lossy()]);
        assert_eq!(digest(&back), wanted, "through {}", host.name());
        let missing = host.docker_fails(&format!("cp {name}:/nowhere {}", back.display()));
        assert!(missing.contains("/nowhere"), "{missing}");
    }
    for host in seat.managers() {
        let execs: Vec<Child> = (0..20)
            .map(|n| spawn(host, &["exec", "-i", &name, "sh", "-c", &format!("cat; exit {n}")]))
            .collect();
        for (n, mut child) in execs.into_iter().enumerate() {
            let text = format!("this is {n}");
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let out = child.wait_with_output().unwrap();
            assert_eq!(out.stdout, text.as_bytes(), "{}", said(&out));
            assert_eq!(out.status.code(), i32::try_from(n).ok(), "{}", said(&out));
        }
        // Clients that go away in the middle: their processes see the end of their input.
        let shells: Vec<Child> = (0..5)
            .map(|_| {
                let mut shell = spawn(host, &["exec", "-i", &name, "sh", "-c", "echo in; cat"]);
                assert_eq!(line(&mut shell), "in");
                shell
            })
            .collect();
        shells.into_iter().for_each(end);
        let mut follow = spawn(host, &["logs", "-f", &name]);
        assert_eq!(line(&mut follow), "first");
        end(follow);
    }
    eventually("everything to be closed again", CONVERGE, || {
        let now = hosts.map(descriptors);
        let leaks = before.iter().zip(&now).any(|(before, now)| now > before);
        if leaks { Err(format!("before: {before:?}, now: {now:?}")) } else { Ok(()) }
    });
    let seen = seat.leader().docker_json(&format!("container inspect {name}"));
    assert!(seen[0]["ExecIDs"].is_null(), "{}", seen[0]["ExecIDs"]);
    seat.cluster.finish();
}

#[test]
fn a_node_that_dies_costs_one_line() {
    let seat = Seat::take("any_dead");
    let name = seat.words()[3].clone();
    let mut running: Vec<Child> = Vec::new();
    for host in seat.managers() {
        let loops = "while :; do echo tick; sleep 0.1; done";
        running.push(spawn(host, &["exec", &name, "sh", "-c", loops]));
        running.push(spawn(host, &["exec", "-i", &name, "sh", "-c", "echo tick; cat"]));
        running.push(spawn(host, &["logs", "-f", "-n", "1", &name]));
    }
    for child in &mut running {
        assert_eq!(line(child), "tick");
    }
    seat.worker().kill_daemon();
    for child in running {
        // What it printed before must not hold it up.
        let mut child = child;
        let mut stdout = child.stdout.take().unwrap();
        let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let (status, text) = ended(child, "a client to hear of the end");
        drain.join().unwrap().unwrap();
        assert_ne!(status, 0, "{text}");
        let lines = text.lines().filter(|line| line.contains("node-2")).count();
        assert!(lines == 1 && text.contains("SH-API-009"), "{text}");
    }
    for host in seat.managers() {
        for args in
            ["exec {} true", "logs {}", "top {}", "inspect --type container {}", "cp {}:/a ."]
        {
            let args = args.replace("{}", &name);
            let text = within(&args, DARK_MAX, || host.docker_fails(&args));
            assert!(text.contains("node-2"), "docker {args}: {text}");
            let lines = text.lines().filter(|line| line.contains("node-2")).count();
            assert_eq!(lines, 1, "docker {args}: {text}");
        }
        // The task itself is still to be seen.
        let task = host.docker_json(&format!("inspect {}", seat.task));
        assert_eq!(task[0]["ID"], seat.task.as_str());
    }
    seat.worker().restart();
    eventually("the container to be reached again", CONVERGE, || {
        let out = seat.follower().try_docker(&format!("exec {name} echo again"));
        if out.status.success() { Ok(()) } else { Err(said(&out)) }
    });
    seat.cluster.finish();
}

#[test]
fn a_node_without_power_costs_a_few_seconds_and_one_line() {
    let seat = Seat::take("any_cut");
    let name = seat.words()[3].clone();
    let mut running: Vec<Child> =
        seat.managers().map(|host| spawn(host, &["logs", "-f", "-n", "1", &name])).into();
    for child in &mut running {
        assert_eq!(line(child), "tick");
    }
    seat.cluster.lab.cut(2);
    // Nobody has said that it is gone.
    for host in seat.managers() {
        let text = within("an exec", DARK_MAX, || host.docker_fails(&format!("exec {name} true")));
        assert!(text.contains("node-2"), "{text}");
    }
    for mut child in running {
        let mut stdout = child.stdout.take().unwrap();
        let drain = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let (status, text) = ended(child, "a client to hear of the end");
        drain.join().unwrap().unwrap();
        assert!(status != 0 && text.contains("node-2"), "{status}: {text}");
    }
    seat.cluster.lab.mend(2);
    seat.cluster.wait_ready(3);
    seat.cluster.finish();
}
