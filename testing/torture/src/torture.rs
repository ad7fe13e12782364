//! The run: bursts of users and disturbances, and a comparison after each.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_lab::http::{Outcome, Request, get};
use shoal_lab::{DaemonOptions, Disk, Host, Lab, import_busybox};

use crate::chaos::{self, Act};
use crate::check::{self, Said};
use crate::journal::Journal;
use crate::user::{Ground, User};
use shoal_lab::reality::{self, Place};

/// How many users.
const USERS: usize = 4;
/// How large the disk is, in MiB.
const DISK_MIB: u32 = 256;
/// How long a burst lasts.
const BURST: Duration = Duration::from_millis(1200);
/// How long a daemon may take until it answers: it takes over dozens of containers, on a machine
/// that may have stopped for a while.
const START_MAX: Duration = Duration::from_secs(60);
/// How long intent and reality may differ after a burst.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// How long services may take until all their tasks run.
const SERVICES_MAX: Duration = Duration::from_secs(180);
/// Every how many bursts services are looked at.
const SERVICES_EVERY: u64 = 8;
/// Every how many bursts a file is damaged between two starts.
const DAMAGE_EVERY: u64 = 7;
/// Every how many bursts everything is removed, and nothing may be left.
const PURGE_EVERY: u64 = 25;
/// How often a difference is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(100);

struct Torture<'a> {
    host: &'a Host,
    place: Place,
    ground: Arc<Ground>,
    users: Vec<User>,
    random: StdRng,
    disk: &'a Disk,
    /// What has been reported and is still so.
    known: BTreeSet<String>,
    /// What is left when everything was removed: what a daemon has that had nothing yet.
    empty: Option<BTreeSet<String>>,
}

/// Runs it; gives how many kinds of findings there were.
pub fn run(seed: u64, length: Duration) -> Result<usize, String> {
    let lab = Lab::start("torture", 1);
    let host = lab.host(1);
    let disk = lab.disk(DISK_MIB);
    let data = disk.dir().join("data");
    host.daemon_with(&DaemonOptions { data_root: Some(data.clone()), ..DaemonOptions::default() });
    import_busybox(host);
    host.docker(&format!("swarm init --advertise-addr {}", host.address()));
    let (journal_path, log_path) = kept_files();
    let journal = Arc::new(Journal::new(&journal_path).map_err(|error| error.to_string())?);
    println!("journal: {}", journal_path.display());
    let place = host.place();
    let ground = Arc::new(Ground {
        socket: place.socket.clone(),
        journal: journal.clone(),
        open: AtomicBool::new(false),
        calm: AtomicBool::new(false),
        disturbed: Mutex::default(),
        all_disturbed: AtomicBool::new(false),
    });
    let users = (0..USERS).map(|number| User::new(ground.clone(), seed, number)).collect();
    let random = StdRng::seed_from_u64(seed);
    let (known, empty) = (BTreeSet::new(), None);
    let mut torture = Torture { host, place, ground, users, random, disk: &disk, known, empty };
    torture.go_on(length);
    for log in host.logs() {
        // Ignored because: evidence is kept where it can be.
        let _ = std::fs::copy(log, &log_path);
    }
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.finish()));
    if let Err(problem) = ended {
        let text = problem.downcast_ref::<String>().cloned().unwrap_or_default();
        journal.finding(&format!("[all] after the end: {text}"));
    }
    journal.summary();
    println!("{}", journal.progress());
    Ok(journal.found())
}

/// Where journal and log are kept.
fn kept_files() -> (PathBuf, PathBuf) {
    let dir =
        shoal_lab::shoal().parent().map_or_else(std::env::temp_dir, |dir| dir.join("torture"));
    // Ignored because: making the journal says it better.
    let _ = std::fs::create_dir_all(&dir);
    (dir.join("journal"), dir.join("daemon.log"))
}

impl Torture<'_> {
    fn go_on(&mut self, length: Duration) {
        let began = Instant::now();
        let mut said_at = Instant::now();
        let mut number = 0_u64;
        while began.elapsed() < length {
            number += 1;
            let acts = chaos::choose(&mut self.random);
            self.ground.journal.note(&format!("--- burst {number}: {acts:?}"));
            self.burst(&acts);
            if !self.come_up() {
                return;
            }
            self.settle();
            if number.is_multiple_of(SERVICES_EVERY) {
                self.await_services();
            }
            if number.is_multiple_of(DAMAGE_EVERY) && !self.damage() {
                return;
            }
            if number.is_multiple_of(PURGE_EVERY) || self.empty.is_none() {
                self.purge();
            }
            if said_at.elapsed() > Duration::from_secs(10) {
                println!("{}", self.ground.journal.progress());
                said_at = Instant::now();
            }
        }
        self.purge();
    }

    fn burst(&mut self, acts: &[Act]) {
        let ground = self.ground.clone();
        ground.calm.store(acts.is_empty(), Ordering::SeqCst);
        ground.open.store(true, Ordering::SeqCst);
        if acts.contains(&Act::Disk) {
            ground.journal.note("the disk is full");
            self.disk.fill();
        }
        let (host, place, random) = (self.host, &self.place, &mut self.random);
        std::thread::scope(|scope| {
            for user in &mut self.users {
                scope.spawn(|| user.burst());
            }
            let began = Instant::now();
            let share = BURST / u32::try_from(acts.len() + 1).unwrap_or(1);
            for act in acts {
                let pause = share.mul_f64(random.random_range(0.3..1.7));
                std::thread::sleep(pause.min(BURST.saturating_sub(began.elapsed())));
                if matches!(act, Act::Daemon | Act::Everything) {
                    ground.journal.note("kill -9 the daemon");
                    ground.journal.kills.fetch_add(1, Ordering::Relaxed);
                    host.kill_daemon();
                }
                chaos::strike(*act, place, &ground, random);
            }
            std::thread::sleep(BURST.saturating_sub(began.elapsed()));
            ground.open.store(false, Ordering::SeqCst);
        });
        if acts.contains(&Act::Disk) && !host.daemon_runs() {
            // It must come up on a full disk, too.
            if let Err(problem) = host.try_restart(START_MAX) {
                let text = format!("[shoal] does not come up on a full disk: {}", last(&problem));
                self.ground.journal.finding(&text);
            }
        }
        self.disk.free();
    }

    /// The daemon answers again; `false` if nothing helps.
    fn come_up(&mut self) -> bool {
        if self.host.daemon_runs() {
            return true;
        }
        if !self.host.was_killed() {
            self.ground.journal.finding("[shoal] the daemon ended by itself");
        }
        self.ground.journal.note("the daemon starts");
        match self.host.try_restart(START_MAX) {
            Ok(took) => {
                self.ground.journal.note(&format!("it answers after {} ms", took.as_millis()));
                true
            }
            Err(problem) => {
                let text = format!("[shoal] the daemon does not come up: {}", last(&problem));
                self.ground.journal.finding(&text);
                println!("{problem}");
                false
            }
        }
    }

    /// Damages a file while the daemon is dead. It must start on that, and again on the file as it
    /// was; `false` if it does not.
    fn damage(&mut self) -> bool {
        let Some(path) = chaos::state_file(&self.place, &mut self.random) else { return true };
        let journal = self.ground.journal.clone();
        journal.kills.fetch_add(2, Ordering::Relaxed);
        self.host.kill_daemon();
        let Ok(whole) = std::fs::read(&path) else { return self.come_up() };
        let Ok(how) = chaos::damage(&path, &mut self.random) else { return self.come_up() };
        let inside = path.strip_prefix(&self.place.data).unwrap_or(&path).display().to_string();
        journal.note(&format!("{how} while the daemon is dead: {inside}"));
        if let Err(problem) = self.host.try_restart(START_MAX) {
            journal
                .finding(&format!("[shoal] does not start, {how}: {inside}: {}", last(&problem)));
        } else if get(&self.place.socket, "/info").is_none() {
            journal.finding(&format!("[shoal] /info is not answered, {how}: {inside}"));
        }
        self.host.kill_daemon();
        // The directory may have been put aside; then there is nothing to put back.
        if path.parent().is_some_and(std::path::Path::exists) {
            // Ignored because: the start that follows says what is wrong.
            let _ = std::fs::write(&path, whole);
        }
        // What depended on the file may have been ended, and what it named may be unknown.
        self.ground.all_disturbed.store(true, Ordering::SeqCst);
        if !self.come_up() {
            return false;
        }
        if let Some(said) = Said::ask(&self.place.socket) {
            self.believe(&said);
        }
        self.settle();
        true
    }

    /// Waits until nothing differs any more; what still does then is a finding.
    fn settle(&mut self) {
        let began = Instant::now();
        loop {
            let (mut wrong, said) = self.differences();
            wrong.retain(|text| !self.known.contains(text));
            if let (true, Some(said)) = (wrong.is_empty(), &said) {
                self.believe(said);
                return;
            }
            if began.elapsed() > SETTLE_MAX {
                for text in wrong {
                    self.ground.journal.finding(&text);
                    self.known.insert(text);
                }
                // So that one finding does not hide the next: what a restart mends is mended.
                self.host.kill_daemon();
                if self.come_up()
                    && let Some(said) = Said::ask(&self.place.socket)
                {
                    self.believe(&said);
                }
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn differences(&self) -> (Vec<String>, Option<Said>) {
        let socket = &self.place.socket;
        // What cut requests began goes on; until it has ended nothing can be said.
        let info = get(socket, "/info").unwrap_or_default();
        if info["RunningChanges"].as_u64().is_some_and(|running| running > 0) {
            return (vec!["[api] changes run".to_owned()], Said::ask(socket));
        }
        let Some(said) = Said::ask(socket) else {
            return (vec!["[api] a list is not answered".to_owned()], None);
        };
        // A user whose daemon died between its pause and its unpause asks again.
        for name in said.paused() {
            let path = format!("/containers/{name}/unpause");
            // Ignored because: what stays paused is found below.
            let _ = Request::new("POST", path).send(socket);
        }
        let mut wrong = reality::compare(&self.place);
        for user in &self.users {
            wrong.extend(check::broken_promises(user, &said, &self.ground));
        }
        (wrong, Some(said))
    }

    fn believe(&mut self, said: &Said) {
        for user in &mut self.users {
            check::believe(user, said);
        }
        self.ground.disturbed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.ground.all_disturbed.store(false, Ordering::SeqCst);
    }

    fn await_services(&mut self) {
        let began = Instant::now();
        loop {
            let wrong = check::unmet_services(&self.users, &self.place.socket);
            if wrong.is_empty() {
                return;
            }
            if began.elapsed() > SERVICES_MAX {
                for text in wrong {
                    self.ground.journal.finding(&text);
                }
                self.host.kill_daemon();
                self.come_up();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Removes everything; what is left then must be what a new daemon has.
    fn purge(&mut self) {
        self.ground.journal.note("everything is removed");
        let socket = self.place.socket.clone();
        let began = Instant::now();
        loop {
            for user in &self.users {
                for slot in &user.slots {
                    let path = match slot.kind {
                        crate::model::Kind::Container => {
                            format!("/containers/{}?force=1&v=1", slot.name)
                        }
                        kind => kind.path(&slot.name),
                    };
                    if let Outcome::Silent = Request::new("DELETE", path.clone()).send(&socket) {
                        self.ground.journal.finding(&format!("no answer within 30 s to rm {path}"));
                    }
                }
            }
            let left = chaos::remains(&self.place);
            let new: Vec<&String> = match &self.empty {
                Some(empty) => left.difference(empty).collect(),
                None => left.iter().filter(|text| !text.contains("netns n-")).collect(),
            };
            let new: Vec<String> = new
                .into_iter()
                .filter(|text| !self.known.contains(*text) && !text.starts_with("data/images/l"))
                .cloned()
                .collect();
            if new.is_empty() {
                self.empty.get_or_insert(left);
                break;
            }
            if began.elapsed() > SETTLE_MAX {
                for text in new {
                    self.ground
                        .journal
                        .finding(&format!("[leak] left after everything was removed: {text}"));
                    self.known.insert(text);
                }
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if let Some(said) = Said::ask(&socket) {
            self.believe(&said);
        }
    }
}

fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("DEBUG")).collect();
    lines.last().map_or_else(String::new, |line| (*line).to_owned())
}
