//! Opening the engine: every container of before is found again, nothing runs unobserved, and what
//! a crash has left is cleaned up.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shoal_image::digest::ImageId;
use shoal_image::store::ImageStore;
use shoal_model::fault;
use shoal_runtime::protocol::{Phase as ShimPhase, ShimState};
use shoal_runtime::{ContainerRuntime, RuntimeError, Shim};
use tokio_util::sync::CancellationToken;

use crate::attacher::Attacher;
use crate::change::Phase;
use crate::config::{Clock, EngineConfig};
use crate::container::Container;
use crate::engine::{Engine, Parts, blocking};
use crate::error::EngineError;
use crate::exit::{End, Verdict, decide};
use crate::memory;
use crate::record::{self, Record};
use crate::remove::REMOVING;
use crate::request::{Grace, ShutdownMode, StopOptions};
use crate::volumes::Volumes;

/// How long ending background tasks may take at a shutdown: they only finish a file or a request.
const TASKS_DEADLINE: Duration = Duration::from_secs(5);

impl Engine {
    /// Reads all containers and volumes, takes over the shims that live, and records the end of
    /// those that do not. Calls [`Attacher::readopt`] for every container that runs. Restart
    /// policies act only after [`Self::resume`].
    ///
    /// # Errors
    /// The directories cannot be read or made. A single damaged record is no error, see
    /// [`Self::damaged`].
    pub async fn open(
        config: EngineConfig,
        images: ImageStore,
        runtime: ContainerRuntime,
        attacher: Arc<dyn Attacher>,
        clock: Clock,
    ) -> Result<Self, EngineError> {
        let root = config.data_root.clone();
        let sweeper = runtime.clone();
        let (records, volumes, damaged) = blocking("open the engine", move || {
            // Ignored because: what the sweep finds is read again, container by container.
            let _ = sweeper.sweep().map_err(|source| EngineError::Runtime {
                action: "clean up after",
                container: "*".into(),
                source: Box::new(source),
            })?;
            let (records, mut damaged) = read_all(&root.join("containers"))?;
            let (volumes, more) = Volumes::open(root.join("volumes"))?;
            damaged.extend(more);
            Ok((records, volumes, damaged))
        })
        .await?;
        let engine =
            Self::new(Parts { config, clock, images, runtime, attacher, volumes, damaged });
        for record in records {
            engine.recover(record).await?;
        }
        engine.inner.images.holds_complete();
        engine.remove_unknown_shims().await?;
        Ok(engine)
    }

    async fn recover(&self, record: Record) -> Result<(), EngineError> {
        let dir = self.inner.config.data_root.join("containers").join(record.id.as_str());
        let (id, name) = (record.id.clone(), record.name.clone());
        let image = ImageId::parse(&record.image_id);
        let reference = record.image.clone();
        let container = Arc::new(Container::new(dir, record, Vec::new()));
        self.reserve(&name, &id)?;
        self.insert(Arc::clone(&container));
        let held = match image {
            Some(image) => self.hold(&id, &image, &reference),
            None => Err(EngineError::NoSuchImage { reference }),
        };
        if let Err(error) = held {
            // It cannot start any more; what runs, runs on.
            container.change(|record| record.run.error = fault::report(&error));
        }
        if container.phase() == Phase::Removing {
            self.spawn_removal(&container);
            return Ok(());
        }
        let shim = match self.inner.runtime.connect(&id).await {
            Ok(shim) => Some(shim),
            Err(RuntimeError::NotFound { .. }) => None,
            Err(error) => {
                container.change(|record| record.run.error = fault::report(&error));
                None
            }
        };
        if container.phase().is_alive() {
            self.recover_alive(&container, shim).await
        } else {
            self.recover_ended(&container, shim).await
        }
    }

    /// The record says that it lives.
    async fn recover_alive(
        &self,
        container: &Arc<Container>,
        shim: Option<Shim>,
    ) -> Result<(), EngineError> {
        let Some(shim) = shim else {
            let lost = RuntimeError::ShimDied { container: container.id.clone() };
            return self.end(container, None, End::lost(&lost, self.now())).await;
        };
        match shim.state().await {
            Ok(state) if matches!(state.phase, ShimPhase::Running | ShimPhase::Paused) => {
                self.take_over(container, shim, &state).await
            }
            Ok(ShimState { exit: Some(status), .. }) => {
                self.end(container, Some(shim), End::of(&status)).await
            }
            Ok(_) => {
                let lost = RuntimeError::ShimDied { container: container.id.clone() };
                self.end(container, Some(shim), End::lost(&lost, self.now())).await
            }
            Err(error) => {
                let end = End::lost(&error, self.now());
                self.end(container, Some(shim), end).await
            }
        }
    }

    async fn take_over(
        &self,
        container: &Arc<Container>,
        shim: Shim,
        state: &ShimState,
    ) -> Result<(), EngineError> {
        let attachment = container.read(|record| record.run.attachment.clone());
        let own = container.read(|record| record.shares_network_of().is_none());
        if let Some(attachment) = attachment.filter(|_| own) {
            let request = self.attach_request(container);
            match self.inner.attacher.readopt(request, attachment).await {
                Ok(attachment) => {
                    container.change(|record| record.run.attachment = Some(attachment));
                }
                Err(source) => {
                    let action = "take over the networks";
                    let error = crate::start::network_error(action, container, source);
                    let end = End {
                        code: 137,
                        oom_killed: false,
                        at: self.now(),
                        error: fault::report(&error),
                    };
                    return self.end(container, Some(shim), end).await;
                }
            }
        }
        let run = CancellationToken::new();
        container.change(|record| {
            record.run.pid = state.pid;
            record.run.phase = match state.phase {
                ShimPhase::Paused => Phase::Paused,
                _ => Phase::Running,
            };
        });
        container.live(|live| {
            live.shim = Some(shim.clone());
            live.run = run.clone();
        });
        self.inner.images.set_running(&container.id, true);
        self.save(container).await?;
        self.watch(container, shim, run);
        Ok(())
    }

    /// The record says that it does not live: a shim is what a start or an end left halfway.
    async fn recover_ended(
        &self,
        container: &Arc<Container>,
        shim: Option<Shim>,
    ) -> Result<(), EngineError> {
        if let Some(shim) = shim {
            let deleted = shim.delete().await;
            deleted.map_err(|e| crate::start::runtime_error("clean up after", container, e))?;
        }
        if let Err(error) = self.release_networks(container).await {
            container.change(|record| record.run.error = fault::report(&error));
        }
        self.save(container).await
    }

    /// Shims without a record belong to containers that are gone.
    async fn remove_unknown_shims(&self) -> Result<(), EngineError> {
        let shims = self.inner.runtime.shims();
        let ids = self.inner.runtime.list().map_err(EngineError::io("read", shims))?;
        for id in ids {
            if self.find(id.as_str()).is_ok() {
                continue;
            }
            let fail = |source| EngineError::Runtime {
                action: "clean up after",
                container: id.to_string(),
                source: Box::new(source),
            };
            let shim = self.inner.runtime.connect(&id).await.map_err(fail)?;
            shim.delete().await.map_err(fail)?;
        }
        Ok(())
    }

    /// Lets restart policies act: starts what should run, removes what should be gone. Called once,
    /// when the network side is ready.
    pub async fn resume(&self) {
        self.inner.resumed.send_replace(true);
        for container in self.all() {
            let (phase, auto_remove) =
                container.read(|record| (record.run.phase, record.auto_remove()));
            match phase {
                Phase::Restarting => self.plan_restart(&container, Duration::ZERO),
                Phase::Exited if auto_remove => self.spawn_removal(&container),
                Phase::Exited if wants_start(&container) => {
                    container.change(|record| record.run.phase = Phase::Restarting);
                    self.plan_restart(&container, Duration::ZERO);
                }
                _ => {}
            }
        }
    }

    /// Ends the engine's background tasks; what happens to containers, `mode` says. With
    /// [`ShutdownMode::Stop`] restart policies start them again at the next start.
    pub async fn shutdown(&self, mode: ShutdownMode) {
        if let ShutdownMode::Stop(limit) = mode {
            self.inner.stopping.cancel();
            let options = StopOptions { signal: None, grace: Some(Grace::Limit(limit)) };
            let stops = self.all().into_iter().map(|container| {
                let (engine, options) = (self.clone(), options.clone());
                async move {
                    // A start that is under way holds the gate: it must end before it is undone,
                    // or its container would outlive the daemon.
                    drop(container.gate.lock().await);
                    if !container.phase().is_alive() {
                        return;
                    }
                    let by_user = container.read(|record| record.run.stopped_by_user);
                    let stopped = engine.stop_running(&container, &options).await;
                    // It is the daemon that stops it, not a user.
                    container.change(|record| record.run.stopped_by_user = by_user);
                    let saved = engine.save(&container).await;
                    if let Err(error) = stopped.and(saved) {
                        tracing::error!(container = %container.id, error = fault::report(&error),
                            "a container could not be stopped");
                    }
                }
            });
            futures::future::join_all(stops).await;
        }
        self.inner.closing.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(TASKS_DEADLINE, self.inner.tasks.wait()).await.is_err() {
            tracing::error!("background tasks of the engine did not end in time");
        }
        let root = self.inner.config.exec_root.clone();
        let unmounted = blocking("unmount", move || memory::unmount(&root));
        if let Err(error) = unmounted.await {
            tracing::error!(error = fault::report(&error), "memory files stay mounted");
        }
    }
}

/// Whether the policy wants a container that has ended to run again after a daemon's start.
fn wants_start(container: &Container) -> bool {
    container.read(|record| {
        let policy = record.host.restart_policy.clone().unwrap_or_default();
        let never = record.run.started_at == shoal_model::time::Timestamp::ZERO;
        // `always` means it: also what a user stopped comes back with the daemon, as in Docker.
        let always = policy.name == "always";
        !never && (always || matches!(decide(&policy, &record.run), Verdict::Restart(_)))
    })
}

/// Every record below `root`, and what could not be read. Finishes removals.
fn read_all(root: &Path) -> Result<(Vec<Record>, Vec<EngineError>), EngineError> {
    fs::create_dir_all(root).map_err(EngineError::io("create the directory", root))?;
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(root).map_err(EngineError::io("read", root))? {
        let dir = entry.map_err(EngineError::io("read", root))?.path();
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(REMOVING) || !dir.join(record::RECORD_FILE).exists() {
            // A removal that was cut off, or a creation that nobody was told of.
            fs::remove_dir_all(&dir).map_err(EngineError::io("remove", &dir))?;
            continue;
        }
        match record::read(&dir) {
            Ok(record) => records.push(record),
            Err(error) => {
                tracing::error!(error = fault::report(&error), "a container's record is damaged");
                damaged.push(error);
            }
        }
    }
    Ok((records, damaged))
}
