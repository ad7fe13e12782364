//! Opening the engine: every container of before is found again, nothing runs unobserved, what a
//! crash has left is cleaned up. What is damaged is named and left out; everything else goes on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_image::digest::ImageId;
use shoal_image::store::ImageStore;
use shoal_life::container::{Ask, Command, Event, Found, Holding, Process, Retry, Stopper};
use shoal_model::fault::{self, Fault, FaultKind};
use shoal_model::id::ContainerId;
use shoal_runtime::protocol::{ProcessPhase, ShimState};
use shoal_runtime::{ContainerRuntime, RuntimeError, Shim};

use crate::attacher::Attacher;
use crate::config::{Clock, EngineConfig};
use crate::container::Container;
use crate::engine::{Engine, Parts, blocking};
use crate::error::EngineError;
use crate::exit::{End, explained};
use crate::memory;
use crate::owner::{Owner, past};
use crate::record::{self, Record};
use crate::remove::REMOVING;
use crate::request::ShutdownMode;
use crate::volumes::Volumes;

/// How long ending background tasks may take at a shutdown: they only finish a file or a request.
const TASKS_DEADLINE: Duration = Duration::from_secs(5);

/// What could not be read when the engine was opened.
#[derive(Default)]
pub(crate) struct Damage {
    /// What, and why.
    pub errors: Vec<EngineError>,
    /// Directories of containers without a record that can be read; they can be removed.
    containers: Mutex<BTreeSet<ContainerId>>,
}

impl Damage {
    fn add(&mut self, error: EngineError) {
        tracing::error!(error = fault::report(&error), "something is damaged and left out");
        self.errors.push(error);
    }

    /// The damaged container with this id.
    pub fn container(&self, id: &str) -> Option<ContainerId> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(&ContainerId::new(id)).cloned()
    }

    /// A damaged container is gone.
    pub fn mended(&self, id: &ContainerId) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// How a container is found when the engine is opened.
enum Sight {
    Process(Shim, Box<ShimState>),
    Ended(End),
}

impl Engine {
    /// Reads all containers and volumes, takes over the shims that live, and records the end of
    /// those that do not. Calls [`Attacher::readopt`] for every container that runs. Restart
    /// policies act only after [`Self::resume`].
    ///
    /// # Errors
    /// The directories cannot be read or made. Damage is no error, see [`Self::damaged`].
    pub async fn open(
        config: EngineConfig,
        images: ImageStore,
        runtime: ContainerRuntime,
        attacher: Arc<dyn Attacher>,
        clock: Clock,
    ) -> Result<Self, EngineError> {
        let root = config.data_root.clone();
        let sweeper = runtime.clone();
        let (records, volumes, damage) = blocking("open the engine", move || {
            let mut damage = Damage::default();
            // What a sweep cannot clean up it names; the containers are looked at one by one below.
            if let Err(source) = sweeper.sweep() {
                damage.add(EngineError::Runtime {
                    action: "clean up after",
                    container: "*".into(),
                    source: Box::new(source),
                });
            }
            let records = read_all(&root.join("containers"), &mut damage)?;
            let (volumes, more) = Volumes::open(root.join("volumes"))?;
            more.into_iter().for_each(|error| damage.add(error));
            Ok((records, volumes, damage))
        })
        .await?;
        let (records, damage) = unambiguous(records, damage);
        let engine = Self::new(Parts { config, clock, images, runtime, attacher, volumes, damage });
        for record in records {
            engine.recover(record).await?;
        }
        engine.inner.images.holds_complete();
        engine.remove_unknown_shims();
        Ok(engine)
    }

    async fn recover(&self, record: Record) -> Result<(), EngineError> {
        let dir = self.inner.config.data_root.join("containers").join(record.id.as_str());
        let (id, name) = (record.id.clone(), record.name.clone());
        let image = ImageId::parse(&record.image_id);
        let reference = record.image.clone();
        let (container, inbox) = Container::new(dir, record, Vec::new());
        let container = Arc::new(container);
        self.reserve(&name, &id)?;
        self.insert(Arc::clone(&container));
        let held = match image {
            Some(image) => self.hold(&id, &image, &reference),
            None => Err(EngineError::NoSuchImage { reference }),
        };
        if let Err(error) = held {
            // It cannot start any more; what runs, runs on.
            let text = fault::report(&error);
            tracing::error!(container = %id, error = text, "a container's image is not there");
            container.change(|record| record.run.error = text);
        }
        let mut owner = Owner::new(self, &container, inbox);
        match self.look(&container).await {
            Sight::Process(shim, state) => {
                let process = match state.phase {
                    ProcessPhase::Paused => Process::Frozen,
                    _ => Process::Alive,
                };
                let kept = self.take_over(&container).await;
                container.change(|record| {
                    record.run.pid = state.pid;
                    // Only if it started just before a crash is there no time in the record.
                    if !record.run.phase.is_alive()
                        && let Some(at) = state.started_at
                    {
                        record.run.started_at = at;
                        record.run.health = crate::health::starting(record);
                    }
                });
                match kept {
                    Ok(()) => owner.took_over(shim, Found::Process(process), None),
                    Err(error) => {
                        let text = fault::report(&error);
                        tracing::error!(container = %id, error = text, "a container is ended");
                        owner.took_over(shim, Found::Unkeepable, Some(text));
                    }
                }
            }
            Sight::Ended(end) => owner.found_ended(explained(&container, end).await),
        }
        owner.spawn();
        Ok(())
    }

    /// Looks at the container's shim.
    async fn look(&self, container: &Container) -> Sight {
        let lost = |error: &RuntimeError| Sight::Ended(End::lost(error, self.now()));
        let shim = match self.inner.runtime.connect(&container.id).await {
            Ok(shim) => shim,
            Err(error @ RuntimeError::NotFound { .. }) => {
                let died = RuntimeError::ShimDied { container: container.id.clone() };
                let there = self.inner.runtime.shims().join(container.id.as_str()).exists();
                note_shim(container, there);
                return lost(if there { &error } else { &died });
            }
            Err(error) => {
                note_shim(container, true);
                let text = fault::report(&error);
                tracing::error!(container = %container.id, error = text,
                    "nobody knows what its shim runs: the container is ended");
                return lost(&error);
            }
        };
        note_shim(container, true);
        match shim.state().await {
            Ok(state) if matches!(state.phase, ProcessPhase::Running | ProcessPhase::Paused) => {
                Sight::Process(shim, Box::new(state))
            }
            Ok(ShimState { exit: Some(status), .. }) => Sight::Ended(End::of(&status)),
            Ok(_) => lost(&RuntimeError::ShimDied { container: container.id.clone() }),
            Err(error) => lost(&error),
        }
    }

    /// Tells the network side that the container runs on.
    async fn take_over(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let attachment = container.read(|record| record.run.attachment.clone());
        let own = container.read(|record| record.shares_network_of().is_none());
        let Some(attachment) = attachment.filter(|_| own) else { return Ok(()) };
        let request = self.attach_request(container);
        let adopted = self.inner.attacher.readopt(request, attachment).await;
        let attachment = adopted.map_err(|source| {
            crate::start::network_error("take over the networks", container, source)
        })?;
        container.change(|record| record.run.attachment = Some(attachment));
        Ok(())
    }

    /// Shims without a record belong to containers that are gone. Removing one that resists is
    /// tried again, beside everything else.
    fn remove_unknown_shims(&self) {
        let ids = match self.inner.runtime.list() {
            Ok(ids) => ids,
            Err(error) => {
                tracing::error!(error = fault::chain(&error), "shims cannot be listed");
                return;
            }
        };
        for id in ids.into_iter().filter(|id| self.find(id.as_str()).is_err()) {
            if !self.inner.runtime.shims().join(id.as_str()).is_dir() {
                tracing::error!(entry = %id, "this among the shims is none; it is left alone");
                continue;
            }
            let engine = self.clone();
            self.spawn(async move {
                let mut retry = Retry::default();
                let end = async || {
                    engine.delete_shim(&id).await?;
                    engine.drop_memory_files(&id).await
                };
                while let Err(error) = end().await {
                    tracing::error!(container = %id, error = fault::report(&error),
                        "the shim of an unknown container stays; trying again");
                    retry = retry.next(engine.steady());
                    tokio::time::sleep(retry.at.since(engine.steady())).await;
                }
            });
        }
    }

    /// Lets restart policies act: starts what should run, removes what should be gone. Called once,
    /// when the network side is ready.
    pub async fn resume(&self) {
        self.inner.resumed.send_replace(true);
        for container in self.all() {
            let past = container.read(past);
            container.report(Event::Resumed(past)).await;
        }
    }

    /// Ends the engine's background tasks; what happens to containers, `mode` says. With
    /// [`ShutdownMode::Stop`] restart policies start them again at the next start.
    pub async fn shutdown(&self, mode: ShutdownMode) {
        if let ShutdownMode::Stop(limit) = mode {
            self.inner.stopping.cancel();
            let stops = self.all().into_iter().map(|container| async move {
                container.report(Event::Stopping).await;
                // A signal that cannot be read does not keep a container from being ended.
                let ask = crate::stop::ask(&container, &Default::default()).unwrap_or(Ask::KILL);
                let ask = Ask { grace: Some(limit), ..ask };
                let stopped = self.command(&container, Command::Stop(ask, Stopper::Daemon)).await;
                let Err(error) = stopped else { return };
                // It does not run, or has just gone.
                let fine = [FaultKind::NotModified, FaultKind::NotFound];
                if !fine.contains(&error.kind()) {
                    tracing::error!(container = %container.id, error = fault::report(&error),
                        "a container could not be stopped");
                }
            });
            futures::future::join_all(stops).await;
        }
        self.inner.closing.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(TASKS_DEADLINE, self.inner.tasks.wait()).await.is_err() {
            tracing::error!("background tasks of the engine did not end in time");
        }
        self.save_all().await;
        let root = self.inner.config.exec_root.clone();
        let unmounted = blocking("unmount", move || memory::unmount(&root));
        if let Err(error) = unmounted.await {
            tracing::error!(error = fault::report(&error), "memory files stay mounted");
        }
    }

    /// Writes what owners had no time to write.
    async fn save_all(&self) {
        for container in self.all() {
            let unwritten = container
                .read(|record| record.run.life.paper != shoal_life::container::Paper::Saved);
            if !unwritten {
                continue;
            }
            if let Err(error) = self.save(&container).await {
                tracing::error!(container = %container.id, error = fault::report(&error),
                    "a record could not be written");
            }
        }
    }
}

/// A shim that is there is one to be removed, whatever the record says.
fn note_shim(container: &Container, there: bool) {
    container.change(|record| {
        let shim = &mut record.run.life.shim;
        if there && *shim == Holding::Free {
            *shim = Holding::Held;
        }
    });
}

/// Every record below `root`. Finishes removals; names what is no container.
fn read_all(root: &Path, damage: &mut Damage) -> Result<Vec<Record>, EngineError> {
    shoal_durable::make_private_dir(root).map_err(EngineError::io("create the directory", root))?;
    let mut records = Vec::new();
    for entry in fs::read_dir(root).map_err(EngineError::io("read", root))? {
        let dir = entry.map_err(EngineError::io("read", root))?.path();
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let is_id = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        if !dir.is_dir() || !(is_id || name.starts_with(REMOVING)) {
            damage.add(stray(&dir, "it is no container's directory; move it away"));
            continue;
        }
        let unrecorded = matches!(dir.join(record::RECORD_FILE).try_exists(), Ok(false));
        if name.starts_with(REMOVING) || (unrecorded && is_untouched(&dir)) {
            // A removal that was cut off, or a creation that nobody was told of.
            if let Err(error) = fs::remove_dir_all(&dir) {
                damage.add(EngineError::io("remove", &dir)(error));
            }
            continue;
        }
        let read = if unrecorded {
            Err(stray(&dir, "its record.json is gone, and with it what the container is"))
        } else {
            record::read(&dir)
        };
        match read {
            Ok(record) => records.push(record),
            Err(error) => {
                damage.add(error);
                let containers = damage.containers.get_mut();
                let containers = containers.unwrap_or_else(PoisonError::into_inner);
                containers.insert(ContainerId::new(name));
            }
        }
    }
    Ok(records)
}

/// Whether a container's directory is as a creation makes it before its record: nothing in it is
/// anybody's work.
fn is_untouched(dir: &Path) -> bool {
    let files = record::Files(dir);
    let written = fs::read_dir(files.upper()).is_ok_and(|mut entries| entries.next().is_some());
    !written && matches!(files.hosts().try_exists(), Ok(false))
}

/// Something that does not belong where it is.
pub(crate) fn stray(path: &Path, why: &str) -> EngineError {
    EngineError::Record { path: path.to_owned(), source: why.into() }
}

/// Of two records with one name, the older container keeps it.
fn unambiguous(mut records: Vec<Record>, mut damage: Damage) -> (Vec<Record>, Damage) {
    records.sort_by(|a, b| a.created.cmp(&b.created).then(a.id.cmp(&b.id)));
    let mut names = BTreeSet::new();
    records.retain(|record| {
        let first = names.insert(record.name.clone());
        if !first {
            let why = format!("container {} has the name '{}' of another", record.id, record.name);
            damage.add(EngineError::conflict(why));
            let containers = damage.containers.get_mut();
            containers.unwrap_or_else(PoisonError::into_inner).insert(record.id.clone());
        }
        first
    });
    (records, damage)
}
