//! One node as an engine: containers, logs, exec, networks, images, through the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use shoal_lab::http::{Outcome, Request};
use shoal_lab::{
    CONVERGE, DaemonOptions, Lab, eventually, import_busybox, import_shoal, must, run, within,
};

fn lab(name: &str) -> Lab {
    let lab = Lab::start(name, 2);
    lab.host(1).daemon();
    import_busybox(lab.host(1));
    lab
}

#[test]
fn it_says_what_it_is() {
    let lab = lab("what_it_is");
    let host = lab.host(1);
    assert_eq!(host.docker("version --format {{.Server.APIVersion}}"), "1.50");
    let info = host.docker("info");
    assert!(info.contains("Server Version") && info.contains("Swarm: inactive"), "{info}");
    assert!(!info.contains("WARNING: Error"), "{info}");
    for version in ["1.24", "1.41"] {
        let url = format!("http://localhost/v{version}/info");
        let socket = host.dir().join("d0/docker.sock");
        let line = format!("curl -sf --unix-socket {} {url}", socket.display());
        assert!(host.sh(&line).contains("\"ID\""));
    }
    let took = host.stop_daemon();
    assert!(took < Duration::from_secs(8), "stopping took {took:?}");
    host.restart();
    lab.finish();
}

#[test]
fn run_gives_output_and_exit_status() {
    let lab = lab("run");
    let host = lab.host(1);
    assert_eq!(host.docker("run --rm busybox:lab echo hello"), "hello");
    let out = run(&mut host.docker_cmd(&["run", "--rm", "busybox:lab", "sh", "-c", "exit 7"]));
    assert_eq!(out.status.code(), Some(7));
    let out = host.try_docker("run --rm busybox:lab nosuchprogram");
    assert_eq!(out.status.code(), Some(127), "{}", String::from_utf8_lossy(&out.stderr));
    let out = host.try_docker("run --rm busybox:lab /etc");
    assert_eq!(out.status.code(), Some(126), "{}", String::from_utf8_lossy(&out.stderr));
    let mut child = host
        .docker_cmd(&["run", "-i", "--rm", "busybox:lab", "sh", "-c", "cat; echo end >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"typed").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"typed"[..], &b"end\n"[..]));
    assert_eq!(host.docker("ps -aq"), "");
    lab.finish();
}

#[test]
fn settings_reach_the_container() {
    let lab = lab("settings");
    let host = lab.host(1);
    let dir = lab.dir().join("shared");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "there").unwrap();
    let bind = format!("{}:/shared:ro", dir.display());
    let id = host.docker_args(&[
        "run",
        "-d",
        "--name",
        "box",
        "--hostname",
        "named",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        "-v",
        &bind,
        "--tmpfs",
        "/scratch:size=1m",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "--label",
        "k=v",
        "busybox:lab",
        "sleep",
        "1000",
    ]);
    let inside = |line: &str| host.docker_args(&["exec", "box", "sh", "-c", line]);
    assert_eq!(
        inside("hostname; echo $A; pwd; id -u; cat /shared/file"),
        "named\nb\n/tmp\n65534\nthere"
    );
    let cgroup = |controller: &str, file: &str| {
        let path = format!("/sys/fs/cgroup/{controller}/shoal-*/{id}/{file}");
        host.sh(&format!("cat {path}"))
    };
    assert_eq!(cgroup("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(cgroup("pids", "pids.max"), "50");
    let quota: i64 = cgroup("cpu", "cpu.cfs_quota_us").parse().unwrap();
    let period: i64 = cgroup("cpu", "cpu.cfs_period_us").parse().unwrap();
    assert_eq!(quota * 2, period);
    let status = inside("cat /proc/self/status");
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t0"), "{status}");
    let mounts = inside("cat /proc/mounts");
    let of = |path: &str| mounts.lines().find(|l| l.split(' ').nth(1) == Some(path)).unwrap();
    assert!(of("/shared").contains("ro,") && of("/scratch").contains("tmpfs"), "{mounts}");
    host.docker("rm -f box");
    lab.finish();
}

#[test]
fn logs_exec_and_stop() {
    let lab = lab("logs");
    let host = lab.host(1);
    let script =
        "trap 'echo bye; exit 5' TERM; echo one; echo two >&2; while true; do sleep 0.1; done";
    host.docker_args(&["run", "-d", "--name", "box", "busybox:lab", "sh", "-c", script]);
    eventually("the log", CONVERGE, || {
        let out = host.try_docker("logs box");
        let both = (out.stdout == b"one\n", out.stderr == b"two\n");
        if both == (true, true) { Ok(()) } else { Err(format!("{out:?}")) }
    });
    let out = run(&mut host.docker_cmd(&["exec", "box", "sh", "-c", "exit 9"]));
    assert_eq!(out.status.code(), Some(9));
    let mut follow = host
        .docker_cmd(&["logs", "-f", "box"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    within("stop", Duration::from_secs(8), || host.docker("stop box"));
    assert_eq!(host.docker("wait box"), "5");
    assert!(follow.wait().unwrap().success());
    assert!(host.docker("logs box").ends_with("bye"));
    assert_eq!(host.docker("inspect -f {{.State.Status}}/{{.State.ExitCode}} box"), "exited/5");
    host.docker("start box");
    host.docker("kill box");
    assert_eq!(host.docker("wait box"), "137");
    host.docker("rm box");
    let missing = host.docker_fails("logs box");
    assert!(missing.contains("No such container: box"), "{missing}");
    lab.finish();
}

#[test]
fn local_networks_names_and_ports() {
    let lab = lab("local_networks");
    let host = lab.host(1);
    import_shoal(host);
    let id = host.docker("network create mine");
    assert_eq!(id.len(), 64);
    host.docker("run -d --name web --network mine -p 8080:80 shoal:lab");
    let said = host.docker("run --rm --network mine shoal:lab shoal try get http://web/");
    assert!(said.contains("sees 172."), "{said}");
    for (from, to) in [(2, "198.51.100.1"), (1, "127.0.0.1"), (1, "198.51.100.1")] {
        let said = lab.host(from).sh(&format!("curl -sS -m 3 http://{to}:8080/"));
        let seen = if from == 2 { "sees 198.51.100.2" } else { "sees " };
        assert!(said.contains(seen), "from {from} to {to}: {said}");
    }
    assert_eq!(host.docker("port web"), "80/tcp -> 0.0.0.0:8080");
    let taken = host.docker_fails("run --rm -p 8080:80 busybox:lab true");
    assert!(taken.contains("8080") && taken.contains("web"), "the holder is not named: {taken}");
    // Another program's port: its holder is named, too.
    let mut other = host
        .command("python3")
        .args(["-m", "http.server", "8099"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the other program to listen", CONVERGE, || {
        let out = host.try_sh("ss -tln");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if text.contains(":8099") { Ok(()) } else { Err(text) }
    });
    let taken = host.docker_fails("run --rm -p 8099:80 busybox:lab true");
    assert!(taken.contains("8099") && taken.contains("python3"), "{taken}");
    other.kill().unwrap();
    other.wait().unwrap();
    let busy = host.docker_fails("network rm mine");
    assert!(busy.contains("active endpoints"), "{busy}");
    host.docker("rm -f web");
    host.docker("network rm mine");
    // The outside is reached, from an internal network it is not.
    let mut server = lab
        .host(2)
        .command("python3")
        .args(["-m", "http.server", "80"])
        .current_dir(lab.dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("a container to reach the outside", CONVERGE, || {
        let out = host.try_docker("run --rm shoal:lab shoal try get http://198.51.100.2/");
        if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
    });
    host.docker("network create --internal closed");
    let closed =
        host.try_docker("run --rm --network closed shoal:lab shoal try get http://198.51.100.2/");
    assert!(!closed.status.success());
    server.kill().unwrap();
    server.wait().unwrap();
    host.docker("network rm closed");
    lab.finish();
}

#[test]
fn images_come_and_go() {
    let lab = lab("images");
    let host = lab.host(1);
    assert!(host.docker("images").contains("busybox"));
    host.docker("tag busybox:lab other:one");
    let file = lab.dir().join("image.tar");
    host.docker(&format!("save -o {} other:one", file.display()));
    host.docker("rmi other:one busybox:lab");
    assert_eq!(host.docker("images -q"), "");
    let missing = host.docker_fails("run --rm --pull never busybox:lab true");
    assert!(missing.contains("No such image: busybox:lab"), "{missing}");
    let bytes = std::fs::read(&file).unwrap();
    let cut = lab.dir().join("cut.tar");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let broken = host.docker_fails(&format!("load -i {}", cut.display()));
    assert!(!broken.is_empty());
    // No archive at all, and far more of it than a connection holds: the answer comes all the same.
    let nonsense = lab.dir().join("nonsense");
    std::fs::write(&nonsense, "x".repeat(32 << 20)).unwrap();
    let broken = host.docker_fails(&format!("load -i {}", nonsense.display()));
    assert!(broken.contains("archive") && !broken.contains("broken pipe"), "{broken}");
    assert_eq!(host.docker("images -q"), "", "a broken archive left something");
    let said = host.docker(&format!("load -i {}", file.display()));
    assert_eq!(said, "Loaded image: other:one");
    assert_eq!(host.docker("run --rm other:one echo back"), "back");
    lab.finish();
}

#[test]
fn an_image_is_pulled_from_a_real_registry() {
    let lab = lab("registry");
    let host = lab.host(1);
    let dir = lab.dir().join("registry");
    let config = lab.dir().join("registry.yml");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:5000\n",
        dir.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut registry = host
        .command("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the registry", CONVERGE, || {
        let out = host.try_sh("curl -sf http://127.0.0.1:5000/v2/");
        if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
    });
    host.docker("tag busybox:lab 127.0.0.1:5000/lab/busybox:1");
    host.docker("push 127.0.0.1:5000/lab/busybox:1");
    host.docker("rmi 127.0.0.1:5000/lab/busybox:1 busybox:lab");
    let said = host.docker("pull 127.0.0.1:5000/lab/busybox:1");
    assert!(said.contains("Status: Downloaded newer image"), "{said}");
    assert_eq!(host.docker("run --rm 127.0.0.1:5000/lab/busybox:1 echo pulled"), "pulled");
    let missing = host.docker_fails("pull 127.0.0.1:5000/lab/nosuch:1");
    assert!(missing.contains("nosuch"), "{missing}");
    registry.kill().unwrap();
    registry.wait().unwrap();
    let offline = within("an unreachable registry", Duration::from_secs(8), || {
        host.docker_fails("pull 127.0.0.1:5000/lab/other:1")
    });
    assert!(offline.contains("127.0.0.1:5000"), "{offline}");
    lab.finish();
}

#[test]
fn huge_environments_hold_nobody_up() {
    const VARIABLES: usize = 20_000;
    /// Merging them once took 8.6 s on a thread that others needed.
    const PATIENCE: Duration = Duration::from_secs(5);
    let lab = lab("huge");
    let host = lab.host(1);
    import_busybox(host);
    let socket = host.place().socket;
    let env: Vec<String> = (0..VARIABLES).map(|n| format!("NAME{n}=value")).collect();
    let body = serde_json::json!({"Image": "busybox:lab", "Cmd": ["true"], "Env": env});
    let create = |name: String| {
        let path = format!("/containers/create?name={name}");
        Request::new("POST", path).json(&body).send(&socket)
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|n| scope.spawn(move || create(format!("huge{n}")))).collect();
        while all.iter().any(|one| !one.is_finished()) {
            let list = || Request::new("GET", "/containers/json").send(&socket);
            let answer = within("docker ps", PATIENCE, list);
            assert!(matches!(answer, Outcome::Answered(200, _)), "docker ps waits: {answer:?}");
        }
        for one in all {
            let answer = one.join().unwrap();
            assert!(matches!(answer, Outcome::Answered(201, _)), "{answer:?}");
        }
    });
    assert_eq!(host.docker_json("inspect huge0")[0]["Config"]["Env"][19_999], "NAME19999=value");
    host.docker("rm huge0 huge1 huge2 huge3");
    lab.finish();
}

#[test]
fn several_daemons_on_one_machine_do_not_meet() {
    let lab = Lab::start("several", 1);
    let host = lab.host(1);
    host.daemon();
    host.daemon_with(&DaemonOptions { as_dockerd: true, ..DaemonOptions::default() });
    import_busybox(host);
    host.docker("run -d --name only-here busybox:lab sleep 1000");
    let second = format!("unix://{}", host.dir().join("d1/docker.sock").display());
    let other = |args: &[&str]| {
        let mut command = host.command("docker");
        command.args(["-H", &second]).args(args);
        command
    };
    assert_eq!(must(&mut other(&["ps", "-aq"])), "");
    assert_eq!(must(&mut other(&["images", "-q"])), "");
    must(&mut other(&["network", "create", "same"]));
    host.docker("network create same");
    // The same data root a second time is refused, and named.
    let root = host.dir().join("d0/data");
    let exec = host.dir().join("d0/exec");
    let out = run(host.command(&shoal_lab::shoal().to_string_lossy()).args([
        "daemon",
        "-H",
        &format!("unix://{}", host.dir().join("x.sock").display()),
        "--data-root",
        &root.to_string_lossy(),
        "--exec-root",
        &exec.to_string_lossy(),
    ]));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("in use by another daemon"), "{said}");
    host.docker("rm -f only-here");
    lab.finish();
}
