//! The owner of one task: runs the machine of [`shoal_life::task`] and carries out what it says.

use std::future::pending;

use futures::FutureExt;
use futures::future::BoxFuture;
use shoal_engine::change::{ContainerChange, HealthStatus, Phase};
use shoal_engine::request::InjectedFile;
use shoal_life::task::{Effect, EndedBy, Event, Exit, Health, Report, Seen, Task as Life};
use shoal_model::id::TaskId;
use shoal_model::object::{ContainerStatus, Task, TaskStatus};
use shoal_model::task_state::TaskState;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::steps::{Came, Steps};
use super::table::{Daemon, Inputs};
use super::{failure, spec};
use crate::agent::Agent;

/// Drives the task until nothing of it is left; gives its id back.
pub(crate) async fn run(agent: Agent, task: Task, inputs: watch::Receiver<Inputs>) -> TaskId {
    let id = task.id.clone();
    Owner::new(agent, task, inputs).live().await;
    id
}

struct Owner {
    agent: Agent,
    task: Task,
    inputs: watch::Receiver<Inputs>,
    /// What of the inputs the machine has heard.
    heard: Inputs,
    life: Life,
    /// Its secrets and configs, between their gathering and the start.
    files: Vec<InjectedFile>,
    /// The effect that is under way: one at a time.
    under_way: Option<BoxFuture<'static, Came>>,
    /// What nobody waits for.
    aside: JoinSet<()>,
    /// Who has ended its container, if that has ended.
    ended_by: EndedBy,
}

impl Owner {
    fn new(agent: Agent, task: Task, mut inputs: watch::Receiver<Inputs>) -> Self {
        let heard = inputs.borrow_and_update().clone();
        // What this node last said of it, or else what managers have of it.
        let said = agent.inner.reporter.get(&task.id).map(|status| status.state);
        let (life, first) = Life::begin(heard.wish, said.unwrap_or(task.status.state));
        let was_stopped = agent.inner.tasks.was_stopped(&task.id);
        let ended_by = if was_stopped { EndedBy::Daemon } else { EndedBy::Itself };
        let mut this = Self {
            agent,
            task,
            inputs,
            heard,
            life,
            files: Vec::new(),
            under_way: None,
            aside: JoinSet::new(),
            ended_by,
        };
        this.carry_out(first);
        this
    }

    async fn live(&mut self) {
        while !self.life.is_gone() {
            tokio::select! {
                biased;
                changed = self.inputs.changed() => match changed {
                    Ok(()) => self.hear(),
                    // The table lives as long as the agent: it is stopping, and this with it.
                    Err(_) => pending::<()>().await,
                },
                came = under_way(&mut self.under_way) => {
                    self.under_way = None;
                    let event = match came {
                        Came::Event(event) => event,
                        Came::Files(files) => {
                            self.files = files;
                            Event::Gathered
                        }
                        Came::Found(container) => {
                            self.heard.container = container;
                            Event::Found(self.seen())
                        }
                    };
                    self.give(event);
                }
            }
        }
    }

    /// Hears what is new.
    fn hear(&mut self) {
        let now = self.inputs.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.heard, now);
        if self.heard.daemon == Daemon::Stops && before.daemon == Daemon::Runs {
            return self.give(Event::DaemonStops);
        }
        if self.heard.container != before.container {
            let seen = self.seen();
            self.give(Event::Seen(seen));
        }
        if self.heard.wish != before.wish {
            self.give(Event::Wish(self.heard.wish));
        }
    }

    fn give(&mut self, event: Event) {
        tracing::trace!(task = %self.task.id, ?event, stage = ?self.life.stage(), "task");
        let (life, effects) = self.life.clone().step(event);
        self.life = life;
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Report(report) => self.report(report),
                Effect::Abandon => self.under_way = None,
                Effect::Forget => self.forget(),
                later => {
                    let files = std::mem::take(&mut self.files);
                    let pid = self.heard.container.as_ref().map_or(0, |change| change.pid);
                    let steps = Steps { agent: self.agent.clone(), task: self.task.clone() };
                    self.under_way = Some(steps.carry_out(later, files, pid).boxed());
                }
            }
        }
    }

    /// Lets go of the files of a container that does not start again.
    fn forget(&mut self) {
        self.files = Vec::new();
        let steps = Steps { agent: self.agent.clone(), task: self.task.clone() };
        self.aside.spawn(async move { steps.forget().await });
    }

    /// What the machine is told of the container.
    fn seen(&mut self) -> Seen {
        let Some(change) = self.heard.container.as_ref().filter(|change| !change.removed) else {
            return Seen::Missing;
        };
        match change.phase {
            Phase::Created => Seen::Made,
            // One that waits for its restart runs again in a moment.
            Phase::Running | Phase::Paused | Phase::Restarting => {
                self.ended_by = EndedBy::Itself;
                Seen::Alive(health(change.health))
            }
            // It is removed only when it does not run.
            Phase::Exited | Phase::Dead | Phase::Removing => Seen::Ended(Exit {
                by: self.ended_by,
                code: change.exit_code,
                text: failure::of_exit(change),
            }),
        }
    }

    fn report(&self, report: Report) {
        let now = (self.agent.inner.config.clock)();
        let mut status = TaskStatus::new(now, report.state, report.message);
        status.err = report.error;
        status.container = self.heard.container.as_ref().map(container_status);
        if report.state == TaskState::Running {
            status.ports = spec::host_ports(&self.task);
        }
        tracing::debug!(task = %self.task.id, state = %status.state, err = status.err, "task");
        self.agent.inner.reporter.set(&self.task.id, status);
    }
}

/// Waits for what is under way, if something is.
async fn under_way(work: &mut Option<BoxFuture<'static, Came>>) -> Came {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

fn health(health: HealthStatus) -> Health {
    match health {
        HealthStatus::None => Health::Unchecked,
        HealthStatus::Starting => Health::Unknown,
        HealthStatus::Healthy => Health::Well,
        HealthStatus::Unhealthy => Health::Ill,
    }
}

fn container_status(change: &ContainerChange) -> ContainerStatus {
    ContainerStatus {
        container_id: change.id.clone(),
        pid: change.pid,
        exit_code: change.exit_code,
    }
}
