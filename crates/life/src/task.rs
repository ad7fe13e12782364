//! The life of one task on its node: prepared, held until it may start, started, watched, stopped,
//! removed.
//!
//! A task is one attempt, never repeated: at most one container is ever made for it. It is said to
//! have ended only when its container is known not to run; what cannot be stopped is tried again,
//! with the reason in its status.

use std::time::Duration;

use shoal_model::task_state::TaskState;

/// First pause before something is tried again; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A task, as far as its node has got with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    stage: Stage,
    wish: Wish,
    /// The last state that managers were told, or told this node.
    known: TaskState,
}

/// What managers want of a task. It only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Prepare it, but do not start it yet.
    Hold,
    /// Let it run.
    Run,
    /// Let it end.
    Stop,
    /// It is not assigned any more: nothing of it may stay.
    Gone,
}

/// How far a task has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The engine is being asked what there is of it.
    Looking,
    /// Its image is being fetched, its spec and its files are being checked.
    Preparing,
    /// Its container is being made.
    Creating,
    /// It is made, and waits until it may start.
    Ready,
    /// Its secrets and configs are being put together.
    Gathering,
    /// Its process is being started.
    Starting,
    /// Its process runs, but does not serve yet.
    Warming,
    /// It serves.
    Serving,
    /// It is to end: the other nodes take it out of their balancing first.
    HandingOver,
    /// Its process is being ended.
    Stopping(End),
    /// That failed; it is tried again after a pause.
    StopOwed(End),
    /// The engine is being asked whether it really does not run any more.
    Checking(End),
    /// It has ended. Its container stays for its log.
    Ended,
    /// What is left of it is being removed.
    Removing(Attempts),
    /// That failed; it is tried again after a pause.
    RemoveOwed(Attempts),
    /// Nothing of it is here.
    Gone,
    /// The daemon stops: what happens to its container now says nothing of the task.
    Frozen,
}

/// How often something was tried without success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts(u32);

impl Attempts {
    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    fn pause(self) -> Duration {
        crate::pause(PAUSE_FIRST, PAUSE_MAX, self.0)
    }
}

/// Why a task's process is being ended, and how often that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    why: Why,
    attempts: Attempts,
}

/// Why a task's process is being ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// Managers want it.
    Asked,
    /// It failed.
    Failed(Failure),
    /// It had ended before, and was started by hand.
    Stray,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step that failed.
    pub step: &'static str,
    /// Cause first, then everything else.
    pub text: String,
}

/// What the engine says of the task's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Missing,
    /// It was made and never started.
    Made,
    /// A process of it lives, or may be started again by the engine.
    Alive(Health),
    /// Its process has ended.
    Ended(Exit),
}

/// The verdict of a container's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has no check.
    Unchecked,
    /// Not known yet.
    Unknown,
    /// It works.
    Well,
    /// It does not.
    Ill,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Who ended it.
    pub by: EndedBy,
    /// Its status.
    pub code: i64,
    /// What is to be said of it; empty if it ended well.
    pub text: String,
}

/// Who ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Itself, or whoever killed it.
    Itself,
    /// This node's daemon, as it stopped: that completes no task.
    Daemon,
}

/// What happens to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Managers want something of it.
    Wish(Wish),
    /// This has become of its container.
    Seen(Seen),
    /// This is what there is, as an answer to [`Effect::Look`].
    Found(Seen),
    /// Image, spec and files are as they must be.
    Prepared,
    /// The container is made.
    Created,
    /// The files are at hand.
    Gathered,
    /// The engine has started it.
    Started,
    /// The step that is under way failed.
    Failed(Failure),
    /// It takes connections, or had the time to.
    Listens,
    /// Nobody balances to it any more, or had the time to learn that.
    HandedOver,
    /// The engine says that it has stopped.
    Stopped,
    /// The engine could not stop it, and why.
    StopFailed(String),
    /// Nothing of it is left.
    Removed,
    /// Something is.
    RemoveFailed,
    /// A pause is over.
    Retry,
    /// The daemon stops, and its containers with it.
    DaemonStops,
}

/// What the owner has to do. All but [`Effect::Report`], [`Effect::Forget`] and
/// [`Effect::Abandon`] take time; at most one of those is under way, and comes back as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the engine what there is of it: [`Event::Found`].
    Look,
    /// Fetch the image, check spec and files.
    Prepare,
    /// Make the container.
    Create,
    /// Put its secrets and configs together.
    Gather,
    /// Start it.
    Start,
    /// Wait until it takes connections.
    Listen,
    /// Wait until nobody balances to it.
    HandOver,
    /// End its process.
    Stop,
    /// Remove its container.
    Remove,
    /// Come back with [`Event::Retry`] after this pause.
    Pause(Duration),
    /// Give up what is under way: it does not matter any more.
    Abandon,
    /// Let go of its secrets and configs.
    Forget,
    /// Tell managers.
    Report(Report),
}

/// What managers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The state.
    pub state: TaskState,
    /// The step, for the reader.
    pub message: &'static str,
    /// What went wrong; empty if nothing did.
    pub error: String,
}

impl Task {
    /// A task of which managers know `known`, and what has to be done first.
    #[must_use]
    pub fn begin(wish: Wish, known: TaskState) -> (Self, Vec<Effect>) {
        (Self { stage: Stage::Looking, wish, known }, vec![Effect::Look])
    }

    /// How far it has got.
    #[must_use]
    pub const fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Whether its owner has nothing to do any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.stage, Stage::Gone)
    }

    /// The task after `event`, and what has to be done.
    #[must_use]
    pub fn step(mut self, event: Event) -> (Self, Vec<Effect>) {
        let mut todo = Vec::new();
        match event {
            Event::Wish(wish) => self.want(wish, &mut todo),
            Event::Seen(seen) => self.see(seen, &mut todo),
            Event::DaemonStops => {
                self.stage = Stage::Frozen;
                todo.push(Effect::Abandon);
            }
            outcome => self.follow(outcome, &mut todo),
        }
        (self, todo)
    }

    fn want(&mut self, wish: Wish, todo: &mut Vec<Effect>) {
        if wish <= self.wish {
            return;
        }
        self.wish = wish;
        match (&self.stage, wish) {
            (Stage::Ready, Wish::Run) => self.go(Stage::Gathering, Effect::Gather, todo),
            (Stage::Preparing, Wish::Stop) => {
                self.give_up("shutdown while preparing", todo);
            }
            (Stage::Ready, Wish::Stop) => {
                self.end(TaskState::Shutdown, "shutdown before it was started", todo);
            }
            (Stage::Gathering, Wish::Stop) => {
                self.give_up("shutdown before its secrets and configs came", todo);
            }
            (Stage::Warming | Stage::Serving, Wish::Stop) => {
                todo.push(Effect::Abandon);
                self.go(Stage::HandingOver, Effect::HandOver, todo);
            }
            (Stage::Preparing | Stage::Ready | Stage::Gathering | Stage::Ended, Wish::Gone) => {
                todo.push(Effect::Abandon);
                self.remove(Attempts::default(), todo);
            }
            (Stage::Warming | Stage::Serving | Stage::HandingOver, Wish::Gone) => {
                todo.push(Effect::Abandon);
                self.stop(Why::Asked, todo);
            }
            // What is under way comes back first.
            _ => {}
        }
    }

    fn see(&mut self, seen: Seen, todo: &mut Vec<Effect>) {
        match &self.stage {
            Stage::StopOwed(end) if !matches!(seen, Seen::Alive(_)) => {
                let why = end.why.clone();
                todo.push(Effect::Abandon);
                self.conclude(why, todo);
            }
            Stage::HandingOver if !matches!(seen, Seen::Alive(_)) => {
                todo.push(Effect::Abandon);
                self.conclude(Why::Asked, todo);
            }
            Stage::Ready | Stage::Warming | Stage::Serving | Stage::Gathering => {
                self.watch(seen, todo);
            }
            Stage::Ended if matches!(seen, Seen::Alive(_)) => self.stop(Why::Stray, todo),
            // What is under way asks by itself when it has come back.
            _ => {}
        }
    }

    /// What is there of a task that the owner knows nothing about yet, or has just started.
    fn found(&mut self, seen: Seen, todo: &mut Vec<Effect>) {
        if self.known.is_terminal() {
            return match seen {
                Seen::Alive(_) => self.stop(Why::Stray, todo),
                _ => self.rest(todo),
            };
        }
        match (seen, self.wish) {
            (Seen::Missing, Wish::Gone) => self.remove(Attempts::default(), todo),
            (Seen::Missing, _) if self.known >= TaskState::Ready => {
                self.fail(TaskState::Failed, vanished(), todo);
            }
            (Seen::Missing, Wish::Stop) => {
                self.end(TaskState::Shutdown, "shutdown before it was prepared", todo);
            }
            (Seen::Missing, Wish::Hold | Wish::Run) => {
                self.report(TaskState::Accepted, "accepted", todo);
                self.report(TaskState::Preparing, "preparing", todo);
                self.go(Stage::Preparing, Effect::Prepare, todo);
            }
            (Seen::Made, _) => self.made(todo),
            (Seen::Alive(health), Wish::Hold | Wish::Run) => self.warm(health, todo),
            (Seen::Alive(_), Wish::Stop) => self.go(Stage::HandingOver, Effect::HandOver, todo),
            (Seen::Alive(_), Wish::Gone) => self.stop(Why::Asked, todo),
            (Seen::Ended(exit), _) => self.exited(exit, todo),
        }
    }

    /// Its container is there, and was never started.
    fn made(&mut self, todo: &mut Vec<Effect>) {
        match self.wish {
            Wish::Gone => self.remove(Attempts::default(), todo),
            Wish::Stop => self.end(TaskState::Shutdown, "shutdown before it was started", todo),
            Wish::Hold | Wish::Run => {
                self.report(TaskState::Ready, "prepared", todo);
                self.stage = Stage::Ready;
                if self.wish == Wish::Run {
                    self.go(Stage::Gathering, Effect::Gather, todo);
                }
            }
        }
    }

    /// What happens to a container while the task waits, or runs.
    fn watch(&mut self, seen: Seen, todo: &mut Vec<Effect>) {
        let is_up = matches!(self.stage, Stage::Warming | Stage::Serving);
        match seen {
            Seen::Made if !is_up => {}
            Seen::Missing | Seen::Made => {
                todo.push(Effect::Abandon);
                self.fail(TaskState::Failed, vanished(), todo);
            }
            Seen::Ended(exit) => {
                todo.push(Effect::Abandon);
                self.exited(exit, todo);
            }
            Seen::Alive(Health::Ill) => {
                todo.push(Effect::Abandon);
                let text = "unhealthy container".to_owned();
                self.stop(Why::Failed(Failure { step: "failed", text }), todo);
            }
            Seen::Alive(Health::Well) if self.stage == Stage::Warming => {
                todo.push(Effect::Abandon);
                self.serve(todo);
            }
            // A change that concerns nothing here; what listens is being found out already.
            Seen::Alive(_) if is_up => {}
            // Started by hand: it runs all the same.
            Seen::Alive(health) => {
                todo.push(Effect::Abandon);
                self.warm(health, todo);
            }
        }
    }

    fn warm(&mut self, health: Health, todo: &mut Vec<Effect>) {
        match health {
            Health::Unchecked if self.known >= TaskState::Running => self.serve(todo),
            Health::Unchecked => {
                self.report(TaskState::Starting, "waiting until it listens", todo);
                self.go(Stage::Warming, Effect::Listen, todo);
            }
            Health::Unknown => {
                self.report(TaskState::Starting, "waiting for its health check", todo);
                self.stage = Stage::Warming;
            }
            Health::Well => self.serve(todo),
            Health::Ill => {
                self.stage = Stage::Warming;
                self.watch(Seen::Alive(Health::Ill), todo);
            }
        }
    }

    fn serve(&mut self, todo: &mut Vec<Effect>) {
        self.stage = Stage::Serving;
        self.report(TaskState::Running, "started", todo);
    }

    /// After the outcome of an effect. One that belongs to no effect of this stage changes nothing.
    fn follow(&mut self, outcome: Event, todo: &mut Vec<Effect>) {
        match (self.stage.clone(), outcome) {
            (Stage::Looking, Event::Found(seen)) => self.found(seen, todo),
            (Stage::Checking(end), Event::Found(Seen::Alive(_))) => {
                self.owe_stop(end, "it still runs".to_owned(), todo);
            }
            (Stage::Checking(end), Event::Found(_)) => self.conclude(end.why, todo),
            (Stage::Preparing, Event::Prepared) => self.go(Stage::Creating, Effect::Create, todo),
            (Stage::Creating, Event::Created) => self.made(todo),
            (Stage::Gathering, Event::Gathered) => {
                self.report(TaskState::Starting, "starting", todo);
                self.go(Stage::Starting, Effect::Start, todo);
            }
            (Stage::Preparing | Stage::Creating | Stage::Gathering, Event::Failed(failure)) => {
                self.fail(TaskState::Rejected, failure, todo);
            }
            (Stage::Starting, Event::Started) => self.go(Stage::Looking, Effect::Look, todo),
            (Stage::Starting, Event::Failed(failure)) => {
                // An engine that could not finish a start may have a process all the same.
                let end = End { why: Why::Failed(failure), attempts: Attempts::default() };
                self.go(Stage::Checking(end), Effect::Look, todo);
            }
            (Stage::Warming, Event::Listens) => self.serve(todo),
            (Stage::HandingOver, Event::HandedOver) => self.stop(Why::Asked, todo),
            (Stage::Stopping(end), Event::Stopped) => {
                self.go(Stage::Checking(end), Effect::Look, todo);
            }
            (Stage::Stopping(end), Event::StopFailed(text)) => self.owe_stop(end, text, todo),
            (Stage::StopOwed(end), Event::Retry) => {
                self.go(Stage::Stopping(end), Effect::Stop, todo);
            }
            (Stage::Removing(_), Event::Removed) => self.stage = Stage::Gone,
            (Stage::Removing(attempts), Event::RemoveFailed) => {
                let pause = Effect::Pause(attempts.pause());
                self.go(Stage::RemoveOwed(attempts.next()), pause, todo);
            }
            (Stage::RemoveOwed(attempts), Event::Retry) => self.remove(attempts, todo),
            _ => {}
        }
    }

    fn go(&mut self, stage: Stage, effect: Effect, todo: &mut Vec<Effect>) {
        self.stage = stage;
        todo.push(effect);
    }

    fn stop(&mut self, why: Why, todo: &mut Vec<Effect>) {
        let end = End { why, attempts: Attempts::default() };
        self.go(Stage::Stopping(end), Effect::Stop, todo);
    }

    /// It may still run: say why, and try again.
    fn owe_stop(&mut self, end: End, text: String, todo: &mut Vec<Effect>) {
        if !self.known.is_terminal() {
            let (state, message) = (self.known, "could not be stopped yet");
            todo.push(Effect::Report(Report { state, message, error: text }));
        }
        let pause = Effect::Pause(end.attempts.pause());
        let end = End { attempts: end.attempts.next(), ..end };
        self.go(Stage::StopOwed(end), pause, todo);
    }

    /// It does not run any more.
    fn conclude(&mut self, why: Why, todo: &mut Vec<Effect>) {
        match why {
            Why::Asked => self.end(TaskState::Shutdown, "shutdown", todo),
            Why::Failed(failure) => self.fail(TaskState::Failed, failure, todo),
            Why::Stray => self.rest(todo),
        }
    }

    fn exited(&mut self, exit: Exit, todo: &mut Vec<Effect>) {
        let (state, error) = match exit.by {
            EndedBy::Daemon => (TaskState::Failed, "stopped with its daemon".to_owned()),
            EndedBy::Itself if exit.code == 0 && exit.text.is_empty() => {
                (TaskState::Complete, String::new())
            }
            EndedBy::Itself => (TaskState::Failed, exit.text),
        };
        self.finish(Report { state, message: "finished", error }, todo);
    }

    fn fail(&mut self, state: TaskState, failure: Failure, todo: &mut Vec<Effect>) {
        self.finish(Report { state, message: failure.step, error: failure.text }, todo);
    }

    fn end(&mut self, state: TaskState, message: &'static str, todo: &mut Vec<Effect>) {
        self.finish(Report { state, message, error: String::new() }, todo);
    }

    /// Ends a task whose container does not run, giving up what is under way.
    fn give_up(&mut self, message: &'static str, todo: &mut Vec<Effect>) {
        todo.push(Effect::Abandon);
        self.end(TaskState::Shutdown, message, todo);
    }

    fn finish(&mut self, report: Report, todo: &mut Vec<Effect>) {
        self.known = report.state;
        todo.push(Effect::Report(report));
        self.rest(todo);
    }

    /// It has ended: its container stays until the task is not assigned any more.
    fn rest(&mut self, todo: &mut Vec<Effect>) {
        todo.push(Effect::Forget);
        self.stage = Stage::Ended;
        if self.wish == Wish::Gone {
            self.remove(Attempts::default(), todo);
        }
    }

    fn remove(&mut self, attempts: Attempts, todo: &mut Vec<Effect>) {
        self.go(Stage::Removing(attempts), Effect::Remove, todo);
    }

    fn report(&mut self, state: TaskState, message: &'static str, todo: &mut Vec<Effect>) {
        self.known = self.known.max(state);
        todo.push(Effect::Report(Report { state, message, error: String::new() }));
    }
}

fn vanished() -> Failure {
    Failure { step: "finished", text: "container was removed by hand".to_owned() }
}
