//! A container's life, from its creation to its removal.
//!
//! [`State`] says what is there (a process, a network, a shim, memory files, a record), what should
//! become of it ([`Intent`]), and how far that has come ([`Stage`]). [`step()`](step::step) takes
//! one event after the other. At most one piece of long [`Work`] is under way at a time; signals go
//! beside it, so that nothing delays a kill. Work that fails is owed: it stays in the state, which
//! is part of the durable record, and is tried again with growing pauses until it is done or no
//! longer matters.

mod advance;
pub mod policy;
pub mod step;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::time::Timestamp;

/// The first pause before work that failed is tried again; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest pause: what has been owed for long costs two attempts a minute.
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// Everything that decides what happens next to one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How far its life has come.
    pub stage: Stage,
    /// What should become of it.
    pub intent: Intent,
    /// How far an end that somebody asked for has come.
    pub halt: Halt,
    /// Who asked for the last end.
    pub stopper: Stopper,
    /// On whose behalf it was last started.
    pub starter: Starter,
    /// Its network.
    pub network: Holding,
    /// Its shim, with its directory and cgroup.
    pub shim: Holding,
    /// What was written for its memory file system.
    pub files: Holding,
    /// How often its policy started it again.
    pub restarts: i64,
    /// Ends in a row that came too soon.
    pub quick_ends: u32,
    /// Whether the record on disk says all this.
    #[serde(skip)]
    pub paper: Paper,
    /// The work that is under way.
    #[serde(skip)]
    pub doing: Option<Work>,
    /// What the daemon lets it do.
    #[serde(skip)]
    pub daemon: Daemon,
    /// How many wait for a turn with nothing else under way.
    #[serde(skip)]
    pub lessees: u32,
}

/// How far a container's life has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Nothing runs; what is owed may be left.
    #[default]
    Rest,
    /// It is being started; the next thing to do.
    Start(StartStep),
    /// Its process is there.
    Running(Process),
    /// What a run or a start has left is given back, each thing tried once.
    Clean(After),
    /// It is taken apart, and its directory goes last.
    Remove(Retry),
    /// The removal failed; it is tried again.
    Dead(Retry),
    /// It is gone.
    Gone,
}

/// The steps of a start, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartStep {
    /// Give back what an earlier run still owes.
    Clear,
    /// Make its network.
    Attach,
    /// Write down what is about to exist.
    Record,
    /// Write its files and start its shim.
    Launch,
    /// Start its process.
    Run,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Process {
    /// It runs.
    Alive,
    /// It is frozen.
    Frozen,
}

/// What a clean-up comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// Its process ended.
    End,
    /// It could not be started, and whether trying again can help.
    FailedStart(Hope),
    /// A daemon started and found it so.
    Recovery,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hope {
    /// It can.
    Some,
    /// What is missing does not come back by trying.
    None,
}

/// What should become of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Nothing.
    #[default]
    Rest,
    /// It should run; when it ends, its policy decides.
    Run,
    /// It should end and start again at once.
    Bounce,
    /// It should start again at this time.
    Again(Timestamp),
    /// It should be removed.
    Remove(Volumes),
}

/// What becomes of the volumes that were made for a container alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Volumes {
    /// They stay.
    Keep,
    /// They go with it.
    Remove,
}

/// How far an end that somebody asked for has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Halt {
    /// Nobody asked.
    #[default]
    No,
    /// Asked before there was a process: as soon as there is one.
    Wanted(Ask),
    /// It was asked to stop, and is killed at this time, if at any.
    Grace(Option<Timestamp>),
    /// It was killed; harder means follow.
    Killing(Retry),
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The first signal.
    pub signal: i32,
    /// When the kill follows; `None`: never.
    pub grace: Option<Duration>,
}

impl Ask {
    /// Kill at once.
    pub const KILL: Self = Self { signal: KILL, grace: Some(Duration::ZERO) };
}

/// SIGKILL.
pub const KILL: i32 = 9;

/// Who asked for an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopper {
    /// Nobody: it ended by itself.
    #[default]
    Nobody,
    /// A user, or the cluster.
    User,
    /// The daemon, because it stops itself.
    Daemon,
}

/// On whose behalf a container is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Starter {
    /// A user, or the cluster.
    #[default]
    User,
    /// Its restart policy.
    Policy,
}

/// Something that must be given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holding {
    /// There is nothing.
    #[default]
    Free,
    /// It is there, or may be.
    Held,
    /// Giving it back failed; it is tried again.
    Owed(Retry),
}

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How often it failed.
    pub failures: u32,
    /// Not before this time.
    pub at: Timestamp,
}

impl Retry {
    /// After the first failure.
    #[must_use]
    pub fn first(now: Timestamp) -> Self {
        Self::default().next(now)
    }

    /// After one more failure.
    #[must_use]
    pub fn next(self, now: Timestamp) -> Self {
        let pause = crate::pause(PAUSE_FIRST, PAUSE_LAST, self.failures);
        Self { failures: self.failures.saturating_add(1), at: now.plus(pause) }
    }
}

/// Whether the record on disk says what the state says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paper {
    /// It does.
    #[default]
    Saved,
    /// It does not.
    Changed,
    /// It is being written; counts the failures before.
    Writing(Retry),
    /// It does not, and could not be written.
    Owed(Retry),
}

/// What the daemon lets a container do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// It is starting: policies wait.
    #[default]
    Opening,
    /// Policies act.
    Ready,
    /// It stops its containers: nothing starts any more.
    Stopping,
}

/// Work that takes long; one piece at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Write the record.
    Save,
    /// Make the network.
    Attach,
    /// Write the files, start the shim.
    Launch,
    /// Start the process.
    Run,
    /// Kill what still runs and remove the shim.
    DeleteShim,
    /// Remove the memory files.
    DropFiles,
    /// Give addresses and ports back.
    ReleaseNetwork,
    /// Remove its directory; after this nothing is left.
    DeleteDirectory,
    /// Somebody has a turn: nothing else is under way meanwhile.
    Lend,
}

/// What callers want of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start it.
    Start,
    /// End it.
    Stop(Ask, Stopper),
    /// End it if it runs, and start it.
    Restart(Ask),
    /// A signal will be sent by which a user ends it: its policy lets it rest.
    Disown,
    /// Remove it; whether although it runs.
    Remove(Volumes, Force),
}

/// Whether a container that runs is killed for its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It is.
    Yes,
    /// Its removal is refused.
    No,
}

/// Why a command is not followed; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It runs already.
    Running,
    /// It is frozen.
    Frozen,
    /// It does not run.
    NotRunning,
    /// It is being removed.
    Removing,
    /// It runs, or will again, and force was not said.
    InUse,
    /// The daemon is stopping.
    Stopping,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A command; see [`State::refusal`].
    Command(Command),
    /// Work is done.
    Done(Work),
    /// Work failed.
    Failed(Work, Hope),
    /// A signal reached the process.
    Signalled,
    /// A signal did not reach it.
    NotSignalled,
    /// Taking the whole container down by force failed.
    NotCrushed,
    /// Its process ended.
    Ended(policy::Outcome),
    /// Its process was frozen.
    Frozen,
    /// Its process was thawed.
    Thawed,
    /// Something else in the record changed.
    Changed,
    /// Somebody waits for a turn.
    TurnAsked,
    /// Some time has passed.
    Tick,
    /// A daemon that starts found its process like this.
    Found(Found),
    /// Policies may act from now on.
    Resumed(policy::Past),
    /// Nothing may start any more.
    Stopping,
}

/// What a daemon that starts finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its process.
    Process(Process),
    /// Its process, which cannot be kept: its network cannot be taken over.
    Unkeepable,
    /// No process; how it ended is known or guessed.
    Nothing(policy::Outcome),
}

/// What the owner has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Begin this; [`Event::Done`] or [`Event::Failed`] follows.
    Begin(Work),
    /// Send this signal; [`Event::Signalled`] or [`Event::NotSignalled`] follows.
    Signal(i32),
    /// Take everything down by force; [`Event::NotCrushed`] may follow.
    Crush,
    /// Tell those who wait or watch.
    Tell(News),
}

/// What others are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Its process runs.
    Started,
    /// It could not be started, and everything was tried to take back what was made.
    StartFailed,
    /// Its process ended.
    Ended,
    /// Everything was tried to clean up after its end.
    Settled,
    /// It was killed by every means and has not ended yet.
    NotEnding,
    /// A planned restart was taken back.
    RestartDropped,
    /// Something that is shown changed.
    Changed,
    /// A removal failed; it is tried again.
    RemovalFailed,
    /// It is gone.
    Gone,
}

impl State {
    /// A container that was just made; its record was written.
    #[must_use]
    pub fn created(daemon: Daemon) -> Self {
        Self { daemon, ..Self::default() }
    }

    /// Its process, if there is one.
    #[must_use]
    pub const fn process(&self) -> Option<Process> {
        match self.stage {
            Stage::Running(process) => Some(process),
            _ => None,
        }
    }

    /// Whether a start is under way, or follows as soon as what was there before is gone.
    #[must_use]
    pub const fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Start(_) | Stage::Clean(After::FailedStart(_)))
            || matches!((self.stage, self.intent), (Stage::Rest | Stage::Clean(_), Intent::Run))
    }

    /// Whether an end or a start is still being cleaned up for the first time.
    #[must_use]
    pub const fn is_cleaning(&self) -> bool {
        matches!(self.stage, Stage::Clean(_))
    }

    /// What is owed.
    #[must_use]
    pub fn owed(&self) -> Vec<Work> {
        let mut owed = Vec::new();
        for (holding, work) in [
            (self.shim, Work::DeleteShim),
            (self.files, Work::DropFiles),
            (self.network, Work::ReleaseNetwork),
        ] {
            if matches!(holding, Holding::Owed(_)) {
                owed.push(work);
            }
        }
        match self.paper {
            Paper::Owed(_) => owed.push(Work::Save),
            Paper::Writing(retry) if retry.failures > 0 => owed.push(Work::Save),
            _ => {}
        }
        if matches!(self.stage, Stage::Dead(_)) {
            owed.push(Work::DeleteDirectory);
        }
        owed
    }

    /// Whether `command` cannot be followed now, and why.
    #[must_use]
    pub fn refusal(&self, command: Command) -> Option<Refusal> {
        let removing = matches!(self.stage, Stage::Remove(_) | Stage::Dead(_) | Stage::Gone)
            || matches!(self.intent, Intent::Remove(_));
        let planned =
            matches!(self.intent, Intent::Again(_) | Intent::Bounce) || self.is_starting();
        match command {
            Command::Start | Command::Restart(_) if removing => Some(Refusal::Removing),
            Command::Start | Command::Restart(_) if self.daemon == Daemon::Stopping => {
                Some(Refusal::Stopping)
            }
            Command::Start => match self.process() {
                Some(Process::Alive) => Some(Refusal::Running),
                Some(Process::Frozen) => Some(Refusal::Frozen),
                None => None,
            },
            Command::Stop(..) | Command::Disown if self.process().is_none() && !planned => {
                Some(Refusal::NotRunning)
            }
            Command::Remove(_, Force::No) if self.process().is_some() || planned => {
                Some(Refusal::InUse)
            }
            _ => None,
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let halt = match self.halt {
            Halt::Grace(at) => at,
            Halt::Killing(retry) => Some(retry.at),
            Halt::No | Halt::Wanted(_) => None,
        };
        // What is under way says when it is done.
        let idle = self.doing.is_none();
        let paper = match self.paper {
            Paper::Owed(retry) => Some(retry.at),
            _ => None,
        };
        let owed = [self.shim, self.files, self.network].into_iter().filter_map(|holding| {
            let Holding::Owed(retry) = holding else { return None };
            (self.stage == Stage::Rest).then_some(retry.at)
        });
        let next = match (self.stage, self.intent) {
            (Stage::Dead(retry), _) => Some(retry.at),
            (Stage::Rest, Intent::Again(at)) if self.daemon == Daemon::Ready => Some(at),
            _ => None,
        };
        let work = paper.into_iter().chain(owed).chain(next).filter(|_| idle).min();
        halt.into_iter().chain(work).min()
    }
}
