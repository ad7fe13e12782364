//! A task under every order of wishes, outcomes and things that happen to its container.

#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use shoal_life::task::{
    Effect, EndedBy, Event, Exit, Failure, Health, Report, Seen, Stage, Task, Wish,
};
use shoal_model::task_state::TaskState;

#[derive(Clone, Copy, Debug)]
enum Dice {
    Succeed,
    Fail,
    /// A start that fails although its process runs, a stop that says it worked although it runs.
    Lie,
    Want(Wish),
    Exit(i64),
    Health(Health),
    RemoveByHand,
    StartByHand,
    DaemonStops,
    /// The daemon is killed and starts again: only the container and what managers know are left.
    Crash,
}

fn dice() -> impl Strategy<Value = Dice> {
    let wish = prop_oneof![Just(Wish::Run), Just(Wish::Stop), Just(Wish::Gone)];
    let health = prop_oneof![Just(Health::Unknown), Just(Health::Well), Just(Health::Ill)];
    prop_oneof![
        12 => Just(Dice::Succeed),
        3 => Just(Dice::Fail),
        2 => Just(Dice::Lie),
        2 => wish.prop_map(Dice::Want),
        2 => (0..2_i64).prop_map(Dice::Exit),
        2 => health.prop_map(Dice::Health),
        1 => Just(Dice::RemoveByHand),
        1 => Just(Dice::StartByHand),
        1 => Just(Dice::DaemonStops),
        1 => Just(Dice::Crash),
    ]
}

#[derive(Debug)]
struct World {
    life: Task,
    under_way: Option<Effect>,
    container: Seen,
    told: TaskState,
    wish: Wish,
}

impl World {
    fn start(wish: Wish) -> Self {
        let (life, effects) = Task::begin(wish, TaskState::Assigned);
        let mut world = Self {
            life,
            under_way: None,
            container: Seen::Missing,
            told: TaskState::Assigned,
            wish,
        };
        world.carry_out(effects);
        world
    }

    fn crash(&mut self) {
        let (life, effects) = Task::begin(self.wish, self.told);
        self.life = life;
        self.under_way = None;
        self.carry_out(effects);
    }

    fn give(&mut self, event: Event) {
        let (life, effects) = self.life.clone().step(event);
        self.life = life;
        self.carry_out(effects);
        self.check();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Report(report) => self.told(&report),
                Effect::Forget => {}
                Effect::Abandon => {
                    let stays = matches!(
                        self.under_way,
                        Some(Effect::Create | Effect::Start | Effect::Stop | Effect::Remove)
                    ) && !matches!(self.life.stage(), Stage::Frozen);
                    assert!(!stays, "given up halfway: {self:?}");
                    self.under_way = None;
                }
                later => {
                    assert!(self.under_way.is_none(), "two at a time: {later:?} {self:?}");
                    self.under_way = Some(later);
                }
            }
        }
    }

    fn told(&mut self, report: &Report) {
        assert!(!self.told.is_terminal(), "told after its end: {report:?} {self:?}");
        if report.state.is_terminal() {
            assert!(!matches!(self.container, Seen::Alive(_)), "it may run: {report:?} {self:?}");
            assert!(
                !matches!(self.under_way, Some(Effect::Create | Effect::Start)),
                "it may still come to run: {report:?} {self:?}"
            );
        }
        self.told = self.told.max(report.state);
    }

    fn come_back(&mut self, dice: Dice) {
        let Some(effect) = self.under_way.take() else { return };
        let good = !matches!(dice, Dice::Fail);
        let lie = matches!(dice, Dice::Lie);
        let failure = || Failure { step: "x", text: "no".to_owned() };
        let event = match effect {
            Effect::Look => Event::Found(self.container.clone()),
            Effect::Prepare if good => Event::Prepared,
            Effect::Create if good => {
                assert_eq!(self.container, Seen::Missing, "two containers: {self:?}");
                assert!(self.told < TaskState::Ready, "a second one: {self:?}");
                self.container = Seen::Made;
                Event::Created
            }
            Effect::Gather if good => Event::Gathered,
            Effect::Start => {
                if (good || lie) && matches!(self.container, Seen::Made) {
                    self.container = Seen::Alive(Health::Unchecked);
                }
                if good && !lie { Event::Started } else { Event::Failed(failure()) }
            }
            Effect::Prepare | Effect::Create | Effect::Gather => Event::Failed(failure()),
            Effect::Listen => Event::Listens,
            Effect::HandOver => Event::HandedOver,
            Effect::Stop if good => {
                if !lie && matches!(self.container, Seen::Alive(_)) {
                    self.container = ended(137, EndedBy::Itself);
                }
                Event::Stopped
            }
            Effect::Stop => Event::StopFailed("no".to_owned()),
            Effect::Remove if good => {
                self.container = Seen::Missing;
                Event::Removed
            }
            Effect::Remove => Event::RemoveFailed,
            Effect::Pause(pause) => {
                assert!(!pause.is_zero());
                Event::Retry
            }
            other => panic!("{other:?} takes no time"),
        };
        self.give(event);
    }

    fn happens(&mut self, seen: Seen) {
        self.container = seen.clone();
        self.give(Event::Seen(seen));
    }

    fn throw(&mut self, dice: Dice) {
        let alive = matches!(self.container, Seen::Alive(_));
        match dice {
            Dice::Succeed | Dice::Fail | Dice::Lie => self.come_back(dice),
            Dice::Want(wish) => {
                self.wish = self.wish.max(wish);
                self.give(Event::Wish(wish));
            }
            Dice::Exit(code) if alive => self.happens(ended(code, EndedBy::Itself)),
            Dice::Health(health) if alive => self.happens(Seen::Alive(health)),
            Dice::RemoveByHand if self.container != Seen::Missing => self.happens(Seen::Missing),
            Dice::StartByHand if matches!(self.container, Seen::Made | Seen::Ended(_)) => {
                self.happens(Seen::Alive(Health::Unchecked));
            }
            Dice::DaemonStops => {
                self.give(Event::DaemonStops);
                if alive {
                    self.happens(ended(0, EndedBy::Daemon));
                }
                self.crash();
            }
            Dice::Crash => self.crash(),
            _ => {}
        }
    }

    fn check(&self) {
        let rests = matches!(
            self.life.stage(),
            Stage::Ready
                | Stage::Warming
                | Stage::Serving
                | Stage::Ended
                | Stage::Gone
                | Stage::Frozen
        );
        assert!(rests || self.under_way.is_some(), "a dead end: {self:?}");
    }
}

fn ended(code: i64, by: EndedBy) -> Seen {
    let text = if code == 0 { String::new() } else { format!("task: non-zero exit ({code})") };
    Seen::Ended(Exit { by, code, text })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_order_of_events_wedges_a_task_or_makes_it_lie(
        wish in prop_oneof![Just(Wish::Hold), Just(Wish::Run)],
        steps in proptest::collection::vec(dice(), 0..80),
    ) {
        let mut world = World::start(wish);
        for step in steps {
            world.throw(step);
        }
        // Whatever happened, a task that is not assigned any more goes, container and all.
        world.throw(Dice::Want(Wish::Gone));
        for _ in 0..40 {
            world.throw(Dice::Succeed);
        }
        prop_assert!(world.life.is_gone(), "{world:?}");
        prop_assert_eq!(&world.container, &Seen::Missing);
    }

    #[test]
    fn a_task_that_is_to_stop_is_said_to_have_ended(
        steps in proptest::collection::vec(dice(), 0..80),
    ) {
        let mut world = World::start(Wish::Run);
        for step in steps {
            world.throw(step);
        }
        world.throw(Dice::Want(Wish::Stop));
        for _ in 0..40 {
            world.throw(Dice::Succeed);
        }
        prop_assert!(world.told.is_terminal() || world.life.is_gone(), "{world:?}");
        prop_assert!(!matches!(world.container, Seen::Alive(_)), "{world:?}");
    }
}

fn reports(effects: &[Effect]) -> Vec<(TaskState, &str)> {
    let report = |effect: &'static Effect| match effect {
        Effect::Report(report) => Some((report.state, report.error.as_str())),
        _ => None,
    };
    effects.to_vec().leak().iter().filter_map(report).collect()
}

fn running() -> Task {
    let (task, _) = Task::begin(Wish::Run, TaskState::Running);
    let (task, _) = task.step(Event::Found(Seen::Alive(Health::Unchecked)));
    assert_eq!(*task.stage(), Stage::Serving);
    task
}

#[test]
fn a_stop_that_fails_is_no_shutdown_but_a_reason() {
    let (task, _) = running().step(Event::Wish(Wish::Stop));
    let (task, effects) = task.step(Event::HandedOver);
    assert_eq!(effects, [Effect::Stop]);
    let (task, effects) = task.step(Event::StopFailed("shim is stuck".to_owned()));
    assert_eq!(reports(&effects), [(TaskState::Running, "shim is stuck")]);
    let (task, effects) = task.step(Event::Retry);
    assert_eq!(effects, [Effect::Stop]);
    let (task, _) = task.step(Event::Stopped);
    let (task, effects) = task.step(Event::Found(Seen::Alive(Health::Unchecked)));
    assert_eq!(reports(&effects), [(TaskState::Running, "it still runs")]);
    let (_, effects) = task.step(Event::Seen(ended(137, EndedBy::Itself)));
    assert_eq!(reports(&effects), [(TaskState::Shutdown, "")]);
}

#[test]
fn the_daemons_own_stop_completes_no_task() {
    let (task, _) = running().step(Event::DaemonStops);
    let (_, effects) = task.step(Event::Seen(ended(0, EndedBy::Itself)));
    assert_eq!(effects, []);
    let (task, _) = Task::begin(Wish::Run, TaskState::Running);
    let (_, effects) = task.step(Event::Found(ended(0, EndedBy::Daemon)));
    assert_eq!(reports(&effects), [(TaskState::Failed, "stopped with its daemon")]);
}

#[test]
fn exit_0_is_complete() {
    let (_, effects) = running().step(Event::Seen(ended(0, EndedBy::Itself)));
    assert_eq!(reports(&effects), [(TaskState::Complete, "")]);
    let (_, effects) = running().step(Event::Seen(ended(1, EndedBy::Itself)));
    assert_eq!(reports(&effects), [(TaskState::Failed, "task: non-zero exit (1)")]);
}

#[test]
fn what_managers_gave_up_but_still_runs_is_stopped() {
    let (task, effects) = Task::begin(Wish::Stop, TaskState::Shutdown);
    assert_eq!(effects, [Effect::Look]);
    let (_, effects) = task.step(Event::Found(Seen::Alive(Health::Unchecked)));
    assert_eq!(effects, [Effect::Stop]);
}
