//! A node's membership of a cluster: in, out, or on the way to one of them.
//!
//! The record on the disk decides what a later daemon finds: entering writes it last, leaving
//! removes it first. So a crash at any step leaves the node in, or out with leftovers that the next
//! opening sweeps away, and no client that hangs up can leave it in between.

/// Where a node stands, and what its owner is doing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    stage: Stage,
    after: After,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What an earlier daemon left is being looked at.
    Opening,
    /// In no cluster.
    Out(Leftovers),
    /// An init or a join is under way.
    Entering,
    /// It failed, or a crash cut it: what it wrote is being removed.
    Undoing,
    /// A member.
    In,
    /// A member by its record, whose files cannot be used. They are tried again after a pause.
    Unusable,
    /// They are being tried again.
    Retrying,
    /// A manager by its record, whose files are wrapped by an unlock key that nobody has given.
    Locked,
    /// They are being tried with a key that was given.
    Unlocking,
    /// The cluster begins again from what this manager has.
    Recovering,
    /// A leave is under way.
    Leaving(Farewell),
    /// The daemon stops; the membership stays.
    Closing,
    /// It has stopped.
    Closed,
}

/// What is left of an earlier membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// Nothing.
    None,
    /// Files that could not be removed yet.
    Owed,
    /// They are being removed.
    Sweeping,
}

/// How far a leave has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// The other managers go on without this one, if they can.
    Resigning,
    /// The record is being removed: from then on the node is out, whatever happens.
    Forgetting(Before),
    /// The manager is told, and takes over what this node serves.
    Telling,
    /// This node's tasks end.
    Draining,
    /// This node's own manager ends.
    ClosingManager,
    /// The files are being removed.
    Sweeping,
}

/// What the node was before it began to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// A member.
    In,
    /// One whose files could not be used.
    Unusable,
    /// One that is locked.
    Locked,
}

/// What follows once the membership has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Stay,
    Close,
}

/// What happens to a membership: commands, and outcomes of effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Command: make a cluster or join one.
    Enter,
    /// Command: begin the cluster again from this manager alone.
    Recover,
    /// Command: try an unlock key.
    Unlock,
    /// Command: leave. Whether it may, the owner knows.
    Leave(Consent),
    /// Command: the daemon stops.
    Close,
    /// The files were read: this node is no member.
    NothingThere,
    /// The files were read: it is one, and its parts run.
    Resumed,
    /// They cannot be used.
    ResumeFailed,
    /// They are wrapped by an unlock key, and what was given, if anything was, is another one.
    FoundLocked,
    /// The node is in, and its record is on the disk.
    Entered,
    /// It could not enter.
    EnterFailed,
    /// The cluster has begun again.
    Recovered,
    /// It has not; the files are tried as they are.
    RecoverFailed,
    /// The other managers go on without this one; or they cannot, and it leaves all the same.
    Resigned,
    /// The record is gone.
    Forgotten,
    /// It cannot be removed.
    ForgetFailed,
    /// The manager was told, as far as there is one.
    Told,
    /// The tasks have ended, or had their time.
    Drained,
    /// The node's own manager has ended, if there was one.
    ManagerClosed,
    /// Nothing is left.
    Swept,
    /// Something is.
    SweepFailed,
    /// A pause is over.
    Retry,
}

/// Whether a node may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// It may.
    Given,
    /// It may, once it is out of the group of managers.
    AfterResigning,
    /// It manages the cluster, and nobody said that this does not matter.
    Withheld,
}

/// What the owner has to do. All but [`Effect::Publish`], [`Effect::Dismiss`], [`Effect::Answer`]
/// and [`Effect::Refuse`] take time, and come back as an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read the files and start what they say.
    Resume,
    /// Carry out the init or the join.
    Enter,
    /// Read the files with the unlock key that was given, and start what they say.
    Unlock,
    /// End the node's own manager, begin the cluster again with its state, and start that.
    Recover,
    /// Take this manager out of the group, as far as the others allow it.
    Resign,
    /// Remove the record.
    Forget,
    /// Tell the manager, and let it take over what this node serves.
    Tell,
    /// Wait for the tasks to end.
    Drain,
    /// End the node's own manager.
    CloseManager,
    /// Remove the files.
    Sweep,
    /// Come back with [`Event::Retry`] after a pause.
    Wait,
    /// Tell the agent that it is a member.
    Publish,
    /// Tell the agent that it is none.
    Dismiss,
    /// Answer the command that is under way.
    Answer(Outcome),
    /// Answer the command that was just given.
    Refuse(Refusal),
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for.
    Done,
    /// The failure of the last effect.
    Failed,
}

/// Why a command is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is a member already.
    AlreadyMember,
    /// It is none.
    NotMember,
    /// It manages the cluster.
    Manager,
    /// It is locked.
    Locked,
    /// It is not locked.
    NotLocked,
    /// Another command is under way.
    Busy,
}

impl Membership {
    /// The first state, and what has to be done first.
    #[must_use]
    pub const fn begin() -> (Self, Effect) {
        (Self { stage: Stage::Opening, after: After::Stay }, Effect::Resume)
    }

    /// Where the node stands.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(
            self.stage,
            Stage::Out(Leftovers::None | Leftovers::Owed)
                | Stage::In
                | Stage::Unusable
                | Stage::Locked
                | Stage::Closed
        )
    }

    /// The state after `event`, and what has to be done.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Vec<Effect>) {
        match event {
            Event::Enter => self.enter(),
            Event::Recover => self.recover(),
            Event::Unlock => self.unlock(),
            Event::Leave(consent) => self.leave(consent),
            Event::Close => Self { after: After::Close, ..self }.settle(Vec::new()),
            outcome => {
                let (stage, effects) = self.follow(outcome);
                Self { stage, ..self }.settle(effects)
            }
        }
    }

    fn enter(self) -> (Self, Vec<Effect>) {
        match self.stage {
            Stage::Out(Leftovers::None | Leftovers::Owed) => {
                (Self { stage: Stage::Entering, ..self }, vec![Effect::Enter])
            }
            Stage::In | Stage::Unusable | Stage::Retrying | Stage::Locked => {
                (self, vec![Effect::Refuse(Refusal::AlreadyMember)])
            }
            _ => (self, vec![Effect::Refuse(Refusal::Busy)]),
        }
    }

    fn unlock(self) -> (Self, Vec<Effect>) {
        match self.stage {
            Stage::Locked => (Self { stage: Stage::Unlocking, ..self }, vec![Effect::Unlock]),
            Stage::In => (self, vec![Effect::Refuse(Refusal::NotLocked)]),
            Stage::Out(_) => (self, vec![Effect::Refuse(Refusal::NotMember)]),
            _ => (self, vec![Effect::Refuse(Refusal::Busy)]),
        }
    }

    fn recover(self) -> (Self, Vec<Effect>) {
        match self.stage {
            Stage::In | Stage::Unusable => {
                (Self { stage: Stage::Recovering, ..self }, vec![Effect::Recover])
            }
            Stage::Out(_) => (self, vec![Effect::Refuse(Refusal::NotMember)]),
            Stage::Locked => (self, vec![Effect::Refuse(Refusal::Locked)]),
            _ => (self, vec![Effect::Refuse(Refusal::Busy)]),
        }
    }

    fn leave(self, consent: Consent) -> (Self, Vec<Effect>) {
        let before = match (self.stage, consent) {
            (Stage::In, Consent::Withheld) => {
                return (self, vec![Effect::Refuse(Refusal::Manager)]);
            }
            (Stage::In, Consent::AfterResigning) => {
                let stage = Stage::Leaving(Farewell::Resigning);
                return (Self { stage, ..self }, vec![Effect::Resign]);
            }
            (Stage::In, Consent::Given) => Before::In,
            (Stage::Unusable, _) => Before::Unusable,
            (Stage::Locked, Consent::Withheld) => {
                return (self, vec![Effect::Refuse(Refusal::Locked)]);
            }
            (Stage::Locked, _) => Before::Locked,
            (Stage::Out(_), _) => return (self, vec![Effect::Refuse(Refusal::NotMember)]),
            _ => return (self, vec![Effect::Refuse(Refusal::Busy)]),
        };
        let stage = Stage::Leaving(Farewell::Forgetting(before));
        (Self { stage, ..self }, vec![Effect::Forget])
    }

    /// The stage after the outcome of an effect. An outcome that belongs to no effect of this stage
    /// changes nothing.
    fn follow(self, outcome: Event) -> (Stage, Vec<Effect>) {
        use Effect::{
            Answer, CloseManager, Dismiss, Drain, Forget, Publish, Resume, Sweep, Tell, Wait,
        };
        use Farewell as F;
        use Stage as S;
        let failed = Answer(Outcome::Failed);
        let done = Answer(Outcome::Done);
        match (self.stage, outcome) {
            (S::Opening | S::Retrying | S::Unlocking, Event::NothingThere) => {
                (S::Undoing, vec![Dismiss, Sweep])
            }
            (S::Opening | S::Retrying, Event::Resumed) => (S::In, vec![Publish]),
            (S::Opening | S::Retrying, Event::ResumeFailed) => (S::Unusable, vec![Wait]),
            (S::Opening | S::Retrying, Event::FoundLocked) => (S::Locked, vec![]),
            (S::Unlocking, Event::Resumed) => (S::In, vec![Publish, done]),
            (S::Unlocking, Event::FoundLocked) => (S::Locked, vec![failed]),
            (S::Unlocking, Event::ResumeFailed) => (S::Unusable, vec![failed, Wait]),
            (S::Unusable, Event::Retry) => (S::Retrying, vec![Resume]),
            (S::Entering, Event::Entered) => (S::In, vec![Publish, done]),
            (S::Entering, Event::EnterFailed) => (S::Undoing, vec![Sweep]),
            (S::Undoing, Event::Swept) => (S::Out(Leftovers::None), vec![failed]),
            (S::Undoing, Event::SweepFailed) => (S::Out(Leftovers::Owed), vec![failed, Wait]),
            (S::Recovering, Event::Recovered) => (S::In, vec![Publish, done]),
            (S::Recovering, Event::RecoverFailed) => (S::Unusable, vec![failed, Wait]),
            (S::Leaving(F::Resigning), Event::Resigned) => {
                (S::Leaving(F::Forgetting(Before::In)), vec![Forget])
            }
            (S::Leaving(F::Forgetting(_)), Event::Forgotten) => {
                (S::Leaving(F::Telling), vec![Tell])
            }
            (S::Leaving(F::Forgetting(Before::In)), Event::ForgetFailed) => (S::In, vec![failed]),
            (S::Leaving(F::Forgetting(Before::Unusable)), Event::ForgetFailed) => {
                (S::Unusable, vec![failed, Wait])
            }
            (S::Leaving(F::Forgetting(Before::Locked)), Event::ForgetFailed) => {
                (S::Locked, vec![failed])
            }
            (S::Leaving(F::Telling), Event::Told) => {
                (S::Leaving(F::Draining), vec![Dismiss, Drain])
            }
            (S::Leaving(F::Draining), Event::Drained) => {
                (S::Leaving(F::ClosingManager), vec![CloseManager])
            }
            (S::Leaving(F::ClosingManager), Event::ManagerClosed) => {
                (S::Leaving(F::Sweeping), vec![Sweep])
            }
            (S::Leaving(F::Sweeping), Event::Swept) => (S::Out(Leftovers::None), vec![done]),
            // It is out: its record is gone. The rest is owed.
            (S::Leaving(F::Sweeping), Event::SweepFailed) => {
                (S::Out(Leftovers::Owed), vec![done, Wait])
            }
            (S::Out(Leftovers::Owed), Event::Retry) => (S::Out(Leftovers::Sweeping), vec![Sweep]),
            (S::Out(Leftovers::Sweeping), Event::Swept) => (S::Out(Leftovers::None), vec![]),
            (S::Out(Leftovers::Sweeping), Event::SweepFailed) => {
                (S::Out(Leftovers::Owed), vec![Wait])
            }
            (S::Closing, Event::ManagerClosed) => (S::Closed, vec![]),
            (stage, _) => (stage, vec![]),
        }
    }

    /// Closes what has settled, if the daemon stops.
    fn settle(self, mut effects: Vec<Effect>) -> (Self, Vec<Effect>) {
        let closes = matches!(self.after, After::Close) && self.stage != Stage::Closed;
        if !closes || !self.is_settled() {
            return (self, effects);
        }
        effects.retain(|effect| *effect != Effect::Wait);
        effects.push(Effect::CloseManager);
        (Self { stage: Stage::Closing, ..self }, effects)
    }
}
