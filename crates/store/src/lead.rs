//! Who leads, as this member sees it: from the consensus library's word and from who was heard
//! lately. Silence is counted by looks, so that time in which this process was not let run is not
//! taken for the others' silence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use openraft::ServerState;
use shoal_model::time::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::consensus::Metrics;
use crate::core::Core;
use crate::group::Group;
use crate::links::Heard;
use crate::peer::Member;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// What a look counts at most, however late it comes.
const LOOK_COUNTS_MAX: Duration = Duration::from_millis(200);
/// Silence after which a member counts as not heard: six heartbeats, and longer than an election
/// needs as a rule.
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

/// The time since each member was last heard; no entry if it never was.
#[derive(Default)]
struct Silences(BTreeMap<u64, Duration>);

impl Silences {
    fn pass(&mut self, passed: Duration) {
        for silence in self.0.values_mut() {
            *silence = silence.saturating_add(passed);
        }
    }

    fn heard(&self, id: u64) -> bool {
        self.0.get(&id).is_some_and(|silence| *silence <= SILENCE)
    }
}

/// Counts the silence of each member.
#[derive(Default)]
struct Ears {
    counted: BTreeMap<u64, Heard>,
    answers: Silences,
    acks: Silences,
    led: Silences,
}

impl Ears {
    fn listen(&mut self, now: BTreeMap<u64, Heard>, passed: Duration) {
        for silences in [&mut self.answers, &mut self.acks, &mut self.led] {
            silences.pass(passed);
        }
        for (id, heard) in &now {
            let before = self.counted.get(id).copied().unwrap_or_default();
            let compare = |now: u64, before: u64, silences: &mut Silences| {
                if now != before {
                    silences.0.insert(*id, Duration::ZERO);
                }
            };
            compare(heard.answers, before.answers, &mut self.answers);
            compare(heard.acks, before.acks, &mut self.acks);
            compare(heard.led, before.led, &mut self.led);
        }
        self.counted = now;
    }
}

/// One look's result.
struct Seen {
    lead: Lead,
    group: Group,
    applied: u64,
}

/// Whether `heard`, with this member, is a majority of every set of voters.
fn majority(metrics: &Metrics, own: u64, ears: &Ears) -> bool {
    metrics.membership_config.membership().get_joint_config().iter().all(|voters| {
        let heard = voters.iter().filter(|id| **id == own || ears.acks.heard(**id)).count();
        heard > voters.len() / 2
    })
}

fn see(core: &Core, metrics: &Metrics, ears: &Ears) -> Seen {
    let own = core.raft_id;
    let is_leader = metrics.state == ServerState::Leader && metrics.current_leader == Some(own);
    let mut group = core.group(metrics);
    let missing = || {
        let silent =
            |member: &&Member| member.raft_id != own && !ears.answers.heard(member.raft_id);
        group.voters.iter().filter(silent).cloned().collect()
    };
    let term = metrics.current_term;
    let lead = match metrics.current_leader {
        _ if metrics.running_state.is_err() => nobody(Vec::new()),
        _ if is_leader && majority(metrics, own, ears) && core.has_applied(metrics) => {
            Lead::Leading { term }
        }
        Some(leader) if leader != own && ears.led.heard(leader) => {
            Lead::Following { term, leader: core.member(metrics, leader) }
        }
        _ => nobody(missing()),
    };
    if is_leader {
        let others = group.voters.iter().chain(&group.learners).map(|member| member.raft_id);
        group.heard =
            others.filter(|id| *id != own && ears.acks.heard(*id)).collect::<BTreeSet<_>>();
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
    let applied = metrics.last_applied.map_or(0, |at| at.index);
    Seen { lead, group, applied }
}

/// Shows what `core` knows for as long as it is asked to.
pub(crate) async fn observe(core: &Core, signs: &Signs) {
    let mut metrics = core.raft.metrics();
    let mut ears = Ears::default();
    let mut looked = Instant::now();
    let mut asked = looked;
    let mut pings = JoinSet::new();
    loop {
        let now = Instant::now();
        ears.listen(core.links.heard(), (now - looked).min(LOOK_COUNTS_MAX));
        looked = now;
        let seen = {
            let metrics = metrics.borrow_and_update();
            see(core, &metrics, &ears)
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
            changed = metrics.changed() => if changed.is_err() {
                signs.fail();
                // The proposer learns of the failure and says why.
                std::future::pending::<()>().await;
            },
            () = sleep_until(now + LOOK) => {}
        }
    }
}
