//! How long managers are without a leader: real daemons in network namespaces, whose leader is
//! killed (`kill -9`), stopped (SIGTERM) or cut off without a word, again and again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use shoal_lab::Cluster;
use shoal_lab::http::{Outcome, Request, get};

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

/// How large the group is and what is done to it.
struct Plan {
    managers: usize,
    /// Clients that write while the leader goes, one write after the other each.
    writers: usize,
    kills: u32,
    stops: u32,
    /// Leaders that nobody hears any more, as of a host that lost its power.
    cuts: u32,
}

impl Plan {
    fn words(&self) -> [String; 5] {
        let Self { managers, writers, kills, stops, cuts } = self;
        let [managers, writers] = [managers, writers].map(ToString::to_string);
        let [kills, stops, cuts] = [kills, stops, cuts].map(ToString::to_string);
        [managers, writers, kills, stops, cuts]
    }

    fn read(words: &[String]) -> Result<Self> {
        let [managers, writers, kills, stops, cuts] = words else {
            bail!("MANAGERS WRITERS KILLS STOPS CUTS")
        };
        Ok(Self {
            managers: managers.parse()?,
            writers: writers.parse()?,
            kills: kills.parse()?,
            stops: stops.parse()?,
            cuts: cuts.parse()?,
        })
    }
}

/// Runs `cargo xtask bench failover`.
///
/// # Errors
/// If another leader does not come.
pub fn run(args: &[String]) -> Result<()> {
    let mut plan = Plan { managers: 3, writers: 1, kills: ROUNDS, stops: ROUNDS, cuts: 0 };
    let (mut program, mut words) = (None, args.iter());
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        let count = || value.parse::<u32>().context("understand the count");
        match word.as_str() {
            "--managers" => plan.managers = value.parse().context("understand the count")?,
            "--writers" => plan.writers = value.parse().context("understand the count")?,
            "--kills" => plan.kills = count()?,
            "--stops" => plan.stops = count()?,
            "--cuts" => plan.cuts = count()?,
            "--program" => program = Some(PathBuf::from(value)),
            other => bail!(
                "'{other}'? there is: --managers, --writers, --kills, --stops, --cuts, --program"
            ),
        }
    }
    ensure!((3..=7).contains(&plan.managers), "three to seven managers survive a leader");
    let program = program.map_or_else(super::node::build, Ok)?;
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    command.args(["bench-inside", "failover"]).args(plan.words());
    print!("{}", output(command.env("SHOAL_BIN", program))?);
    Ok(())
}

/// In a process of its own: measures and prints.
///
/// # Errors
/// If another leader does not come.
pub fn inside(args: &[String]) -> Result<()> {
    let plan = Plan::read(args)?;
    let count = u8::try_from(plan.managers).context("count the managers")?;
    let cluster = Cluster::managers("failover", count, 0);
    let mut bench = Bench { cluster: &cluster, plan: &plan, count: 0 };
    println!("{} managers, {} writers", plan.managers, plan.writers);
    let ends: [(&str, u32, End); 3] = [
        ("kill -9 of the leader", plan.kills, End::Kill),
        ("SIGTERM of the leader", plan.stops, End::Stop),
        ("the leader's host is cut off without a word", plan.cuts, End::Cut),
    ];
    for (what, rounds, end) in ends {
        let mut figures = Figures::default();
        for _ in 0..rounds {
            bench.round(&mut figures, end)?;
        }
        figures.print(what);
    }
    let (median, worst) = GOAL;
    println!("goal for kill -9: median at most {median:.2} s, worst at most {worst:.2} s");
    cluster.finish();
    Ok(())
}

/// What becomes of a leader.
#[derive(Clone, Copy)]
enum End {
    Kill,
    Stop,
    Cut,
}

impl End {
    fn begin(self, cluster: &Cluster, leader: usize) {
        match self {
            Self::Kill => cluster.node(leader).kill_daemon(),
            Self::Stop => {
                cluster.node(leader).stop_daemon();
            }
            Self::Cut => cluster.lab.cut(leader),
        }
    }

    fn undo(self, cluster: &Cluster, leader: usize) {
        match self {
            Self::Kill | Self::Stop => cluster.node(leader).restart(),
            Self::Cut => cluster.lab.mend(leader),
        }
    }
}

/// Seconds, one for each round.
#[derive(Default)]
struct Figures {
    /// Until another manager says that it leads.
    shown: Vec<f64>,
    /// Until a write through a manager that was left is confirmed, tried from the beginning on.
    written: Vec<f64>,
    /// The longest that one of many small writes took; each writer begins one after the other.
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
    plan: &'a Plan,
    /// Networks made so far.
    count: u32,
}

impl Bench<'_> {
    fn socket(&self, index: usize) -> PathBuf {
        self.cluster.node(index).place().socket
    }

    fn all(&self) -> impl Iterator<Item = usize> + use<> {
        1..=self.plan.managers
    }

    /// Ends the leader by `end`, and measures until the others go on.
    fn round(&mut self, figures: &mut Figures, end: End) -> Result<()> {
        let leader = self.settled()?;
        std::thread::sleep(CALM);
        let rest: Vec<PathBuf> =
            self.all().filter(|index| *index != leader).map(|index| self.socket(index)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..self.plan.writers)
            .map(|number| {
                let socket = rest[1 + number % (rest.len() - 1)].clone();
                let (name, stop) = (format!("w{}-{number}", self.count), Arc::clone(&stop));
                std::thread::spawn(move || write_on(&socket, &name, &stop))
            })
            .collect();
        let began = Instant::now();
        let watcher = {
            let (rest, dead) = (rest.clone(), format!("node-{leader}"));
            std::thread::spawn(move || {
                until(began, || rest.iter().any(|s| leads(s).is_some_and(|name| name != dead)))
            })
        };
        let asker = {
            let (socket, name) = (rest[0].clone(), format!("f{}", self.count));
            std::thread::spawn(move || until(began, || network(&socket, &name)))
        };
        end.begin(self.cluster, leader);
        let joined = |thread: std::thread::JoinHandle<Result<f64>>| match thread.join() {
            Ok(time) => time,
            Err(_) => bail!("a thread of the measurement broke off"),
        };
        figures.shown.push(joined(watcher)?);
        figures.written.push(joined(asker)?);
        stop.store(true, Ordering::SeqCst);
        let ended =
            writers.into_iter().map(|one| one.join().unwrap_or((PATIENCE.as_secs_f64(), 1)));
        let (gaps, failed): (Vec<f64>, Vec<usize>) = ended.unzip();
        figures.gap.push(gaps.into_iter().fold(0.0, f64::max));
        figures.failed += failed.into_iter().sum::<usize>();
        // Ignored because: one that stays uses an address range, nothing else.
        let _ = Request::new("DELETE", format!("/networks/f{}", self.count)).send(&rest[1]);
        self.count += 1;
        end.undo(self.cluster, leader);
        Ok(())
    }

    /// The leader, once every manager says that it reaches all of them.
    fn settled(&self) -> Result<usize> {
        let mut found = None;
        until(Instant::now(), || {
            let all = self.all().all(|index| reached(&self.socket(index)) == self.plan.managers);
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

/// Writes until `stop` says so; the longest that one took, and how many failed.
fn write_on(socket: &Path, name: &str, stop: &AtomicBool) -> (f64, usize) {
    let (mut longest, mut failed, mut count) = (0.0f64, 0, 0);
    while !stop.load(Ordering::SeqCst) {
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
