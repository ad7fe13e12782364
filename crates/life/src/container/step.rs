//! One event in a container's life, and what follows from it.

use std::time::Duration;

use shoal_model::time::Timestamp;

use super::policy::{self, AtEnd, Outcome, Past, Policy, Rules, RunResult};
use super::{
    After, Ask, Command, Daemon, Effect, Event, Found, Halt, Holding, Hope, Intent, KILL, News,
    Paper, Process, Retry, Stage, StartStep, Starter, State, Stopper, Volumes, Work,
};

/// How long a killed process may take to end before its whole container is taken down by force. The
/// kernel takes milliseconds, unless one of its processes sits in a device's driver.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a process whose first signal could not be sent may go on, as Docker's.
const UNASKED_PATIENCE: Duration = Duration::from_secs(2);

/// From so many attempts by force on, those who wait are told that it does not end: the pauses
/// between them sum up to half a minute.
const NOT_ENDING: u32 = 7;

/// Takes one event.
#[must_use]
pub fn step(state: State, rules: Rules, now: Timestamp, event: Event) -> (State, Vec<Effect>) {
    let mut turn = Turn { state, rules, now, effects: Vec::new() };
    turn.take(event);
    turn.advance();
    (turn.state, turn.effects)
}

struct Turn {
    state: State,
    rules: Rules,
    now: Timestamp,
    effects: Vec<Effect>,
}

impl Turn {
    fn take(&mut self, event: Event) {
        match event {
            Event::Command(command) => {
                if self.state.refusal(command).is_none() {
                    self.command(command);
                }
            }
            Event::Done(work) if self.state.doing == Some(work) => {
                self.state.doing = None;
                self.done(work);
            }
            Event::Failed(work, hope) if self.state.doing == Some(work) => {
                self.state.doing = None;
                self.failed(work, hope);
            }
            // The answer to something that is no longer asked.
            Event::Done(_) | Event::Failed(..) => {}
            Event::Signalled | Event::Thawed => self.set_process(Process::Alive),
            Event::Frozen => self.set_process(Process::Frozen),
            Event::NotSignalled => self.not_signalled(),
            Event::NotCrushed => {}
            Event::Ended(outcome) => {
                if self.state.process().is_some() {
                    self.ended(outcome);
                }
            }
            Event::Changed => self.changed(),
            Event::TurnAsked => self.state.lessees = self.state.lessees.saturating_add(1),
            Event::Tick => self.tick(),
            Event::Found(found) => self.found(found),
            Event::Resumed(past) => self.resumed(past),
            Event::Stopping => self.state.daemon = Daemon::Stopping,
        }
    }

    fn tell(&mut self, news: News) {
        self.effects.push(Effect::Tell(news));
    }

    fn begin(&mut self, work: Work) {
        self.state.doing = Some(work);
        self.effects.push(Effect::Begin(work));
    }

    fn changed(&mut self) {
        // What is owed is not tried earlier because there is more of it.
        if !matches!(self.state.paper, Paper::Owed(_)) {
            self.state.paper = Paper::Changed;
        }
    }

    /// Nobody wants it to run any more.
    fn rest(&mut self) {
        self.state.intent = match (self.state.intent, self.rules.at_end) {
            (Intent::Remove(volumes), _) => Intent::Remove(volumes),
            (_, AtEnd::Remove) => Intent::Remove(Volumes::Remove),
            (_, AtEnd::Keep) => Intent::Rest,
        };
    }

    fn set_process(&mut self, process: Process) {
        if self.state.process().is_some_and(|now| now != process) {
            self.state.stage = Stage::Running(process);
            self.changed();
            self.tell(News::Changed);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Start => self.start(),
            Command::Restart(ask) => {
                if self.state.process().is_some() {
                    self.state.intent = Intent::Bounce;
                    self.state.stopper = Stopper::User;
                    self.halt(ask);
                } else {
                    self.start();
                }
            }
            Command::Stop(ask, stopper) => {
                // The daemon's own stop is not what a user wanted, nor what one takes back.
                if stopper == Stopper::User || self.state.stopper == Stopper::Nobody {
                    self.state.stopper = stopper;
                }
                self.stop(ask, stopper);
            }
            Command::Disown => {
                self.state.stopper = Stopper::User;
                match self.state.stage {
                    Stage::Running(_) if self.state.intent == Intent::Run => {
                        self.state.intent = Intent::Rest;
                        self.changed();
                    }
                    Stage::Running(_) => {}
                    _ => self.stop(Ask::KILL, Stopper::User),
                }
            }
            Command::Remove(volumes, _) => self.remove(volumes),
        }
    }

    fn start(&mut self) {
        self.state.stopper = Stopper::Nobody;
        self.state.starter = Starter::User;
        self.state.restarts = 0;
        self.state.quick_ends = 0;
        self.state.halt = Halt::No;
        self.state.intent = Intent::Run;
    }

    fn stop(&mut self, ask: Ask, stopper: Stopper) {
        match self.state.stage {
            Stage::Running(_) => {
                if !matches!(self.state.intent, Intent::Remove(_)) {
                    self.state.intent = Intent::Rest;
                }
                self.halt(ask);
            }
            Stage::Start(_) => {
                if !matches!(self.state.intent, Intent::Remove(_)) {
                    self.state.intent = Intent::Rest;
                }
                self.state.halt = Halt::Wanted(ask);
            }
            // The next daemon goes on with what was planned.
            _ if stopper == Stopper::Daemon => self.tell(News::RestartDropped),
            _ => {
                self.rest();
                self.changed();
                self.tell(News::RestartDropped);
            }
        }
    }

    fn remove(&mut self, volumes: Volumes) {
        let before = std::mem::replace(&mut self.state.intent, Intent::Remove(volumes));
        if before == Intent::Remove(Volumes::Remove) {
            self.state.intent = before;
        }
        match self.state.stage {
            Stage::Running(_) => {
                self.state.stopper = Stopper::User;
                self.halt(Ask::KILL);
            }
            Stage::Start(_) => self.state.halt = Halt::Wanted(Ask::KILL),
            Stage::Dead(retry) => self.begin_removal(retry),
            _ => {}
        }
    }

    /// Asks the process to end. A kill that is under way is not taken back, nor put off.
    fn halt(&mut self, ask: Ask) {
        self.changed();
        if matches!(self.state.halt, Halt::Killing(_)) {
            return;
        }
        if ask.signal == KILL {
            return self.kill();
        }
        let until = ask.grace.map(|grace| self.now.plus(grace));
        self.state.halt = match self.state.halt {
            Halt::Grace(Some(before)) => Halt::Grace(Some(until.map_or(before, |t| t.min(before)))),
            _ => Halt::Grace(until),
        };
        self.effects.push(Effect::Signal(ask.signal));
    }

    fn kill(&mut self) {
        let at = self.now.plus(KILL_PATIENCE);
        self.state.halt = Halt::Killing(Retry { failures: 0, at });
        self.effects.push(Effect::Signal(KILL));
    }

    fn crush(&mut self, retry: Retry) {
        let retry = retry.next(self.now);
        self.state.halt = Halt::Killing(retry);
        self.effects.push(Effect::Crush);
        if retry.failures >= NOT_ENDING {
            self.tell(News::NotEnding);
        }
    }

    fn not_signalled(&mut self) {
        if self.state.process().is_none() {
            return;
        }
        match self.state.halt {
            Halt::Grace(until) => {
                let soon = self.now.plus(UNASKED_PATIENCE);
                self.state.halt = Halt::Grace(Some(until.map_or(soon, |until| until.min(soon))));
            }
            Halt::Killing(retry) => self.crush(retry),
            Halt::No | Halt::Wanted(_) => {}
        }
    }

    fn tick(&mut self) {
        if self.state.process().is_none() {
            return;
        }
        match self.state.halt {
            Halt::Grace(Some(at)) if at <= self.now => self.kill(),
            Halt::Killing(retry) if retry.at <= self.now => self.crush(retry),
            _ => {}
        }
    }

    fn started(&mut self) {
        self.state.stage = Stage::Running(Process::Alive);
        self.changed();
        self.tell(News::Started);
        match (self.state.halt, self.state.intent) {
            (Halt::Wanted(ask), _) => {
                self.state.halt = Halt::No;
                self.halt(ask);
            }
            (_, Intent::Run) => {}
            _ => self.halt(Ask::KILL),
        }
    }

    fn ended(&mut self, outcome: Outcome) {
        policy::count(&mut self.state, outcome);
        self.state.halt = Halt::No;
        self.state.stage = Stage::Clean(After::End);
        self.tell(News::Ended);
        self.changed();
        match self.state.intent {
            Intent::Run => self.decide(outcome.result),
            Intent::Rest => self.rest(),
            Intent::Bounce | Intent::Again(_) | Intent::Remove(_) => {}
        }
    }

    fn decide(&mut self, result: RunResult) {
        match policy::restart_at(&self.state, self.rules.policy, result, self.now) {
            Some(at) => self.state.intent = Intent::Again(at),
            None => self.rest(),
        }
    }

    fn done(&mut self, work: Work) {
        let (stage, holding) = match work {
            Work::Save => {
                if matches!(self.state.paper, Paper::Writing(_)) {
                    self.state.paper = Paper::Saved;
                }
                if self.state.stage == Stage::Start(StartStep::Record) {
                    self.state.stage = Stage::Start(StartStep::Launch);
                }
                return;
            }
            Work::Attach => (Some(Stage::Start(StartStep::Record)), None),
            Work::Launch => (Some(Stage::Start(StartStep::Run)), None),
            Work::Run => return self.started(),
            Work::DeleteShim => (None, Some(&mut self.state.shim)),
            Work::DropFiles => (None, Some(&mut self.state.files)),
            Work::ReleaseNetwork => (None, Some(&mut self.state.network)),
            Work::DeleteDirectory => {
                self.state.stage = Stage::Gone;
                // There is nothing left to write it to.
                self.state.paper = Paper::Saved;
                return self.tell(News::Gone);
            }
            Work::Lend => return,
        };
        if let Some(holding) = holding {
            *holding = Holding::Free;
        }
        if let Some(stage) = stage {
            self.state.stage = stage;
        }
        self.changed();
    }

    fn failed(&mut self, work: Work, hope: Hope) {
        let now = self.now;
        let owe = |holding: &mut Holding| {
            *holding = match *holding {
                Holding::Owed(retry) => Holding::Owed(retry.next(now)),
                Holding::Free | Holding::Held => Holding::Owed(Retry::first(now)),
            };
        };
        match work {
            Work::Save => {
                let before = match self.state.paper {
                    Paper::Writing(retry) | Paper::Owed(retry) => retry,
                    Paper::Saved | Paper::Changed => Retry::default(),
                };
                self.state.paper = Paper::Owed(before.next(now));
                if self.state.stage == Stage::Start(StartStep::Record) {
                    self.state.stage = Stage::Clean(After::FailedStart(hope));
                }
            }
            Work::Attach | Work::Launch | Work::Run => {
                self.state.stage = Stage::Clean(After::FailedStart(hope));
            }
            Work::DeleteShim => owe(&mut self.state.shim),
            Work::DropFiles => owe(&mut self.state.files),
            Work::ReleaseNetwork => owe(&mut self.state.network),
            Work::DeleteDirectory => self.removal_failed(),
            Work::Lend => {}
        }
    }

    fn removal_failed(&mut self) {
        let before = match self.state.stage {
            Stage::Remove(retry) | Stage::Dead(retry) => retry,
            _ => Retry::default(),
        };
        self.state.stage = Stage::Dead(before.next(self.now));
        self.changed();
        self.tell(News::RemovalFailed);
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Process(process) => self.found_process(process),
            Found::Unkeepable => {
                self.found_process(Process::Alive);
                self.state.halt = Halt::No;
                self.halt(Ask::KILL);
            }
            Found::Nothing(outcome) => self.found_nothing(outcome),
        }
    }

    fn found_process(&mut self, process: Process) {
        let known = self.state.process().is_some();
        if self.state.process() != Some(process) {
            self.changed();
        }
        self.state.stage = Stage::Running(process);
        self.state.network = Holding::Held;
        self.state.shim = Holding::Held;
        self.state.files = Holding::Held;
        if !known && !matches!(self.state.intent, Intent::Remove(_)) {
            self.state.intent = Intent::Run;
        }
        match (self.state.halt, self.state.intent) {
            // What the daemon before had begun goes on.
            (Halt::Wanted(ask), _) => {
                self.state.halt = Halt::No;
                self.halt(ask);
            }
            (Halt::Killing(_), _) | (Halt::No, Intent::Remove(_)) => self.kill(),
            (Halt::No | Halt::Grace(_), _) => {}
        }
    }

    fn found_nothing(&mut self, outcome: Outcome) {
        self.try_again();
        self.state.stage = match self.state.stage {
            Stage::Running(_) => return self.ended(outcome),
            Stage::Start(_) | Stage::Clean(After::FailedStart(_)) => {
                Stage::Clean(After::FailedStart(Hope::Some))
            }
            Stage::Clean(_) | Stage::Rest => Stage::Clean(After::Recovery),
            Stage::Remove(_) | Stage::Dead(_) => Stage::Remove(Retry::default()),
            Stage::Gone => Stage::Gone,
        };
    }

    fn resumed(&mut self, past: Past) {
        self.state.daemon = Daemon::Ready;
        if self.state.process().is_some() {
            return;
        }
        match (self.state.intent, past) {
            (Intent::Again(_), _) => self.state.intent = Intent::Again(self.now),
            (Intent::Rest, Past::Ran(result)) => {
                // `always` means it: also what a user stopped comes back with the daemon.
                if self.rules.policy == Policy::Always {
                    self.state.stopper = Stopper::Nobody;
                }
                let again = policy::restart_at(&self.state, self.rules.policy, result, self.now);
                if again.is_some() {
                    self.state.intent = Intent::Again(self.now);
                } else {
                    self.rest();
                }
                if self.state.intent != Intent::Rest {
                    self.changed();
                    self.tell(News::Changed);
                }
            }
            _ => {}
        }
    }

    /// What is owed is tried now.
    fn try_again(&mut self) {
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
    fn advance(&mut self) {
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

    fn begin_removal(&mut self, retry: Retry) {
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
