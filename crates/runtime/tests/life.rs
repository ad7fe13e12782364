//! Streams, execs, signals, and life beyond the daemon. Needs root, cgroups and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Host, collect, eventually, logged, read_until, within};
use shoal_model::fault::{Fault, FaultKind, chain};
use shoal_runtime::container_plan::{ExecPlan, ProcessPlan, TtySize};
use shoal_runtime::protocol::ProcessPhase;
use shoal_runtime::{OutputChunk, RuntimeError, Shim};

fn exec(id: &str, argv: &[&str]) -> ExecPlan {
    ExecPlan {
        id: id.to_owned(),
        process: ProcessPlan {
            argv: argv.iter().map(|w| (*w).to_owned()).collect(),
            ..ProcessPlan::default()
        },
        privileged: false,
        attach_output: true,
    }
}

async fn run_exec(shim: &Shim, plan: ExecPlan) -> (i32, String) {
    let mut handle = shim.exec(plan).await.unwrap();
    let (out, err, status) = collect(&mut handle.streams.output).await;
    (status.unwrap().code, out + &err)
}

#[tokio::test]
async fn execs_run_inside_with_everything_the_container_has() {
    let host = Host::new();
    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    let (code, out) =
        run_exec(&shim, exec("a", &["sh", "-c", "echo in; echo err >&2; exit 5"])).await;
    assert_eq!((code, out.as_str()), (5, "in\nerr\n"));
    assert_eq!(within(shim.exec_wait("a")).await.unwrap().code, 5);
    let look = "grep -E 'Cap(Eff|Prm|Inh|Bnd)|Seccomp:|NoNewPrivs' /proc/self/status; \
                hostname; cat /proc/self/cgroup; for n in mnt pid net uts ipc cgroup; do \
                readlink /proc/self/ns/$n; done; echo $(ls /proc | grep -c '^[0-9]')";
    let (_, inside) = run_exec(&shim, exec("b", &["sh", "-c", look])).await;
    let mut plan = host.plan(&["sh", "-c", &format!("{look}; sleep 0")]);
    plan.id = "other".into();
    let (_, own) = host.run(&plan).await.unwrap();
    let status = |text: &str| text.lines().take(6).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(status(&inside), status(&own));
    let pid = shim.state().await.unwrap().pid;
    for name in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert!(inside.contains(link.to_str().unwrap()), "{name} in {inside}");
        let hosts = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(link, hosts, "{name}");
    }
    let mut plan = exec(
        "c",
        &["sh", "-c", "id -u; id -G; pwd; echo $FOO $HOME; grep CapEff /proc/self/status"],
    );
    plan.process.user = "web:adm".into();
    plan.process.cwd = "/tmp".into();
    plan.process.env = vec!["FOO=bar".into(), "PATH=/bin".into()];
    let (_, out) = run_exec(&shim, plan).await;
    assert_eq!(out, "1000\n4\n/tmp\nbar /srv\nCapEff:\t0000000000000000\n");
    let mut plan = exec("d", &["grep", "CapEff", "/proc/self/status"]);
    plan.privileged = true;
    let (_, out) = run_exec(&shim, plan).await;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(own.contains(&out), "{out} of {own}");
    let error = shim.exec(exec("e", &["nope"])).await.unwrap_err();
    assert!(chain(&error).ends_with("\"nope\": executable file not found in $PATH"));
    let error = shim.exec(exec("a", &["true"])).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Conflict);
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn input_reaches_processes_and_ends() {
    let host = Host::new();
    let mut plan = host.plan(&["sh", "-c", "cat; echo end"]);
    plan.process.open_stdin = true;
    plan.stdin_once = true;
    let shim = host.runtime.create(&plan).await.unwrap();
    let mut first = shim.attach(true, true, true).await.unwrap();
    let mut second = shim.attach(false, true, true).await.unwrap();
    // Before the start: must not be lost.
    first.input.write(b"early ").await.unwrap();
    shim.start().await.unwrap();
    first.input.write(b"late\n").await.unwrap();
    read_until(&mut first.output, "early late\n").await;
    first.input.close().await.unwrap();
    let (out, _, status) = collect(&mut first.output).await;
    assert_eq!((out.as_str(), status.unwrap().code), ("end\n", 0));
    assert_eq!(collect(&mut second.output).await.0, "early late\nend\n");
    assert_eq!(logged(&plan), "early late\nend\n");
    shim.delete().await.unwrap();

    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    let mut cat = exec("cat", &["sh", "-c", "wc -c; echo done"]);
    cat.process.open_stdin = true;
    let mut handle = shim.exec(cat).await.unwrap();
    let big = vec![b'x'; 3 << 20];
    within(handle.streams.input.write(&big)).await.unwrap();
    handle.streams.input.close().await.unwrap();
    let (out, _, status) = collect(&mut handle.streams.output).await;
    assert_eq!((out.as_str(), status.unwrap().code), ("3145728\ndone\n", 0));
    // A client that goes away ends the input too.
    let mut cat = exec("gone", &["cat"]);
    cat.process.open_stdin = true;
    drop(shim.exec(cat).await.unwrap());
    assert_eq!(within(shim.exec_wait("gone")).await.unwrap().code, 0);
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn terminals_work_and_resize() {
    let host = Host::new();
    let mut plan =
        host.plan(&["sh", "-c", "tty; stty size; cat >/dev/null; stty size; ls -l /dev/console"]);
    plan.process.tty = true;
    plan.process.open_stdin = true;
    plan.process.tty_size = Some(TtySize { rows: 24, columns: 80 });
    let shim = host.runtime.create(&plan).await.unwrap();
    let mut streams = shim.attach(true, true, true).await.unwrap();
    shim.start().await.unwrap();
    let seen = read_until(&mut streams.output, "24 80").await;
    assert!(seen.contains("/dev/pts/0"), "{seen}");
    shim.resize(TtySize { rows: 50, columns: 132 }).await.unwrap();
    streams.input.write(b"\x04").await.unwrap();
    let mut seen = read_until(&mut streams.output, "50 132").await;
    let (rest, _, status) = collect(&mut streams.output).await;
    seen += &rest;
    assert!(seen.contains("/dev/console"), "{seen}");
    assert_eq!(status.unwrap().code, 0);
    shim.delete().await.unwrap();

    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    let mut plan = exec("t", &["sh", "-c", "tty; read line; stty size; exit 3"]);
    plan.process.tty = true;
    plan.process.open_stdin = true;
    let mut handle = shim.exec(plan).await.unwrap();
    read_until(&mut handle.streams.output, "/dev/pts/0").await;
    shim.exec_resize("t", TtySize { rows: 10, columns: 20 }).await.unwrap();
    handle.streams.input.write(b"\n").await.unwrap();
    let (out, _, status) = collect(&mut handle.streams.output).await;
    assert!(out.contains("10 20"), "{out}");
    assert_eq!(status.unwrap().code, 3);
    let error = shim.resize(TtySize { rows: 1, columns: 1 }).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Conflict);
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn signals_pause_and_resume() {
    let host = Host::new();
    let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let plan = host.plan(&["sh", "-c", script]);
    let shim = host.start(&plan).await;
    eventually("the start", || logged(&plan).contains("ready"));
    shim.pause().await.unwrap();
    assert_eq!(shim.state().await.unwrap().phase, ProcessPhase::Paused);
    let error = shim.exec(exec("x", &["true"])).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Conflict);
    assert_eq!(shim.pause().await.unwrap_err().kind(), FaultKind::Conflict);
    shim.signal(15).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), shim.wait()).await;
    assert!(early.is_err(), "a paused container does nothing");
    shim.resume().await.unwrap();
    let status = within(shim.wait()).await.unwrap();
    assert_eq!((status.code, status.signal), (9, None));
    assert!(logged(&plan).ends_with("got\n"));
    assert_eq!(shim.signal(15).await.unwrap_err().kind(), FaultKind::Internal);
    shim.delete().await.unwrap();

    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    shim.pause().await.unwrap();
    shim.signal(9).await.unwrap();
    let status = within(shim.wait()).await.unwrap();
    assert_eq!((status.code, status.signal), (137, Some(9)));
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn init_forwards_and_reaps() {
    let host = Host::new();
    let script = "for i in 1 2 3; do (sleep 0.01 & ) ; done; sleep 0.3; \
                  grep -c Z /proc/[0-9]*/stat | grep -c ':1'; echo $$; trap 'exit 4' TERM; \
                  echo ready; while :; do sleep 0.05; done";
    let mut plan = host.plan(&["sh", "-c", script]);
    plan.init = true;
    let shim = host.start(&plan).await;
    eventually("the start", || logged(&plan).contains("ready"));
    assert_eq!(logged(&plan), "0\n2\nready\n");
    shim.signal(15).await.unwrap();
    assert_eq!(within(shim.wait()).await.unwrap().code, 4);
    shim.delete().await.unwrap();
    let mut plan = host.plan(&["nope"]);
    plan.init = true;
    assert!(chain(&host.run(&plan).await.unwrap_err()).contains("executable file not found"));
}

#[tokio::test]
async fn a_stuck_client_is_cut_off_and_a_slow_one_loses_nothing() {
    let host = Host::new();
    let plan = host.plan(&["sh", "-c", "head -c 6000000 /dev/zero | tr '\\0' y; echo; sleep 1000"]);
    let shim = host.runtime.create(&plan).await.unwrap();
    let stuck = shim.attach(false, true, true).await.unwrap();
    let mut slow = shim.attach(false, true, true).await.unwrap();
    shim.start().await.unwrap();
    let mut count = 0;
    while count < 6_000_001 {
        match within(slow.output.next()).await.unwrap() {
            Some(OutputChunk::Stdout(bytes)) => count += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    drop(stuck);
    assert_eq!(logged(&plan).len(), 6_000_001);
    shim.delete().await.unwrap();
}

/// In the role of the daemon: runs a container and tells its id, then waits to be killed.
#[test]
fn the_daemon_that_is_killed() {
    let Ok(dir) = std::env::var("SHOAL_TEST_DAEMON_DIR") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let host = Host::new();
        let mut plan = host.plan(&["sh", "-c", "echo up; cat; exit 6"]);
        plan.process.open_stdin = true;
        plan.stdin_once = true;
        let dir = std::path::Path::new(&dir);
        plan.log.path = Some(dir.join("log"));
        let config = shoal_runtime::RuntimeConfig {
            instance: host.instance.as_str().into(),
            exec_root: dir.to_owned(),
            helper: vec![common::helper().into()],
            tender: Vec::new(),
        };
        let runtime = shoal_runtime::ContainerRuntime::new(config).unwrap();
        runtime.create(&plan).await.unwrap().start().await.unwrap();
        std::fs::write(dir.join("id.new"), format!("{} {}", plan.id, host.instance)).unwrap();
        std::fs::rename(dir.join("id.new"), dir.join("id")).unwrap();
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn kill_9_of_the_daemon_stops_no_container() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_daemon_that_is_killed"])
        .env("SHOAL_TEST_DAEMON_DIR", dir.path())
        .spawn()
        .unwrap();
    let told = dir.path().join("id");
    eventually("the container's start", || told.exists());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let told = std::fs::read_to_string(told).unwrap();
    let (id, instance) = told.split_once(' ').unwrap();
    let runtime = shoal_runtime::ContainerRuntime::new(shoal_runtime::RuntimeConfig {
        instance: instance.into(),
        exec_root: dir.path().to_owned(),
        helper: vec![common::helper().into()],
        tender: Vec::new(),
    })
    .unwrap();
    assert_eq!(runtime.sweep().unwrap(), shoal_runtime::Swept::default());
    let shim = runtime.connect(&id.into()).await.unwrap();
    assert_eq!(shim.state().await.unwrap().phase, ProcessPhase::Running);
    let mut streams = shim.attach(true, true, true).await.unwrap();
    streams.input.write(b"again\n").await.unwrap();
    read_until(&mut streams.output, "again").await;
    streams.input.close().await.unwrap();
    assert_eq!(within(shim.wait()).await.unwrap().code, 6);
    // The shim ends by itself; what it recorded still answers.
    drop(streams);
    eventually("the shim's end", || !shim.is_alive());
    let state = runtime.connect(&id.into()).await.unwrap().state().await.unwrap();
    assert_eq!((state.phase, state.exit.unwrap().code), (ProcessPhase::Exited, 6));
    assert_eq!(runtime.sweep().unwrap().leftovers.len(), 1);
    shim.delete().await.unwrap();
    assert_eq!(runtime.list().unwrap(), vec![]);
}

#[tokio::test]
async fn a_dead_shim_takes_its_container_down() {
    let host = Host::new();
    let plan = host.plan(&["sleep", "1000"]);
    let shim = host.start(&plan).await;
    let state = shim.state().await.unwrap();
    let waiting = tokio::spawn({
        let shim = shim.clone();
        async move { shim.wait().await }
    });
    let pid = rustix::process::Pid::from_raw(state.shim_pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = within(waiting).await.unwrap().unwrap_err();
    assert!(matches!(error, RuntimeError::ShimDied { .. }), "{error}");
    eventually("the container's end", || {
        !std::path::Path::new(&format!("/proc/{}", state.pid)).exists()
    });
    let found = host.runtime.sweep().unwrap().leftovers;
    assert_eq!((found.len(), found[0].exit), (1, None));
    shim.delete().await.unwrap();
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
    assert_eq!(shim.state().await.unwrap_err().kind(), FaultKind::NotFound);
}

#[tokio::test]
async fn garbage_on_the_socket_hurts_nobody() {
    let host = Host::new();
    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
        &[0, 0, 0, 3, 0, b'{', b'{', b'{'],
        &[0, 0, 0, 2, 2, 1, 1],
        b"\0\0\0\x1f\0{\"version\":99,\"body\":\"Future\"}..",
    ];
    for bytes in garbage {
        let mut stream = UnixStream::connect(shim.dir().join("shim.sock")).unwrap();
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("Failed") || text.contains("WrongVersion"), "{bytes:?}: {text}");
    }
    let _half = UnixStream::connect(shim.dir().join("shim.sock")).unwrap().write_all(&[0, 0]);
    assert_eq!(shim.state().await.unwrap().phase, ProcessPhase::Running);
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn names_are_taken_once_and_broken_helpers_are_told() {
    let host = Host::new();
    let plan = host.plan(&["true"]);
    let shim = host.runtime.create(&plan).await.unwrap();
    let error = host.runtime.create(&plan).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Conflict);
    assert!(matches!(shim.pause().await.unwrap_err().kind(), FaultKind::Conflict));
    shim.delete().await.unwrap();
    for helper in ["/does/not/exist", "/bin/false"] {
        let runtime = shoal_runtime::ContainerRuntime::new(shoal_runtime::RuntimeConfig {
            instance: "broken".into(),
            exec_root: host.dir.path().join("broken"),
            helper: vec![helper.into()],
            tender: Vec::new(),
        })
        .unwrap();
        let error = runtime.create(&plan).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Launch { .. }), "{error}");
        assert_eq!(runtime.list().unwrap(), vec![]);
    }
}

/// Whether the path is part of a process's command line.
fn is_named_by_a_process(path: &std::path::Path) -> bool {
    let path = path.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(&path))
}

/// The process that starts a shim is a moment's work; a kill of it at any moment leaves nothing.
#[tokio::test]
async fn a_launcher_that_is_killed_leaves_no_shim() {
    let host = Host::new();
    let script = r#""$0" "$1" & p=$!; sleep "$KILL_AFTER"; kill -9 $p; wait $p; exit 1"#;
    for after in (0..40).map(|step| f64::from(step) * 0.000_5) {
        let script = script.replace("$KILL_AFTER", &format!("{after:.4}"));
        let words = ["sh".into(), "-c".into(), script.into(), common::helper().into()];
        let runtime = shoal_runtime::ContainerRuntime::new(shoal_runtime::RuntimeConfig {
            instance: host.instance.as_str().into(),
            exec_root: host.dir.path().join("killed"),
            helper: words.to_vec(),
            tender: Vec::new(),
        })
        .unwrap();
        let plan = host.plan(&["true"]);
        runtime.create(&plan).await.unwrap_err();
        let dir = runtime.shims().join(plan.id.as_str());
        assert!(!dir.exists(), "after {after} s");
        eventually("no shim is left", || !is_named_by_a_process(&dir));
    }
}

#[tokio::test]
async fn a_tender_is_a_workload_like_any_other() {
    let host = Host::new();
    let script = "cat \"$0\"; echo; trap 'echo asked to stop; exit 7' TERM; echo up >&2; \
                  while :; do sleep 0.05; done";
    let mut plan = host.plan(&["hello", "world"]);
    plan.unikernel = Some(shoal_runtime::unikernel::UnikernelPlan {
        tender: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
        image: "/images/hello".into(),
        heap_bytes: 1 << 20,
        uid: 65_534,
        files: vec![shoal_runtime::unikernel::GuestFiles {
            path: "/etc/zones".into(),
            source: "/srv/zones".into(),
        }],
        ..Default::default()
    });
    plan.limits.pids = Some(8);
    let shim = host.start(&plan).await;
    eventually("the tender has started", || logged(&plan).contains("up"));
    let log = logged(&plan);
    let line = log.lines().find(|line| line.starts_with('{')).unwrap();
    let told: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(told["image"], "/images/hello");
    assert_eq!(told["args"], serde_json::json!(["hello", "world"]));
    assert_eq!(told["mounts"][0]["path"], "/etc/zones");
    assert_eq!(
        (told["memory_bytes"].as_u64(), told["uid"].as_u64()),
        (Some(1 << 20), Some(65_534))
    );
    let refused = shim.exec(shoal_runtime::container_plan::ExecPlan::default()).await.unwrap_err();
    assert!(shoal_model::fault::chain(&refused).contains("no further processes"));
    assert!(shim.stats().await.unwrap().pids.current >= 1);
    // What asks for the devices that a tender opens is let through; others are not.
    shim.signal(15).await.unwrap();
    let status = within(shim.wait()).await.unwrap();
    assert_eq!(status.code, 7);
    assert!(logged(&plan).contains("asked to stop"));
    shim.delete().await.unwrap();
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_tender_dies_with_its_shim_and_one_that_is_missing_is_named() {
    let host = Host::new();
    let mut plan = host.plan(&["x"]);
    let unikernel = |tender: &[&str]| {
        Some(shoal_runtime::unikernel::UnikernelPlan {
            tender: tender.iter().map(|w| (*w).to_owned()).collect(),
            ..Default::default()
        })
    };
    plan.unikernel = unikernel(&["/nowhere/tender"]);
    let shim = host.runtime.create(&plan).await.unwrap();
    let refused = shim.start().await.unwrap_err();
    assert!(shoal_model::fault::chain(&refused).contains("run the tender '/nowhere/tender'"));
    shim.delete().await.unwrap();

    let mut plan = host.plan(&["x"]);
    plan.unikernel = unikernel(&["/bin/busybox", "sh", "-c", "exec sleep 60"]);
    let shim = host.start(&plan).await;
    let state = shim.state().await.unwrap();
    let pid = rustix::process::Pid::from_raw(state.shim_pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let gone = std::path::PathBuf::from(format!("/proc/{}", state.pid));
    eventually("the tender is gone", || !gone.exists());
    assert!(within(shim.wait()).await.is_err());
    shim.delete().await.unwrap();
}
