//! How many containers one node starts, how fast, and what stays of them: a real daemon in a
//! network namespace of its own, driven by the Engine API. Each figure has a daemon of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use shoal_lab::{DaemonOptions, Host, Lab, import_busybox};

use super::engine_api::EngineApi;
use super::process::rollup_kib;
use crate::steps::output;

/// What is measured unless the command line says otherwise.
const COUNTS: [u32; 4] = [50, 200, 500, 1000];
/// Requests that are under way at once.
const CLIENTS: usize = 16;
/// How long all containers of one figure may take to run, or to be gone.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the daemon has to give back what it took.
const REST: Duration = Duration::from_secs(30);
/// How often a daemon is looked at that rests, or that starts tasks.
const LOOK: Duration = Duration::from_millis(250);
/// What it should be back to: PSS in KiB, and threads.
const IDLE: (u64, usize) = (20 << 10, 16);

/// How the containers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// On the default bridge.
    Bridge,
    /// Without a network.
    None,
    /// As tasks of a service.
    Service,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Bridge, Self::None, Self::Service];

    const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::None => "none",
            Self::Service => "service",
        }
    }
}

/// The state of a daemon.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Load {
    /// Shared pages in parts, in KiB.
    pss_kib: u64,
    threads: usize,
    /// Mounts in the host's namespace.
    mounts: usize,
}

/// One figure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Figure {
    kind: Kind,
    count: u32,
    /// Until every container runs.
    start_seconds: f64,
    /// Until every container is gone.
    remove_seconds: f64,
    before: Load,
    running: Load,
    /// As soon as all are gone.
    gone: Load,
    /// When it was back to what it should be, or had its time.
    rested: Load,
    rest_seconds: f64,
}

/// Runs `cargo xtask bench node`.
///
/// # Errors
/// If a container does not start.
pub fn run(args: &[String]) -> Result<()> {
    let mut kinds = Vec::new();
    let mut counts: Vec<u32> = Vec::new();
    let mut json = false;
    let mut program = None;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--json" => json = true,
            "--program" => program = Some(PathBuf::from(value()?)),
            "--count" => counts.push(value()?.parse().context("understand the count")?),
            "--kind" => {
                let name = value()?;
                let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
                kinds.push(kind.with_context(|| format!("no kind '{name}'"))?);
            }
            other => bail!("'{other}'? there is: --kind, --count, --json, --program"),
        }
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    if counts.is_empty() {
        counts.extend(COUNTS);
    }
    let program = program.map_or_else(build, Ok)?;
    if !json {
        println!("{HEAD}");
    }
    for kind in kinds {
        for count in &counts {
            let said = measure(&program, kind, *count)?;
            let figure: Figure =
                serde_json::from_str(&said).with_context(|| format!("understand '{said}'"))?;
            println!("{}", if json { said } else { row(&figure) });
        }
    }
    Ok(())
}

/// Builds the program, optimised.
///
/// # Errors
/// If it does not build.
pub(super) fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the workspace")?;
    super::unikernel::build(root, &["shoal"])?;
    // Beside this program, which cargo has put in its own profile's folder.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("find cargo's folder")?;
    Ok(target.join("release/shoal"))
}

const HEAD: &str = "\
| containers | all run | a second | all gone | daemon: PSS, threads, with them | right after | \
rested | host mounts before, with, after |
|---|---|---|---|---|---|---|---|";

fn row(figure: &Figure) -> String {
    let load = |load: &Load| format!("{:.1} MB, {}", load.pss_kib as f64 / 1024.0, load.threads);
    format!(
        "| {} {} | {:.1} s | {:.0} | {:.1} s | {} | {} | {} after {:.0} s | {}, {}, {} |",
        figure.count,
        figure.kind.name(),
        figure.start_seconds,
        f64::from(figure.count) / figure.start_seconds,
        figure.remove_seconds,
        load(&figure.running),
        load(&figure.gone),
        load(&figure.rested),
        figure.rest_seconds,
        figure.before.mounts,
        figure.running.mounts,
        figure.rested.mounts,
    )
}

/// In a process of its own, which is told where the program is.
fn measure(program: &Path, kind: Kind, count: u32) -> Result<String> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command.args(["bench-inside", "node", kind.name(), &count.to_string()]);
    let said = output(command.env("SHOAL_BIN", program))?;
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

/// In a process of its own: measures, prints JSON.
///
/// # Errors
/// If a container does not start.
pub fn inside(args: &[String]) -> Result<()> {
    let [kind, count] = args else { bail!("KIND COUNT") };
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).context("no such kind")?;
    let count = count.parse().context("understand the count")?;
    let lab = Lab::start("bench-node", 1);
    let figure = on(lab.host(1), kind, count)?;
    lab.finish();
    println!("{}", serde_json::to_string(&figure)?);
    Ok(())
}

fn on(host: &Host, kind: Kind, count: u32) -> Result<Figure> {
    host.daemon_with(&DaemonOptions { quiet: true, ..DaemonOptions::default() });
    import_busybox(host);
    if kind == Kind::Service {
        host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    }
    let api = EngineApi::new(Path::new(host.socket().trim_start_matches("unix://")));
    let before = load(host)?;
    let began = Instant::now();
    let ids = match kind {
        Kind::Service => start_service(&api, count)?,
        Kind::Bridge | Kind::None => start_containers(&api, kind, count)?,
    };
    let start_seconds = began.elapsed().as_secs_f64();
    let running = load(host)?;
    let began = Instant::now();
    match kind {
        Kind::Service => drop(api.ask("DELETE", "/services/many", "")?),
        Kind::Bridge | Kind::None => each(&ids, |id| {
            api.ask("DELETE", &format!("/containers/{id}?force=1&v=1"), "").map(drop)
        })?,
    }
    until(|| Ok(containers(&api, true)? == 0)).context("wait until all are gone")?;
    let remove_seconds = began.elapsed().as_secs_f64();
    let gone = load(host)?;
    let began = Instant::now();
    let mut rested = load(host)?;
    while (rested.pss_kib > IDLE.0 || rested.threads > IDLE.1) && began.elapsed() < REST {
        std::thread::sleep(LOOK);
        rested = load(host)?;
    }
    let rest_seconds = began.elapsed().as_secs_f64();
    Ok(Figure {
        kind,
        count,
        start_seconds,
        remove_seconds,
        before,
        running,
        gone,
        rested,
        rest_seconds,
    })
}

fn start_containers(api: &EngineApi, kind: Kind, count: u32) -> Result<Vec<String>> {
    let body = serde_json::json!({
        "Image": "busybox:lab", "Cmd": ["sleep", "1000000"],
        "HostConfig": { "NetworkMode": kind.name() },
    });
    let body = body.to_string();
    let ids = std::sync::Mutex::new(Vec::new());
    let numbers: Vec<u32> = (0..count).collect();
    each(&numbers, |number| {
        let path = format!("/containers/create?name=many-{number}");
        let said: serde_json::Value = serde_json::from_str(&api.ask("POST", &path, &body)?)?;
        let id = said["Id"].as_str().context("a container has an id")?.to_owned();
        api.ask("POST", &format!("/containers/{id}/start"), "")?;
        ids.lock().map_err(|_| anyhow::anyhow!("another request failed"))?.push(id);
        Ok(())
    })?;
    let running = containers(api, false)?;
    ensure!(running == count as usize, "only {running} of {count} run");
    ids.into_inner().map_err(|_| anyhow::anyhow!("a request failed"))
}

fn start_service(api: &EngineApi, count: u32) -> Result<Vec<String>> {
    let body = serde_json::json!({
        "Name": "many",
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "busybox:lab", "Command": ["sleep", "1000000"], "Init": false,
                // The program ignores SIGTERM, being its namespace's first process.
                "StopSignal": "SIGKILL",
            },
        },
        "Mode": { "Replicated": { "Replicas": count } },
    });
    api.ask("POST", "/services/create", &body.to_string())?;
    until(|| Ok(containers(api, false)? == count as usize)).context("wait for every task")?;
    Ok(Vec::new())
}

/// How many there are, or run.
fn containers(api: &EngineApi, all: bool) -> Result<usize> {
    let said = api.ask("GET", &format!("/containers/json?all={all}"), "")?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&said).context("read the list")?;
    Ok(list.len())
}

fn until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        ensure!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Does something with each, a few at once.
fn each<T: Sync>(all: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            act(one)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        clients.into_iter().try_for_each(|client| {
            client.join().map_err(|_| anyhow::anyhow!("a client of the API panicked"))?
        })
    })
}

fn load(host: &Host) -> Result<Load> {
    let pid = host.daemon_pid();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).context("list the threads")?;
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    Ok(Load {
        pss_kib: rollup_kib(pid, "Pss")?,
        threads: tasks.count(),
        mounts: mounts.lines().count(),
    })
}
