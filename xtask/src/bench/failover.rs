//! How long three managers are without a leader: real daemons in network namespaces, whose leader
//! is killed (`kill -9`) or stopped (SIGTERM), again and again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use shoal_lab::http::{Outcome, Request, get};
use shoal_lab::{Cluster, Host};

use crate::steps::output;

/// How often each, unless the command line says otherwise.
const ROUNDS: u32 = 50;
/// How long anything may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody leads: each look is one request to each manager.
const LOOK: Duration = Duration::from_millis(5);
/// The group works for so long before the next leader ends.
const CALM: Duration = Duration::from_millis(1500);
/// The goal for a killed leader, seconds: median and worst.
const GOAL: (f64, f64) = (1.0, 2.0);

/// Runs `cargo xtask bench failover`.
///
/// # Errors
/// If another leader does not come.
pub fn run(args: &[String]) -> Result<()> {
    let (mut kills, mut stops, mut program) = (ROUNDS, ROUNDS, None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--kills" => kills = value()?.parse().context("understand the count")?,
            "--stops" => stops = value()?.parse().context("understand the count")?,
            "--program" => program = Some(PathBuf::from(value()?)),
            other => bail!("'{other}'? there is: --kills, --stops, --program"),
        }
    }
    let program = program.map_or_else(super::node::build, Ok)?;
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command.args(["bench-inside", "failover", &kills.to_string(), &stops.to_string()]);
    print!("{}", output(command.env("SHOAL_BIN", program))?);
    Ok(())
}

/// In a process of its own: measures and prints.
///
/// # Errors
/// If another leader does not come.
pub fn inside(args: &[String]) -> Result<()> {
    let [kills, stops] = args else { bail!("KILLS STOPS") };
    let (kills, stops): (u32, u32) = (kills.parse()?, stops.parse()?);
    let cluster = Cluster::managers("failover", 3, 0);
    let mut bench = Bench { cluster: &cluster, count: 0 };
    let mut killed = Figures::default();
    for _ in 0..kills {
        bench.round(&mut killed, Host::kill_daemon)?;
    }
    let mut stopped = Figures::default();
    for _ in 0..stops {
        bench.round(&mut stopped, |host| drop(host.stop_daemon()))?;
    }
    killed.print("kill -9 of the leader");
    stopped.print("SIGTERM of the leader");
    let (median, worst) = GOAL;
    println!("goal for kill -9: median at most {median:.2} s, worst at most {worst:.2} s");
    cluster.finish();
    Ok(())
}

/// Seconds, one for each round.
#[derive(Default)]
struct Figures {
    /// Until another manager says that it leads.
    shown: Vec<f64>,
    /// Until a write through a manager that was left is confirmed, tried from the beginning on.
    written: Vec<f64>,
    /// The longest that one of many small writes took, which began one after the other.
    gap: Vec<f64>,
    /// Writes that failed.
    failed: usize,
}

impl Figures {
    fn print(&mut self, what: &str) {
        if self.shown.is_empty() {
            return;
        }
        println!("{what}, {} times; {} writes failed", self.shown.len(), self.failed);
        let rows = [
            ("another one leads", &mut self.shown),
            ("a write is confirmed", &mut self.written),
            ("longest write beside it", &mut self.gap),
        ];
        for (name, times) in rows {
            times.sort_by(f64::total_cmp);
            let at = |share: usize| times[(times.len() - 1) * share / 100];
            println!(
                "  {name:24} median {:.3} s, 90 % {:.3} s, worst {:.3} s",
                at(50),
                at(90),
                at(100)
            );
        }
    }
}

struct Bench<'a> {
    cluster: &'a Cluster,
    /// Networks made so far.
    count: u32,
}

impl Bench<'_> {
    fn socket(&self, index: usize) -> PathBuf {
        self.cluster.node(index).place().socket
    }

    /// Ends the leader by `end`, and measures until the others go on.
    fn round(&mut self, figures: &mut Figures, end: impl FnOnce(&Host)) -> Result<()> {
        let leader = self.settled()?;
        std::thread::sleep(CALM);
        let rest: Vec<PathBuf> =
            (1..=3).filter(|index| *index != leader).map(|index| self.socket(index)).collect();
        let (done, stop) = mpsc::channel();
        let writer = {
            let (socket, name) = (rest[1].clone(), format!("w{}", self.count));
            std::thread::spawn(move || write_on(&socket, &name, &stop))
        };
        let (told, began) = mpsc::channel();
        let watcher = {
            let (rest, dead) = (rest.clone(), format!("node-{leader}"));
            std::thread::spawn(move || -> Result<f64> {
                let began: Instant = began.recv().context("hear when it began")?;
                until(began, || rest.iter().any(|s| leads(s).is_some_and(|name| name != dead)))
            })
        };
        let host = self.cluster.node(leader);
        let began = Instant::now();
        told.send(began).context("tell when it began")?;
        let asker = {
            let (socket, name) = (rest[0].clone(), format!("f{}", self.count));
            std::thread::spawn(move || until(began, || network(&socket, &name)))
        };
        end(host);
        let joined = |thread: std::thread::JoinHandle<Result<f64>>| match thread.join() {
            Ok(time) => time,
            Err(_) => bail!("a thread of the measurement broke off"),
        };
        figures.shown.push(joined(watcher)?);
        figures.written.push(joined(asker)?);
        drop(done);
        let (gap, failed) = writer.join().unwrap_or((PATIENCE.as_secs_f64(), 1));
        figures.gap.push(gap);
        figures.failed += failed;
        // Ignored because: one that stays uses an address range, nothing else.
        let _ = Request::new("DELETE", format!("/networks/f{}", self.count)).send(&rest[1]);
        self.count += 1;
        host.restart();
        Ok(())
    }

    /// The leader, once all three are reached by it.
    fn settled(&self) -> Result<usize> {
        let mut found = None;
        until(Instant::now(), || {
            let all = (1..=3).all(|index| reached(&self.socket(index)) == 3);
            found = leads(&self.socket(1)).filter(|_| all);
            found.is_some()
        })?;
        let name = found.context("nobody leads")?;
        let index = name.rsplit('-').next().and_then(|number| number.parse().ok());
        index.with_context(|| format!("'{name}' is no host of the lab"))
    }
}

/// Seconds from `began` until `holds`.
fn until(began: Instant, mut holds: impl FnMut() -> bool) -> Result<f64> {
    while !holds() {
        ensure!(began.elapsed() < PATIENCE, "it does not come within {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
    Ok(began.elapsed().as_secs_f64())
}

fn nodes(socket: &Path) -> Vec<serde_json::Value> {
    let list = get(socket, "/nodes");
    list.and_then(|list| list.as_array().cloned()).unwrap_or_default()
}

/// Who leads, as the manager says.
fn leads(socket: &Path) -> Option<String> {
    let leads = |node: &&serde_json::Value| node["ManagerStatus"]["Leader"] == true;
    let nodes = nodes(socket);
    let leader = nodes.iter().find(leads)?;
    leader["Description"]["Hostname"].as_str().map(str::to_owned)
}

/// How many managers are reached.
fn reached(socket: &Path) -> usize {
    let is = |node: &&serde_json::Value| node["ManagerStatus"]["Reachability"] == "reachable";
    nodes(socket).iter().filter(is).count()
}

/// Makes a network; whether it is there.
fn network(socket: &Path, name: &str) -> bool {
    let body = json!({ "Name": name, "Driver": "overlay" });
    let answer = Request::new("POST", "/networks/create").json(&body).send_within(socket, PATIENCE);
    matches!(answer, Outcome::Answered(201 | 409, _))
}

/// Writes until `stop` hangs up; the longest that one took, and how many failed.
fn write_on(socket: &Path, name: &str, stop: &mpsc::Receiver<()>) -> (f64, usize) {
    let (mut longest, mut failed, mut count) = (0.0f64, 0, 0);
    while stop.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
        let began = Instant::now();
        let name = format!("{name}-{count}");
        failed += usize::from(!network(socket, &name));
        longest = longest.max(began.elapsed().as_secs_f64());
        // Ignored because: one that stays uses an address range, nothing else.
        let _ = Request::new("DELETE", format!("/networks/{name}")).send(socket);
        count += 1;
    }
    (longest, failed)
}
