//! Who leads, as this member sees it: see [`crate::leadership`]. Silence is counted by looks, so
//! that time in which this process was not let run is not taken for the others' silence.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use openraft::ServerState;
use shoal_life::leadership::event::Standing;
use shoal_model::time::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::consensus::Metrics;
use crate::core::Core;
use crate::group::Group;
use crate::leadership::CADENCE;
use crate::peer::Member;

/// Silence after which a member counts as not heard: ten beats, and longer than an election needs
/// as a rule.
pub(crate) const SILENCE: Duration = Duration::from_millis(1_000);
/// Time between two questions to everybody who is there, while nobody leads.
const PING_EVERY: Duration = Duration::from_millis(400);
/// How long such a question may take.
const PING_LIMIT: Duration = Duration::from_millis(800);
/// Questions under way: more members than a group may have are not asked at once.
const PINGS_MAX: usize = 32;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lead {
    /// This member leads, and everything of earlier terms is applied here.
    Leading {
        /// The term.
        term: u64,
    },
    /// Another one leads.
    Following {
        /// The term.
        term: u64,
        /// Who.
        leader: Member,
    },
    /// Nobody leads, as far as this member can tell: nothing can be written.
    Nobody {
        /// When that was noticed, by the wall clock.
        since: Timestamp,
        /// Voters that were not heard lately.
        missing: Vec<Member>,
    },
    /// The store has stopped.
    Closed,
}

/// What the store's handles see of consensus, whichever core serves.
pub(crate) struct Signs {
    pub(crate) lead: watch::Sender<Lead>,
    pub(crate) group: watch::Sender<Group>,
    /// The last moment when somebody led.
    pub(crate) led: watch::Sender<Instant>,
    /// The last entry that is applied here.
    pub(crate) applied: watch::Sender<u64>,
}

impl Signs {
    pub(crate) fn new() -> Self {
        Self {
            lead: watch::Sender::new(nobody(Vec::new())),
            group: watch::Sender::default(),
            led: watch::Sender::new(Instant::now()),
            applied: watch::Sender::default(),
        }
    }

    /// Says that nobody leads, without a word on who is missing: this member itself has failed.
    pub(crate) fn fail(&self) {
        self.show_lead(nobody(Vec::new()));
        self.group.send_if_modified(|group| {
            let known = !group.heard.is_empty() || !group.behind.is_empty();
            group.heard.clear();
            group.behind.clear();
            known
        });
    }

    /// What a new core begins with: somebody may lead in a moment.
    pub(crate) fn begin(&self) {
        self.led.send_replace(Instant::now());
    }

    fn show_lead(&self, next: Lead) {
        self.lead.send_if_modified(|lead| {
            let next = match (&*lead, next) {
                // It is known since then.
                (Lead::Nobody { since, .. }, Lead::Nobody { missing, .. }) => {
                    Lead::Nobody { since: *since, missing }
                }
                (_, next) => next,
            };
            let new = *lead != next;
            *lead = next;
            new
        });
    }

    fn show(&self, seen: Seen) {
        self.applied.send_if_modified(|applied| {
            let new = seen.applied > *applied;
            *applied = seen.applied.max(*applied);
            new
        });
        self.group.send_if_modified(|group| {
            let new = *group != seen.group;
            *group = seen.group;
            new
        });
        if !matches!(seen.lead, Lead::Nobody { .. }) {
            self.led.send_replace(Instant::now());
        }
        self.show_lead(seen.lead);
    }
}

fn nobody(missing: Vec<Member>) -> Lead {
    Lead::Nobody { since: wall_clock(), missing }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.plus(since)
}

/// Counts the silence of each member; no entry if it was never heard.
#[derive(Default)]
struct Ears {
    counted: BTreeMap<u64, u64>,
    silences: BTreeMap<u64, Duration>,
}

impl Ears {
    fn listen(&mut self, now: BTreeMap<u64, u64>, passed: Duration) {
        for silence in self.silences.values_mut() {
            *silence = silence.saturating_add(passed);
        }
        for (id, heard) in &now {
            if self.counted.get(id) != Some(heard) {
                self.silences.insert(*id, Duration::ZERO);
            }
        }
        self.counted = now;
    }

    fn heard(&self, id: u64) -> bool {
        self.silences.get(&id).is_some_and(|silence| *silence <= SILENCE)
    }
}

/// One look's result.
struct Seen {
    lead: Lead,
    group: Group,
    applied: u64,
}

fn see(core: &Core, metrics: &Metrics, standing: &Standing, ears: &Ears) -> Seen {
    let own = core.raft_id;
    let mut group = core.group(metrics);
    let missing = || {
        let silent = |member: &&Member| member.raft_id != own && !ears.heard(member.raft_id);
        nobody(group.voters.iter().filter(silent).cloned().collect())
    };
    let lead = match standing {
        _ if metrics.running_state.is_err() => nobody(Vec::new()),
        Standing::Leading { term } if core.has_applied(metrics) => Lead::Leading { term: term.0 },
        Standing::Following { term, leader } => {
            Lead::Following { term: term.0, leader: core.member(metrics, leader.0) }
        }
        Standing::Leading { .. } | Standing::Nobody { .. } => missing(),
    };
    if metrics.state == ServerState::Leader && metrics.current_leader == Some(own) {
        group.heard = core.elections.heard();
        let last = metrics.last_log_index.unwrap_or_default();
        let lag = |matched: u64| last.saturating_sub(matched);
        group.behind = metrics
            .replication
            .iter()
            .flatten()
            .filter(|(id, _)| **id != own)
            .map(|(id, at)| (*id, lag(at.map_or(0, |at| at.index))))
            .collect();
    }
    let applied = core.ceiling.applied(metrics.last_applied.map_or(0, |at| at.index));
    Seen { lead, group, applied }
}

/// Has `core` take its part in deciding who leads, and shows what it knows, for as long as it is
/// asked to.
pub(crate) async fn observe(core: &Core, signs: &Signs) {
    let mut metrics = core.raft.metrics();
    let mut standing = core.elections.standing();
    let mut ears = Ears::default();
    let (mut looked, mut asked) = (Instant::now(), Instant::now());
    let mut pings = JoinSet::new();
    core.elections.core(&metrics.borrow_and_update().clone());
    loop {
        let now = Instant::now();
        if now >= looked + CADENCE.look {
            let passed = now - looked;
            looked = now;
            core.elections.look(passed);
            ears.listen(core.links.heard(), passed.min(CADENCE.look_counts));
        }
        let seen = {
            let metrics = metrics.borrow();
            see(core, &metrics, &standing.borrow_and_update(), &ears)
        };
        let quiet = matches!(seen.lead, Lead::Nobody { .. });
        if quiet && now >= asked && pings.len() < PINGS_MAX {
            asked = now + PING_EVERY;
            for member in seen.group.voters.iter().filter(|m| m.raft_id != core.raft_id) {
                let (core, member) = (core.clone(), member.clone());
                pings.spawn(async move { core.ping(&member, PING_LIMIT).await });
            }
        }
        signs.show(seen);
        while pings.try_join_next().is_some() {}
        tokio::select! {
            biased;
            changed = metrics.changed() => match changed {
                Ok(()) => core.elections.core(&metrics.borrow_and_update().clone()),
                Err(_) => {
                    signs.fail();
                    // The proposer learns of the failure and says why.
                    std::future::pending::<()>().await;
                }
            },
            // Ignored because: the core has the other end.
            _ = standing.changed() => {}
            () = sleep_until(looked + CADENCE.look) => {}
        }
    }
}
