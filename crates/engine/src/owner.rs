//! The one owner of a container: takes commands and events one at a time, runs
//! `shoal_life::container::step`, and has the effects carried out.
//!
//! Callers send a [`Message`] and wait; a caller that goes away changes nothing. The owner itself
//! never waits for anything but its next message: work runs beside it ([`crate::work`]) and reports
//! back.

use std::collections::VecDeque;
use std::sync::Arc;

use shoal_life::container::policy::{Outcome, Past, RunResult};
use shoal_life::container::step::step;
use shoal_life::container::{
    Command, Daemon, Effect, Event, Found, Halt, Hope, Intent, News, Refusal, Stage, StartStep,
    Starter, Stopper, Work,
};
use shoal_model::fault::{self, Fault, FaultKind};
use shoal_runtime::Shim;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::exit::End;
use crate::health;
use crate::record::Record;
use crate::request::WaitCondition;

/// How many messages may wait for one container's owner; it takes each within microseconds.
pub(crate) const INBOX: usize = 64;

/// Where a caller waits.
pub(crate) type Answer = oneshot::Sender<Result<(), EngineError>>;

/// What an owner is told.
pub(crate) enum Message {
    /// Somebody wants something of the container.
    Command(Command, Answer),
    /// Something happened; says when it is taken note of.
    Event(Event, oneshot::Sender<()>),
    /// A piece of work came to its end.
    Work(Work, Result<(), EngineError>),
    /// A signal of a demanded end was sent, or not.
    Signalled(Result<(), EngineError>),
    /// Everything was taken down by force, or not.
    Crushed(Result<(), EngineError>),
    /// The process ended.
    Ended(End),
    /// Somebody wants a turn.
    Turn(oneshot::Sender<Turn>),
    /// Its creation failed: there is no container to own.
    Quit,
}

/// While it is held, nothing else of the container's life is under way; signals are.
pub(crate) struct Turn {
    /// Dropping it ends the turn.
    _end: oneshot::Sender<()>,
}

/// Whether everything is being taken down by force now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crush {
    Idle,
    UnderWay,
}

/// See the module.
pub(crate) struct Owner {
    engine: Engine,
    container: Arc<Container>,
    inbox: mpsc::Receiver<Message>,
    starters: Vec<Answer>,
    stoppers: Vec<Answer>,
    removers: Vec<Answer>,
    turns: VecDeque<oneshot::Sender<Turn>>,
    crush: Crush,
    /// How the run ended whose end is being taken note of.
    end: Option<End>,
    /// Why the engine itself ends the run.
    reason: Option<String>,
    start_error: Option<EngineError>,
    removal_error: Option<EngineError>,
}

impl Owner {
    pub fn new(
        engine: &Engine,
        container: &Arc<Container>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        Self {
            engine: engine.clone(),
            container: Arc::clone(container),
            inbox,
            starters: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
            turns: VecDeque::new(),
            crush: Crush::Idle,
            end: None,
            reason: None,
            start_error: None,
            removal_error: None,
        }
    }

    /// Runs until the container is gone or the engine closes.
    pub fn spawn(self) {
        let engine = self.engine.clone();
        engine.spawn(self.run());
    }

    async fn run(mut self) {
        while self.stage() != Stage::Gone {
            let wake = self.container.read(|record| record.run.life.wake());
            let pause = wake.map(|at| at.since(self.engine.steady()));
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.inbox.recv() => match message {
                    None | Some(Message::Quit) => return,
                    Some(message) => self.take(message),
                },
                () = due => self.step(Event::Tick),
            }
        }
    }

    fn stage(&self) -> Stage {
        self.container.read(|record| record.run.life.stage)
    }

    fn intent(&self) -> Intent {
        self.container.read(|record| record.run.life.intent)
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Command(command, answer) => self.command(command, answer),
            Message::Event(event, noted) => {
                self.step(event);
                // Ignored because: who went away does not need to know.
                let _ = noted.send(());
            }
            Message::Work(work, result) => self.work_ended(work, result),
            Message::Signalled(Ok(())) => self.step(Event::Signalled),
            Message::Signalled(Err(error)) => {
                tracing::warn!(container = %self.container.id, error = fault::report(&error),
                    "a signal did not reach a container");
                self.step(Event::NotSignalled);
            }
            Message::Crushed(result) => {
                self.crush = Crush::Idle;
                if let Err(error) = result {
                    tracing::error!(container = %self.container.id, error = fault::report(&error),
                        "a container could not be taken down by force");
                    self.step(Event::NotCrushed);
                }
            }
            Message::Ended(end) => self.process_ended(end),
            Message::Turn(turn) => {
                self.turns.push_back(turn);
                self.step(Event::TurnAsked);
            }
            Message::Quit => {}
        }
    }

    fn command(&mut self, command: Command, answer: Answer) {
        if let Some(refusal) = self.container.read(|record| record.run.life.refusal(command)) {
            // Ignored because: who went away does not need to know.
            let _ = answer.send(Err(refused(&self.container, command, refusal)));
            return;
        }
        match command {
            Command::Start | Command::Restart(_) => self.starters.push(answer),
            Command::Stop(..) => self.stoppers.push(answer),
            Command::Remove(..) => self.removers.push(answer),
            Command::Disown => answer_done(&mut vec![answer]),
        }
        self.step(Event::Command(command));
    }

    /// Gives an event to the machine and has what follows carried out.
    pub fn step(&mut self, event: Event) {
        let now = self.engine.steady();
        let effects = self.container.change(|record| {
            let rules = record.rules();
            let (life, effects) = step(record.run.life.clone(), rules, now, event);
            record.run.adopt(life);
            effects
        });
        for effect in effects {
            match effect {
                Effect::Begin(Work::Lend) => self.lend(),
                Effect::Begin(work) => self.begin(work),
                Effect::Signal(number) => self.signal(number),
                Effect::Crush => self.crush(),
                Effect::Tell(news) => self.tell(news),
            }
        }
    }

    fn begin(&self, work: Work) {
        let (engine, container) = (self.engine.clone(), Arc::clone(&self.container));
        self.engine.spawn(async move {
            let result = engine.carry_out(&container, work).await;
            container.send(Message::Work(work, result)).await;
        });
    }

    fn lend(&mut self) {
        let (end, ended) = oneshot::channel();
        if let Some(asker) = self.turns.pop_front() {
            // Ignored because: a turn that nobody takes ends at once.
            let _ = asker.send(Turn { _end: end });
        }
        let container = Arc::clone(&self.container);
        self.engine.spawn(async move {
            // Ignored because: the end of the channel is what is waited for.
            let _ = ended.await;
            container.send(Message::Work(Work::Lend, Ok(()))).await;
        });
    }

    fn signal(&self, number: i32) {
        let (engine, container) = (self.engine.clone(), Arc::clone(&self.container));
        self.engine.spawn(async move {
            let sent = engine.send_signal(&container, number).await;
            container.send(Message::Signalled(sent)).await;
        });
    }

    fn crush(&mut self) {
        if self.crush == Crush::UnderWay {
            return;
        }
        self.crush = Crush::UnderWay;
        let (engine, container) = (self.engine.clone(), Arc::clone(&self.container));
        self.engine.spawn(async move {
            let result = engine.crush(&container.id).await;
            container.send(Message::Crushed(result)).await;
        });
    }

    fn work_ended(&mut self, work: Work, result: Result<(), EngineError>) {
        let Err(error) = result else {
            self.container.live(|live| live.problems.remove(&work));
            self.step(Event::Done(work));
            if work == Work::Run {
                self.engine.watch(&self.container);
            }
            return;
        };
        let text = fault::report(&error);
        let hope = match (&error, error.kind()) {
            // The store mends what it can of a damaged image meanwhile.
            (EngineError::Image { .. }, _) => Hope::Some,
            (_, FaultKind::NotFound) => Hope::None,
            _ => Hope::Some,
        };
        let starting = matches!(work, Work::Attach | Work::Launch | Work::Run)
            || (work == Work::Save && self.stage() == Stage::Start(StartStep::Record));
        if !starting || work == Work::Save {
            let before = self.container.live(|live| live.problems.insert(work, text.clone()));
            if before.is_none() {
                tracing::error!(container = %self.container.id, work = ?work, error = text,
                    "work for a container failed and is tried again");
            }
        }
        if starting {
            self.start_error = Some(error);
        } else if work == Work::DeleteDirectory {
            self.removal_error = Some(error);
        }
        self.step(Event::Failed(work, hope));
    }

    fn process_ended(&mut self, end: End) {
        let outcome = end.outcome(self.container.read(|record| record.run.started_at));
        self.end = Some(end);
        self.step(Event::Ended(outcome));
    }

    /// The process that a daemon which starts has found.
    pub fn took_over(&mut self, shim: Shim, found: Found, reason: Option<String>) {
        self.reason = reason;
        self.container.live(|live| {
            live.shim = Some(shim);
            live.run = CancellationToken::new();
        });
        self.engine.inner.images.set_running(&self.container.id, true);
        self.step(Event::Found(found));
        self.engine.watch(&self.container);
    }

    /// A daemon that starts has found no process.
    pub fn found_ended(&mut self, end: End) {
        let outcome: Outcome = end.outcome(self.container.read(|record| record.run.started_at));
        self.end = Some(end);
        self.step(Event::Found(Found::Nothing(outcome)));
    }

    fn tell(&mut self, news: News) {
        match news {
            News::Started => self.tell_started(),
            News::StartFailed => self.tell_start_failed(),
            News::Ended => self.tell_ended(),
            News::Settled => self.tell_settled(),
            News::NotEnding => {
                let id = &self.container.id;
                let text = format!(
                    "container {id} did not end although it was killed; it is killed again until \
                     it ends"
                );
                self.refuse_all(&text);
            }
            News::RestartDropped => {
                self.engine.publish(&self.container, false);
                self.container.answer(|condition| condition != WaitCondition::Removed);
                self.answer_stoppers();
                self.refuse_starters("it was stopped before it started");
            }
            News::Changed => self.engine.publish(&self.container, false),
            News::RemovalFailed => self.tell_removal_failed(),
            News::Gone => self.tell_gone(),
        }
    }

    fn tell_started(&mut self) {
        let now = self.engine.now();
        self.container.change(|record| {
            let run = &mut record.run;
            run.exit_code = 0;
            run.error.clear();
            run.oom_killed = false;
            run.started_at = now;
            record.run.health = health::starting(record);
        });
        self.container.live(|live| live.run = CancellationToken::new());
        self.engine.inner.images.set_running(&self.container.id, true);
        self.engine.note_volume_use(&self.container, "mount");
        self.engine.note(&self.container, "start", &[]);
        self.engine.publish(&self.container, false);
        answer_done(&mut self.starters);
        if self.container.read(|record| record.run.life.halt) == Halt::No {
            let text = format!("container {} was started again meanwhile", self.container.id);
            answer_error(&mut self.stoppers, EngineError::conflict(text));
        }
    }

    fn tell_start_failed(&mut self) {
        let (engine, container) = (&self.engine, &self.container);
        let error = self.start_error.take();
        let owed: Vec<String> = container.problems();
        container.change(|record| {
            record.run.pid = 0;
            if let Some(error) = &error {
                record.run.error = fault::report(error);
                record.run.exit_code = match error {
                    EngineError::Start { exit_code, .. } => *exit_code,
                    _ => 128,
                };
            }
            for text in &owed {
                if !record.run.error.contains(text.as_str()) {
                    record.run.error.push_str("; then: ");
                    record.run.error.push_str(text);
                }
            }
        });
        container.live(|live| {
            live.shim = None;
            // Clients that attached before the start see the end of their stream.
            live.pending.clear();
        });
        engine.publish(container, false);
        let error = error.unwrap_or_else(|| {
            if engine.inner.stopping.is_cancelled() {
                EngineError::ShuttingDown
            } else if owed.is_empty() {
                EngineError::conflict(format!(
                    "container {} was stopped before it started",
                    container.id
                ))
            } else {
                EngineError::conflict(format!(
                    "container {} starts when what its last run left is cleaned up: {}",
                    container.id,
                    owed.join("; ")
                ))
            }
        });
        let (starter, again) = container.read(|record| {
            let life = &record.run.life;
            (life.starter, matches!(life.intent, Intent::Again(_)))
        });
        if !again {
            // Who waits for an end that a user's start promised goes on waiting for one.
            container.answer(|condition| match condition {
                WaitCondition::NotRunning => true,
                WaitCondition::NextExit => starter == Starter::Policy,
                WaitCondition::Removed => false,
            });
        }
        self.answer_stoppers();
        answer_error(&mut self.starters, error);
    }

    fn tell_ended(&mut self) {
        let (engine, container) = (&self.engine, &self.container);
        let Some(mut end) = self.end.take() else { return };
        if let Some(reason) = self.reason.take() {
            end.error = reason;
        }
        container.live(|live| {
            live.shim = None;
            live.run.cancel();
        });
        container.change(|record| {
            let run = &mut record.run;
            run.pid = 0;
            run.exit_code = end.code;
            run.oom_killed = end.oom_killed;
            run.error.clone_from(&end.error);
            run.finished_at = end.at;
        });
        engine.inner.images.set_running(&container.id, false);
        engine.inner.execs.container_ended(&container.id);
        engine.note_end(container, &end);
        let (daemon, stopper) =
            container.read(|record| (record.run.life.daemon, record.run.life.stopper));
        if (daemon, stopper) != (Daemon::Stopping, Stopper::Daemon) {
            // The daemon's own stop is no end that anybody should draw conclusions from.
            engine.publish(container, false);
        }
    }

    fn tell_settled(&mut self) {
        let (engine, container) = (&self.engine, &self.container);
        engine.note_volume_use(container, "unmount");
        let intent = self.intent();
        if matches!(intent, Intent::Again(_)) {
            container.answer(|condition| condition == WaitCondition::NextExit);
        } else {
            container.answer(|condition| condition != WaitCondition::Removed);
        }
        if intent == Intent::Bounce {
            engine.note(container, "stop", &[]);
        }
        self.answer_stoppers();
        if !matches!(intent, Intent::Bounce | Intent::Run) {
            self.refuse_starters("it was stopped before it started");
        }
    }

    fn tell_removal_failed(&mut self) {
        let owed: Vec<String> = self.container.problems();
        let error = self.removal_error.take().unwrap_or_else(|| {
            EngineError::conflict(format!(
                "container {} is removed when what it left is cleaned up: {}",
                self.container.id,
                owed.join("; ")
            ))
        });
        self.container.change(|record| record.run.error = fault::report(&error));
        self.engine.publish(&self.container, false);
        self.answer_stoppers();
        self.refuse_starters("it is being removed");
        answer_error(&mut self.removers, error);
    }

    fn tell_gone(&mut self) {
        let (engine, container) = (&self.engine, &self.container);
        container.live(|live| live.pending.clear());
        engine.note(container, "destroy", &[]);
        engine.publish(container, true);
        container.answer(|_| true);
        self.answer_stoppers();
        answer_done(&mut self.removers);
        self.refuse_starters("it was removed");
    }

    fn answer_stoppers(&mut self) {
        answer_done(&mut self.stoppers);
    }

    fn refuse_starters(&mut self, why: &str) {
        let text = format!("container {} does not start: {why}", self.container.id);
        answer_error(&mut self.starters, EngineError::conflict(text));
    }

    fn refuse_all(&mut self, text: &str) {
        for list in [&mut self.starters, &mut self.stoppers, &mut self.removers] {
            answer_error(list, EngineError::conflict(text));
        }
    }
}

/// Tells everybody that it is done.
fn answer_done(list: &mut Vec<Answer>) {
    for answer in list.drain(..) {
        // Ignored because: who went away does not need to know.
        let _ = answer.send(Ok(()));
    }
}

/// Answers everybody; the first gets the error itself, the others its text.
fn answer_error(list: &mut Vec<Answer>, error: EngineError) {
    let text = fault::report(&error);
    let mut error = Some(error);
    for answer in list.drain(..) {
        let error = error.take().unwrap_or_else(|| EngineError::conflict(text.clone()));
        // Ignored because: who went away does not need to know.
        let _ = answer.send(Err(error));
    }
}

/// What a container has behind it, for its policy.
pub(crate) fn past(record: &Record) -> Past {
    if record.run.started_at == shoal_model::time::Timestamp::ZERO {
        return Past::Fresh;
    }
    Past::Ran(match record.run.exit_code {
        0 => RunResult::Success,
        _ => RunResult::Failure,
    })
}

/// A refusal in Docker's words.
fn refused(container: &Container, command: Command, refusal: Refusal) -> EngineError {
    let modified = |text: &str| EngineError::NotModified { message: text.to_owned() };
    match refusal {
        Refusal::Running => modified("Container already started"),
        Refusal::Frozen => {
            EngineError::conflict("cannot start a paused container, try unpause instead")
        }
        Refusal::NotRunning if matches!(command, Command::Stop(..)) => {
            modified("Container already stopped")
        }
        Refusal::NotRunning => container.not_running(),
        Refusal::Removing => {
            EngineError::conflict("container is marked for removal and cannot be started")
        }
        Refusal::Stopping => EngineError::ShuttingDown,
        Refusal::InUse => {
            let phase = container.phase();
            let advice = match phase {
                crate::change::Phase::Paused => "unpause and then stop",
                _ => "stop",
            };
            EngineError::conflict(format!(
                "cannot remove container \"/{}\": container is {}: {advice} the container before \
                 removing or force remove",
                container.name(),
                phase.as_str()
            ))
        }
    }
}
