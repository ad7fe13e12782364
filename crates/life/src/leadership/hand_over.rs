//! Handing the office over, and taking it.
//!
//! The leader lets proposals wait until the target has the whole log, goes mute, and tells the
//! target to stand. It is told again with every beat, and the old leader serves again before
//! anybody else would ask. Each bidding names the last beat in full voice, so that one that comes
//! late, when the old leader serves again, does nothing.

use std::cmp::Reverse;
use std::time::Duration;

use crate::leadership::event::{Bidding, Effect, Keeps, Outcome, RaftId, Term, Voice, Word};
use crate::leadership::{Leadership, Stage};

/// A hand-over that is under way, on the leader that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handing {
    to: RaftId,
    /// The term that ends with it.
    term: Term,
    step: Step,
    /// Counted, for this step.
    left: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Proposals that are under way come to their end.
    Holding,
    /// The target gets the rest of the log.
    CatchingUp,
    /// It was told to stand.
    Told,
    /// The office is given up; who has it is not known yet.
    Out,
}

/// A bidding that this member obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bidden {
    bidding: Bidding,
    /// Counted from the end of this member's lease: what the others' may be behind it.
    lag: Duration,
    /// Counted.
    left: Duration,
}

impl Handing {
    pub(super) const fn look(&mut self, counted: Duration) {
        self.left = self.left.saturating_sub(counted);
    }
}

impl Bidden {
    pub(super) const fn look(&mut self, counted: Duration, lease_left: Duration) {
        self.left = self.left.saturating_sub(counted);
        if lease_left.is_zero() {
            self.lag = self.lag.saturating_sub(counted);
        }
    }

    /// Whether this word was on its way before the leader went mute.
    pub(super) fn expects(&self, from: RaftId, term: Term, word: Word) -> bool {
        let late = match word {
            Word::Beat { number, voice: Voice::Full } => number <= self.bidding.beat,
            Word::Beat { voice: Voice::Mute, .. } | Word::Append => true,
        };
        late && self.bidding.from == from && self.bidding.term == term
    }
}

impl Leadership {
    pub(super) fn hand_over(&mut self, to: Option<RaftId>, out: &mut Vec<Effect>) {
        let Stage::Leading(office) = self.stage else {
            return out.push(Effect::Done(Outcome::Kept(Keeps::NotLeading)));
        };
        if self.handing.is_some() {
            return out.push(Effect::Done(Outcome::Kept(Keeps::Busy)));
        }
        if !self.serves() {
            return out.push(Effect::Done(Outcome::Kept(Keeps::NotLeading)));
        }
        let Some(to) = self.target(to) else {
            return out.push(Effect::Done(Outcome::Kept(Keeps::NoTarget)));
        };
        let left = self.cadence.catch_up_within;
        self.handing = Some(Handing { to, term: office.term, step: Step::Holding, left });
    }

    /// The voter to hand over to: the one that is wanted, or of those heard the one whose log goes
    /// furthest.
    fn target(&self, wanted: Option<RaftId>) -> Option<RaftId> {
        let mut fit = self.view.voters.all();
        fit.remove(&self.own);
        fit.retain(|voter| !self.view.barred.contains(voter));
        fit.retain(|voter| self.hearing.echoes(*voter, &self.cadence));
        match wanted {
            Some(wanted) => fit.take(&wanted),
            None => {
                fit.into_iter().max_by_key(|voter| (self.view.matched.get(voter), Reverse(*voter)))
            }
        }
    }

    /// Nothing that was proposed is under way any more.
    pub(super) const fn held(&mut self) {
        if let Some(handing) = &mut self.handing
            && matches!(handing.step, Step::Holding)
        {
            handing.step = Step::CatchingUp;
        }
    }

    pub(super) fn resume(&mut self, out: &mut Vec<Effect>) {
        if matches!(self.stage, Stage::Leading(_)) {
            self.keep(Keeps::Resumed, out);
        }
    }

    /// Whether proposals have to wait.
    pub(super) const fn holds(&self) -> bool {
        matches!(self.stage, Stage::Leading(_)) && self.handing.is_some()
    }

    /// Whether the target was told.
    pub(super) fn has_told(&self) -> bool {
        self.handing.is_some_and(|handing| handing.step == Step::Told)
    }

    /// Goes on with a hand-over.
    pub(super) fn hand_over_on(&mut self, out: &mut Vec<Effect>) {
        let Some(handing) = self.handing else { return };
        match self.stage {
            Stage::Leading(office) if office.term == handing.term => match handing.step {
                // Its majority is gone, or time.
                _ if handing.left.is_zero() => self.keep(Keeps::Late, out),
                Step::CatchingUp if self.is_ready(handing.to) => {
                    let (step, left) = (Step::Told, self.cadence.told_within);
                    self.handing = Some(Handing { step, left, ..handing });
                    // Mute first.
                    self.say(out);
                    self.tell_again(out);
                }
                Step::Holding | Step::CatchingUp | Step::Told | Step::Out => {}
            },
            // It was elected again.
            Stage::Leading(_) => self.keep(Keeps::Late, out),
            _ => self.watch_successor(handing, out),
        }
    }

    /// Whether the target has the whole log, and this member's own core would vote for it.
    fn is_ready(&self, target: RaftId) -> bool {
        let matched = self.view.matched.get(&target).copied();
        let whole = matched.is_some_and(|matched| matched >= self.view.last.index);
        whole && self.hearing.lease_left(&self.cadence).is_zero()
    }

    /// Out of office: waits for who is in.
    fn watch_successor(&mut self, handing: Handing, out: &mut Vec<Effect>) {
        let heard = self.hearing.leader().filter(|(_, term)| *term > handing.term);
        if let Some((leader, _)) = heard {
            self.handing = None;
            out.push(Effect::Done(Outcome::HandedOver { leader }));
        } else if handing.step != Step::Out {
            let left = self.cadence.told_within;
            self.handing = Some(Handing { step: Step::Out, left, ..handing });
        } else if handing.left.is_zero() {
            self.handing = None;
            out.push(Effect::Done(Outcome::Vacant));
        }
    }

    /// Ends a hand-over in office.
    fn keep(&mut self, why: Keeps, out: &mut Vec<Effect>) {
        if self.handing.take().is_some() {
            out.push(Effect::Done(Outcome::Kept(why)));
            self.beat_soon();
        }
    }

    /// Tells the target, if it is time for that.
    pub(super) fn tell_again(&self, out: &mut Vec<Effect>) {
        if let Some(Handing { to, term, step: Step::Told, .. }) = self.handing {
            let (last, beat) = (self.view.last, self.last_full);
            let bidding = Bidding { from: self.own, term, last, beat };
            out.push(Effect::TellToStand { to, bidding });
        }
    }

    /// A leader wants this member to stand.
    pub(super) fn bidden(&mut self, bidding: Bidding) {
        let free =
            matches!(self.stage, Stage::Listening | Stage::Pausing { .. } | Stage::Asking(_));
        let heard = self.hearing.last_beat(bidding.from, bidding.term);
        let over = bidding.term < self.view.term || heard.is_some_and(|beat| beat > bidding.beat);
        if free && !over && self.may_stand() {
            let (lag, left) = (self.cadence.look_counts, self.cadence.told_within);
            self.stage = Stage::Bidden(Bidden { bidding, lag, left });
        }
    }

    /// Stands as told, without a probe: once this log is as long as the leader's, and the others'
    /// lease is over, which began when this member's did, or a little later; unless the leader's
    /// vote is enough.
    pub(super) fn bid(&mut self, out: &mut Vec<Effect>) {
        let Stage::Bidden(Bidden { bidding, lag, left }) = self.stage else { return };
        let enough = |voter| voter == self.own || voter == bidding.from;
        let over = lag.is_zero() && self.hearing.lease_left(&self.cadence).is_zero();
        let granted = over || self.view.voters.majority(enough);
        if !self.may_stand() || left.is_zero() {
            self.listen();
        } else if granted && self.view.last >= bidding.last {
            self.stand(out);
        }
    }
}
