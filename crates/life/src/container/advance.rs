//! What is done next with a container: found in its state alone, whatever way led there.

use super::policy::RunResult;
use super::step::Stepper;
use super::{
    After, Daemon, Halt, Holding, Hope, Intent, News, Paper, Retry, Stage, StartStep, Starter,
    Stopper, Work,
};

impl Stepper {
    /// What is owed is tried now.
    pub(super) fn try_again(&mut self) {
        for holding in [&mut self.state.shim, &mut self.state.files, &mut self.state.network] {
            if matches!(holding, Holding::Owed(_)) {
                *holding = Holding::Held;
            }
        }
        if matches!(self.state.paper, Paper::Owed(_)) {
            self.state.paper = Paper::Changed;
        }
    }

    /// Begins the next piece of work, if none is under way.
    pub(super) fn advance(&mut self) {
        // Each pass begins work, or comes to a later stage of the same life; no chain of stages
        // without work between them is longer than these.
        for _ in 0..8 {
            if self.state.doing.is_some() {
                return;
            }
            let before = self.state.clone();
            match self.state.stage {
                Stage::Gone => return,
                Stage::Running(_) => {
                    if !self.save_if_due() {
                        self.lend();
                    }
                }
                Stage::Start(step) => self.advance_start(step),
                Stage::Clean(after) => self.advance_clean(after),
                Stage::Remove(_) => self.advance_removal(),
                Stage::Dead(retry) if retry.at <= self.now => self.begin_removal(retry),
                Stage::Dead(_) => {
                    if !self.save_if_due() {
                        self.lend();
                    }
                }
                Stage::Rest => self.advance_rest(),
            }
            if self.state == before {
                return;
            }
        }
    }

    fn advance_rest(&mut self) {
        let removing = matches!(self.state.intent, Intent::Remove(_));
        // What is about to go is not written down once more.
        if !removing && (self.save_if_due() || self.give_back(When::Due)) {
            return;
        }
        let ready = self.state.daemon == Daemon::Ready;
        match self.state.intent {
            Intent::Remove(_) => self.begin_removal(Retry::default()),
            Intent::Run if self.state.daemon != Daemon::Stopping => self.begin_start(Starter::User),
            Intent::Run => self.start_failed(Hope::None),
            Intent::Bounce if ready => self.begin_start(Starter::User),
            Intent::Again(at) if ready && at <= self.now => self.begin_start(Starter::Policy),
            Intent::Bounce | Intent::Again(_) | Intent::Rest => self.lend(),
        }
    }

    fn begin_start(&mut self, starter: Starter) {
        self.state.starter = starter;
        if starter == Starter::Policy {
            self.state.restarts = self.state.restarts.saturating_add(1);
        }
        self.state.intent = Intent::Run;
        self.state.stopper = Stopper::Nobody;
        self.state.halt = Halt::No;
        self.state.stage = Stage::Start(StartStep::Clear);
        self.try_again();
    }

    fn advance_start(&mut self, step: StartStep) {
        if self.state.intent != Intent::Run || self.state.daemon == Daemon::Stopping {
            self.state.stage = Stage::Clean(After::FailedStart(Hope::Some));
            return;
        }
        match step {
            StartStep::Clear => {
                let free = |holding| holding == Holding::Free;
                let holdings = [self.state.shim, self.state.files, self.state.network];
                if holdings.into_iter().all(free) {
                    self.state.stage = Stage::Start(StartStep::Attach);
                } else if !self.save_if_due() && !self.give_back(When::Untried) {
                    self.state.stage = Stage::Clean(After::FailedStart(Hope::Some));
                }
            }
            StartStep::Attach => {
                self.state.network = Holding::Held;
                self.begin(Work::Attach);
            }
            StartStep::Record => {
                // Written down before they exist: a daemon that starts looks for them.
                self.state.shim = Holding::Held;
                self.state.files = Holding::Held;
                self.save();
            }
            StartStep::Launch => self.begin(Work::Launch),
            StartStep::Run => self.begin(Work::Run),
        }
    }

    fn advance_clean(&mut self, after: After) {
        let end = !matches!(
            (after, self.state.intent),
            (After::FailedStart(_), _) | (_, Intent::Remove(_))
        );
        if end && self.state.paper == Paper::Changed && self.state.shim != Holding::Free {
            // How it ended is written down before its shim forgets it.
            return self.save();
        }
        if self.give_back(When::Untried) {
            return;
        }
        self.state.stage = Stage::Rest;
        match after {
            After::End => self.tell(News::Settled),
            After::FailedStart(hope) => self.start_failed(hope),
            After::Recovery => {}
        }
    }

    fn start_failed(&mut self, hope: Hope) {
        self.state.halt = Halt::No;
        self.changed();
        match (self.state.intent, self.state.starter) {
            (Intent::Run, Starter::Policy) => {
                self.state.quick_ends = self.state.quick_ends.saturating_add(1);
                match hope {
                    Hope::Some => self.decide(RunResult::Failure),
                    Hope::None => self.rest(),
                }
            }
            _ => self.rest(),
        }
        self.tell(News::StartFailed);
    }

    pub(super) fn begin_removal(&mut self, retry: Retry) {
        self.state.stage = Stage::Remove(retry);
        self.try_again();
        self.tell(News::Changed);
    }

    fn advance_removal(&mut self) {
        if self.give_back(When::Untried) {
            return;
        }
        let free = |holding| holding == Holding::Free;
        if [self.state.shim, self.state.files, self.state.network].into_iter().all(free) {
            self.begin(Work::DeleteDirectory);
        } else {
            self.removal_failed();
        }
    }

    fn save(&mut self) {
        let before = match self.state.paper {
            Paper::Owed(retry) => retry,
            _ => Retry::default(),
        };
        self.state.paper = Paper::Writing(before);
        self.begin(Work::Save);
    }

    fn save_if_due(&mut self) -> bool {
        let due = match self.state.paper {
            Paper::Changed => true,
            Paper::Owed(retry) => retry.at <= self.now,
            Paper::Saved | Paper::Writing(_) => false,
        };
        if due {
            self.save();
        }
        due
    }

    /// Begins to give back the first thing whose turn it is; says whether there was one.
    fn give_back(&mut self, when: When) -> bool {
        let now = self.now;
        let turn = |holding: Holding| match (holding, when) {
            (Holding::Free, _) | (Holding::Owed(_), When::Untried) => false,
            (Holding::Held, _) => true,
            (Holding::Owed(retry), When::Due) => retry.at <= now,
        };
        if turn(self.state.shim) {
            match self.unwritten() {
                None => {
                    self.begin(Work::DeleteShim);
                    return true;
                }
                // Its shim still knows how it ended; the record does not.
                Some(retry) => self.state.shim = Holding::Owed(retry),
            }
        }
        if turn(self.state.files) {
            self.begin(Work::DropFiles);
            return true;
        }
        if turn(self.state.network) {
            self.begin(Work::ReleaseNetwork);
            return true;
        }
        false
    }

    /// When the record is written again, if its shim has to wait for that.
    fn unwritten(&self) -> Option<Retry> {
        let matters = !matches!(
            (self.state.stage, self.state.intent),
            (Stage::Clean(After::FailedStart(_)), _) | (_, Intent::Remove(_))
        );
        match self.state.paper {
            Paper::Owed(retry) if matters => Some(retry),
            _ => None,
        }
    }

    fn lend(&mut self) {
        if self.state.lessees > 0 {
            self.state.lessees -= 1;
            self.begin(Work::Lend);
        }
    }
}

/// Which things are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Those that were not tried yet.
    Untried,
    /// Those whose turn it is.
    Due,
}
