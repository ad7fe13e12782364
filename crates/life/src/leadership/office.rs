//! A leader's office: beats, and silence when no majority echoes them.

use std::time::Duration;

use crate::leadership::event::{BeatNumber, Effect, Term, Voice};
use crate::leadership::{Leadership, Stage};

/// What a leader keeps of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Office {
    pub(super) term: Term,
    /// Since the last beat, as it passed.
    since_beat: Duration,
}

impl Office {
    pub(super) const fn look(&mut self, passed: Duration) {
        self.since_beat = self.since_beat.saturating_add(passed);
    }
}

impl Leadership {
    pub(super) fn take_office(&mut self, term: Term) {
        self.hearing.take_office();
        (self.promise, self.voted, self.elsewhere) = (None, None, None);
        // The first beat goes at once.
        self.stage = Stage::Leading(Office { term, since_beat: self.cadence.beat });
    }

    /// Whether a majority of every set echoed lately.
    pub(super) fn hears_majority(&self) -> bool {
        let heard = |voter| voter == self.own || self.hearing.echoes(voter, &self.cadence);
        self.view.voters.majority(heard)
    }

    /// Whether this leader does something with its office.
    pub(super) fn serves(&self) -> bool {
        self.hears_majority() && !self.is_barred()
    }

    /// Whether this leader does nothing with its office. A leader cannot leave it, but it can be
    /// quiet: with a way out but none back, whatever it sends would renew the others' lease for
    /// ever.
    pub(super) fn is_mute(&self) -> bool {
        matches!(self.stage, Stage::Leading(_)) && (self.has_told() || !self.serves())
    }

    /// Beats, if it is time. A mute leader beats too, to hear when a majority is back; nobody takes
    /// that for a leader's word.
    pub(super) fn beat(&mut self, out: &mut Vec<Effect>) {
        let voice = if self.is_mute() { Voice::Mute } else { Voice::Full };
        let Stage::Leading(office) = &mut self.stage else { return };
        if office.since_beat < self.cadence.beat {
            return;
        }
        office.since_beat = Duration::ZERO;
        let term = office.term;
        self.beats = BeatNumber(self.beats.0.saturating_add(1));
        if voice == Voice::Full {
            self.last_full = self.beats;
        }
        out.push(Effect::Beat { term, number: self.beats, voice });
        self.tell_again(out);
    }

    /// A leader that is heard again beats at once.
    pub(super) const fn beat_soon(&mut self) {
        if let Stage::Leading(office) = &mut self.stage {
            office.since_beat = self.cadence.beat;
        }
    }
}
