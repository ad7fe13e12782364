//! Containers: limits that hold, exec, pause, statistics, ends.

use anyhow::{Result, ensure};

use crate::node::{detached, docker, equal, eventually, inspect, kernel_says, remove, shell};
use crate::report::Claim;

/// What is claimed of containers.
pub const CLAIMS: &[Claim] = &[
    ("limits are what the kernel is told", limits_are_told),
    ("a limit of processes holds", pids_hold),
    ("a limit of processor time holds", cpu_holds),
    ("memory beyond the limit goes to swap", swap_is_used),
    ("limits change while a container runs", limits_change),
    ("exec: user, folder, environment, status", exec),
    ("pause freezes, and unpause goes on", pause),
    ("stats tell memory, processes, processor", stats),
    ("top tells the processes", top),
    ("kill ends a container with its signal", kill),
    ("stop kills what ignores its signal", stop),
    ("nothing of an ended container stays", nothing_stays),
];

/// A shell that stays, and can be asked.
const STAY: &[&str] = &["sleep", "100000"];

fn limits_are_told() -> Result<()> {
    let limits = ["-m", "32m", "--memory-swap", "48m", "--cpus", "0.5", "--pids-limit", "20"];
    let more = ["--cpuset-cpus", "1", "--memory-reservation", "16m"];
    let found = shell(
        &[&limits[..], &more].concat(),
        "cd /sys/fs/cgroup; for f in memory.max memory.swap.max cpu.max pids.max cpuset.cpus \
         memory.low; do echo $(cat $f); done",
    )?;
    equal(&found.replace('\n', "; "), "33554432; 16777216; 50000 100000; 20; 1; 16777216")
}

fn pids_hold() -> Result<()> {
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done";
    let bounded = shell(&["--pids-limit", "8"], forks);
    let error = bounded.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("can't fork"), "12 processes in a group of 8: {error}");
    shell(&["--pids-limit", "30"], forks).map(drop)
}

fn cpu_holds() -> Result<()> {
    detached("busy", &["--cpus", "0.2"], &["sh", "-c", "while :; do :; done"])?;
    eventually("the group is throttled", || {
        let stat = docker(&["exec", "busy", "cat", "/sys/fs/cgroup/cpu.stat"])?;
        let throttled = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        ensure!(throttled.is_some_and(|count| count != "0"), "{stat}");
        Ok(())
    })?;
    remove("busy")
}

fn swap_is_used() -> Result<()> {
    // 40 MB in a file of memory, in a group that may have 24 MB of memory and as much swap again.
    let found = shell(
        &["-m", "24m", "--memory-swap", "64m"],
        "head -c 40m /dev/zero > /dev/shm/x && cat /sys/fs/cgroup/memory.swap.current",
    )?;
    let swapped: u64 = found.parse()?;
    ensure!(swapped > 8 << 20, "only {swapped} bytes were swapped out");
    Ok(())
}

fn limits_change() -> Result<()> {
    detached("changing", &["-m", "32m"], STAY)?;
    docker(&["update", "-m", "64m", "--memory-swap", "128m", "--cpus", "1.5", "changing"])?;
    let ask = "cd /sys/fs/cgroup; echo $(cat memory.max memory.swap.max cpu.max)";
    let found = docker(&["exec", "changing", "sh", "-c", ask])?;
    equal(&found, "67108864 67108864 150000 100000")?;
    remove("changing")
}

fn exec() -> Result<()> {
    detached("asked", &[], STAY)?;
    let script = "echo $(id -u) $(pwd) $WHO";
    let options = ["exec", "-u", "65534", "-w", "/tmp", "-e", "WHO=me", "asked"];
    equal(&docker(&[&options[..], &["sh", "-c", script]].concat())?, "65534 /tmp me")?;
    let failed = docker(&["exec", "asked", "sh", "-c", "exit 7"]);
    let error = failed.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("exit status: 7"), "a command that exits with 7: {error}");
    remove("asked")
}

fn pause() -> Result<()> {
    detached("still", &[], STAY)?;
    docker(&["pause", "still"])?;
    let events = format!("{}/cgroup.events", cgroup("still")?);
    ensure!(kernel_says(&events)?.contains("frozen 1"), "the kernel says that it is not frozen");
    equal(&inspect("still", ".State.Status")?, "paused")?;
    ensure!(docker(&["exec", "still", "true"]).is_err(), "exec in a paused container");
    docker(&["unpause", "still"])?;
    ensure!(kernel_says(&events)?.contains("frozen 0"), "the kernel says that it is still frozen");
    docker(&["exec", "still", "true"])?;
    remove("still")
}

/// The folder of a running container's control group.
fn cgroup(container: &str) -> Result<String> {
    let pid = inspect(container, ".State.Pid")?;
    let line = kernel_says(&format!("/proc/{pid}/cgroup"))?;
    Ok(format!("/sys/fs/cgroup{}", line.trim_start_matches("0::")))
}

fn stats() -> Result<()> {
    detached("counted", &["-m", "64m"], &["sh", "-c", "while :; do :; done"])?;
    let fields = "{{.MemUsage}} {{.PIDs}} {{.CPUPerc}}";
    eventually("the statistics are there", || {
        let found = docker(&["stats", "--no-stream", "--format", fields, "counted"])?;
        let processes = found.split(' ').nth(3);
        ensure!(found.contains("/ 64MiB") && processes == Some("1"), "{found}");
        ensure!(!found.starts_with("0B") && !found.ends_with(" 0.00%"), "{found}");
        Ok(())
    })?;
    remove("counted")
}

fn top() -> Result<()> {
    detached("listed", &[], STAY)?;
    let found = docker(&["top", "listed"])?;
    ensure!(found.contains("sleep 100000"), "{found}");
    remove("listed")
}

fn kill() -> Result<()> {
    detached("killed", &[], STAY)?;
    docker(&["kill", "killed"])?;
    equal(&docker(&["wait", "killed"])?, "137")?;
    equal(&inspect("killed", ".State.OOMKilled")?, "false")?;
    remove("killed")
}

fn stop() -> Result<()> {
    // The first process of a container has no handler: the kernel drops the signal.
    detached("stubborn", &[], STAY)?;
    docker(&["stop", "-t", "1", "stubborn"])?;
    equal(&inspect("stubborn", ".State.Status")?, "exited")?;
    equal(&inspect("stubborn", ".State.ExitCode")?, "137")?;
    remove("stubborn")
}

fn nothing_stays() -> Result<()> {
    detached("leaving", &[], STAY)?;
    let folder = cgroup("leaving")?;
    remove("leaving")?;
    let there = std::path::Path::new(&folder).exists();
    ensure!(!there, "the control group '{folder}' stays");
    let mounts = kernel_says("/proc/mounts")?;
    let left: Vec<&str> = mounts.lines().filter(|line| line.starts_with("overlay ")).collect();
    ensure!(left.is_empty(), "mounts stay: {left:?}");
    Ok(())
}
