//! What bounds a container bounds a unikernel: processor time, memory, and being paused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use shoal_lab::{CONVERGE, Cluster, Host, Lab, eventually, import_guest};

/// A host with a daemon and the lab's unikernel, and a client's host.
fn start(name: &str) -> Lab {
    let lab = Lab::start(name, 2);
    lab.host(1).daemon();
    import_guest(lab.host(1), "guest:red", "red");
    lab
}

/// The ways in which this host runs unikernels.
fn backends_of(host: &Host) -> Vec<String> {
    let known = host.docker_args(&["info", "--format", "{{json .Labels}}"]);
    let known: serde_json::Value = serde_json::from_str(&known).unwrap();
    let known = known.as_array().unwrap().iter().filter_map(|label| label.as_str());
    let own = known.filter_map(|label| label.strip_prefix("shoal.unikernel.backends=")).next();
    own.expect("info names the backends").split(',').map(str::to_owned).collect()
}

/// Waits until the unikernel on port 8080 of the first host answers.
fn wait_web(lab: &Lab) {
    let url = format!("http://{}:8080/", lab.host(1).address());
    eventually("an answer", CONVERGE, || {
        let out = lab.host(2).try_sh(&format!("curl -sS -m 3 {url}"));
        if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
    });
}

/// Asks for a page and does not wait for the answer.
fn ask(lab: &Lab, path: &str) {
    let url = format!("http://{}:8080{path}", lab.host(1).address());
    // Ignored because: a guest that spins or dies gives no answer.
    drop(lab.host(2).try_sh(&format!("curl -sS -m 1 {url}")));
}

/// A process's directory in the hierarchy of a cgroup controller, of either version.
fn cgroup(pid: &str, controller: &str) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let root = if names.is_empty() { String::new() } else { controller.to_owned() };
        let fits = names.is_empty() || names.split(',').any(|name| name == controller);
        fits.then(|| PathBuf::from("/sys/fs/cgroup").join(root).join(&path[1..]))
    };
    let mut found: Vec<PathBuf> = text.lines().filter_map(of).collect();
    // A hybrid host has a version 2 beside, mounted elsewhere and without controllers.
    found.retain(|path| path.is_dir());
    assert_eq!(found.len(), 1, "{controller}: {text}");
    found.remove(0)
}

fn pid(host: &Host, name: &str) -> String {
    host.docker(&format!("inspect {name} --format {{{{.State.Pid}}}}"))
}

fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().parse().unwrap()
}

/// Nanoseconds that the group has computed, and how often its quota was there anew.
fn used(pid: &str) -> (u64, u64, u64) {
    let read = |controller: &str, file: &str| {
        std::fs::read_to_string(cgroup(pid, controller).join(file)).unwrap()
    };
    // The usage first: of it there is only more afterwards, as there is of the periods.
    let usage = match std::fs::read_to_string(cgroup(pid, "cpuacct").join("cpuacct.usage")) {
        Ok(text) => text.trim().parse().unwrap(),
        Err(_) => number(&read("cpu", "cpu.stat"), "usage_usec") * 1000,
    };
    let stat = read("cpu", "cpu.stat");
    (usage, number(&stat, "nr_periods"), number(&stat, "nr_throttled"))
}

#[test]
fn a_busy_unikernel_gets_its_share_of_the_processor_and_no_more() {
    let lab = start("uk-cpu");
    let host = lab.host(1);
    for backend in backends_of(host) {
        host.docker(&format!(
            "run -d --name busy -p 8080:80 --cpus 0.5 --cpu-shares 512 --cpuset-cpus 0 \
             --label shoal.backend={backend} guest:red"
        ));
        wait_web(&lab);
        let pid = pid(host, "busy");
        let dir = cgroup(&pid, "cpu");
        let read = |file: &str| std::fs::read_to_string(dir.join(file));
        match read("cpu.max") {
            Ok(quota) => {
                assert_eq!(quota.trim(), "50000 100000");
                assert_eq!(read("cpu.weight").unwrap().trim(), "20");
            }
            Err(_) => {
                assert_eq!(read("cpu.cfs_quota_us").unwrap().trim(), "50000");
                assert_eq!(read("cpu.cfs_period_us").unwrap().trim(), "100000");
                assert_eq!(read("cpu.shares").unwrap().trim(), "512");
            }
        }
        // Every thread is inside, the virtual processor's as well.
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let thread = thread.unwrap().file_name().into_string().unwrap();
            assert_eq!(cgroup(&thread, "cpu"), dir, "{backend}");
        }
        ask(&lab, "/spin");
        let (used, periods, throttled) = eventually("the quota to bite", CONVERGE, || {
            let seen = used(&pid);
            if seen.2 >= 5 { Ok(seen) } else { Err(format!("{seen:?}")) }
        });
        // Half a processor in each period, and what was there before the first and in the last.
        let most = (periods + 2) * 50_000_000;
        assert!(used <= most, "{backend}: {used} ns in {periods} periods, {throttled} throttled");
        host.docker("rm -f busy");
    }
    lab.finish();
}

#[test]
fn the_limits_of_a_service_bound_its_unikernels() {
    let cluster = Cluster::start("uk-quota", 1, 0);
    let host = cluster.manager();
    import_guest(host, "guest:red", "red");
    host.docker("service create -d --name web --limit-cpu 0.5 --limit-memory 32m guest:red");
    cluster.wait_tasks("web", 1);
    let pid = pid(host, &cluster.container(1, "web"));
    let read = |controller: &str, v2: &str, v1: &str| {
        let dir = cgroup(&pid, controller);
        let text = std::fs::read_to_string(dir.join(v2));
        text.or_else(|_| std::fs::read_to_string(dir.join(v1))).unwrap().trim().to_owned()
    };
    let quota = read("cpu", "cpu.max", "cpu.cfs_quota_us");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    let limit = read("memory", "memory.max", "memory.limit_in_bytes");
    assert_eq!(limit, (32 << 20).to_string());
    cluster.finish();
}

/// Waits for the end of `name`: `STATUS|OOM KILLED|ERROR`.
fn end(host: &Host, name: &str) -> String {
    let format = "{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.Error}}";
    eventually("the end", CONVERGE, || {
        let running = host.docker(&format!("inspect {name} --format {{{{.State.Running}}}}"));
        if running == "true" { Err(running) } else { Ok(()) }
    });
    host.docker_args(&["inspect", name, "--format", format])
}

#[test]
fn a_unikernel_meets_its_heaps_end_before_the_kernel_meets_its_limit() {
    let lab = start("uk-memory");
    let host = lab.host(1);
    for backend in backends_of(host) {
        let run = |limit: &str| {
            host.docker(&format!(
                "run -d --name full -p 8080:80 -m {limit} --label shoal.backend={backend} guest:red"
            ));
            wait_web(&lab);
        };
        // A large heap has large page tables, which count as well.
        run("512m");
        ask(&lab, "/fill");
        let said = end(host, "full");
        assert!(said.starts_with("134|false|out of memory: its heap is used up"), "{said}");
        host.docker("rm full");

        run("16m");
        let pid = pid(host, "full");
        let dir = cgroup(&pid, "memory");
        let limit = std::fs::read_to_string(dir.join("memory.max"))
            .or_else(|_| std::fs::read_to_string(dir.join("memory.limit_in_bytes")));
        assert_eq!(limit.unwrap().trim(), (16 << 20).to_string());
        ask(&lab, "/fill");
        let said = end(host, "full");
        assert!(said.starts_with("134|false|out of memory: its heap is used up"), "{said}");
        assert!(said.contains("--memory") && said.contains("SH-ENG-010"), "{said}");
        let log = host.try_docker("logs full");
        let log = String::from_utf8_lossy(&log.stderr).into_owned();
        assert!(log.contains("memory allocation of") && log.contains("backtrace"), "{log}");
        host.docker("rm full");

        // A limit that shrinks below the heap: then it is the kernel that ends it.
        run("64m");
        let said = host.try_docker("update --memory 8m --memory-swap 8m full");
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.contains("next start"), "{said}");
        ask(&lab, "/fill");
        let said = end(host, "full");
        assert!(said.starts_with("137|true|"), "{backend}: {said}");
        host.docker("rm full");
    }
    // Folders are copied into the tender, and count.
    let files = host.dir().join("files");
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("large"), vec![1; 12 << 20]).unwrap();
    let mount = format!("-v {}:/files:ro", files.display());
    let said = host.docker_fails(&format!("run --rm -m 16m {mount} guest:red"));
    assert!(said.contains("memory limit is too small") && said.contains("SH-ENG-009"), "{said}");
    lab.finish();
}

#[test]
fn a_paused_unikernel_stands_still_and_goes_on() {
    let lab = start("uk-pause");
    let (host, client) = (lab.host(1), lab.host(2));
    for backend in backends_of(host) {
        host.docker(&format!(
            "run -d --name web -p 8080:80 --label shoal.backend={backend} guest:red"
        ));
        wait_web(&lab);
        let dir = cgroup(&pid(host, "web"), "freezer");
        host.docker("pause web");
        assert_eq!(host.docker("inspect web --format {{.State.Status}}"), "paused");
        let frozen = std::fs::read_to_string(dir.join("freezer.state"))
            .or_else(|_| std::fs::read_to_string(dir.join("cgroup.freeze")));
        assert!(["FROZEN", "1"].contains(&frozen.unwrap().trim()));
        // A client that comes meanwhile waits.
        let url = format!("http://{}:8080/", host.address());
        let mut waiting = client.command("curl");
        waiting.args(["-sS", "-o", "/dev/null", "-m", "60", &url]);
        let mut waiting = waiting.spawn().unwrap();
        eventually("the client to wait", CONVERGE, || {
            let table = client.sh("ss -tn");
            if table.contains(":8080") { Ok(()) } else { Err(table) }
        });
        assert!(waiting.try_wait().unwrap().is_none());
        host.docker("unpause web");
        eventually("the client's answer", Duration::from_secs(20), || {
            waiting.try_wait().unwrap().map(|end| assert!(end.success())).ok_or_else(String::new)
        });
        // Paused, it can be stopped and ended all the same.
        host.docker("pause web");
        host.docker("stop web");
        assert_eq!(host.docker("inspect web --format {{.State.ExitCode}}"), "0");
        host.docker("start web");
        wait_web(&lab);
        host.docker("pause web");
        host.docker("rm -f web");
    }
    lab.finish();
}
