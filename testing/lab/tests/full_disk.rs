//! A full disk: nothing that ends things needs space, the daemon starts on it, and what is owed is
//! done when there is space again, without a restart.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::http::get;
use shoal_lab::{CONVERGE, DaemonOptions, Disk, Host, Lab, eventually, import_busybox};

/// How large the disk is, in MiB.
const DISK_MIB: u32 = 128;
/// How long a daemon may take to start on a full disk.
const START: Duration = Duration::from_secs(60);
/// How long it may take until a node that could not run containers is asked to again: it tries
/// what failed every half minute.
const RECOVER: Duration = Duration::from_secs(120);

/// A manager on a disk of its own, with a service of two tasks.
fn manager(lab: &Lab) -> (&Host, Disk) {
    let disk = lab.disk(DISK_MIB);
    let host = lab.host(1);
    let data_root = Some(disk.dir().join("data"));
    host.daemon_with(&DaemonOptions { data_root, ..DaemonOptions::default() });
    import_busybox(host);
    host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    host.docker("service create -d --name web --replicas 2 busybox:lab sleep 999");
    running(host, "web", 2, CONVERGE);
    (host, disk)
}

/// Waits until so many tasks of a service run.
fn running(host: &Host, service: &str, count: usize, deadline: Duration) {
    eventually(&format!("{count} tasks of {service}"), deadline, || {
        let out = host.try_docker(&format!(
            "service ps --no-trunc --format {{{{.CurrentState}}}}|{{{{.Error}}}} {service}"
        ));
        let list = String::from_utf8_lossy(&out.stdout).into_owned();
        let running = list.lines().filter(|line| line.starts_with("Running")).count();
        if running == count { Ok(()) } else { Err(list) }
    });
}

/// Waits until nothing is owed and the node is ready.
fn well(host: &Host) {
    eventually("no warning", RECOVER, || {
        let info = get(&host.place().socket, "/info").ok_or("no answer")?;
        let warnings: Vec<&str> = info["Warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str())
            .filter(|text| text.contains("space") || text.contains("written"))
            .collect();
        if warnings.is_empty() { Ok(()) } else { Err(warnings.join("\n")) }
    });
    assert_eq!(host.docker("node ls --format {{.Status}}"), "Ready");
}

/// Writes into the store until it refuses: what was deleted left it some room. Gives what it says.
fn store_refuses(lab: &Lab) -> String {
    let file = lab.dir().join("large");
    std::fs::write(&file, "x".repeat(400_000)).unwrap();
    let host = lab.host(1);
    for number in 0..100 {
        let out = host.try_docker(&format!("config create c{number} {}", file.display()));
        if !out.status.success() {
            return String::from_utf8_lossy(&out.stderr).into_owned();
        }
    }
    panic!("the store takes 40 MB from a full disk");
}

#[test]
fn what_ends_things_needs_no_space_and_the_rest_goes_on_when_there_is_some() {
    let lab = Lab::start("full", 1);
    let (host, disk) = manager(&lab);
    for name in ["stopped", "killed", "removed"] {
        host.docker(&format!(
            "run -d --name {name} --restart unless-stopped busybox:lab sleep 999"
        ));
    }
    disk.fill();
    host.docker("stop -t 0 stopped");
    host.docker("kill killed");
    host.docker("rm -f removed");
    let state = |name: &str| host.docker(&format!("inspect -f {{{{.State.Running}}}} {name}"));
    assert_eq!(state("stopped"), "false");
    // It is remembered, too, without any space.
    host.kill_daemon();
    host.try_restart(START).unwrap();
    running(host, "web", 2, RECOVER);
    assert_eq!(state("stopped"), "false", "it was stopped by its user");
    assert_eq!(state("killed"), "false", "it was killed by its user");
    assert!(host.docker_fails("inspect removed").contains("No such"));
    // What was removed has freed some.
    disk.fill();
    let said = store_refuses(&lab);
    assert!(said.contains("space"), "{said}");
    let said = host.docker_fails("run -d --name late busybox:lab sleep 999");
    assert!(said.contains("No space left on device"), "{said}");
    // The services go on.
    running(host, "web", 2, CONVERGE);

    disk.free();
    well(host);
    eventually("a service to be made", RECOVER, || {
        let out = host.try_docker("service create -d --name more busybox:lab sleep 999");
        if out.status.success() { Ok(()) } else { Err(String::from_utf8(out.stderr).unwrap()) }
    });
    running(host, "more", 1, CONVERGE);
    host.docker("run -d --name late busybox:lab sleep 999");
    assert_eq!(state("stopped"), "false", "it was stopped by its user");
    host.docker("service rm web more");
    host.docker("rm -f stopped killed late");
    host.docker("swarm leave --force");
    lab.finish();
}

#[test]
fn a_manager_that_starts_on_a_full_disk_says_so_and_gets_well_without_a_restart() {
    let lab = Lab::start("fullstart", 1);
    let (host, disk) = manager(&lab);
    host.docker("run -d --name one --restart always busybox:lab sleep 999");
    host.kill_daemon();
    disk.fill();
    // What ran has ended too: new tasks are needed, and there is no space for them.
    let place = host.place();
    for pids in place.cgroups().into_values() {
        host.sh(&format!(
            "kill -9 {}",
            pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
        ));
    }
    host.try_restart(START).unwrap();
    eventually("docker info to say so", CONVERGE, || {
        let info = host.docker("info");
        if info.contains("No space left on device") { Ok(()) } else { Err(info) }
    });

    disk.free();
    running(host, "web", 2, RECOVER);
    eventually("the container to run", RECOVER, || {
        let state = host.docker("inspect -f {{.State.Status}} one");
        if state == "running" { Ok(()) } else { Err(state) }
    });
    well(host);
    host.docker("service rm web");
    host.docker("rm -f one");
    host.docker("swarm leave --force");
    lab.finish();
}
