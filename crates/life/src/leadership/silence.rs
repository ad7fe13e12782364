//! Who has been heard, and for how long not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::leadership::cadence::Cadence;
use crate::leadership::event::{BeatNumber, CoreView, Evidence, RaftId, Term, Word};

/// What a member has heard of the others. All times are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hearing {
    leader: Knowledge,
    /// Since a leader's last word, or since this process began.
    silence: Duration,
    /// Since a leader's last append; `None` if there was none.
    lease: Option<Duration>,
    /// The other members.
    peers: BTreeMap<RaftId, Peer>,
}

/// What is known of a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// This process has just begun: there may be one.
    New,
    /// The last one is out of office.
    Gone,
    /// This one was heard.
    Heard(Leader),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leader {
    id: RaftId,
    term: Term,
    /// Its last beat in full voice.
    beat: BeatNumber,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Peer {
    /// Since anything came from it.
    silence: Duration,
    /// Since it echoed a beat that it had not echoed before.
    unechoed: Duration,
    /// The newest beat that it echoed.
    echoed: BeatNumber,
    pulse: Pulse,
}

/// What connections say of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pulse {
    /// Nothing.
    #[default]
    Unknown,
    /// One connection was refused, this long ago.
    Refused(Duration),
    /// Two were: nobody listens there. Known for this long.
    Dead(Duration),
}

impl Hearing {
    pub(super) const fn begin() -> Self {
        Self {
            leader: Knowledge::New,
            silence: Duration::ZERO,
            lease: None,
            peers: BTreeMap::new(),
        }
    }

    pub(super) fn look(&mut self, counted: Duration, cadence: &Cadence) {
        self.silence = self.silence.saturating_add(counted);
        self.lease = self.lease.map(|age| age.saturating_add(counted));
        for peer in self.peers.values_mut() {
            peer.silence = peer.silence.saturating_add(counted);
            peer.unechoed = peer.unechoed.saturating_add(counted);
            peer.pulse = match peer.pulse {
                Pulse::Unknown => Pulse::Unknown,
                Pulse::Refused(age) if age.saturating_add(counted) > cadence.refusals_within => {
                    Pulse::Unknown
                }
                Pulse::Refused(age) => Pulse::Refused(age.saturating_add(counted)),
                Pulse::Dead(age) => Pulse::Dead(age.saturating_add(counted)),
            };
        }
    }

    /// Keeps the others of the group, and only them.
    pub(super) fn members(&mut self, own: RaftId, view: &CoreView) {
        let mut members = view.voters.all();
        members.extend(&view.learners);
        members.remove(&own);
        self.peers.retain(|peer, _| members.contains(peer));
        for member in members {
            self.peers.entry(member).or_default();
        }
    }

    /// Something came from this member.
    pub(super) fn alive(&mut self, from: RaftId) {
        if let Some(peer) = self.peers.get_mut(&from) {
            (peer.silence, peer.pulse) = (Duration::ZERO, Pulse::Unknown);
        }
    }

    pub(super) fn lost(&mut self, from: RaftId, how: Evidence) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.pulse = match (peer.pulse, how) {
            (Pulse::Unknown, Evidence::Refused) => Pulse::Refused(Duration::ZERO),
            (Pulse::Refused(_), Evidence::Refused) => Pulse::Dead(Duration::ZERO),
            (pulse, _) => pulse,
        };
    }

    /// A leader's word that counts.
    pub(super) fn word(&mut self, from: RaftId, term: Term, word: Word) {
        self.silence = Duration::ZERO;
        let beat = self.last_beat(from, term).unwrap_or_default();
        let mut leader = Leader { id: from, term, beat };
        match word {
            Word::Beat { number, .. } => leader.beat = leader.beat.max(number),
            Word::Append => self.lease = Some(Duration::ZERO),
        }
        self.leader = Knowledge::Heard(leader);
    }

    pub(super) fn echo(&mut self, from: RaftId, number: BeatNumber, sent: BeatNumber) {
        self.alive(from);
        if let Some(peer) = self.peers.get_mut(&from)
            && number > peer.echoed
            && number <= sent
        {
            (peer.unechoed, peer.echoed) = (Duration::ZERO, number);
        }
    }

    /// The core takes office: its own vote is as fresh as after an append, and nobody is late yet.
    pub(super) fn take_office(&mut self) {
        (self.leader, self.lease) = (Knowledge::Gone, Some(Duration::ZERO));
        self.peers.values_mut().for_each(|peer| peer.unechoed = Duration::ZERO);
    }

    /// The core left office.
    pub(super) const fn leave_office(&mut self) {
        self.silence = Duration::ZERO;
    }

    /// The leader that was heard has no office any more.
    pub(super) const fn forget_leader(&mut self) {
        (self.leader, self.lease) = (Knowledge::Gone, None);
    }

    /// The last leader heard, and its term.
    pub(super) const fn leader(&self) -> Option<(RaftId, Term)> {
        match self.leader {
            Knowledge::Heard(leader) => Some((leader.id, leader.term)),
            Knowledge::New | Knowledge::Gone => None,
        }
    }

    /// Whether nothing is known of any leader yet.
    pub(super) fn is_new(&self) -> bool {
        self.leader == Knowledge::New
    }

    /// The last beat in full voice of the leader of this term.
    pub(super) fn last_beat(&self, of: RaftId, term: Term) -> Option<BeatNumber> {
        match self.leader {
            Knowledge::Heard(leader) if (leader.id, leader.term) == (of, term) => Some(leader.beat),
            _ => None,
        }
    }

    pub(super) const fn silence(&self) -> Duration {
        self.silence
    }

    /// For how long it has been known that this member's process is dead.
    pub(super) fn dead_for(&self, member: RaftId) -> Option<Duration> {
        match self.peers.get(&member)?.pulse {
            Pulse::Dead(age) => Some(age),
            Pulse::Unknown | Pulse::Refused(_) => None,
        }
    }

    /// For how long the core refuses votes. One look more than it seems: the last append came
    /// somewhere between two of them.
    pub(super) fn lease_left(&self, cadence: &Cadence) -> Duration {
        let Some(age) = self.lease else { return Duration::ZERO };
        cadence.lease.saturating_add(cadence.look).saturating_sub(age)
    }

    /// Whether this member echoed lately.
    pub(super) fn echoes(&self, member: RaftId, cadence: &Cadence) -> bool {
        self.peers.get(&member).is_some_and(|peer| peer.unechoed < cadence.quorum_grace)
    }

    /// Who echoed lately.
    pub(super) fn echoing(&self, cadence: &Cadence) -> BTreeSet<RaftId> {
        self.peers.keys().copied().filter(|peer| self.echoes(*peer, cadence)).collect()
    }

    /// Which of these voters are not heard.
    pub(super) fn missing(&self, voters: BTreeSet<RaftId>, cadence: &Cadence) -> BTreeSet<RaftId> {
        let is_missing = |peer: &Peer| {
            matches!(peer.pulse, Pulse::Dead(_)) || peer.silence >= cadence.quorum_grace
        };
        let missing = |voter: &RaftId| self.peers.get(voter).is_some_and(is_missing);
        voters.into_iter().filter(missing).collect()
    }
}
