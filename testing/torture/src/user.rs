//! Users: each has some names of its own, does things with them at random, and remembers what it
//! was told.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::journal::Journal;
use crate::model::{Kind, Known, Slot};
use shoal_lab::http::{Outcome, Request, get};

/// One request in so many is cut.
const CUT_ONE_IN: u32 = 8;
/// How long a daemon may say in a calm time that nobody can answer just now, as right after its
/// start, when it has no session yet.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(10);
/// Until it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Longest time until a cut.
const CUT_AFTER_MAX: u64 = 200;

/// What users and their tormentor share.
pub struct Ground {
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// What was done.
    pub journal: Arc<Journal>,
    /// A burst goes on.
    pub open: AtomicBool,
    /// Nothing is disturbed in this burst, so everything must be answered as it should.
    pub calm: AtomicBool,
    /// Ids of containers that somebody else has killed since the last comparison.
    pub disturbed: Mutex<BTreeSet<String>>,
    /// All were, or may be.
    pub all_disturbed: AtomicBool,
}

impl Ground {
    /// Whether somebody else may have ended this container.
    pub fn is_disturbed(&self, id: &str) -> bool {
        self.all_disturbed.load(Ordering::SeqCst)
            || self.disturbed.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// One user.
pub struct User {
    ground: Arc<Ground>,
    random: StdRng,
    number: usize,
    /// Its names.
    pub slots: Vec<Slot>,
    made: u64,
}

/// A request that is about to be sent, and what its answer means.
struct Deed {
    request: Request,
    /// For the journal.
    what: String,
    means: Means,
}

/// What a good answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Made,
    MadeWith(&'static str),
    Removed,
    Runs,
    Ended,
    /// It may run or not: restart policies decide.
    Either,
    Scaled(u64),
    /// It was there.
    Seen,
    /// It was running.
    SeenRunning,
}

impl User {
    /// User `number` of a run with `seed`.
    pub fn new(ground: Arc<Ground>, seed: u64, number: usize) -> Self {
        let mut slots = Vec::new();
        let names = [
            (Kind::Container, 4),
            (Kind::Volume, 1),
            (Kind::Network, 1),
            (Kind::Image, 1),
            (Kind::Service, 1),
            (Kind::Secret, 1),
        ];
        for (kind, count) in names {
            for index in 0..count {
                let word = format!("{kind:?}").to_lowercase();
                slots.push(Slot::new(kind, format!("u{number}-{word}-{index}")));
            }
        }
        let random =
            StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        Self { ground, random, number, slots, made: 0 }
    }

    /// Does things until the burst ends or the daemon is gone.
    pub fn burst(&mut self) {
        while self.ground.open.load(Ordering::SeqCst) {
            let index = self.random.random_range(0..self.slots.len());
            // Containers are most of the life.
            let index = if self.random.random_bool(0.5) { index % 4 } else { index };
            if self.slots[index].rests || self.slots[index].there == Known::Unsure {
                if self.slots.iter().all(|slot| slot.rests) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                continue;
            }
            let slot = self.slots[index].clone();
            let Some(deed) = self.choose(&slot) else { continue };
            if !self.act(index, deed) {
                return;
            }
        }
    }

    fn choose(&mut self, slot: &Slot) -> Option<Deed> {
        match (slot.kind, slot.there) {
            (Kind::Container, Known::No) => Some(self.create_container(slot)),
            (Kind::Container, _) => self.use_container(slot),
            (Kind::Service, Known::No) => Some(self.create_service(slot)),
            (Kind::Service, _) => self.use_service(slot),
            (_, Known::No) => Some(self.create_other(slot)),
            _ => Some(self.use_other(slot)),
        }
    }

    fn create_container(&mut self, slot: &Slot) -> Deed {
        self.made += 1;
        let policies = ["no", "no", "always", "unless-stopped"];
        let policy = policies[self.random.random_range(0..policies.len())];
        let volumes = self.name_of(Kind::Volume, Known::Yes);
        let binds: Vec<String> = volumes.map(|name| format!("{name}:/v")).into_iter().collect();
        let network = self.name_of(Kind::Network, Known::Yes);
        let mode = match self.random.random_range(0..4) {
            0 => network.unwrap_or_else(|| "bridge".into()),
            1 => "none".into(),
            2 => "host".into(),
            _ => "bridge".into(),
        };
        let body = json!({
            "Image": "busybox:lab", "Cmd": ["sleep", "100000"], "StopTimeout": 1,
            "Env": ["A=1"], "Labels": {"torture": self.number.to_string()},
            "HostConfig": {
                "RestartPolicy": {"Name": policy}, "Init": self.random.random_bool(0.5),
                "Binds": binds, "NetworkMode": mode,
            },
        });
        let path = format!("/containers/create?name={}", slot.name);
        let what = format!("create {} {policy} {mode}", slot.name);
        Deed {
            request: Request::new("POST", path).json(&body),
            what,
            means: Means::MadeWith(policy),
        }
    }

    fn name_of(&self, kind: Kind, there: Known) -> Option<String> {
        let fits = |slot: &&Slot| slot.kind == kind && slot.there == there && !slot.rests;
        self.slots.iter().find(fits).map(|slot| slot.name.clone())
    }

    fn use_container(&mut self, slot: &Slot) -> Option<Deed> {
        let name = &slot.name;
        let post = |verb: &str| Request::new("POST", format!("/containers/{name}/{verb}"));
        let (request, means) = match self.random.random_range(0..100) {
            0..28 => (post("start"), Means::Runs),
            28..36 => (post("stop?t=0"), Means::Ended),
            36..40 => (post("stop?t=1"), Means::Ended),
            40..46 => (post("kill"), Means::Either),
            46..54 => (post("restart?t=0"), Means::Runs),
            54..62 => {
                (Request::new("DELETE", format!("/containers/{name}?force=1")), Means::Removed)
            }
            62..64 => (Request::new("DELETE", format!("/containers/{name}?v=1")), Means::Removed),
            64..74 => return self.exec(slot),
            74..78 => (Request::new("GET", format!("/containers/{name}/json")), Means::Seen),
            78..81 => {
                let path = format!("/containers/{name}/logs?stdout=1&tail=5");
                (Request::new("GET", path), Means::Seen)
            }
            81..86 => {
                let path = format!("/containers/{name}/archive?path=/tmp");
                (Request::new("PUT", path).tar(archive("file", self.made)), Means::Seen)
            }
            86..89 => {
                let path = format!("/containers/{name}/archive?path=/tmp");
                (Request::new("GET", path), Means::Seen)
            }
            89..92 => {
                let memory = self.random.random_range(64..128_u64) << 20;
                (post("update").json(&json!({ "Memory": memory, "MemorySwap": -1 })), Means::Seen)
            }
            92..95 => return self.pause(slot),
            _ => return self.plug(slot),
        };
        let what = format!("{} {}", request.method, request.path);
        Some(Deed { request, what, means })
    }

    /// An exec that prints something and ends; its start is not hijacked.
    fn exec(&mut self, slot: &Slot) -> Option<Deed> {
        if slot.runs != Known::Yes {
            return None;
        }
        let body = json!({ "Cmd": ["echo", "hello"], "AttachStdout": true });
        let path = format!("/containers/{}/exec", slot.name);
        let request = Request::new("POST", path).json(&body);
        let answer = request.send(&self.ground.socket);
        self.ground.journal.operations.fetch_add(1, Ordering::Relaxed);
        let Outcome::Answered(201, body) = answer else { return None };
        let made: Value = serde_json::from_str(&body).ok()?;
        let path = format!("/exec/{}/start", made["Id"].as_str()?);
        let detach = self.random.random_bool(0.5);
        let request = Request::new("POST", path).json(&json!({ "Detach": detach }));
        let what = format!("exec in {} detach={detach}", slot.name);
        Some(Deed { request, what, means: Means::SeenRunning })
    }

    /// Pauses and goes on at once: a frozen container is no state to leave it in.
    fn pause(&mut self, slot: &Slot) -> Option<Deed> {
        if slot.runs != Known::Yes {
            return None;
        }
        let path = |verb: &str| format!("/containers/{}/{verb}", slot.name);
        self.ground.journal.note(&format!("u{} pause {}", self.number, slot.name));
        self.ground.journal.operations.fetch_add(1, Ordering::Relaxed);
        // Ignored because: what comes of it is seen by the answer of its counterpart.
        let _ = Request::new("POST", path("pause")).send(&self.ground.socket);
        let request = Request::new("POST", path("unpause"));
        let what = format!("unpause {}", slot.name);
        Some(Deed { request, what, means: Means::SeenRunning })
    }

    fn plug(&mut self, slot: &Slot) -> Option<Deed> {
        let network = self.name_of(Kind::Network, Known::Yes)?;
        let verb = if self.random.random_bool(0.5) { "connect" } else { "disconnect" };
        let body = json!({ "Container": slot.name, "Force": false });
        let request = Request::new("POST", format!("/networks/{network}/{verb}")).json(&body);
        let what = format!("{verb} {} {network}", slot.name);
        Some(Deed { request, what, means: Means::Seen })
    }

    fn service_body(slot: &Slot, replicas: u64, force: u64) -> Value {
        json!({
            "Name": slot.name,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "busybox:lab", "Command": ["sleep", "100000"],
                    "StopGracePeriod": 500_000_000_u64,
                },
                "RestartPolicy": { "Condition": "any", "Delay": 100_000_000_u64 },
                "ForceUpdate": force,
            },
            "Mode": { "Replicated": { "Replicas": replicas } },
        })
    }

    fn create_service(&mut self, slot: &Slot) -> Deed {
        let replicas = self.random.random_range(0..3);
        let body = Self::service_body(slot, replicas, 0);
        let what = format!("service create {} {replicas}", slot.name);
        let request = Request::new("POST", "/services/create").json(&body);
        Deed { request, what, means: Means::Scaled(replicas) }
    }

    fn use_service(&mut self, slot: &Slot) -> Option<Deed> {
        if self.random.random_bool(0.15) {
            let request = Request::new("DELETE", format!("/services/{}", slot.name));
            let what = format!("service rm {}", slot.name);
            return Some(Deed { request, what, means: Means::Removed });
        }
        let found = get(&self.ground.socket, &format!("/services/{}", slot.name))?;
        let version = found["Version"]["Index"].as_u64()?;
        let replicas = self.random.random_range(0..3);
        let force = u64::from(self.random.random_bool(0.3))
            + found["Spec"]["TaskTemplate"]["ForceUpdate"].as_u64().unwrap_or(0);
        let body = Self::service_body(slot, replicas, force);
        let path = format!("/services/{}/update?version={version}", slot.name);
        let what = format!("service update {} to {replicas}, force {force}", slot.name);
        let request = Request::new("POST", path).json(&body);
        Some(Deed { request, what, means: Means::Scaled(replicas) })
    }

    fn create_other(&mut self, slot: &Slot) -> Deed {
        self.made += 1;
        let name = &slot.name;
        let request = match slot.kind {
            Kind::Volume => Request::new("POST", "/volumes/create").json(&json!({ "Name": name })),
            Kind::Network => Request::new("POST", "/networks/create")
                .json(&json!({ "Name": name, "Driver": "bridge" })),
            Kind::Secret => Request::new("POST", "/secrets/create")
                .json(&json!({ "Name": name, "Data": "c2VjcmV0" })),
            _ => {
                let path = format!("/images/create?fromSrc=-&repo={name}&tag=latest");
                Request::new("POST", path).tar(archive(name, self.made))
            }
        };
        let what = format!("create {:?} {name}", slot.kind);
        Deed { request, what, means: Means::Made }
    }

    fn use_other(&mut self, slot: &Slot) -> Deed {
        let name = &slot.name;
        if self.random.random_bool(0.5) {
            let request = Request::new("GET", slot.kind.inspect(name));
            return Deed { request, what: format!("inspect {name}"), means: Means::Seen };
        }
        let what = format!("remove {:?} {name}", slot.kind);
        let request = Request::new("DELETE", slot.kind.path(name));
        Deed { request, what, means: Means::Removed }
    }

    /// Sends it; `false` if the daemon is gone.
    fn act(&mut self, index: usize, mut deed: Deed) -> bool {
        let journal = self.ground.journal.clone();
        let cut = self.random.random_ratio(1, CUT_ONE_IN);
        if cut {
            let after = self.random.random_range(0..CUT_AFTER_MAX);
            deed.request.cut = Some(Duration::from_millis(after));
            journal.cuts.fetch_add(1, Ordering::Relaxed);
        }
        journal.operations.fetch_add(1, Ordering::Relaxed);
        journal.note(&format!("u{} > {}", self.number, deed.what));
        let outcome = self.send(&deed.request);
        let slot = &mut self.slots[index];
        match outcome {
            Outcome::Cut => {
                journal.note(&format!("u{} x {} {:?}", self.number, deed.what, deed.request.cut));
                slot.unsure();
                true
            }
            Outcome::Gone => {
                journal.note(&format!("u{} - {}", self.number, deed.what));
                slot.unsure();
                false
            }
            Outcome::Silent => {
                journal.finding(&format!("no answer within 30 s to: {}", deed.what));
                slot.unsure();
                true
            }
            Outcome::Answered(status, body) => {
                journal.note(&format!("u{} < {status} {}", self.number, deed.what));
                self.judge(index, &deed, status, &body);
                true
            }
        }
    }

    /// Sends it; in a calm time again, for as long as nobody may be able to answer.
    fn send(&self, request: &Request) -> Outcome {
        let began = Instant::now();
        loop {
            let outcome = request.send(&self.ground.socket);
            let calm = self.ground.calm.load(Ordering::SeqCst);
            let nobody = calm && matches!(outcome, Outcome::Answered(503, _));
            if !nobody || began.elapsed() > UNAVAILABLE_MAX {
                return outcome;
            }
            std::thread::sleep(ASK_AGAIN);
        }
    }

    fn judge(&mut self, index: usize, deed: &Deed, status: u16, body: &str) {
        let disturbed = self.ground.is_disturbed(&self.slots[index].id);
        let calm = self.ground.calm.load(Ordering::SeqCst);
        let slot = &mut self.slots[index];
        let before = slot.clone();
        let good = (200..300).contains(&status) && !body.contains("\"errorDetail\"");
        if good || status == 304 {
            match deed.means {
                Means::Made | Means::MadeWith(_) => {
                    slot.there = Known::Yes;
                    slot.policy =
                        if let Means::MadeWith(policy) = deed.means { policy } else { "" };
                    let made: Value = serde_json::from_str(body).unwrap_or_default();
                    slot.id = made["Id"].as_str().unwrap_or_default().to_owned();
                }
                Means::Removed => slot.gone(),
                Means::Runs => slot.runs = Known::Yes,
                Means::Ended => slot.runs = Known::No,
                Means::Either => slot.runs = Known::Unsure,
                Means::Scaled(replicas) => {
                    slot.there = Known::Yes;
                    (slot.replicas, slot.sure_replicas) = (replicas, true);
                }
                Means::Seen | Means::SeenRunning => {}
            }
            if status == 304 && !disturbed {
                let wrong = match deed.means {
                    Means::Runs => before.runs == Known::No,
                    Means::Ended => before.runs == Known::Yes,
                    _ => false,
                };
                if wrong {
                    let text = format!("304 though it was {:?}: {}", before.runs, deed.what);
                    self.ground.journal.finding(&text);
                }
            }
            return;
        }
        let said = format!("{status} to {}: {}", verb(&deed.what), body.trim());
        let lost = status == 404 && before.there == Known::Yes && deed.means != Means::Seen;
        let taken = status == 409 && matches!(deed.means, Means::Made | Means::MadeWith(_));
        if (lost && body.contains("No such container") && !body.contains("exec")) || taken {
            self.ground.journal.finding(&format!("known {:?}: {said}", before.there));
        } else if calm && status >= 500 && status != 501 && before.kind == Kind::Container {
            self.ground.journal.finding(&format!("in a calm time: {said}"));
        } else {
            self.ground.journal.odd(&said);
        }
        // A refusal that is right (it runs and was not to be removed) changes nothing.
        if status >= 500 || lost || taken {
            slot.unsure();
        } else if deed.means == Means::Either || deed.means == Means::Runs {
            slot.runs = Known::Unsure;
        }
    }
}

/// The deed without the name.
fn verb(what: &str) -> String {
    what.split(' ')
        .map(|word| if word.contains('-') { word.trim_start_matches(|c| c != '?') } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// An archive with one file.
fn archive(name: &str, content: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let data = content.to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_500_000_000);
    // Cannot fail: memory takes it, and the name is short.
    let _ = builder.append_data(&mut header, name, data.as_bytes());
    builder.into_inner().unwrap_or_default()
}
