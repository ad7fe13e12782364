//! This member's part in deciding who leads: [`Leadership`] decides, here its wishes are carried
//! out. It is given a look at the clock every [`Cadence::look`], what the consensus library says of
//! itself, and what comes from the others; it answers with what is to be sent, and when the library
//! is to stand for election, which does so never by itself.
//!
//! Events are given under one lock, so that what comes by the door is noted before the library sees
//! it. Whatever an effect needs time for is a task of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use shoal_life::leadership::Leadership;
use shoal_life::leadership::cadence::Cadence;
use shoal_life::leadership::event::{
    Answer, BeatNumber, Bidding, Command, CoreView, Effect, Epoch, Event, Evidence, Keeps, Outcome,
    Position, Probe, RaftId, Role, Round, Standing, Term, Voice, Word,
};
use shoal_life::leadership::voters::Voters;
use tokio::sync::{RwLock, RwLockReadGuard, oneshot, watch};
use tokio::task::JoinSet;

use crate::ceiling::Ceiling;
use crate::consensus::{Metrics, Raft};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::links::Links;
use crate::peer::{Lane, Member, MemberNode, PeerError};
use crate::pulse;
use crate::question::{Ask, Reply, WhyWord};
use crate::record::LogIdRecord;

/// The group's periods.
pub(crate) const CADENCE: Cadence = Cadence::PRODUCT;
/// Beats to one member whose echo is awaited: one that is lost must not hold up the next.
const BEATS_MAX: usize = 3;
/// How long an echo may take. Later ones say nothing new.
const BEAT_LIMIT: Duration = Duration::from_secs(1);
/// How long one may take to hear that it is to stand; it is told again with the next beat.
const TELL_LIMIT: Duration = Duration::from_millis(300);
/// Tasks under way: three questions to each of six others would be many.
const TASKS_MAX: usize = 128;

/// The owner of a [`Leadership`].
pub(crate) struct Elections {
    raft: Raft,
    own: u64,
    links: Arc<Links>,
    /// It knows where the log ends.
    disk: Disk,
    /// It knows what of it cannot be read.
    ceiling: Arc<Ceiling>,
    part: Mutex<Part>,
    standing: watch::Sender<Standing>,
    /// While proposals have to wait: for the which time.
    hold: watch::Sender<Option<u64>>,
    /// Read by who changes the group, written by who waits for that to end.
    changes: RwLock<()>,
}

struct Part {
    /// Gone for the time of a step, and at the end.
    life: Option<Leadership>,
    members: BTreeMap<u64, Member>,
    /// Beats to each whose echo is awaited.
    beats: BTreeMap<u64, usize>,
    /// Who said that it cannot lead.
    barred: BTreeSet<u64>,
    /// How often proposals had to wait.
    holds: u64,
    pulses: pulse::Pulses,
    tasks: JoinSet<()>,
    /// Who waits for the outcome of a hand-over.
    handing: Option<oneshot::Sender<Outcome>>,
}

/// What a member is told that asked.
#[derive(Default)]
struct Said {
    echo: Option<BeatNumber>,
    answer: Option<Answer>,
}

impl Elections {
    pub(crate) fn new(
        raft: Raft,
        links: Arc<Links>,
        disk: Disk,
        ceiling: Arc<Ceiling>,
    ) -> Arc<Self> {
        let own = links.own.raft_id;
        let part = Part {
            life: Some(Leadership::begin(RaftId(own), CADENCE)),
            members: BTreeMap::new(),
            beats: BTreeMap::new(),
            barred: BTreeSet::new(),
            holds: 0,
            pulses: pulse::Pulses::default(),
            tasks: JoinSet::new(),
            handing: None,
        };
        let nobody = Standing::Nobody { missing: BTreeSet::new(), elsewhere: None };
        Arc::new(Self {
            raft,
            own,
            links,
            disk,
            ceiling,
            part: Mutex::new(part),
            standing: watch::Sender::new(nobody),
            hold: watch::Sender::new(None),
            changes: RwLock::new(()),
        })
    }

    fn part(&self) -> MutexGuard<'_, Part> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things stand.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// While proposals have to wait: for the which time.
    pub(crate) fn hold(&self) -> watch::Receiver<Option<u64>> {
        self.hold.subscribe()
    }

    /// While this member leads: who echoed lately.
    pub(crate) fn heard(&self) -> BTreeSet<u64> {
        let heard = self.part().life.as_ref().map(Leadership::echoing).unwrap_or_default();
        heard.into_iter().map(|id| id.0).collect()
    }

    /// Nothing is sent any more, and nothing decided.
    pub(crate) fn end(&self) {
        let mut part = self.part();
        part.life = None;
        part.handing = None;
        part.tasks.abort_all();
        part.pulses.end();
    }

    // What happens.

    /// The clock.
    pub(crate) fn look(self: &Arc<Self>, passed: Duration) {
        self.give(Event::Look { passed, dice: self.disk.outside().random() });
    }

    /// What the library says.
    pub(crate) fn core(self: &Arc<Self>, metrics: &Metrics) {
        let members = metrics.membership_config.membership();
        let named = |(id, node): (&u64, &MemberNode)| {
            (*id, Member { node: node.node.clone(), raft_id: *id })
        };
        let known: BTreeMap<u64, Member> =
            members.nodes().map(named).filter(|(id, _)| *id != self.own).collect();
        let mut barred = {
            let mut part = self.part();
            if part.life.is_some() && part.members != known {
                part.beats.retain(|id, _| known.contains_key(id));
                part.barred.retain(|id| known.contains_key(id));
                part.pulses.follow(self, &self.links, &known);
                part.members = known;
            }
            part.barred.clone()
        };
        if self.ceiling.is_barred() {
            barred.insert(self.own);
        }
        let barred = barred.into_iter().map(RaftId).collect();
        self.give(Event::Core(view(self.own, metrics, self.disk.held().tail, barred)));
    }

    /// A leader's append, or the beginning of its snapshot.
    pub(crate) fn appended(self: &Arc<Self>, from: u64, term: u64) {
        let (from, term) = (RaftId(from), Term(term));
        self.give(Event::Heard { from, term, word: Word::Append });
    }

    /// A connection to `peer` stands.
    pub(crate) fn present(self: &Arc<Self>, peer: u64) {
        self.give(Event::Present { peer: RaftId(peer) });
    }

    /// There is no connection to `peer`.
    pub(crate) fn lost(self: &Arc<Self>, peer: u64, why: &PeerError) {
        self.give(Event::Lost { peer: RaftId(peer), how: evidence(why) });
    }

    /// A beat of `from`; the answer to it.
    pub(crate) fn beat(self: &Arc<Self>, from: u64, term: u64, number: u64, mute: bool) -> Reply {
        let voice = if mute { Voice::Mute } else { Voice::Full };
        let word = Word::Beat { number: BeatNumber(number), voice };
        let said = self.give(Event::Heard { from: RaftId(from), term: Term(term), word });
        match said.echo {
            Some(BeatNumber(number)) => Reply::Echo { number, barred: self.ceiling.is_barred() },
            None => Reply::Silent {},
        }
    }

    /// A probe of `from`; the answer to it.
    pub(crate) fn probed(
        self: &Arc<Self>,
        from: u64,
        term: u64,
        last: Option<LogIdRecord>,
    ) -> Reply {
        let probe = Probe { epoch: Epoch::default(), term: Term(term), last: position(last) };
        match self.give(Event::Asked { from: RaftId(from), probe }).answer {
            Some(Answer { why, lease_left, leader }) => Reply::Would {
                why: why.into(),
                lease_ms: u64::try_from(lease_left.as_millis()).unwrap_or(u64::MAX),
                leader: leader.map(|id| id.0),
            },
            None => Reply::Silent {},
        }
    }

    /// The leader `from` goes, and wants this member to stand.
    pub(crate) fn bidden(
        self: &Arc<Self>,
        from: u64,
        term: u64,
        last: Option<LogIdRecord>,
        beat: u64,
    ) {
        let (from, term, last) = (RaftId(from), Term(term), position(last));
        let bidding = Bidding { from, term, last, beat: BeatNumber(beat) };
        self.give(Event::Command(Command::StandNow(bidding)));
    }

    /// Says that nothing that was proposed is under way, once no change of the group is either.
    pub(crate) async fn held(self: &Arc<Self>) {
        let _quiet = self.changes.write().await;
        // What was asked before this is on disk when it is answered. It fails when the library has
        // ended, and whoever serves it learns that.
        if self.raft.with_raft_state(|_| ()).await.is_ok() {
            let metrics = self.raft.metrics().borrow().clone();
            self.core(&metrics);
            self.give(Event::Held);
        }
    }

    /// For as long as the answer is kept, a change of the group may go on: no hand-over begins in
    /// the middle of it.
    pub(crate) async fn change(&self) -> RwLockReadGuard<'_, ()> {
        loop {
            // Ignored because: whoever holds the other end is this.
            let _ = self.hold.subscribe().wait_for(Option::is_none).await;
            let guard = self.changes.read().await;
            if self.hold.borrow().is_none() {
                return guard;
            }
        }
    }

    /// Gives the office to the voter `to`, or to the best one, and says who has it. Who drops this
    /// gives up and leads on, if it still can.
    pub(crate) async fn hand_over(self: &Arc<Self>, to: Option<u64>) -> Result<u64, StoreError> {
        let refused = |why: &str| StoreError::HandOver { problem: why.to_owned() };
        let (done, outcome) = oneshot::channel();
        {
            let mut part = self.part();
            if part.handing.as_ref().is_some_and(|waits| !waits.is_closed()) {
                return Err(refused(problem(Keeps::Busy)));
            }
            part.handing = Some(done);
        }
        let mut giving_up = GivingUp(Some(Arc::clone(self)));
        self.give(Event::Command(Command::HandOver { to: to.map(RaftId) }));
        let outcome = outcome.await;
        giving_up.0 = None;
        match outcome {
            Ok(Outcome::HandedOver { leader }) => Ok(leader.0),
            Ok(Outcome::Kept(why)) => Err(refused(problem(why))),
            Ok(Outcome::Vacant) => Err(refused(
                "it is given up, but nobody is heard that has it; the others elect as after a \
                 crash",
            )),
            Err(_) => Err(refused("the store stops")),
        }
    }

    // What is decided.

    fn give(self: &Arc<Self>, event: Event) -> Said {
        let mut part = self.part();
        let mut said = Said::default();
        let Some(life) = part.life.take() else { return said };
        let (life, effects) = life.step(event);
        part.life = Some(life);
        for effect in effects {
            self.carry_out(&mut part, effect, &mut said);
        }
        said
    }

    fn carry_out(self: &Arc<Self>, part: &mut Part, effect: Effect, said: &mut Said) {
        match effect {
            Effect::Echo { number, .. } => said.echo = Some(number),
            Effect::Reply(answer) => said.answer = Some(answer),
            Effect::Beat { term, number, voice } => {
                let (term, number, mute) = (term.0, number.0, voice == Voice::Mute);
                for to in part.members.values().cloned().collect::<Vec<_>>() {
                    let waiting = part.beats.get(&to.raft_id).copied().unwrap_or_default();
                    if waiting < BEATS_MAX {
                        self.send_beat(part, to, Ask::Beat { term, number, mute });
                    }
                }
            }
            Effect::Probe { round, to, probe } => {
                let (term, last) = (probe.term.0, record(probe.last));
                for to in to {
                    if let Some(member) = part.members.get(&to.0).cloned() {
                        self.send_probe(part, member, round, Ask::Probe { term, last });
                    }
                }
            }
            Effect::TellToStand { to, bidding } => {
                if let Some(member) = part.members.get(&to.0).cloned() {
                    let (term, last, beat) = (bidding.term.0, record(bidding.last), bidding.beat.0);
                    let (this, ask) = (Arc::clone(self), Ask::Stand { term, last, beat });
                    part.spawn(async move {
                        // Ignored because: it is told again.
                        let _ = this.links.put(&member, Lane::Vote, ask, TELL_LIMIT).await;
                    });
                }
            }
            Effect::Stand => {
                let raft = self.raft.clone();
                tracing::info!("this manager stands for election");
                // Ignored because: it fails only when the library has ended.
                part.spawn(async move { _ = raft.trigger().elect().await });
            }
            Effect::Mute(mute) => {
                self.links.set_mute(mute);
                if !mute {
                    let raft = self.raft.clone();
                    // Ignored because: it fails only when the library has ended.
                    part.spawn(async move { _ = raft.trigger().heartbeat().await });
                }
            }
            Effect::Hold(hold) => {
                part.holds += u64::from(hold);
                self.hold.send_replace(hold.then_some(part.holds));
            }
            Effect::Show(standing) => {
                self.standing.send_replace(standing);
            }
            Effect::Done(outcome) => {
                if let Some(waits) = part.handing.take() {
                    // Ignored because: who gave up does not want to know.
                    let _ = waits.send(outcome);
                }
            }
        }
    }

    fn send_beat(self: &Arc<Self>, part: &mut Part, to: Member, ask: Ask) {
        let (this, id) = (Arc::clone(self), to.raft_id);
        let sent = part.spawn(async move {
            let reply = this.links.put(&to, Lane::Vote, ask, BEAT_LIMIT).await;
            if let Some(waiting) = this.part().beats.get_mut(&to.raft_id) {
                *waiting = waiting.saturating_sub(1);
            }
            // Anything else is silence.
            if let Ok(Reply::Echo { number, barred }) = reply {
                let (from, number) = (RaftId(to.raft_id), BeatNumber(number));
                this.give(Event::Echo { from, number });
                this.note_barred(to.raft_id, barred);
            }
        });
        *part.beats.entry(id).or_default() += usize::from(sent);
    }

    /// Notes whether a member says that it cannot lead.
    fn note_barred(self: &Arc<Self>, member: u64, barred: bool) {
        let mut part = self.part();
        let new = if barred { part.barred.insert(member) } else { part.barred.remove(&member) };
        drop(part);
        if new {
            let metrics = self.raft.metrics().borrow().clone();
            self.core(&metrics);
        }
    }

    fn send_probe(self: &Arc<Self>, part: &mut Part, to: Member, round: Round, ask: Ask) {
        let this = Arc::clone(self);
        part.spawn(async move {
            let reply = this.links.put(&to, Lane::Vote, ask, CADENCE.probe_within).await;
            // Anything else is silence.
            if let Ok(Reply::Would { why, lease_ms, leader }) = reply {
                let lease_left = Duration::from_millis(lease_ms).min(CADENCE.lease * 2);
                let answer = Answer { why: why.into(), lease_left, leader: leader.map(RaftId) };
                this.give(Event::Answered { from: RaftId(to.raft_id), round, answer });
            }
        });
    }
}

impl Part {
    /// Whether there was room for it.
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        while self.tasks.try_join_next().is_some() {}
        let room = self.tasks.len() < TASKS_MAX;
        if room {
            self.tasks.spawn(task);
        }
        room
    }
}

/// Resumes, unless the hand-over has come to its end.
struct GivingUp(Option<Arc<Elections>>);

impl Drop for GivingUp {
    fn drop(&mut self) {
        if let Some(elections) = &self.0 {
            elections.give(Event::Command(Command::Resume));
        }
    }
}

fn problem(why: Keeps) -> &'static str {
    match why {
        Keeps::NotLeading => "this manager does not lead with a majority",
        Keeps::Busy => "that is under way already",
        Keeps::NoTarget => "there is no other manager that votes and is heard",
        Keeps::Late => "the other manager did not take it in time",
        Keeps::Resumed => "it was given up",
    }
}

fn evidence(error: &PeerError) -> Evidence {
    match error {
        PeerError::Refused => Evidence::Refused,
        PeerError::Closed => Evidence::Closed,
        _ => Evidence::Unknown,
    }
}

fn position(at: Option<LogIdRecord>) -> Position {
    at.map(|at| Position { term: Term(at.term), index: at.index }).unwrap_or_default()
}

fn record(at: Position) -> Option<LogIdRecord> {
    let known = at != Position::default();
    known.then_some(LogIdRecord { term: at.term.0, index: at.index })
}

/// What the library says of itself.
fn view(
    own: u64,
    metrics: &Metrics,
    last: Option<LogIdRecord>,
    barred: BTreeSet<RaftId>,
) -> CoreView {
    let members = metrics.membership_config.membership();
    let set = |ids: &BTreeSet<u64>| ids.iter().copied().map(RaftId).collect::<BTreeSet<_>>();
    let leads = metrics.current_leader == Some(own);
    let role = match metrics.state {
        ServerState::Leader if leads => Role::Leader,
        ServerState::Leader | ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    };
    let matched = metrics.replication.iter().flatten();
    CoreView {
        epoch: Epoch::default(),
        term: Term(metrics.current_term),
        role,
        leader: metrics.current_leader.map(RaftId),
        last: position(last),
        applied: position(metrics.last_applied.map(Into::into)),
        voters: Voters::new(members.get_joint_config().iter().map(set)),
        learners: members.learner_ids().map(RaftId).collect(),
        matched: matched.map(|(id, at)| (RaftId(*id), at.map_or(0, |at| at.index))).collect(),
        barred,
    }
}

impl From<WhyWord> for shoal_life::leadership::event::Why {
    fn from(word: WhyWord) -> Self {
        match word {
            WhyWord::Yes => Self::Yes,
            WhyWord::Leads => Self::Leads,
            WhyWord::Hears => Self::Hears,
            WhyWord::Behind => Self::Behind,
            WhyWord::Promised => Self::Promised,
            WhyWord::Voted => Self::Voted,
            WhyWord::Stands => Self::Stands,
            // What a later program says is no yes.
            WhyWord::Stranger | WhyWord::Unknown => Self::Stranger,
        }
    }
}

impl From<shoal_life::leadership::event::Why> for WhyWord {
    fn from(why: shoal_life::leadership::event::Why) -> Self {
        use shoal_life::leadership::event::Why;
        match why {
            Why::Yes => Self::Yes,
            Why::Leads => Self::Leads,
            Why::Hears => Self::Hears,
            Why::Behind => Self::Behind,
            Why::Promised => Self::Promised,
            Why::Voted => Self::Voted,
            Why::Stands => Self::Stands,
            Why::Stranger => Self::Stranger,
        }
    }
}
