//! One event in a container's life; what is done next, `advance` finds in the state.

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
    let mut stepper = Stepper { state, rules, now, effects: Vec::new() };
    stepper.take(event);
    stepper.advance();
    (stepper.state, stepper.effects)
}

/// A step that is being taken.
pub(super) struct Stepper {
    pub state: State,
    pub rules: Rules,
    pub now: Timestamp,
    pub effects: Vec<Effect>,
}

impl Stepper {
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

    pub(super) fn tell(&mut self, news: News) {
        self.effects.push(Effect::Tell(news));
    }

    pub(super) fn begin(&mut self, work: Work) {
        self.state.doing = Some(work);
        self.effects.push(Effect::Begin(work));
    }

    pub(super) fn changed(&mut self) {
        // What is owed is not tried earlier because there is more of it.
        if !matches!(self.state.paper, Paper::Owed(_)) {
            self.state.paper = Paper::Changed;
        }
    }

    /// Nobody wants it to run any more.
    pub(super) fn rest(&mut self) {
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

    pub(super) fn decide(&mut self, result: RunResult) {
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

    pub(super) fn removal_failed(&mut self) {
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
}
