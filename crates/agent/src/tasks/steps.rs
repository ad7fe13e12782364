//! What a task's machine asks for that takes time. A step that is dropped halfway is one that the
//! machine has given up; the engine finishes what it has begun.

use std::time::Duration;

use shoal_engine::change::ContainerChange;
use shoal_engine::engine::Engine;
use shoal_engine::error::EngineError;
use shoal_engine::request::{CreateOptions, Grace, InjectedFile, RemoveOptions, StopOptions};
use shoal_image::progress::Progress;
use shoal_image::registry::auth::RegistryAuth;
use shoal_image::store::PullRequest;
use shoal_life::task::{Effect, Event};
use shoal_model::fault::chain;
use shoal_model::id::ContainerId;
use shoal_model::object::Task;
use shoal_model::spec::service::PublishMode;
use shoal_network::claims::{self, HostPort};

use super::failure::{self, Failure};
use super::{listening, payload, spec};
use crate::agent::Agent;
use crate::error::AgentError;

/// Longest time that a stopping task keeps serving while the other nodes take it out of their
/// balancing. They usually have within a tenth of this.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How long requests may still take that were under way when the last node took the task out.
const UNDER_WAY: Duration = Duration::from_millis(500);
/// How long a process may take to end if its spec does not say, as Docker's.
const GRACE: Duration = Duration::from_secs(10);

/// What came of a step.
pub(super) enum Came {
    /// An event.
    Event(Event),
    /// The files at hand: [`Event::Gathered`].
    Files(Vec<InjectedFile>),
    /// The container as it is, if there is one: [`Event::Found`].
    Found(Option<ContainerChange>),
}

/// The steps of one task.
pub(super) struct Steps {
    pub agent: Agent,
    pub task: Task,
}

impl Steps {
    /// Carries `effect` out.
    pub(super) async fn carry_out(
        self,
        effect: Effect,
        files: Vec<InjectedFile>,
        pid: u32,
    ) -> Came {
        let Some(engine) = self.agent.engine().cloned() else {
            return Came::Event(Event::Failed(plain("agent is not started")));
        };
        Came::Event(match effect {
            Effect::Look => return Came::Found(self.look(&engine).await),
            Effect::Gather => match payload::all(&self.agent, &self.task).await {
                Ok(files) => return Came::Files(files),
                Err(failure) => Event::Failed(failure),
            },
            Effect::Prepare => outcome(self.prepare().await, Event::Prepared),
            Effect::Create => outcome(self.create(&engine).await, Event::Created),
            Effect::Start => outcome(self.start(&engine, files).await, Event::Started),
            Effect::Listen => {
                if !listening::until_listening(&self.task, pid).await {
                    // Its end is told by the engine in a moment.
                    std::future::pending::<()>().await;
                }
                Event::Listens
            }
            Effect::HandOver => {
                self.hand_over().await;
                Event::HandedOver
            }
            Effect::Stop => self.stop(&engine).await,
            Effect::Remove => self.remove(&engine).await,
            Effect::Pause(pause) => {
                tokio::time::sleep(pause).await;
                Event::Retry
            }
            // They take no time: the owner does them.
            Effect::Abandon | Effect::Forget | Effect::Report(_) => Event::Retry,
        })
    }

    async fn look(&self, engine: &Engine) -> Option<ContainerChange> {
        let container = self.container()?;
        engine.status(container.as_str()).await.ok()
    }

    fn container(&self) -> Option<ContainerId> {
        self.agent.inner.tasks.container_of(&self.task.id)
    }

    /// Its image; and that all else which it needs can be had, before anything is made.
    async fn prepare(&self) -> Result<(), Failure> {
        self.check_ports()?;
        let facts = spec::NodeFacts::of(&self.agent).await;
        let body = spec::container_create(&self.task, &facts)?;
        let image = body.config.image.clone().unwrap_or_default();
        self.ensure_image(&image).await?;
        payload::all(&self.agent, &self.task).await.map(|_| ())
    }

    /// A port that the service publishes on every node may be a container's here: that container
    /// keeps it, and the task says so.
    fn check_ports(&self) -> Result<(), Failure> {
        let taken = self.agent.container_ports();
        let mesh = self.task.endpoint_ports.iter().filter(|p| p.mode() == PublishMode::Ingress);
        for port in mesh.filter_map(|p| p.published()) {
            let known = taken.iter().map(|(place, holder)| (*place, holder.as_str()));
            if let Some(holder) = claims::holder(HostPort::new(port, None), known) {
                let error = AgentError::PortTaken { port, holder: holder.to_owned() };
                return Err(failure::of("preparing", &error));
            }
        }
        Ok(())
    }

    async fn ensure_image(&self, image: &str) -> Result<(), Failure> {
        let Some(images) = self.agent.inner.images.get() else {
            return Err(plain("agent is not started"));
        };
        if images.ready(image).is_ok() {
            return Ok(());
        }
        let header = self.task.spec.container_spec.as_ref().and_then(|spec| spec.registry_auth());
        let auth = RegistryAuth::from_header(header.unwrap_or_default())
            .map_err(|error| failure::of_pull(image, &error))?;
        let request = PullRequest { reference: image.to_owned(), auth, platform: None };
        let pulled = images.pull(request, Progress::none()).await;
        pulled.map(|_| ()).map_err(|error| failure::of_pull(image, &error))
    }

    async fn create(&self, engine: &Engine) -> Result<(), Failure> {
        let facts = spec::NodeFacts::of(&self.agent).await;
        let body = spec::container_create(&self.task, &facts)?;
        let options = CreateOptions {
            name: Some(self.task.name()),
            task: Some(spec::attachment(&self.task)),
            ..CreateOptions::default()
        };
        let made = engine.create(body, options).await;
        let made = made.map_err(|error| failure::of_engine(&error))?;
        // Known before anything is done with it, however late the engine's word of it comes.
        if let Ok(change) = engine.status(&made.id).await {
            self.agent.inner.tasks.see(change);
        }
        Ok(())
    }

    async fn start(&self, engine: &Engine, files: Vec<InjectedFile>) -> Result<(), Failure> {
        let Some(container) = self.container() else {
            return Err(plain("container has disappeared"));
        };
        let failed = |error: EngineError| failure::of_engine(&error);
        engine.set_files(container.as_str(), files).await.map_err(failed)?;
        match engine.start(container.as_str()).await {
            // Somebody started it by hand.
            Ok(()) | Err(EngineError::NotModified { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// First out of every node's balancing, then the signal.
    async fn hand_over(&self) {
        let revision = self.agent.assignment().revision;
        if self.agent.inner.hub.converged(revision, DRAIN_MAX).await {
            tokio::time::sleep(UNDER_WAY).await;
        }
    }

    async fn stop(&self, engine: &Engine) -> Event {
        let Some(container) = self.container() else { return Event::Stopped };
        let spec = self.task.spec.container_spec.as_ref();
        let grace = spec.map_or(GRACE, |spec| spec.stop_grace_period());
        let options = StopOptions { signal: None, grace: Some(Grace::Limit(grace)) };
        match engine.stop(container.as_str(), options).await {
            // Whether that is so, the machine looks for itself.
            Ok(()) | Err(EngineError::NotModified { .. } | EngineError::NoSuchContainer { .. }) => {
                Event::Stopped
            }
            Err(error) => {
                tracing::warn!(task = %self.task.id, cause = shoal_model::fault::report(&error),
                    "task could not be stopped");
                Event::StopFailed(chain(&error))
            }
        }
    }

    async fn remove(&self, engine: &Engine) -> Event {
        let Some(container) = self.container() else { return Event::Removed };
        let options = RemoveOptions { force: true, volumes: true };
        match engine.remove(container.as_str(), options).await {
            Ok(()) => Event::Removed,
            Err(EngineError::NoSuchContainer { .. }) => Event::Removed,
            Err(error) => {
                tracing::warn!(task = %self.task.id, cause = shoal_model::fault::report(&error),
                    "task could not be removed");
                Event::RemoveFailed
            }
        }
    }

    /// Lets go of the files of a container that does not start again.
    pub(super) async fn forget(&self) {
        if let (Some(engine), Some(container)) = (self.agent.engine(), self.container()) {
            // Ignored because: a container that is gone by now has no files either.
            let _ = engine.set_files(container.as_str(), Vec::new()).await;
        }
    }
}

fn outcome(result: Result<(), Failure>, good: Event) -> Event {
    match result {
        Ok(()) => good,
        Err(failure) => Event::Failed(failure),
    }
}

fn plain(text: &str) -> Failure {
    Failure { step: "failed", text: text.to_owned() }
}
