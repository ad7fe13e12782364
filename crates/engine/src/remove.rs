//! Removing containers, and waiting for what becomes of them.

use std::fs;
use std::sync::Arc;

use shoal_model::fault;

use crate::change::Phase;
use crate::container::Container;
use crate::engine::{Engine, WaitHandle, blocking};
use crate::error::EngineError;
use crate::filter::Filters;
use crate::mounts::MountSource;
use crate::record::Record;
use crate::request::{RemoveOptions, WaitCondition};
use crate::view::summary::ContainersPruned;
use crate::volumes::size_of;

/// Directories of containers that are being removed begin with this; the next start finishes what
/// a crash has left of them.
pub(crate) const REMOVING: &str = ".removing-";

impl Engine {
    /// Registers a wait. When this returns, no later end is missed.
    ///
    /// # Errors
    /// No such container.
    pub async fn wait(
        &self,
        word: &str,
        condition: WaitCondition,
    ) -> Result<WaitHandle, EngineError> {
        Ok(WaitHandle { outcome: self.find(word)?.wait(condition)? })
    }

    /// Removes a container.
    ///
    /// # Errors
    /// It runs and `force` was not said.
    pub async fn remove(&self, word: &str, options: RemoveOptions) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let phase = container.phase();
        if !options.force && (phase.is_alive() || phase == Phase::Restarting) {
            let advice = match phase {
                Phase::Paused => "unpause and then stop",
                _ => "stop",
            };
            return Err(EngineError::conflict(format!(
                "cannot remove container \"/{}\": container is {}: {advice} the container before \
                 removing or force remove",
                container.name(),
                phase.as_str()
            )));
        }
        self.cancel_restart(&container).await?;
        if container.phase().is_alive() {
            let ends = container.ends();
            container.change(|record| record.run.stopped_by_user = true);
            self.kill_running(&container, ends).await?;
        }
        self.remove_stopped(&container, options.volumes).await
    }

    /// Removes a container that has an auto-remove wish, in the background.
    pub(crate) fn spawn_removal(&self, container: &Arc<Container>) {
        let engine = self.clone();
        let container = Arc::clone(container);
        self.spawn(async move {
            if let Err(error) = engine.remove_stopped(&container, true).await {
                container.change(|record| record.run.error = fault::report(&error));
                engine.publish(&container, false);
            }
        });
    }

    /// Removes a container that does not run.
    pub(crate) async fn remove_stopped(
        &self,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<(), EngineError> {
        let gate = Arc::clone(&container.gate);
        let _turn = gate.lock().await;
        if container.live(|live| live.gone) {
            return Ok(());
        }
        if container.phase().is_alive() {
            let text = format!("container {} was started while it was removed", container.id);
            return Err(EngineError::conflict(text));
        }
        container.change(|record| record.run.phase = Phase::Removing);
        let removed = self.take_apart(container, volumes).await;
        if let Err(error) = &removed {
            container.change(|record| {
                record.run.phase = Phase::Dead;
                record.run.error = fault::report(error);
            });
            self.publish(container, false);
        }
        removed
    }

    async fn take_apart(
        &self,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<(), EngineError> {
        self.release_networks(container).await?;
        if let Ok(shim) = self.inner.runtime.connect(&container.id).await {
            let deleted = shim.delete().await;
            deleted.map_err(|e| crate::start::runtime_error("clean up after", container, e))?;
        }
        self.drop_memory_files(container).await?;
        let dir = container.dir.clone();
        let aside = dir.with_file_name(format!("{REMOVING}{}", container.id));
        container.live(|live| live.gone = true);
        let moved = blocking("remove a container", move || {
            if dir.exists() {
                fs::rename(&dir, &aside).map_err(EngineError::io("move aside", &dir))?;
            }
            if aside.exists() {
                fs::remove_dir_all(&aside).map_err(EngineError::io("remove", &aside))?;
            }
            Ok(())
        });
        if let Err(error) = moved.await {
            container.live(|live| live.gone = false);
            return Err(error);
        }
        self.inner.images.release(&container.id);
        self.inner.execs.container_removed(&container.id);
        self.forget(container);
        if volumes {
            self.remove_anonymous(container).await?;
        }
        container.live(|live| live.pending.clear());
        self.note(container, "destroy", &[]);
        self.publish(container, true);
        container.answer(|_| true);
        Ok(())
    }

    /// Removes the volumes that were made for this container alone and that nobody else uses.
    async fn remove_anonymous(&self, container: &Container) -> Result<(), EngineError> {
        let names: Vec<String> = container.read(|record| {
            let own = |source: &MountSource| match source {
                MountSource::Volume { name, anonymous: true, .. } => Some(name.clone()),
                _ => None,
            };
            record.mounts.iter().filter_map(|mount| own(&mount.source)).collect()
        });
        for name in names {
            match self.remove_volume(&name, false).await {
                // Somebody else uses it, or it is gone already: both are fine.
                Ok(()) | Err(EngineError::Conflict { .. } | EngineError::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes containers that do not run. Filters: `label`, `label!`, `until`.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn prune_containers(
        &self,
        filters: &Filters,
    ) -> Result<ContainersPruned, EngineError> {
        filters.only(&["label", "label!", "until"])?;
        let until = crate::filter::until(filters, self.now())?;
        let mut pruned = ContainersPruned::default();
        for container in self.all() {
            let wanted = container.read(|record| prunable(record, filters, until));
            if !wanted {
                continue;
            }
            let upper = container.files().upper();
            let size = blocking("measure", move || Ok(size_of(&upper))).await?;
            match self.remove_stopped(&container, false).await {
                Ok(()) => {
                    pruned.containers_deleted.push(container.id.to_string());
                    pruned.space_reclaimed += size;
                }
                // It was started meanwhile.
                Err(EngineError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.inner.events.emit(
            "container",
            "prune",
            "",
            [("reclaimed".to_owned(), pruned.space_reclaimed.to_string())].into(),
        );
        Ok(pruned)
    }
}

fn prunable(
    record: &Record,
    filters: &Filters,
    until: Option<shoal_model::time::Timestamp>,
) -> bool {
    let labels = record.config.labels.clone().unwrap_or_default();
    matches!(record.run.phase, Phase::Created | Phase::Exited | Phase::Dead)
        && until.is_none_or(|until| record.created < until)
        && filters.labels("label", &labels)
        && (!filters.has("label!") || !filters.labels("label!", &labels))
}
