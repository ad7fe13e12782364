//! Containers that run and end. Needs root, cgroups and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Host, log_lines, logged};
use shoal_model::fault::chain;
use shoal_runtime::container_plan::{Limits, MountKind, MountPlan, Propagation, Rlimit, Rootfs};
use shoal_runtime::protocol::FailureKind;

#[tokio::test]
async fn exit_codes_and_output_come_through() {
    let host = Host::new();
    let plan = host.plan(&["sh", "-c", "echo hello; echo oops >&2; exit 7"]);
    assert_eq!(host.run(&plan).await.unwrap().0.code, 7);
    let mut lines = log_lines(&plan);
    lines.sort();
    let pair = |stream: &str, line: &str| (stream.to_owned(), line.to_owned());
    assert_eq!(lines, [pair("stderr", "oops\n"), pair("stdout", "hello\n")]);
    let (code, _) = host.sh("kill -9 $$").await;
    assert_eq!(code, 0, "PID 1 of a namespace ignores its own signals");
    let plan =
        host.plan(&["sh", "-c", "exec 2>/dev/null; sh -c 'kill -TERM $$'; echo $?; echo -n tail"]);
    let (status, log) = host.run(&plan).await.unwrap();
    assert_eq!((status.code, log.as_str()), (0, "143\ntail"));
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

/// With a terminal, the program takes it over from the init process that it starts behind.
#[tokio::test]
async fn a_program_behind_an_init_process_gets_its_terminal() {
    let host = Host::new();
    let mut plan = host.plan(&["sh", "-c", "tty; exit 4"]);
    plan.process.tty = true;
    plan.init = true;
    let (status, log) = host.run(&plan).await.unwrap();
    assert_eq!(status.code, 4, "{log:?}");
}

#[tokio::test]
async fn errors_before_the_program_runs_are_told_in_docker_words() {
    let host = Host::new();
    let cases: [(&[&str], &str, FailureKind); 5] = [
        (
            &["nope"],
            "exec: \"nope\": executable file not found in $PATH",
            FailureKind::ProgramNotFound,
        ),
        (
            &["/bin/nope"],
            "exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
            FailureKind::ProgramNotFound,
        ),
        (
            &["/etc/passwd"],
            "exec: \"/etc/passwd\": permission denied",
            FailureKind::ProgramNotExecutable,
        ),
        (&["/etc"], "exec: \"/etc\": is a directory", FailureKind::ProgramNotExecutable),
        (&[], "no command specified", FailureKind::Invalid),
    ];
    for (argv, text, kind) in cases {
        let error = host.run(&host.plan(argv)).await.unwrap_err();
        assert!(chain(&error).ends_with(text), "{}", chain(&error));
        assert_eq!(error.failure_kind(), Some(kind), "{text}");
    }
    let mut plan = host.plan(&["true"]);
    plan.process.user = "nobody-here".into();
    let error = chain(&host.run(&plan).await.unwrap_err());
    assert!(error.contains("unable to find user nobody-here: no matching entries"), "{error}");
    let mut plan = host.plan(&["true"]);
    plan.network = shoal_runtime::container_plan::NetworkNamespace::Path("/nowhere".into());
    let error = chain(&host.run(&plan).await.unwrap_err());
    assert!(error.ends_with("namespace '/nowhere': no such file or directory"), "{error}");
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn the_surroundings_are_as_planned() {
    let host = Host::new();
    let script = "hostname; pwd; env | grep -v SHLVL; id -u; id -g; id -G; echo $$; \
                  ip link | grep -c mtu; readlink /dev/fd; ulimit -n; \
                  cat /proc/sys/net/core/somaxconn";
    let mut plan = host.plan(&["sh", "-c", script]);
    plan.process.user = "web".into();
    plan.process.cwd = "/made/for/it".into();
    plan.process.env.push("X=1".into());
    plan.process.rlimits.push(Rlimit { name: "nofile".into(), soft: 99, hard: 100 });
    plan.sysctls.insert("net.core.somaxconn".into(), "77".into());
    let (_, log) = host.run(&plan).await.unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["box", "/made/for/it"]);
    for entry in ["HOME=/srv", "PATH=/bin", "X=1"] {
        assert!(lines.contains(&entry), "{entry} in {log}");
    }
    let rest = &lines[lines.len() - 8..];
    assert_eq!(rest, ["1000", "100", "100 4", "1", "1", "/proc/self/fd", "99", "77"]);
}

#[tokio::test]
async fn mounts_show_the_host_as_far_as_they_should() {
    let host = Host::new();
    let shared = host.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from the host\n").unwrap();
    std::fs::write(host.dir.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    let script = "cat /data/file /etc/hosts; echo x >/data/new && echo wrote; \
                  (echo y >/ro/new) 2>/dev/null || echo refused; echo z >/scratch/a && echo tmp; \
                  touch /upper; df -k /scratch | tail -1 | tr -s ' ' | head -c 10";
    let mut plan = host.plan(&["sh", "-c", script]);
    let bind = |target: &str, read_only| MountPlan {
        target: target.into(),
        read_only,
        kind: MountKind::Bind {
            source: shared.clone(),
            recursive: true,
            propagation: Propagation::Rprivate,
        },
    };
    plan.mounts = vec![
        bind("/data", false),
        bind("/ro", true),
        MountPlan {
            target: "/scratch".into(),
            read_only: false,
            kind: MountKind::Tmpfs { size_bytes: Some(1 << 20), mode: 0o1777, options: vec![] },
        },
    ];
    plan.hosts_file = Some(host.dir.path().join("hosts"));
    let (_, log) = host.run(&plan).await.unwrap();
    assert_eq!(log, "from the host\n127.0.0.1 localhost\nwrote\nrefused\ntmp\ntmpfs 1024");
    assert_eq!(std::fs::read_to_string(shared.join("new")).unwrap(), "x\n");
    let Rootfs::Overlay { upper, .. } = &plan.rootfs else { panic!("an overlay") };
    assert!(upper.join("upper").exists());
    assert!(!host.dir.path().join("layer/upper").exists());

    let mut plan = host.plan(&["sh", "-c", "touch /x 2>/dev/null || echo ro"]);
    plan.readonly_rootfs = true;
    assert!(host.run(&plan).await.unwrap().1.ends_with("ro\n"));

    plan.mounts = vec![MountPlan {
        target: "/m".into(),
        read_only: false,
        kind: MountKind::Bind {
            source: "/does/not/exist".into(),
            recursive: true,
            propagation: Propagation::Rprivate,
        },
    }];
    let error = chain(&host.run(&plan).await.unwrap_err());
    assert!(error.ends_with("bind source path does not exist: /does/not/exist"), "{error}");
}

#[tokio::test]
async fn a_link_in_the_image_leads_nowhere_out_of_it() {
    let host = Host::new();
    let outside = host.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let layer = host.dir.path().join("layer");
    std::os::unix::fs::symlink(&outside, layer.join("evil")).unwrap();
    std::os::unix::fs::symlink("../../../../../made/hosts", layer.join("etc/hosts")).unwrap();
    let file = host.dir.path().join("hosts");
    std::fs::write(&file, "it\n").unwrap();
    let mut plan = host.plan(&["cat", "/made/hosts"]);
    plan.hosts_file = Some(file);
    plan.process.cwd = "/evil/deeper".into();
    let (status, log) = host.run(&plan).await.unwrap();
    assert_eq!((status.code, log.as_str()), (0, "it\n"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn many_layers_with_long_paths_mount() {
    let host = Host::new();
    let mut lower = Vec::new();
    for number in 0..100 {
        let layer =
            host.dir.path().join("a-rather-long-name-for-a-layer").join(format!("{number:064}"));
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join("top"), format!("{number}\n")).unwrap();
        lower.push(layer);
    }
    let mut plan = host.plan(&["cat", "/top"]);
    if let Rootfs::Overlay { lower: layers, .. } = &mut plan.rootfs {
        layers.splice(0..0, lower);
    }
    assert_eq!(host.run(&plan).await.unwrap().1, "0\n");
}

#[tokio::test]
async fn limits_read_back_and_memory_runs_out() {
    let host = Host::new();
    let mut plan = host.plan(&["sh", "-c", "sleep 60"]);
    plan.limits = Limits {
        memory_bytes: Some(32 << 20),
        pids: Some(50),
        cpu_shares: Some(512),
        ..Limits::default()
    }
    .with_nano_cpus(500_000_000);
    let shim = host.start(&plan).await;
    let stats = shim.stats().await.unwrap();
    assert_eq!((stats.memory.limit, stats.pids.limit), (32 << 20, Some(50)));
    assert!(stats.pids.current >= 1 && stats.cpu.usage_ns > 0);
    let cgroup = shoal_runtime::cgroup::Cgroup::open(&shim.plan().cgroup_path).unwrap();
    let read = |controller: &str, file: &str| {
        let text = std::fs::read_to_string(cgroup.dir(controller).unwrap().join(file)).unwrap();
        text.trim().to_owned()
    };
    if cgroup.layout().is_v2() {
        assert_eq!(read("cpu", "cpu.max"), "50000 100000");
    } else {
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(read("cpu", "cpu.shares"), "512");
    }
    shim.update(Limits { memory_bytes: Some(64 << 20), ..Limits::default() }).await.unwrap();
    assert_eq!(shim.stats().await.unwrap().memory.limit, 64 << 20);
    shim.delete().await.unwrap();
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());

    for init in [false, true] {
        let mut plan = host.plan(&["tail", "-c", "99999999", "/dev/zero"]);
        plan.limits.memory_bytes = Some(16 << 20);
        plan.init = init;
        let (status, _) = host.run(&plan).await.unwrap();
        assert!(status.oom_killed, "{status:?}");
    }
}

#[tokio::test]
async fn logs_rotate_and_a_full_disk_stops_nobody() {
    let host = Host::new();
    let mut plan = host.plan(&["seq", "1", "300"]);
    (plan.log.max_bytes, plan.log.max_files) = (Some(4096), 3);
    let (_, log) = host.run(&plan).await.unwrap();
    assert!(log.ends_with("299\n300\n"));
    let path = plan.log.path.clone().unwrap();
    for (suffix, there) in [("log.1", true), ("log.2", true), ("log.3", false)] {
        assert_eq!(path.with_file_name(suffix).exists(), there, "{suffix}");
    }
    assert!(std::fs::metadata(path.with_file_name("log.1")).unwrap().len() <= 4096);

    let long = host.plan(&["sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo"]);
    host.run(&long).await.unwrap();
    let lengths: Vec<usize> = log_lines(&long).iter().map(|(_, line)| line.len()).collect();
    assert_eq!(lengths, [16384, 16384, 40001 - 2 * 16384]);

    let mut full = host.plan(&["sh", "-c", "seq 1 10; exit 3"]);
    full.log.path = Some("/dev/full".into());
    let shim = host.start(&full).await;
    assert_eq!(common::within(shim.wait()).await.unwrap().code, 3);
    let log = shim.state().await.unwrap().log;
    assert_eq!(log.lost_lines, 10);
    assert!(!log.last_error.is_empty());
    shim.delete().await.unwrap();
    assert_eq!(logged(&long).len(), 40001);
}
