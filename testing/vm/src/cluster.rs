//! A cluster of this one node, and unikernels.

use anyhow::{Result, ensure};

use crate::node::{answers, detached, docker, equal, eventually, remove, shell};
use crate::report::Claim;

/// A cluster that forms, and its first service.
pub const FORMS: &[Claim] = &[
    ("with two network cards, init asks which address to advertise", asks_which),
    ("init by the name of a network card", init),
    ("a service on an overlay comes up", service),
];

/// What is claimed of the cluster then.
pub const CLAIMS: &[Claim] = &[
    ("its published port answers on both network cards", published),
    ("it is found by its name", by_name),
    ("its limits are what the kernel is told", limits),
    ("its secret is there", secret),
    ("a unikernel runs", unikernel),
];

/// Where the service answers.
pub const SERVICE: [&str; 2] = ["192.0.2.1:8080", "198.51.100.1:8080"];

fn asks_which() -> Result<()> {
    let error = docker(&["swarm", "init"]).err().map(|error| error.to_string());
    let error = error.unwrap_or_default();
    let names_both = error.contains("192.0.2.1") && error.contains("198.51.100.1");
    ensure!(names_both && error.contains("--advertise-addr"), "{error}");
    Ok(())
}

fn init() -> Result<()> {
    docker(&["swarm", "init", "--advertise-addr", "eth1"])?;
    eventually("the node is ready", node_is_ready)
}

/// That the only node is ready, leads, and advertises what it was told to.
pub fn node_is_ready() -> Result<()> {
    let fields = "{{.Status.State}} {{.ManagerStatus.Leader}} {{.ManagerStatus.Addr}}";
    let found = docker(&["node", "inspect", "self", "--format", fields])?;
    equal(&found, "ready true 198.51.100.1:2377")
}

fn service() -> Result<()> {
    docker(&["network", "create", "-d", "overlay", "--attachable", "inner"])?;
    std::fs::write("/tmp/word", "hidden")?;
    docker(&["secret", "create", "word", "/tmp/word"])?;
    let mut args = vec!["service", "create", "-d", "--name", "web", "--replicas", "3"];
    args.extend(["--network", "inner", "-p", "8080:80", "--secret", "word"]);
    args.extend(["--limit-memory", "24m", "--limit-pids", "50"]);
    args.extend(["--restart-delay", "1s", "busybox:vm", "httpd", "-f", "-h", "/www"]);
    docker(&args)?;
    eventually("three tasks run", || running("web", 3))
}

/// That a service has so many running tasks.
pub fn running(service: &str, tasks: usize) -> Result<()> {
    let filter = ["--filter", "desired-state=running", "--format", "{{.CurrentState}} {{.Error}}"];
    let found = docker(&[&["service", "ps", "--no-trunc"], &filter[..], &[service]].concat())?;
    let count = found.lines().filter(|line| line.starts_with("Running")).count();
    ensure!(count == tasks, "{count} tasks run, not {tasks}: {found}");
    Ok(())
}

fn published() -> Result<()> {
    for at in SERVICE {
        eventually("the port answers", || answers(at, "a page"))?;
    }
    Ok(())
}

fn by_name() -> Result<()> {
    // Asked by the program: the wget of a static busybox ends with a signal on this machine.
    let options = ["--network", "inner", "-v", "/bin/shoal:/bin/shoal:ro"];
    let found = shell(&options, "shoal try get --timeout-ms 30000 http://web/")?;
    ensure!(found.contains("a page"), "{found}");
    Ok(())
}

/// Runs a command in one task of the service.
fn in_a_task(script: &str) -> Result<String> {
    let tasks = docker(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=web"])?;
    let task = tasks.lines().next().unwrap_or_default();
    docker(&["exec", task, "sh", "-c", script])
}

fn limits() -> Result<()> {
    let found = in_a_task("cd /sys/fs/cgroup; echo $(cat memory.max pids.max)")?;
    equal(&found, "25165824 50")
}

/// That the tasks of the service have their secret.
pub fn secret() -> Result<()> {
    equal(&in_a_task("cat /run/secrets/word")?, "hidden")
}

fn unikernel() -> Result<()> {
    let label = ["--change", "LABEL shoal.workload=unikernel"];
    let entry = ["--change", "ENTRYPOINT [\"/unikernel\"]", "--change", "EXPOSE 80"];
    docker(&[&["import"], &label[..], &entry, &["/images/guest.tar", "guest:vm"]].concat())?;
    docker(&["run", "-d", "--name", "uni", "-p", "8085:80", "guest:vm"])?;
    eventually("the unikernel answers", || answers("192.0.2.1:8085", " sees "))?;
    remove("uni")?;
    // A container may have its place at once.
    detached("place", &["-p", "8085:80"], &["httpd", "-f", "-h", "/www"])?;
    eventually("the container answers", || answers("192.0.2.1:8085", "a page"))?;
    remove("place")
}
