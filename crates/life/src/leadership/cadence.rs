//! How fast a group beats, and how long it waits.

use std::time::Duration;

/// The periods of a consensus group. All members of one group have the same.
///
/// *Counted* time leaves out what a process was not let run, see [`Cadence::look_counts`]; the rest
/// is time as it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    /// Between two beats of a leader.
    pub beat: Duration,
    /// Between two looks of the owner.
    pub look: Duration,
    /// What one look counts at most: a look that comes later than this came late because this
    /// process was not let run, and that is not the leader's silence.
    pub look_counts: Duration,
    /// Counted silence of the leader after which a member asks the others.
    pub silence: Duration,
    /// Up to this is drawn on top for each silence, so that not all ask at once.
    pub silence_spread: Duration,
    /// Counted silence after which a member says yes to another.
    pub grant_after: Duration,
    /// Counted time without the echo of a majority after which a leader goes mute.
    pub quorum_grace: Duration,
    /// For how long after a leader's last append a voter refuses every vote: openraft's
    /// `election_timeout_max`.
    pub lease: Duration,
    /// For how long a round waits for answers.
    pub probe_within: Duration,
    /// For how long a yes holds, from the end of the lease that was told with it.
    pub yes_holds: Duration,
    /// The shortest counted pause after a round that failed.
    pub pause: Duration,
    /// Up to this is drawn on top, anew for each pause.
    pub pause_spread: Duration,
    /// For how long a candidate's votes may be under way: openraft's `election_timeout_min`, and
    /// something for a vote to reach the disk.
    pub vote_within: Duration,
    /// For how long the core may take to begin an election: it waits for its disk.
    pub core_within: Duration,
    /// Two refused connections within this prove that nobody listens any more.
    pub refusals_within: Duration,
    /// After a leader's proven death the first voter in order asks at once, each further one this
    /// much later: they would only stop each other.
    pub rank_step: Duration,
    /// For how long a hand-over may wait for the target to have the whole log.
    pub catch_up_within: Duration,
    /// For how long a leader that told another to stand stays mute. Less than `silence`, so that
    /// nobody else stands meanwhile.
    pub told_within: Duration,
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Cadence {
    /// The product's.
    pub const PRODUCT: Self = Self {
        beat: ms(100),
        look: ms(25),
        look_counts: ms(50),
        silence: ms(1_000),
        silence_spread: ms(250),
        grant_after: ms(750),
        quorum_grace: ms(1_000),
        lease: ms(502),
        probe_within: ms(300),
        yes_holds: ms(200),
        pause: ms(150),
        pause_spread: ms(250),
        vote_within: ms(600),
        core_within: ms(5_000),
        refusals_within: ms(250),
        rank_step: ms(25),
        catch_up_within: ms(1_000),
        told_within: ms(850),
    };

    /// All periods `factor` times as long: their ratios are what counts.
    #[must_use]
    pub fn times(self, factor: u32) -> Self {
        let longer = |period: Duration| period.saturating_mul(factor);
        Self {
            beat: longer(self.beat),
            look: longer(self.look),
            look_counts: longer(self.look_counts),
            silence: longer(self.silence),
            silence_spread: longer(self.silence_spread),
            grant_after: longer(self.grant_after),
            quorum_grace: longer(self.quorum_grace),
            lease: longer(self.lease),
            probe_within: longer(self.probe_within),
            yes_holds: longer(self.yes_holds),
            pause: longer(self.pause),
            pause_spread: longer(self.pause_spread),
            vote_within: longer(self.vote_within),
            core_within: longer(self.core_within),
            refusals_within: longer(self.refusals_within),
            rank_step: longer(self.rank_step),
            catch_up_within: longer(self.catch_up_within),
            told_within: longer(self.told_within),
        }
    }
}

impl Default for Cadence {
    fn default() -> Self {
        Self::PRODUCT
    }
}
