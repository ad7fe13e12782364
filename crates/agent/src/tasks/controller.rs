//! The life of one task on its node: prepared, held until it may start, started, watched, stopped,
//! removed. What happens is reported; what should happen comes in through [`Wanted`].

use std::time::Duration;

use shoal_engine::change::{ContainerChange, HealthStatus, Phase};
use shoal_engine::engine::Engine;
use shoal_engine::error::EngineError;
use shoal_engine::request::{CreateOptions, Grace, InjectedFile, RemoveOptions, StopOptions};
use shoal_image::progress::Progress;
use shoal_image::registry::auth::RegistryAuth;
use shoal_image::store::PullRequest;
use shoal_model::id::{ContainerId, TaskId};
use shoal_model::object::{ContainerStatus, Task, TaskStatus};
use shoal_model::task_state::TaskState;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use super::failure::{self, Failure};
use super::{Wanted, container_of, listening, payload, spec};
use crate::agent::Agent;

/// Longest time that a stopping task keeps serving while the other nodes take it out of their
/// balancing. They usually have within a tenth of this.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How long requests may still take that were under way when the last node took the task out.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// First pause before a removal is tried again.
const REMOVE_RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const REMOVE_RETRY_MAX: Duration = Duration::from_secs(10);

/// Drives the task until it is gone; gives its id back.
pub(crate) async fn run(agent: Agent, id: TaskId, wanted: watch::Receiver<Wanted>) -> TaskId {
    if let Some(engine) = agent.engine().cloned() {
        let mut controller = Controller { agent, engine, id: id.clone(), wanted };
        controller.live().await;
        controller.remove().await;
    }
    id
}

struct Controller {
    agent: Agent,
    engine: Engine,
    id: TaskId,
    wanted: watch::Receiver<Wanted>,
}

/// How the running phase came to its end.
enum Ending {
    /// Managers want it to stop, or it is not assigned any more.
    Asked,
    /// Its process ended.
    Exited(Box<ContainerChange>),
    /// Its health check says that it does not work.
    Unhealthy,
}

impl Controller {
    /// Everything until the task is terminal and not assigned any more.
    async fn live(&mut self) {
        if let Some(task) = self.assigned()
            && !self.known_state(&task).is_terminal()
        {
            self.until_terminal(&task).await;
        }
        self.forget_files().await;
        // Its container stays for its log, for as long as managers keep the task's record.
        self.until(|wanted| matches!(wanted, Wanted::Gone)).await;
    }

    async fn until_terminal(&mut self, task: &Task) {
        let found = container_of(&self.agent, &self.id).await;
        let container = match found {
            Some(container) => container,
            None => match self.prepare(task).await {
                Some(container) => container,
                None => return,
            },
        };
        let mut feed = self.engine.changes_feed();
        let Ok(now) = self.engine.status(container.as_str()).await else {
            return self.fail(TaskState::Failed, Failure::plain("container has disappeared"));
        };
        if now.phase == Phase::Created {
            if !self.hold().await {
                return self.report(TaskState::Shutdown, "shutdown before it was started", None);
            }
            // Given just before the start: those of a container that an earlier daemon made have
            // gone with that daemon's memory.
            let Some(files) = self.files(task).await else { return };
            self.report(TaskState::Starting, "starting", None);
            if let Err(error) = self.start(&container, files).await {
                return self.fail(TaskState::Failed, failure::of_engine(&error));
            }
        } else if !now.phase.is_alive() {
            return self.report_exit(&now);
        }
        match self.watch(&container, &mut feed).await {
            Ending::Exited(change) => self.report_exit(&change),
            Ending::Asked => self.stop(&container).await,
            Ending::Unhealthy => {
                self.end(&container).await;
                self.fail(TaskState::Failed, Failure::plain("unhealthy container"));
            }
        }
    }

    /// Image and container. `None` if the task ended on the way.
    async fn prepare(&mut self, task: &Task) -> Option<ContainerId> {
        if task.desired_state > TaskState::Running {
            self.report(TaskState::Shutdown, "shutdown before it was prepared", None);
            return None;
        }
        self.report(TaskState::Accepted, "accepted", None);
        self.report(TaskState::Preparing, "preparing", None);
        let facts = spec::NodeFacts::of(&self.agent).await;
        let body = match spec::container_create(task, &facts) {
            Ok(body) => body,
            Err(failure) => {
                self.fail(TaskState::Rejected, failure);
                return None;
            }
        };
        let image = body.config.image.clone().unwrap_or_default();
        let mut wanted = self.wanted.clone();
        let pulled = tokio::select! {
            pulled = self.ensure_image(&image, task) => pulled,
            () = stopping(&mut wanted) => {
                self.report(TaskState::Shutdown, "shutdown while preparing", None);
                return None;
            }
        };
        if let Err(failure) = pulled {
            self.fail(TaskState::Rejected, failure);
            return None;
        }
        // What cannot be had is said before anything is made.
        self.files(task).await?;
        let options = CreateOptions {
            name: Some(task.name()),
            task: Some(spec::attachment(task)),
            ..CreateOptions::default()
        };
        match self.engine.create(body, options).await {
            Ok(created) => Some(ContainerId::new(created.id)),
            Err(error) => {
                self.fail(TaskState::Rejected, failure::of_engine(&error));
                None
            }
        }
    }

    /// Its secrets and configs; `None` if the task ended before they came.
    async fn files(&self, task: &Task) -> Option<Vec<InjectedFile>> {
        let mut wanted = self.wanted.clone();
        let found = tokio::select! {
            found = payload::all(&self.agent, task) => found,
            () = stopping(&mut wanted) => {
                let message = "shutdown before its secrets and configs came";
                self.report(TaskState::Shutdown, message, None);
                return None;
            }
        };
        found.map_err(|failure| self.fail(TaskState::Rejected, failure)).ok()
    }

    /// Lets go of the files of a container that does not start again.
    async fn forget_files(&self) {
        if let Some(container) = container_of(&self.agent, &self.id).await {
            // Ignored because: a container that is gone by now has no files either.
            let _ = self.engine.set_files(container.as_str(), Vec::new()).await;
        }
    }

    async fn start(
        &self,
        container: &ContainerId,
        files: Vec<InjectedFile>,
    ) -> Result<(), EngineError> {
        self.engine.set_files(container.as_str(), files).await?;
        self.engine.start(container.as_str()).await
    }

    async fn ensure_image(&self, image: &str, task: &Task) -> Result<(), Failure> {
        let Some(images) = self.agent.inner.images.get() else {
            return Err(Failure::plain("agent is not started"));
        };
        if images.ready(image).is_ok() {
            return Ok(());
        }
        let header = task.spec.container_spec.as_ref().and_then(|spec| spec.registry_auth());
        let auth = RegistryAuth::from_header(header.unwrap_or_default())
            .map_err(|error| failure::of_pull(image, &error))?;
        let request = PullRequest { reference: image.to_owned(), auth, platform: None };
        match images.pull(request, Progress::none()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(failure::of_pull(image, &error)),
        }
    }

    /// Waits until managers let the task start; `false` if they want it to stop instead.
    async fn hold(&mut self) -> bool {
        self.report(TaskState::Ready, "prepared", None);
        self.until(|wanted| match wanted {
            Wanted::Gone => true,
            Wanted::Assigned(task) => task.desired_state >= TaskState::Running,
        })
        .await;
        self.assigned().is_some_and(|task| task.desired_state == TaskState::Running)
    }

    /// Follows the running container.
    async fn watch(
        &mut self,
        container: &ContainerId,
        feed: &mut broadcast::Receiver<ContainerChange>,
    ) -> Ending {
        let mut may_serve = self.has_run();
        loop {
            let Ok(now) = self.engine.status(container.as_str()).await else {
                return Ending::Exited(Box::new(vanished(container)));
            };
            if !now.phase.is_alive() {
                return Ending::Exited(Box::new(now));
            }
            let mut wanted = self.wanted.clone();
            match now.health {
                HealthStatus::None if !may_serve => {
                    self.report(TaskState::Starting, "waiting until it listens", Some(&now));
                    may_serve = tokio::select! {
                        alive = self.until_listening(now.pid) => alive,
                        () = stopping(&mut wanted) => return Ending::Asked,
                    };
                    if may_serve {
                        continue;
                    }
                    // Its end is told by the engine in a moment.
                }
                HealthStatus::None | HealthStatus::Healthy => {
                    self.report(TaskState::Running, "started", Some(&now));
                }
                HealthStatus::Starting => {
                    self.report(TaskState::Starting, "waiting for its health check", Some(&now));
                }
                HealthStatus::Unhealthy => return Ending::Unhealthy,
            }
            tokio::select! {
                () = stopping(&mut wanted) => return Ending::Asked,
                () = concerning(feed, container) => {}
            }
        }
    }

    /// Whether the task was running before, under an earlier daemon perhaps.
    fn has_run(&self) -> bool {
        self.assigned().is_some_and(|task| self.known_state(&task) >= TaskState::Running)
    }

    async fn until_listening(&self, pid: u32) -> bool {
        match self.assigned() {
            Some(task) => listening::until_listening(&task, pid).await,
            None => true,
        }
    }

    /// Ends the container as managers want: first out of every node's balancing, then the signal.
    async fn stop(&mut self, container: &ContainerId) {
        if self.assigned().is_some() {
            let revision = self.agent.assignment().revision;
            if self.agent.inner.hub.converged(revision, DRAIN_MAX).await {
                tokio::time::sleep(UNDER_WAY).await;
            }
        }
        self.end(container).await;
        let now = self.engine.status(container.as_str()).await.ok();
        self.report(TaskState::Shutdown, "shutdown", now.as_ref());
    }

    async fn end(&self, container: &ContainerId) {
        let grace = self
            .assigned()
            .and_then(|task| task.spec.container_spec.as_ref().map(|s| s.stop_grace_period()))
            .unwrap_or(Duration::from_secs(10));
        let options = StopOptions { signal: None, grace: Some(Grace::Limit(grace)) };
        if let Err(error) = self.engine.stop(container.as_str(), options).await {
            // What cannot be stopped is killed with its removal; the reason is kept in the log.
            tracing::warn!(task = %self.id, cause = shoal_model::fault::report(&error),
                "task could not be stopped");
        }
    }

    /// Removes what is left of the task, however often it takes.
    async fn remove(&self) {
        let mut pause = REMOVE_RETRY_FIRST;
        while let Some(container) = container_of(&self.agent, &self.id).await {
            let options = RemoveOptions { force: true, volumes: true };
            match self.engine.remove(container.as_str(), options).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(task = %self.id,
                    cause = shoal_model::fault::report(&error), "task could not be removed"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REMOVE_RETRY_MAX);
        }
    }

    fn assigned(&self) -> Option<Task> {
        match &*self.wanted.borrow() {
            Wanted::Assigned(task) => Some(task.as_ref().clone()),
            Wanted::Gone => None,
        }
    }

    async fn until(&mut self, test: impl FnMut(&Wanted) -> bool) {
        let ended = self.wanted.wait_for(test).await.is_err();
        if ended {
            // The sender lives as long as the agent's loop: the agent is stopping, and this task
            // is stopped with it.
            std::future::pending::<()>().await;
        }
    }

    /// What this node last said of the task, or else what managers have of it.
    fn known_state(&self, task: &Task) -> TaskState {
        self.agent.inner.reporter.get(&self.id).map_or(task.status.state, |status| status.state)
    }

    fn report(&self, state: TaskState, message: &str, container: Option<&ContainerChange>) {
        let mut status = TaskStatus::new((self.agent.inner.config.clock)(), state, message);
        status.container = container.map(container_status);
        if state == TaskState::Running
            && let Some(task) = self.assigned()
        {
            status.ports = spec::host_ports(&task);
        }
        self.set(status);
    }

    fn fail(&self, state: TaskState, failure: Failure) {
        let mut status = TaskStatus::new((self.agent.inner.config.clock)(), state, failure.step);
        status.err = failure.text;
        self.set(status);
    }

    fn report_exit(&self, change: &ContainerChange) {
        let clean = change.exit_code == 0 && change.error.is_empty() && !change.oom_killed;
        let state = if clean { TaskState::Complete } else { TaskState::Failed };
        let mut status = TaskStatus::new((self.agent.inner.config.clock)(), state, "finished");
        status.err = failure::of_exit(change);
        status.container = Some(container_status(change));
        self.set(status);
    }

    fn set(&self, status: TaskStatus) {
        tracing::debug!(task = %self.id, state = %status.state, err = status.err, "task");
        self.agent.inner.reporter.set(&self.id, status);
    }
}

fn container_status(change: &ContainerChange) -> ContainerStatus {
    ContainerStatus {
        container_id: change.id.clone(),
        pid: change.pid,
        exit_code: change.exit_code,
    }
}

fn vanished(container: &ContainerId) -> ContainerChange {
    ContainerChange {
        id: container.clone(),
        name: String::new(),
        task_id: None,
        phase: Phase::Exited,
        removed: true,
        pid: 0,
        exit_code: 137,
        error: "container was removed by hand".to_owned(),
        oom_killed: false,
        health: HealthStatus::None,
    }
}

/// Returns when managers want the task to stop.
async fn stopping(wanted: &mut watch::Receiver<Wanted>) {
    let stop = wanted.wait_for(|wanted| match wanted {
        Wanted::Gone => true,
        Wanted::Assigned(task) => task.desired_state > TaskState::Running,
    });
    let ended = stop.await.is_err();
    if ended {
        std::future::pending::<()>().await;
    }
}

/// Returns when something happened to the container, or may have.
async fn concerning(feed: &mut broadcast::Receiver<ContainerChange>, container: &ContainerId) {
    loop {
        match feed.recv().await {
            Ok(change) if change.id == *container => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending::<()>().await,
        }
    }
}
