//! What happens to a member of the group, and what its owner has to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::leadership::voters::Voters;

/// A member's number in the consensus group, never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of the cluster this is; another one after a recovery without the majority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u64);

/// A term of office. At most one member wins it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

impl Term {
    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// How far a log goes. Of two logs, the one whose end is greater has all that was confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The term in which the last entry was written.
    pub term: Term,
    /// Its index.
    pub index: u64,
}

/// The number of a beat. It grows as long as the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BeatNumber(pub u64);

/// The number of a round of probes. It grows as long as the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(pub u64);

/// What happens to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The owner looks at the clock, every [`Cadence::look`](super::Cadence::look).
    Look {
        /// Since the last look, unclamped.
        passed: Duration,
        /// Random, and another for each member and look.
        dice: u64,
    },
    /// The core of consensus changed.
    Core(CoreView),
    /// A leader's word arrived: noted at the door, before the core sees it.
    Heard {
        /// The leader.
        from: RaftId,
        /// Its term.
        term: Term,
        /// What it was.
        word: Word,
    },
    /// A member echoed a beat.
    Echo {
        /// The member.
        from: RaftId,
        /// The beat.
        number: BeatNumber,
    },
    /// A connection to a member ended, or could not be made.
    Lost {
        /// The member.
        peer: RaftId,
        /// How.
        how: Evidence,
    },
    /// A connection to a member stands: its process is there.
    Present {
        /// The member.
        peer: RaftId,
    },
    /// A member asks whether it would get this one's vote. Answered by [`Effect::Reply`].
    Asked {
        /// Who asks.
        from: RaftId,
        /// What.
        probe: Probe,
    },
    /// A member answered a probe.
    Answered {
        /// The member.
        from: RaftId,
        /// The round that it was asked in.
        round: Round,
        /// What it said.
        answer: Answer,
    },
    /// Since [`Effect::Hold`] came, nothing that was proposed is under way any more, and the last
    /// [`Event::Core`] says so.
    Held,
    /// Somebody wants something.
    Command(Command),
}

/// What the core of consensus says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreView {
    /// The life of the cluster.
    pub epoch: Epoch,
    /// The term of its vote.
    pub term: Term,
    /// What it is.
    pub role: Role,
    /// Whom it follows in this term, or itself. Not whom it has only voted for.
    pub leader: Option<RaftId>,
    /// The end of its log.
    pub last: Position,
    /// The last entry that is applied here.
    pub applied: Position,
    /// Who votes, by the newest configuration in its log.
    pub voters: Voters,
    /// Who learns.
    pub learners: BTreeSet<RaftId>,
    /// On a leader: up to which index each other member's log is the same.
    pub matched: BTreeMap<RaftId, u64>,
    /// Who could not lead: its program cannot read the whole log. It votes all the same.
    pub barred: BTreeSet<RaftId>,
}

/// What a member is to its core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// No voter: it never stands. Also for one that must not lead.
    #[default]
    Learner,
    /// A voter.
    Follower,
    /// A voter that stands for election.
    Candidate,
    /// The leader.
    Leader,
}

/// What came from a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A beat.
    Beat {
        /// Its number.
        number: BeatNumber,
        /// Whether it counts.
        voice: Voice,
    },
    /// An append, or a piece of a snapshot: it renews the lease as well.
    Append,
}

/// In which voice a leader beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// It leads.
    Full,
    /// It does nothing with its office, and only asks for an echo: this is no word of a leader.
    Mute,
}

/// What is known of a connection that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It ended. The owner makes another at once, and again every 50 ms until one stands or a few
    /// failed: a process that was killed refuses them, one that only closed a connection does not.
    Closed,
    /// The host refused a new one: nobody listens there.
    Refused,
    /// Nothing is known: no answer, another node's answer, no way.
    Unknown,
}

/// "Would you vote for me?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The life of the cluster that the member knows.
    pub epoch: Epoch,
    /// The term that it would stand for.
    pub term: Term,
    /// The end of its log.
    pub last: Position,
}

/// What a member says to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Yes, or why not.
    pub why: Why,
    /// For how long its core refuses every vote.
    pub lease_left: Duration,
    /// Who leads, as far as it hears.
    pub leader: Option<RaftId>,
}

/// Yes, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Yes.
    Yes,
    /// It leads itself, and hears a majority.
    Leads,
    /// It hears a leader, or does not know yet that it hears none.
    Hears,
    /// Its own log goes further.
    Behind,
    /// It said yes to another a moment ago.
    Promised,
    /// It gave its vote of that term to another a moment ago.
    Voted,
    /// It stands itself, or is about to and goes first.
    Stands,
    /// The one that asks is of another life of the cluster.
    Stranger,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give the office to another, or to the best one. Answered by [`Effect::Done`].
    HandOver {
        /// To whom.
        to: Option<RaftId>,
    },
    /// Give up a hand-over and serve again.
    Resume,
    /// A leader that goes wants this member to stand.
    StandNow(Bidding),
}

/// What a leader that goes says to the one that is to follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bidding {
    /// The leader.
    pub from: RaftId,
    /// Its term.
    pub term: Term,
    /// The end of its log.
    pub last: Position,
    /// Its last beat in full voice: one who heard a later one knows that this is over.
    pub beat: BeatNumber,
}

/// What the owner has to do. Nothing here is awaited by the machine but [`Effect::Hold`], and what
/// peers and the core answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a beat to every other voter and learner, on a connection of its own.
    Beat {
        /// The leader's term.
        term: Term,
        /// Its number.
        number: BeatNumber,
        /// Whether it counts as a word.
        voice: Voice,
    },
    /// Echo this beat. Beats of a leader that is not (any more) this member's get no echo.
    Echo {
        /// The leader.
        to: RaftId,
        /// The beat.
        number: BeatNumber,
    },
    /// Ask these members.
    Probe {
        /// The round, to be given back with each answer.
        round: Round,
        /// Whom.
        to: BTreeSet<RaftId>,
        /// What.
        probe: Probe,
    },
    /// Answer the probe that was just given.
    Reply(Answer),
    /// Let the core stand for election.
    Stand,
    /// Pass nothing of the core on to others, neither heartbeats nor entries; or pass it on again.
    Mute(bool),
    /// Let proposals wait, and say [`Event::Held`] once none is under way; or let them go on.
    Hold(bool),
    /// Give the bidding to this member, as [`Command::StandNow`].
    TellToStand {
        /// The member.
        to: RaftId,
        /// What to tell.
        bidding: Bidding,
    },
    /// How things stand has changed.
    Show(Standing),
    /// Answer a hand-over.
    Done(Outcome),
}

/// How things stand, as one member sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This member leads, hears a majority, and has applied everything of earlier terms.
    Leading {
        /// Its term.
        term: Term,
    },
    /// It hears a leader.
    Following {
        /// The leader's term.
        term: Term,
        /// The leader.
        leader: RaftId,
    },
    /// It neither leads nor hears a leader.
    Nobody {
        /// The voters that it does not hear.
        missing: BTreeSet<RaftId>,
        /// Who leads, by the words of others that hear it.
        elsewhere: Option<RaftId>,
    },
}

/// What came of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another leads.
    HandedOver {
        /// Who.
        leader: RaftId,
    },
    /// This member leads, or did not before either.
    Kept(Keeps),
    /// It gave the office away, and nobody took it yet. The group elects as after a kill.
    Vacant,
}

/// Why a leader keeps its office.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It has none, or no majority to give it to.
    NotLeading,
    /// A hand-over is under way.
    Busy,
    /// There is no such voter, or none that is heard.
    NoTarget,
    /// The target did not catch up, or did not win, in time.
    Late,
    /// Somebody said [`Command::Resume`].
    Resumed,
}
