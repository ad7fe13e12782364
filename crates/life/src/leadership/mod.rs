//! Who of the consensus group stands for election, and when.
//!
//! The consensus library decides elections; this machine decides when one is begun. Each member has
//! one. Its owner gives it a look at the clock every [`Cadence::look`], what the core of consensus
//! says of itself, and what comes from the others, and carries the effects out.
//!
//! A leader **beats**; who hears a beat **echoes** it. A follower that has heard no word of a
//! leader for [`Cadence::silence`], or that has **evidence** of its process's death, **probes**: it
//! asks the other voters whether they would vote for it. The rules:
//!
//! - (a) It stands only with the yes of a majority of every set of voters, once the leases of such
//!   a majority are over. A member that was cut off asks in vain, so its term does not grow, and
//!   its return disturbs nobody.
//! - (b) Yes says who does not lead with a majority, has heard no leader for
//!   [`Cadence::grant_after`] or has evidence of its death, whose log goes no further, and who has
//!   said yes to no other a moment ago. Of two that ask each other, the one with the longer log
//!   goes first, then the one with the smaller number.
//! - (c) After a round in vain it pauses for a time that is drawn anew.
//! - (d) A group of one stands at once.
//! - (e) A leader whose majority has not echoed for [`Cadence::quorum_grace`] is mute until it
//!   does.
//! - (f) Told to stand by a leader that goes, a member does not ask, but its log must be as long.
//! - (g) Whose program cannot read the whole log does not stand, nothing is handed over to it, and
//!   in office it is mute; it votes as anybody.
//!
//! Silence is *counted*: a look that comes late counts [`Cadence::look_counts`] at most. On a busy
//! machine beats and looks are late together, and nobody stands.
//!
//! The epoch of beats, echoes and biddings is checked at the owner's door; here only a probe has
//! one.

pub mod cadence;
pub mod event;
mod hand_over;
mod office;
mod probe;
mod silence;
pub mod voters;

use std::collections::BTreeSet;
use std::time::Duration;

use self::cadence::Cadence;
use self::event::{
    BeatNumber, Command, CoreView, Effect, Event, RaftId, Role, Round, Standing, Term, Voice, Word,
};
use self::hand_over::{Bidden, Handing};
use self::office::Office;
use self::probe::Asking;
use self::silence::Hearing;

/// One member's part in deciding who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    own: RaftId,
    cadence: Cadence,
    view: CoreView,
    hearing: Hearing,
    stage: Stage,
    /// The silence after which this member asks, drawn for each.
    limit: Duration,
    /// Whom this member said yes to.
    promise: Option<Promise>,
    /// The core gave its vote to another; counted, what is left of the time for it to win.
    voted: Option<Duration>,
    /// Who leads by the words of others.
    elsewhere: Option<RaftId>,
    round: Round,
    beats: BeatNumber,
    /// The last beat in full voice.
    last_full: BeatNumber,
    handing: Option<Handing>,
    shown: Shown,
    dice: u64,
}

/// What a member is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// It listens for a leader.
    Listening,
    /// It hears none, and asks after a pause.
    Pausing {
        /// Counted.
        left: Duration,
    },
    /// It asks.
    Asking(Asking),
    /// A leader that goes told it to stand.
    Bidden(Bidden),
    /// It told the core to stand, which has not begun yet.
    Ordered {
        /// The term that the core stands for.
        term: Term,
        /// Counted.
        left: Duration,
    },
    /// The core stands.
    Candidate {
        /// For this term.
        term: Term,
        /// Counted.
        left: Duration,
    },
    /// The core leads.
    Leading(Office),
}

/// A yes that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Promise {
    to: RaftId,
    /// Counted.
    left: Duration,
}

/// What the owner was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    mute: bool,
    hold: bool,
    standing: Option<Standing>,
}

impl Leadership {
    /// A member that has heard nothing yet.
    #[must_use]
    pub fn begin(own: RaftId, cadence: Cadence) -> Self {
        Self {
            own,
            cadence,
            view: CoreView::default(),
            hearing: Hearing::begin(),
            stage: Stage::Listening,
            limit: cadence.silence,
            promise: None,
            voted: None,
            elsewhere: None,
            round: Round::default(),
            beats: BeatNumber::default(),
            last_full: BeatNumber::default(),
            handing: None,
            shown: Shown { mute: false, hold: false, standing: None },
            dice: own.0,
        }
    }

    /// The state after `event`, and what has to be done, in this order.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Vec<Effect>) {
        let mut out = Vec::new();
        match event {
            Event::Look { passed, dice } => self.look(passed, dice),
            Event::Core(view) => self.core(view),
            Event::Heard { from, term, word } => self.heard(from, term, word, &mut out),
            Event::Echo { from, number } => self.hearing.echo(from, number, self.beats),
            Event::Lost { peer, how } => self.hearing.lost(peer, how),
            Event::Present { peer } => self.hearing.alive(peer),
            Event::Asked { from, probe } => {
                let answer = self.asked(from, &probe);
                out.push(Effect::Reply(answer));
            }
            Event::Answered { from, round, answer } => self.answered(from, round, answer),
            Event::Held => self.held(),
            Event::Command(Command::HandOver { to }) => self.hand_over(to, &mut out),
            Event::Command(Command::Resume) => self.resume(&mut out),
            Event::Command(Command::StandNow(bidding)) => self.bidden(bidding),
        }
        self.go_on(&mut out);
        self.say(&mut out);
        (self, out)
    }

    fn look(&mut self, passed: Duration, dice: u64) {
        self.dice ^= dice;
        let counted = passed.min(self.cadence.look_counts);
        self.hearing.look(counted, &self.cadence);
        let less =
            |left: Duration| Some(left.saturating_sub(counted)).filter(|left| !left.is_zero());
        self.voted = self.voted.and_then(less);
        self.promise = self
            .promise
            .and_then(|promise| less(promise.left).map(|left| Promise { left, ..promise }));
        if let Some(handing) = &mut self.handing {
            handing.look(counted);
        }
        let lease_left = self.hearing.lease_left(&self.cadence);
        match &mut self.stage {
            Stage::Listening => {}
            Stage::Pausing { left }
            | Stage::Ordered { left, .. }
            | Stage::Candidate { left, .. } => *left = left.saturating_sub(counted),
            Stage::Asking(asking) => asking.look(passed),
            Stage::Bidden(bidden) => bidden.look(counted, lease_left),
            Stage::Leading(office) => office.look(passed),
        }
    }

    fn core(&mut self, view: CoreView) {
        let was = std::mem::replace(&mut self.view, view);
        self.hearing.members(self.own, &self.view);
        let is_first = was.voters == voters::Voters::default();
        let (term, leader) = (self.view.term, self.view.leader);
        let is_new = !is_first && (term, leader) != (was.term, was.leader);
        if self.view.role == Role::Leader {
            if !matches!(self.stage, Stage::Leading(office) if office.term == term) {
                self.take_office(term);
            }
            return;
        }
        if matches!(self.stage, Stage::Leading(_)) {
            self.hearing.leave_office();
            self.listen();
        }
        if let Stage::Ordered { term: stood, .. } = self.stage
            && self.view.role == Role::Candidate
            && term >= stood
        {
            self.stage = Stage::Candidate { term, left: self.cadence.vote_within };
            self.hearing.forget_leader();
        }
        match leader {
            Some(leader) if is_new && leader != self.own => self.follow(leader, term, Word::Append),
            None if !is_first && term > was.term && self.view.role != Role::Candidate => {
                self.gave_vote();
            }
            Some(_) | None => {}
        }
    }

    /// The core gave its vote to another, or heard that others did: that one may win.
    fn gave_vote(&mut self) {
        self.hearing.forget_leader();
        self.voted = Some(self.cadence.vote_within);
        let left = self.cadence.vote_within.saturating_add(self.draw_pause());
        self.stage = Stage::Pausing { left };
    }

    fn heard(&mut self, from: RaftId, term: Term, word: Word, out: &mut Vec<Effect>) {
        self.hearing.alive(from);
        let stood = match self.stage {
            Stage::Ordered { term, .. } | Stage::Candidate { term, .. } => term,
            _ => self.view.term,
        };
        if term < self.view.term.max(stood) {
            return;
        }
        if let Word::Beat { number, .. } = word {
            out.push(Effect::Echo { to: from, number });
        }
        if !matches!(word, Word::Beat { voice: Voice::Mute, .. }) {
            self.follow(from, term, word);
        }
    }

    /// A leader's word.
    fn follow(&mut self, leader: RaftId, term: Term, word: Word) {
        self.hearing.word(leader, term, word);
        (self.voted, self.elsewhere) = (None, None);
        let goes_on = match &self.stage {
            // The core leaves office by itself.
            Stage::Leading(_) => true,
            Stage::Bidden(bidden) => bidden.expects(leader, term, word),
            _ => false,
        };
        if !goes_on {
            self.listen();
        }
    }

    /// Listens, for a silence that is drawn.
    fn listen(&mut self) {
        self.stage = Stage::Listening;
        self.limit = self.cadence.silence.saturating_add(self.draw(self.cadence.silence_spread));
    }

    /// What follows from the state, whatever happened.
    fn go_on(&mut self, out: &mut Vec<Effect>) {
        self.hand_over_on(out);
        match &self.stage {
            Stage::Listening if self.is_due() => self.begin_round(out),
            Stage::Pausing { left } if left.is_zero() => self.begin_round(out),
            Stage::Asking(_) => self.judge(out),
            Stage::Bidden(_) => self.bid(out),
            Stage::Ordered { left, .. } | Stage::Candidate { left, .. } if left.is_zero() => {
                let left = self.draw_pause();
                self.stage = Stage::Pausing { left };
            }
            Stage::Leading(_) => {
                if self.shown.mute && !self.is_mute() {
                    self.beat_soon();
                }
                self.beat(out);
            }
            _ => {}
        }
    }

    /// Whether it is time to ask.
    fn is_due(&self) -> bool {
        let alone = self.view.voters.majority(|voter| voter == self.own);
        let dead = self.leader_dead_for().is_some_and(|age| age >= self.turn());
        self.may_stand() && (alone || dead || self.hearing.silence() >= self.limit)
    }

    /// The leader that was heard last, or the one of the core's vote.
    fn last_leader(&self) -> Option<RaftId> {
        self.hearing.leader().map_or(self.view.leader, |(leader, _)| Some(leader))
    }

    /// For how long it has been known that the leader's process is dead.
    fn leader_dead_for(&self) -> Option<Duration> {
        self.hearing.dead_for(self.last_leader()?)
    }

    /// How long after a leader's death it is this member's turn to ask.
    fn turn(&self) -> Duration {
        let leader = self.last_leader();
        let first = self.view.voters.all().into_iter().filter(|voter| Some(*voter) != leader);
        let before = first.take_while(|voter| *voter < self.own).count();
        self.cadence.rank_step.saturating_mul(u32::try_from(before).unwrap_or(u32::MAX))
    }

    /// Lets the core stand.
    fn stand(&mut self, out: &mut Vec<Effect>) {
        let term = self.view.term.next();
        self.stage = Stage::Ordered { term, left: self.cadence.core_within };
        self.promise = None;
        out.push(Effect::Stand);
    }

    /// Says what has changed for the owner.
    fn say(&mut self, out: &mut Vec<Effect>) {
        let (mute, hold) = (self.is_mute(), self.holds());
        if mute != self.shown.mute {
            out.push(Effect::Mute(mute));
        }
        if hold != self.shown.hold {
            out.push(Effect::Hold(hold));
        }
        let standing = Some(self.standing());
        if standing != self.shown.standing {
            out.extend(standing.clone().map(Effect::Show));
        }
        self.shown = Shown { mute, hold, standing };
    }

    /// How things stand.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let leader = self.hearing.leader().filter(|_| self.leader_dead_for().is_none());
        match (&self.stage, leader) {
            (Stage::Leading(office), _)
                if self.serves() && self.view.applied.term >= office.term =>
            {
                Standing::Leading { term: office.term }
            }
            (Stage::Listening | Stage::Bidden(_), Some((leader, term))) => {
                Standing::Following { term, leader }
            }
            _ => {
                let missing = self.hearing.missing(self.view.voters.all(), &self.cadence);
                Standing::Nobody { missing, elsewhere: self.elsewhere }
            }
        }
    }

    /// The other members that echoed a beat lately; while this one does not lead there are none.
    #[must_use]
    pub fn echoing(&self) -> BTreeSet<RaftId> {
        if !matches!(self.stage, Stage::Leading(_)) {
            return BTreeSet::new();
        }
        self.hearing.echoing(&self.cadence)
    }

    fn draw_pause(&mut self) -> Duration {
        self.cadence.pause.saturating_add(self.draw(self.cadence.pause_spread))
    }

    /// A time up to `spread`, drawn from the last look's dice (splitmix64).
    fn draw(&mut self, spread: Duration) -> Duration {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let nanos = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(mixed % nanos.saturating_add(1))
    }
}
