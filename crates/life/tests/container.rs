//! A container's life under all orders of events and failing effects.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use proptest::prelude::*;
use shoal_life::container::policy::{AtEnd, Outcome, Past, Policy, Rules, RunResult};
use shoal_life::container::step::step;
use shoal_life::container::{
    Ask, Command, Daemon, Effect, Event, Force, Found, Halt, Holding, Hope, Intent, KILL, News,
    Paper, Process, Stage, State, Stopper, Volumes, Work,
};
use shoal_model::time::Timestamp;

/// One thing that happens to the container, or a choice of the world around it.
#[derive(Clone, Copy, Debug)]
enum Op {
    Command(Command),
    WorkDone,
    WorkFails(Hope),
    SignalArrives,
    SignalLost,
    CrushDone,
    CrushFails,
    ProcessEnds(RunResult),
    Freeze,
    Thaw,
    Touch,
    Turn,
    Pass(u16),
    Crash,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let ask = prop_oneof![
        Just(Ask::KILL),
        Just(Ask { signal: 15, grace: Some(Duration::from_secs(3)) }),
        Just(Ask { signal: 37, grace: Some(Duration::ZERO) }),
        Just(Ask { signal: 15, grace: None }),
    ];
    let hope = prop_oneof![Just(Hope::Some), Just(Hope::None)];
    let result = prop_oneof![Just(RunResult::Success), Just(RunResult::Failure)];
    let op = prop_oneof![
        3 => Just(Op::Command(Command::Start)),
        2 => ask.clone().prop_map(|ask| Op::Command(Command::Stop(ask, Stopper::User))),
        1 => ask.clone().prop_map(|ask| Op::Command(Command::Stop(ask, Stopper::Daemon))),
        2 => ask.prop_map(|ask| Op::Command(Command::Restart(ask))),
        1 => Just(Op::Command(Command::Disown)),
        1 => Just(Op::Command(Command::Remove(Volumes::Remove, Force::Yes))),
        1 => Just(Op::Command(Command::Remove(Volumes::Keep, Force::No))),
        16 => Just(Op::WorkDone),
        4 => hope.prop_map(Op::WorkFails),
        4 => Just(Op::SignalArrives),
        2 => Just(Op::SignalLost),
        2 => Just(Op::CrushDone),
        2 => Just(Op::CrushFails),
        3 => result.prop_map(Op::ProcessEnds),
        1 => Just(Op::Freeze),
        1 => Just(Op::Thaw),
        1 => Just(Op::Touch),
        1 => Just(Op::Turn),
        4 => (0_u16..20_000).prop_map(Op::Pass),
        1 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 0..120)
}

fn rules() -> impl Strategy<Value = Rules> {
    prop_oneof![
        Just(Rules { policy: Policy::No, at_end: AtEnd::Keep }),
        Just(Rules { policy: Policy::No, at_end: AtEnd::Remove }),
        Just(Rules { policy: Policy::Always, at_end: AtEnd::Keep }),
        Just(Rules { policy: Policy::UnlessStopped, at_end: AtEnd::Keep }),
        Just(Rules { policy: Policy::OnFailure(2), at_end: AtEnd::Keep }),
    ]
}

/// Callers whose answer is outstanding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    starters: u32,
    stoppers: u32,
    removers: u32,
}

/// The container, the disk and the kernel around it.
struct World {
    state: State,
    rules: Rules,
    now: Timestamp,
    disk: State,
    /// What the save that is under way will put on the disk.
    writing: Option<State>,
    work: Option<Work>,
    signals: Vec<i32>,
    crushes: u32,
    process: Option<Process>,
    shim: bool,
    network: bool,
    files: bool,
    directory: bool,
    waiting: Waiting,
    ran: Option<RunResult>,
}

fn durable(state: &State) -> State {
    State { paper: Paper::Saved, doing: None, daemon: Daemon::Opening, lessees: 0, ..state.clone() }
}

impl World {
    fn new(rules: Rules) -> Self {
        let state = State::created(Daemon::Ready);
        Self {
            disk: durable(&state),
            state,
            rules,
            now: Timestamp::from_secs(1_000),
            writing: None,
            work: None,
            signals: Vec::new(),
            crushes: 0,
            process: None,
            shim: false,
            network: false,
            files: false,
            directory: true,
            waiting: Waiting::default(),
            ran: None,
        }
    }

    fn give(&mut self, event: Event) -> Vec<Effect> {
        let (next, effects) = step(self.state.clone(), self.rules, self.now, event);
        self.state = next;
        for effect in &effects {
            match *effect {
                Effect::Begin(work) => {
                    assert_eq!(self.work, None, "two pieces of work at a time: {event:?}");
                    assert_ne!(self.state.stage, Stage::Gone);
                    if matches!(work, Work::Launch | Work::Run) {
                        let recorded = (self.disk.shim, self.disk.network);
                        assert_eq!(recorded, (Holding::Held, Holding::Held), "unrecorded");
                    }
                    if work == Work::Save {
                        self.writing = Some(durable(&self.state));
                    }
                    self.work = Some(work);
                }
                Effect::Signal(number) => self.signals.push(number),
                Effect::Crush => self.crushes += 1,
                Effect::Tell(news) => self.hear(news),
            }
        }
        self.check(event);
        effects
    }

    fn hear(&mut self, news: News) {
        let waiting = &mut self.waiting;
        match news {
            News::Started => {
                waiting.starters = 0;
                if self.state.halt == Halt::No {
                    waiting.stoppers = 0;
                }
            }
            News::StartFailed | News::RestartDropped => {
                (waiting.starters, waiting.stoppers) = (0, 0);
            }
            News::Settled => {
                waiting.stoppers = 0;
                if !matches!(self.state.intent, Intent::Bounce | Intent::Run) {
                    waiting.starters = 0;
                }
            }
            News::NotEnding | News::RemovalFailed | News::Gone => *waiting = Waiting::default(),
            News::Ended | News::Changed => {}
        }
    }

    fn check(&self, event: Event) {
        if self.process.is_some() {
            assert_ne!(self.state.shim, Holding::Free, "runs unknown after {event:?}");
            assert_ne!(self.disk.shim, Holding::Free, "runs unrecorded after {event:?}");
        }
        if self.shim || self.network {
            let known = [self.state.shim, self.state.network];
            assert!(!self.shim || known[0] != Holding::Free, "a shim is forgotten");
            assert!(!self.network || known[1] != Holding::Free, "a network is forgotten");
        }
        assert_eq!(self.state.doing, self.work);
        if event == Event::Tick {
            let late = self.state.wake().is_some_and(|at| at <= self.now);
            assert!(!late, "ticks without end: {:?}", self.state);
        }
    }

    fn command(&mut self, command: Command) {
        if self.state.refusal(command).is_some() {
            return;
        }
        match command {
            Command::Start | Command::Restart(_) => self.waiting.starters += 1,
            Command::Stop(..) => self.waiting.stoppers += 1,
            Command::Remove(..) => self.waiting.removers += 1,
            Command::Disown => {}
        }
        let running = self.state.process().is_some();
        let killing = matches!(self.state.halt, Halt::Killing(_));
        let effects = self.give(Event::Command(command));
        let kill = matches!(
            command,
            Command::Stop(Ask { signal: KILL, .. }, _)
                | Command::Restart(Ask { signal: KILL, .. })
                | Command::Remove(..)
        );
        if kill && running && !killing {
            assert!(effects.contains(&Effect::Signal(KILL)), "the kill waits");
        }
        if running && !matches!(command, Command::Start | Command::Disown) {
            assert_ne!(self.state.halt, Halt::No, "a demanded end is forgotten");
        }
    }

    fn finish(&mut self, fails: Option<Hope>) {
        let Some(work) = self.work.take() else { return };
        match work {
            Work::Save => {
                let written = self.writing.take().unwrap();
                if fails.is_none() {
                    self.disk = written;
                }
            }
            // What fails may have been done halfway.
            Work::Attach => self.network = true,
            Work::Launch => (self.shim, self.files) = (true, true),
            Work::Run => self.process = Some(Process::Alive),
            Work::DeleteShim if fails.is_none() => (self.shim, self.process) = (false, None),
            Work::DropFiles if fails.is_none() => self.files = false,
            Work::ReleaseNetwork if fails.is_none() => self.network = false,
            Work::DeleteDirectory if fails.is_none() => self.directory = false,
            _ => {}
        }
        match fails {
            None => self.give(Event::Done(work)),
            Some(hope) => self.give(Event::Failed(work, hope)),
        };
    }

    fn process_ends(&mut self, result: RunResult) {
        // Before the machine knows of it, nobody watches it.
        if self.process.is_none() || self.state.process().is_none() {
            return;
        }
        self.process = None;
        self.ran = Some(result);
        self.give(Event::Ended(Outcome { result, lasted: Duration::from_secs(1) }));
    }

    fn signal(&mut self, arrives: bool) {
        let Some(number) = self.signals.pop() else { return };
        if !arrives {
            self.give(Event::NotSignalled);
            return;
        }
        self.process = self.process.map(|_| Process::Alive);
        self.give(Event::Signalled);
        if number == KILL {
            self.process_ends(RunResult::Failure);
        }
    }

    fn crush(&mut self, works: bool) {
        if self.crushes == 0 {
            return;
        }
        self.crushes -= 1;
        if works {
            self.process_ends(RunResult::Failure);
        } else {
            self.give(Event::NotCrushed);
        }
    }

    /// The daemon dies, and another one starts.
    fn crash(&mut self) {
        if !self.directory {
            return;
        }
        self.state = self.disk.clone();
        self.writing = None;
        self.work = None;
        self.signals.clear();
        self.crushes = 0;
        self.waiting = Waiting::default();
        if self.shim && self.state.shim == Holding::Free {
            self.state.shim = Holding::Held;
        }
        if self.network && self.state.network == Holding::Free {
            // Made, and the record of it was lost: the network side finds it by itself.
            self.network = false;
        }
        let lost = Outcome { result: RunResult::Failure, lasted: Duration::ZERO };
        let found = self.process.map_or(Found::Nothing(lost), Found::Process);
        self.give(Event::Found(found));
        self.give(Event::Resumed(self.ran.map_or(Past::Fresh, Past::Ran)));
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Command(command) => self.command(command),
            Op::WorkDone => self.finish(None),
            Op::WorkFails(hope) => self.finish(Some(hope)),
            Op::SignalArrives => self.signal(true),
            Op::SignalLost => self.signal(false),
            Op::CrushDone => self.crush(true),
            Op::CrushFails => self.crush(false),
            Op::ProcessEnds(result) => self.process_ends(result),
            Op::Freeze if self.state.process().is_some() && self.process.is_some() => {
                self.process = Some(Process::Frozen);
                self.give(Event::Frozen);
            }
            Op::Thaw if self.state.process().is_some() && self.process.is_some() => {
                self.process = Some(Process::Alive);
                self.give(Event::Thawed);
            }
            Op::Freeze | Op::Thaw => {}
            Op::Touch => drop(self.give(Event::Changed)),
            Op::Turn => drop(self.give(Event::TurnAsked)),
            Op::Pass(millis) => {
                self.now = self.now.plus(Duration::from_millis(u64::from(millis)));
                self.give(Event::Tick);
            }
            Op::Crash => self.crash(),
        }
    }

    /// From here on everything works; gives up if the life does not come to rest.
    fn settle(&mut self) {
        for _ in 0..400 {
            if self.work.is_some() {
                self.finish(None);
            } else if !self.signals.is_empty() {
                self.signal(true);
            } else if self.crushes > 0 {
                self.crush(true);
            } else if self.state.halt != Halt::No && self.process.is_some() {
                self.process_ends(RunResult::Success);
            } else if let Some(at) = self.state.wake() {
                self.now = self.now.max(at);
                self.give(Event::Tick);
            } else {
                return self.check_settled();
            }
        }
        panic!("no rest: {:?}", self.state);
    }

    fn check_settled(&self) {
        let state = &self.state;
        assert_eq!(self.waiting, Waiting::default(), "somebody waits for ever: {state:?}");
        assert_eq!(state.process(), self.process, "{state:?}");
        match state.stage {
            Stage::Gone => {
                assert!(!self.directory);
            }
            Stage::Rest => {
                assert_eq!(state.owed(), []);
                assert_eq!([state.shim, state.network, state.files], [Holding::Free; 3]);
                assert_eq!(state.intent, Intent::Rest);
            }
            // A user's own stop signal may be ignored by the program.
            Stage::Running(_) if state.stopper == Stopper::User => {}
            Stage::Running(_) => assert_eq!(state.intent, Intent::Run),
            other => panic!("rests in {other:?}"),
        }
        if state.stage != Stage::Gone {
            assert_eq!(state.lessees, 0, "a turn is never given");
        }
        if state.stage == Stage::Gone || state.process().is_none() {
            assert!(!self.shim && !self.network && !self.files, "something stays");
        }
        if state.stage != Stage::Gone {
            assert_eq!(durable(state), self.disk, "what is recorded is not so");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default() })]

    #[test]
    fn every_life_goes_on_and_its_record_is_true(rules in rules(), ops in ops()) {
        let mut world = World::new(rules);
        for op in ops {
            if world.state.stage == Stage::Gone {
                break;
            }
            world.apply(op);
        }
        world.settle();
        if world.state.stage != Stage::Gone {
            // From wherever it came to rest, it can be started, and removed.
            world.command(Command::Start);
            world.settle();
            world.command(Command::Remove(Volumes::Keep, Force::Yes));
            world.settle();
        }
        prop_assert_eq!(world.state.stage, Stage::Gone);
    }

    #[test]
    fn a_kill_is_sent_although_nothing_can_be_written(ops in ops()) {
        let mut world = World::new(Rules::default());
        world.command(Command::Start);
        world.settle();
        for op in ops {
            if matches!(world.work, Some(Work::Save)) {
                world.finish(Some(Hope::Some));
            }
            if matches!(op, Op::Command(_) | Op::Pass(_) | Op::Touch | Op::SignalLost) {
                world.apply(op);
            }
        }
        if world.state.process().is_some() {
            let before = world.signals.len();
            let killing = matches!(world.state.halt, Halt::Killing(_));
            world.command(Command::Stop(Ask::KILL, Stopper::User));
            prop_assert!(killing || world.signals[before..].contains(&KILL));
            // And when it does not arrive, harder means follow.
            while !world.signals.is_empty() {
                world.signal(false);
            }
            prop_assert!(world.crushes > 0);
        }
    }
}

#[test]
fn a_grace_ends_although_its_first_signal_was_refused() {
    let mut world = World::new(Rules::default());
    world.command(Command::Start);
    world.settle();
    let ask = Ask { signal: 37, grace: Some(Duration::from_secs(60)) };
    world.command(Command::Stop(ask, Stopper::User));
    assert_eq!(world.signals, [37]);
    world.signal(false);
    world.apply(Op::Pass(2_000));
    assert_eq!(world.signals, [KILL]);
}

#[test]
fn a_policy_outlives_failed_writes_and_starts_when_there_is_space_again() {
    let mut world = World::new(Rules { policy: Policy::Always, at_end: AtEnd::Keep });
    world.command(Command::Start);
    world.settle();
    world.process_ends(RunResult::Failure);
    for _ in 0..2_000 {
        let failed = (world.work == Some(Work::Save)).then_some(Hope::Some);
        if world.work.is_some() {
            world.finish(failed);
        } else {
            world.apply(Op::Pass(1_000));
        }
    }
    assert!(world.state.process().is_none());
    world.settle();
    assert!(world.state.process().is_some(), "{:?}", world.state);
}
