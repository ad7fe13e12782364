//! Who leads: real daemons that are stopped, killed, cut off, or starved of processors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;
use shoal_lab::http::{Outcome, Request};
use shoal_lab::{CONVERGE, Cluster, Host, Lab, eventually};

fn three(name: &str) -> Cluster {
    let cluster = Cluster::managers(name, 3, 0);
    settled(&cluster);
    cluster
}

/// What `node ls` says of managers, sorted.
fn statuses(host: &Host) -> Vec<String> {
    let list = host.docker("node ls --format {{.ManagerStatus}}");
    let mut said: Vec<String> = list.lines().map(str::to_owned).collect();
    said.sort();
    said
}

/// The host that leads, once each of the three says that all are there.
fn settled(cluster: &Cluster) -> usize {
    for index in 1..=3 {
        let host = cluster.node(index);
        eventually(&format!("three managers on {}", host.name()), CONVERGE, || {
            let said = statuses(host);
            let whole = said == ["Leader", "Reachable", "Reachable"];
            if whole { Ok(()) } else { Err(format!("{said:?}")) }
        });
    }
    leader(cluster.node(1)).expect("a leader")
}

/// Whom this host takes for the leader.
fn leader(host: &Host) -> Option<usize> {
    let list = host.docker("node ls --format {{.Hostname}}/{{.ManagerStatus}}");
    let line = list.lines().find(|line| line.ends_with("/Leader"))?;
    line.trim_end_matches("/Leader").rsplit('-').next()?.parse().ok()
}

/// Waits until this host takes another one than `old` for the leader.
fn replaced(host: &Host, old: usize) {
    eventually("another leader", CONVERGE, || {
        let found = leader(host);
        if found.is_some_and(|next| next != old) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// How often a manager of this host stood for election since its start.
fn stood(host: &Host) -> usize {
    let logs = host.logs();
    let text = logs.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default());
    text.map(|text| text.matches("this manager stands for election").count()).sum()
}

fn stood_in_all(cluster: &Cluster) -> usize {
    (1..=3).map(|index| stood(cluster.node(index))).sum()
}

/// Clients that make networks and remove them, one after the other, each on a manager of its own.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u32, Vec<String>)>>,
}

impl Writers {
    fn start(cluster: &Cluster, on: &[usize], count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|number| {
            let socket = cluster.node(on[number % on.len()]).place().socket;
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || write(&socket, number, &stop))
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    /// How many writes there were, none of which failed.
    fn end(self) -> u32 {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.threads.into_iter().map(|thread| thread.join().unwrap());
        let (counts, failed): (Vec<u32>, Vec<Vec<String>>) = ended.unzip();
        let failed = failed.concat();
        assert_eq!(failed, Vec::<String>::new(), "writes failed");
        counts.iter().sum()
    }
}

fn write(socket: &Path, number: usize, stop: &AtomicBool) -> (u32, Vec<String>) {
    let (mut count, mut failed) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        let name = format!("w{number}-{count}");
        let body = json!({ "Name": name, "Driver": "overlay" });
        let made = Request::new("POST", "/networks/create").json(&body).send(socket);
        match made {
            Outcome::Answered(201, _) => {}
            other => failed.push(format!("create {name}: {other:?}")),
        }
        let removed = Request::new("DELETE", format!("/networks/{name}")).send(socket);
        match removed {
            Outcome::Answered(204, _) => {}
            other => failed.push(format!("remove {name}: {other:?}")),
        }
        count += 1;
    }
    (count, failed)
}

/// Processes that keep every processor busy. They end with this.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Self {
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Ignored because: one that has ended already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_stopped_leader_hands_over_and_no_write_fails() {
    let cluster = three("elections_stop");
    for _ in 0..3 {
        let old = settled(&cluster);
        let rest: Vec<usize> = (1..=3).filter(|index| *index != old).collect();
        let writers = Writers::start(&cluster, &rest, 8);
        cluster.node(old).stop_daemon();
        let next = leader(cluster.node(rest[0])).expect("a leader as soon as the old one is gone");
        assert_ne!(next, old);
        assert!(writers.end() > 0);
        let log = std::fs::read_to_string(&cluster.node(old).logs()[0]).unwrap();
        assert!(log.contains("another manager leads from here on"), "it did not hand over");
        cluster.node(old).restart();
    }
    settled(&cluster);
    cluster.finish();
}

#[test]
fn a_killed_leader_is_replaced_and_no_write_fails() {
    let cluster = three("elections_kill");
    for _ in 0..3 {
        let old = settled(&cluster);
        let rest: Vec<usize> = (1..=3).filter(|index| *index != old).collect();
        let writers = Writers::start(&cluster, &rest, 4);
        cluster.node(old).kill_daemon();
        replaced(cluster.node(rest[0]), old);
        assert!(writers.end() > 0);
        cluster.node(old).restart();
    }
    settled(&cluster);
    cluster.finish();
}

#[test]
fn a_manager_that_was_cut_off_returns_unnoticed() {
    let cluster = three("elections_cut");
    let first = settled(&cluster);
    let away = (1..=3).find(|index| *index != first).unwrap();
    let rest: Vec<usize> = (1..=3).filter(|index| *index != away).collect();
    let before = stood_in_all(&cluster);
    let writers = Writers::start(&cluster, &rest, 4);
    cluster.lab.cut(away);
    eventually("it to miss the others", CONVERGE, || {
        let said = statuses(cluster.node(away));
        if said.iter().any(|s| s == "Leader") { Err(format!("{said:?}")) } else { Ok(()) }
    });
    // Long enough for many rounds of questions that nobody answers.
    let cut = Instant::now();
    eventually("some seconds to pass", CONVERGE, || {
        let passed = cut.elapsed() > Duration::from_secs(6);
        if passed { Ok(()) } else { Err(format!("{:?}", cut.elapsed())) }
    });
    cluster.lab.mend(away);
    let last = settled(&cluster);
    assert!(writers.end() > 0);
    assert_eq!(last, first, "another one leads");
    assert_eq!(stood_in_all(&cluster), before, "somebody stood for election");
    cluster.finish();
}

/// Cuts the leader's line by `cut` until another one leads; gives both, the cluster whole again.
fn cut_one_way(cluster: &Cluster, cut: fn(&Lab, usize), meanwhile: impl Fn(&Host)) -> [usize; 2] {
    let old = settled(cluster);
    let rest: Vec<usize> = (1..=3).filter(|index| *index != old).collect();
    let writers = Writers::start(cluster, &rest, 2);
    cut(&cluster.lab, old);
    replaced(cluster.node(rest[0]), old);
    meanwhile(cluster.node(old));
    cluster.lab.mend(old);
    let next = settled(cluster);
    assert!(writers.end() > 0);
    [old, next]
}

/// A leader that hears everybody and is heard by nobody must not keep its office, and must confirm
/// nothing: openraft's own heartbeats would renew it for ever in the other direction.
#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    let cluster = three("elections_mute");
    let [old, next] = cut_one_way(&cluster, Lab::cut_outgoing, |old| {
        let said = old.docker_fails("network create --driver overlay nowhere");
        assert!(said.contains("no majority"), "{said}");
    });
    assert_ne!(next, old, "the old one took its office back");
    cluster.finish();
}

/// A leader that is heard and hears nobody has no majority that it knows of.
#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    let cluster = three("elections_deaf");
    cut_one_way(&cluster, Lab::cut_incoming, |_| {});
    cluster.finish();
}

#[test]
fn busy_cores_elect_nobody() {
    let cluster = three("elections_busy");
    let first = settled(&cluster);
    let before = stood_in_all(&cluster);
    let busy = Busy::start(4);
    let writers = Writers::start(&cluster, &[1, 2, 3], 3);
    let began = Instant::now();
    eventually("the processors to be busy for a while", Duration::from_secs(60), || {
        let passed = began.elapsed() > Duration::from_secs(30);
        if passed { Ok(()) } else { Err(format!("{:?}", began.elapsed())) }
    });
    assert!(writers.end() > 0);
    drop(busy);
    assert_eq!(settled(&cluster), first, "another one leads");
    assert_eq!(stood_in_all(&cluster), before, "somebody stood for election");
    cluster.finish();
}
