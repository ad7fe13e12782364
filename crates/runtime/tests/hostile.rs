//! What a container, or a crash, can prepare for a shim and the daemon. Needs root, cgroups and
//! busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{DEADLINE, Host, eventually, within};
use shoal_model::fault::chain;
use shoal_runtime::container_plan::{ExecPlan, IpcMode, NetworkNamespace, ProcessPlan};
use shoal_runtime::protocol::{ExitStatus, FailureKind};
use shoal_runtime::{RuntimeError, Shim};

fn exec(id: &str, user: &str) -> ExecPlan {
    ExecPlan {
        id: id.into(),
        attach_output: true,
        process: ProcessPlan {
            argv: vec!["true".to_owned()],
            user: user.into(),
            ..Default::default()
        },
        ..Default::default()
    }
}

async fn exec_code(shim: &Shim, id: &str, user: &str) -> Result<ExitStatus, RuntimeError> {
    shim.exec(exec(id, user)).await?;
    within(shim.exec_wait(id)).await
}

/// A FIFO without a writer, a device without an end, a link to one, and a file without bounds.
#[tokio::test]
async fn what_a_container_makes_of_its_user_files_holds_nobody_up() {
    let host = Host::new();
    let hostile = [
        "mkfifo /etc/passwd /etc/group",
        "ln -s /dev/zero /etc/passwd; ln -s /dev/zero /etc/group",
        "dd if=/dev/zero of=/etc/passwd bs=1M seek=100 count=0 2>/dev/null; mkdir /etc/group",
    ];
    for prepare in hostile {
        let script =
            format!("rm -f /etc/passwd /etc/group; {prepare}; echo ready; exec sleep 1000");
        let plan = host.plan(&["sh", "-c", &script]);
        let shim = host.start(&plan).await;
        eventually("the container's files", || common::logged(&plan).contains("ready"));
        let asked = std::time::Instant::now();
        // Numbers need no names.
        assert_eq!(exec_code(&shim, "number", "7").await.unwrap().code, 0, "{prepare}");
        let error = exec_code(&shim, "name", "web").await.unwrap_err();
        assert_eq!(error.failure_kind(), Some(FailureKind::Invalid));
        let said = chain(&error);
        assert!(said.contains("of the container"), "{prepare}: {said}");
        shim.signal(9).await.unwrap();
        assert_eq!(within(shim.wait()).await.unwrap().signal, Some(9));
        within(shim.delete()).await.unwrap();
        assert!(asked.elapsed() < DEADLINE, "{prepare}");
    }
}

/// A process that does not get to its program (here it is stopped on the way) holds up itself only.
#[tokio::test]
async fn a_start_that_hangs_is_ended_by_a_removal() {
    let host = Host::new();
    let mut plan = host.plan(&["true"]);
    // Opening a FIFO for a mount's target waits for nobody, but the log's disk may: the first
    // process is frozen by its own group as soon as it is in it.
    let group = format!("shoal-{}/{}", host.instance, plan.id);
    let cgroup = shoal_runtime::cgroup::Cgroup::open(&group).unwrap();
    cgroup
        .create(&plan.limits, shoal_runtime::cgroup::DevicePolicy::Standard)
        .and_then(|()| cgroup.freeze(true))
        .unwrap();
    plan.cgroup_path = group;
    let shim = host.runtime.create(&plan).await.unwrap();
    let starting = tokio::spawn({
        let shim = shim.clone();
        async move { shim.start().await }
    });
    // The shim answers meanwhile.
    while cgroup.processes().unwrap().is_empty() {
        assert!(within(shim.state()).await.unwrap().exit.is_none());
    }
    within(shim.delete()).await.unwrap();
    // Started and killed, refused, or cut off: but answered.
    let _ = within(starting).await.unwrap();
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
    assert!(!shim.is_alive());
}

#[tokio::test]
async fn every_signal_number_is_sent_and_no_other() {
    let host = Host::new();
    let script = "trap 'echo got it; exit 3' 37; echo ready; while :; do sleep 0.05; done";
    for init in [false, true] {
        let mut plan = host.plan(&["sh", "-c", script]);
        plan.init = init;
        let shim = host.start(&plan).await;
        eventually("the trap", || common::logged(&plan).contains("ready"));
        for refused in [0, -1, 65, i32::MIN, i32::MAX] {
            let error = shim.signal(refused).await.unwrap_err();
            assert_eq!(error.failure_kind(), Some(FailureKind::Invalid), "{refused}");
        }
        shim.signal(37).await.unwrap();
        assert_eq!(within(shim.wait()).await.unwrap().code, 3, "init: {init}");
        shim.delete().await.unwrap();
    }
}

#[tokio::test]
async fn an_oom_kill_in_a_containers_past_is_not_its_end() {
    let host = Host::new();
    // What grows is the child, and it is the one that the kernel shall take; the main process goes
    // on.
    let grow = "sh -c 'echo 1000 > /proc/self/oom_score_adj; \
                a=$(tr \"\\0\" x < /dev/zero | head -c 200000000)'; ";
    for (script, code) in [("exit 0", 0), ("exit 5", 5), ("exit 137", 137)] {
        let mut plan = host.plan(&["sh", "-c", &format!("{grow}{script}")]);
        plan.limits.memory_bytes = Some(16 << 20);
        plan.limits.memory_swap_bytes = Some(16 << 20);
        let (status, _) = host.run(&plan).await.unwrap();
        assert_eq!((status.code, status.oom_killed), (code, false), "{status:?}");
    }
    let mut plan = host.plan(&["sh", "-c", &format!("{grow}echo survived; exec sleep 1000")]);
    plan.limits.memory_bytes = Some(16 << 20);
    plan.limits.memory_swap_bytes = Some(16 << 20);
    let shim = host.start(&plan).await;
    eventually("the child's end", || common::logged(&plan).contains("survived"));
    shim.signal(9).await.unwrap();
    let status = within(shim.wait()).await.unwrap();
    assert_eq!((status.signal, status.oom_killed), (Some(9), false), "a user killed it");
    shim.delete().await.unwrap();
}

#[tokio::test]
async fn a_plan_that_would_set_the_hosts_kernel_is_refused_before_anything_is_made() {
    let host = Host::new();
    let before = fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    let refused: [(&str, &str, bool, bool); 6] = [
        ("vm.swappiness", "1", false, false),
        ("kernel.panic", "1", false, false),
        ("fs.file-max", "1000", false, false),
        ("net/../vm/swappiness", "1", false, false),
        ("net.core.somaxconn", "77", true, false),
        ("kernel.shmmax", "1000", false, true),
    ];
    for (name, value, host_network, host_ipc) in refused {
        let mut plan = host.plan(&["true"]);
        plan.sysctls.insert(name.into(), value.into());
        if host_network {
            plan.network = NetworkNamespace::Host;
        }
        if host_ipc {
            plan.ipc = IpcMode::Host;
        }
        let error = host.runtime.create(&plan).await.unwrap_err();
        assert_eq!(error.failure_kind(), Some(FailureKind::Invalid), "{name}: {error}");
        assert!(chain(&error).contains("sysctl"), "{}", chain(&error));
        assert_eq!(host.runtime.list().unwrap(), vec![]);
    }
    assert_eq!(fs::read_to_string("/proc/sys/vm/swappiness").unwrap(), before);
}

#[tokio::test]
async fn a_damaged_directory_of_shims_is_named_and_stands_in_nobodys_way() {
    let host = Host::new();
    let healthy = host.start(&host.plan(&["sleep", "1000"])).await;
    let planless = host.start(&host.plan(&["sleep", "1000"])).await;
    let garbled = host.start(&host.plan(&["sleep", "1000"])).await;
    fs::remove_file(planless.dir().join("plan.json")).unwrap();
    fs::write(garbled.dir().join("plan.json"), "{\"version\":1,").unwrap();
    let shims = host.runtime.shims();
    fs::write(shims.join("stray"), "").unwrap();
    fs::create_dir(shims.join("empty")).unwrap();
    fs::create_dir(shims.join("half")).unwrap();
    fs::write(shims.join("half/plan.json"), "{\"vers").unwrap();

    let swept = host.runtime.sweep().unwrap();
    assert_eq!(swept.damages, vec![]);
    assert!(!shims.join("empty").exists() && !shims.join("half").exists());
    let (ids, damages) = host.runtime.survey().unwrap();
    let mut known = vec![healthy.id().clone(), planless.id().clone(), garbled.id().clone()];
    known.sort();
    assert_eq!(ids, known);
    let mut named: Vec<&Path> = damages.iter().map(|damage| damage.path.as_path()).collect();
    named.sort();
    let mut wanted = [planless.dir().to_owned(), shims.join("stray")];
    wanted.sort();
    assert_eq!(named, wanted);

    // What nobody can know runs on until it is removed, with its shim.
    for shim in [&planless, &garbled] {
        let error = host.runtime.connect(shim.id()).await.unwrap_err();
        assert!(matches!(error, RuntimeError::File { .. }), "{error}");
        assert!(shim.is_alive());
        within(host.runtime.remove(shim.id())).await.unwrap();
        assert!(!shim.is_alive() && !shim.dir().exists());
    }
    assert!(healthy.state().await.unwrap().pid != 0);
    within(host.runtime.remove(healthy.id())).await.unwrap();
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

/// A stopped shim does not hear anybody.
#[tokio::test]
async fn a_shim_that_does_not_answer_is_ended_with_its_container() {
    let host = Host::new();
    let shim = host.start(&host.plan(&["sleep", "1000"])).await;
    let state = shim.state().await.unwrap();
    let pid = rustix::process::Pid::from_raw(state.shim_pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    shim.delete().await.unwrap();
    assert!(!shim.is_alive() && !shim.dir().exists());
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn what_is_kept_of_a_container_only_root_can_read() {
    let host = Host::new();
    let plan = host.plan(&["sh", "-c", "echo hello; umask; stat -c %a / /dev/shm; sleep 1000"]);
    let shim = host.start(&plan).await;
    eventually("its output", || common::logged(&plan).contains("1777"));
    assert_eq!(common::logged(&plan), "hello\n0022\n755\n1777\n");
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.runtime.shims()), 0o700);
    assert_eq!(mode(shim.dir()), 0o700);
    for name in ["plan.json", "shim.sock", "lock", "shim.err"] {
        assert_eq!(mode(&shim.dir().join(name)) & 0o077, 0, "{name}");
    }
    assert_eq!(mode(plan.log.path.as_ref().unwrap()), 0o600);
    shim.signal(9).await.unwrap();
    within(shim.wait()).await.unwrap();
    eventually("the record", || shim.dir().join("exit.json").exists());
    assert_eq!(mode(&shim.dir().join("exit.json")), 0o600);
    shim.delete().await.unwrap();
}

#[test]
fn no_group_without_a_name_can_be_opened() {
    for path in ["", "/", "..", "shoal-x/../..", "a//b"] {
        let error = shoal_runtime::cgroup::Cgroup::open(path).unwrap_err();
        let named = matches!(error, shoal_runtime::cgroup::CgroupError::Name { .. });
        assert!(named, "{path}: {error}");
    }
}
