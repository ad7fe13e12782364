//! A round of probes: asking, answering, and what comes of it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::leadership::cadence::Cadence;
use crate::leadership::event::{Answer, Effect, Probe, RaftId, Role, Round, Why};
use crate::leadership::{Leadership, Promise, Stage};

/// A round that is under way. Its times are as they pass, not counted: leases and promises of
/// others run out also while this process is not let run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asking {
    round: Round,
    age: Duration,
    answers: BTreeMap<RaftId, Said>,
    /// Who leads, as those say that hear it.
    leader: Option<RaftId>,
}

/// What one member said in this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    No,
    /// Yes; its core grants a vote once the round is so old.
    YesFrom(Duration),
}

impl Asking {
    pub(super) const fn look(&mut self, passed: Duration) {
        self.age = self.age.saturating_add(passed);
    }

    /// Whether this yes still holds.
    fn says_yes(&self, member: RaftId, cadence: &Cadence) -> bool {
        match self.answers.get(&member) {
            Some(Said::YesFrom(from)) => self.age <= from.saturating_add(cadence.yes_holds),
            Some(Said::No) | None => false,
        }
    }

    /// Whether this member would grant a vote now.
    fn grants(&self, member: RaftId, cadence: &Cadence) -> bool {
        let over = matches!(self.answers.get(&member), Some(Said::YesFrom(at)) if *at <= self.age);
        over && self.says_yes(member, cadence)
    }
}

impl Leadership {
    /// Begins a round, or stands at once if nobody else has to be asked.
    pub(super) fn begin_round(&mut self, out: &mut Vec<Effect>) {
        if !self.may_stand() {
            self.stage = Stage::Listening;
        } else if self.view.voters.majority(|voter| voter == self.own) {
            self.stand(out);
        } else if let Some(promise) = self.promise {
            let left = promise.left.saturating_add(self.draw_pause());
            self.stage = Stage::Pausing { left };
        } else {
            self.round = Round(self.round.0.saturating_add(1));
            let (round, mut to) = (self.round, self.view.voters.all());
            to.remove(&self.own);
            let (age, answers, leader) = (Duration::ZERO, BTreeMap::new(), None);
            let asking = Asking { round, age, answers, leader };
            self.stage = Stage::Asking(asking);
            let (epoch, term) = (self.view.epoch, self.view.term.next());
            let probe = Probe { epoch, term, last: self.view.last };
            out.push(Effect::Probe { round, to, probe });
        }
    }

    /// Whether this member may stand at all.
    pub(super) fn may_stand(&self) -> bool {
        let votes = matches!(self.view.role, Role::Follower | Role::Candidate);
        votes && self.view.voters.contains(self.own) && !self.is_barred()
    }

    /// Whether this member could not lead: it can count and confirm what it cannot read.
    pub(super) fn is_barred(&self) -> bool {
        self.view.barred.contains(&self.own)
    }

    /// Goes on with the round by what is known by now.
    pub(super) fn judge(&mut self, out: &mut Vec<Effect>) {
        let (own, cadence) = (self.own, self.cadence);
        if !self.may_stand() {
            return self.listen();
        }
        let Stage::Asking(asking) = &self.stage else { return };
        let voters = &self.view.voters;
        // Of a dead process no answer comes.
        let open = |voter| {
            let waits = asking.age < cadence.probe_within && !asking.answers.contains_key(&voter);
            waits && self.hearing.dead_for(voter).is_none()
        };
        if voters.majority(|voter| voter == own || asking.grants(voter, &cadence)) {
            self.stand(out);
        } else if !voters
            .majority(|voter| voter == own || open(voter) || asking.says_yes(voter, &cadence))
        {
            self.elsewhere = asking.leader;
            let left = self.draw_pause();
            self.stage = Stage::Pausing { left };
        }
    }

    pub(super) fn answered(&mut self, from: RaftId, round: Round, answer: Answer) {
        self.hearing.alive(from);
        let look = self.cadence.look;
        let Stage::Asking(asking) = &mut self.stage else { return };
        if asking.round != round || !self.view.voters.contains(from) {
            return;
        }
        let said = match answer.why {
            Why::Yes if answer.lease_left.is_zero() => Said::YesFrom(asking.age),
            // One look more than it seems, as this came somewhere between two of them.
            Why::Yes => {
                Said::YesFrom(asking.age.saturating_add(answer.lease_left).saturating_add(look))
            }
            _ => Said::No,
        };
        // The first answer of each counts: others are copies of it.
        asking.answers.entry(from).or_insert(said);
        if matches!(answer.why, Why::Leads | Why::Hears) {
            asking.leader = answer.leader.or(asking.leader);
        }
    }

    /// The answer to a probe. A yes is a promise: until it lapses no other gets one, and this
    /// member does not ask for itself.
    pub(super) fn asked(&mut self, from: RaftId, probe: &Probe) -> Answer {
        self.hearing.alive(from);
        let why = self.would_vote(from, probe);
        let lease_left = self.hearing.lease_left(&self.cadence);
        if why == Why::Yes {
            let slack = self.cadence.look.saturating_mul(2);
            let left = lease_left.saturating_add(self.cadence.yes_holds).saturating_add(slack);
            self.promise = Some(Promise { to: from, left });
            if matches!(self.stage, Stage::Asking(_) | Stage::Pausing { .. }) {
                let left = left.saturating_add(self.draw_pause());
                self.stage = Stage::Pausing { left };
            }
        }
        let leader = match why {
            Why::Leads => Some(self.own),
            Why::Hears => self.hearing.leader().map(|(leader, _)| leader),
            _ => None,
        };
        Answer { why, lease_left, leader }
    }

    fn would_vote(&self, from: RaftId, probe: &Probe) -> Why {
        let (own, cadence) = (self.own, &self.cadence);
        if probe.epoch != self.view.epoch {
            return Why::Stranger;
        }
        if matches!(self.stage, Stage::Leading(_)) {
            if self.serves() {
                return Why::Leads;
            }
        } else if self.hears_leader(from, probe) {
            return Why::Hears;
        }
        if probe.last < self.view.last {
            return Why::Behind;
        }
        if self.promise.is_some_and(|promise| promise.to != from) {
            return Why::Promised;
        }
        if self.voted.is_some() && probe.term <= self.view.term {
            return Why::Voted;
        }
        match &self.stage {
            Stage::Ordered { .. } | Stage::Candidate { .. } | Stage::Bidden(_) => Why::Stands,
            Stage::Asking(asking) => {
                let wins = |voter| voter == own || asking.says_yes(voter, cadence);
                let goes_first = (probe.last, Reverse(from)) > (self.view.last, Reverse(own));
                if goes_first && !self.view.voters.majority(wins) { Why::Yes } else { Why::Stands }
            }
            Stage::Listening | Stage::Pausing { .. } | Stage::Leading(_) => Why::Yes,
        }
    }

    /// Whether a leader was heard lately, or may have been before this process began. One that asks
    /// for a later term than its own leads no more, and neither does a dead one.
    fn hears_leader(&self, asks: RaftId, probe: &Probe) -> bool {
        let leads = match self.hearing.leader() {
            Some((leader, term)) => leader != asks || probe.term <= term,
            None => self.hearing.is_new(),
        };
        let lately = self.hearing.silence() < self.cadence.grant_after;
        leads && lately && self.leader_dead_for().is_none()
    }
}
