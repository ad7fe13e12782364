//! Many unikernels of one service on one node, by way of the whole of Shoal: API, scheduler, agent,
//! a shim and a tender for each, its TAP, name and place behind the virtual address. In a lab whose
//! only node is a real daemon, driven by the real docker CLI.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use shoal_lab::{DaemonOptions, Host, Lab, import_shoal};

use super::process::{meminfo_kib, rollup_kib};
use crate::steps::output;

/// How long it may take until every instance has answered.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the service is looked at: each look costs the node some time.
const LOOK: Duration = Duration::from_millis(200);

/// What many tasks cost.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Service {
    /// How many ran and answered.
    pub count: u32,
    /// Seconds from the command that made the service until every task ran.
    pub running_seconds: f64,
    /// The same until every one had answered.
    pub answered_seconds: f64,
    /// Memory of the shim and the tender of one, shared pages in parts (PSS), in KiB: the mean.
    pub pss_kib: f64,
    /// What else each took from the machine, kernel and daemon, in KiB: the mean.
    pub other_kib: f64,
}

/// Makes a service of `count` tasks of the archive `image` and asks each once. In a process of its
/// own, which is told where the program is.
///
/// # Errors
/// If one does not answer.
pub fn measure(shoal: &Path, image: &Path, backend: &str, count: u32) -> Result<Service> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command.args(["bench-inside", "service", backend, &count.to_string()]).arg(image);
    let said = output(command.env("SHOAL_BIN", shoal))?;
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("understand '{said}'"))
}

/// In a process of its own: measures, prints JSON.
///
/// # Errors
/// If one does not answer.
pub fn inside(args: &[String]) -> Result<()> {
    let [backend, count, image] = args else { bail!("BACKEND COUNT ARCHIVE") };
    let count = count.parse().context("understand the count")?;
    let lab = Lab::start("bench", 1);
    let measured = on(lab.host(1), backend, count, image)?;
    lab.finish();
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn on(host: &Host, backend: &str, count: u32, image: &str) -> Result<Service> {
    host.daemon_with(&DaemonOptions { quiet: true, ..DaemonOptions::default() });
    host.docker(&format!("load -i {image}"));
    import_shoal(host);
    host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    host.docker("network create -d overlay --subnet 10.200.0.0/20 many");
    let client = host.docker("run -d --network many shoal:lab shoal try pause");
    let pid = host.docker(&format!("inspect -f {{{{.State.Pid}}}} {client}"));

    let before = meminfo_kib("MemAvailable")?;
    let began = Instant::now();
    host.docker(&format!(
        "service create -d --name web --network many --replicas {count} \
         --container-label shoal.backend={backend} web:bench"
    ));
    until_running(host, count, began)?;
    let running_seconds = began.elapsed().as_secs_f64();
    let addresses = addresses(host)?;
    ensure!(addresses.len() == count as usize, "{} tasks have an address", addresses.len());
    ask_all(host, &pid, &addresses)?;
    let answered_seconds = began.elapsed().as_secs_f64();
    let taken = before.saturating_sub(meminfo_kib("MemAvailable")?);
    let pss = processes_kib(host)? as f64;
    let each = |kib: f64| kib / f64::from(count);
    host.docker("service rm web");
    until_gone(host)?;
    host.docker(&format!("rm -f {client}"));
    let other_kib = each(taken as f64 - pss);
    Ok(Service { count, running_seconds, answered_seconds, pss_kib: each(pss), other_kib })
}

/// PSS of the node's processes that are not its daemon, in KiB.
fn processes_kib(host: &Host) -> Result<u64> {
    let marker = host.dir().to_string_lossy().into_owned();
    let daemon = host.daemon_pid();
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc").context("list the processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if pid != daemon && String::from_utf8_lossy(&line).contains(&marker) {
            sum += rollup_kib(pid, "Pss")?;
        }
    }
    Ok(sum)
}

fn until_running(host: &Host, count: u32, began: Instant) -> Result<()> {
    let wanted = format!("{count}/{count}");
    loop {
        let replicas = host.docker("service ls --format {{.Replicas}}");
        if replicas == wanted {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "only {replicas} tasks run after {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
}

fn until_gone(host: &Host) -> Result<()> {
    let began = Instant::now();
    while host.docker("ps -q").lines().count() > 1 {
        ensure!(began.elapsed() < PATIENCE, "tasks still run after {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Addresses of the running tasks, from the API as it is: the CLI would ask for each.
fn addresses(host: &Host) -> Result<Vec<String>> {
    let socket = host.socket();
    let socket = socket.trim_start_matches("unix://");
    let filter = "filters=%7B%22desired-state%22%3A%7B%22running%22%3Atrue%7D%7D";
    let url = format!("http://localhost/tasks?{filter}");
    let said = output(Command::new("curl").args(["-sSf", "--unix-socket", socket, &url]))?;
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&said).context("read the tasks")?;
    let address = |task: &serde_json::Value| {
        let first = task["NetworksAttachments"][0]["Addresses"][0].as_str()?;
        first.split('/').next().map(str::to_owned)
    };
    Ok(tasks.iter().filter_map(address).collect())
}

/// Asks every address from the network of a container.
fn ask_all(host: &Host, pid: &str, addresses: &[String]) -> Result<()> {
    let line = |a: &String| format!("url = \"http://{a}/index.html\"\noutput = /dev/null\n");
    let list: String = addresses.iter().map(line).collect();
    let file = host.dir().join("urls");
    std::fs::write(&file, list).context("write the list of tasks")?;
    let mut command = Command::new("nsenter");
    command.args(["-t", pid, "-n", "curl", "-sSf", "--parallel", "--parallel-max", "50"]);
    output(command.arg("-K").arg(&file)).context("ask every task").map(drop)
}
