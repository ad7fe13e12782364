//! Removing containers, and waiting for what becomes of them.

use shoal_life::container::{Command, Force, Volumes};
use shoal_model::filter::Filters;
use shoal_model::id::ContainerId;

use crate::change::Phase;
use crate::engine::{Engine, WaitHandle, blocking};
use crate::error::EngineError;
use crate::record::Record;
use crate::request::{RemoveOptions, WaitCondition};
use crate::view::summary::ContainersPruned;
use crate::volumes::size_of;
use crate::work::remove_directory;

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

    /// Removes a container. One whose record is damaged is removed by its id, with force.
    ///
    /// # Errors
    /// It runs and `force` was not said.
    pub async fn remove(&self, word: &str, options: RemoveOptions) -> Result<(), EngineError> {
        let container = match self.find(word) {
            Ok(container) => container,
            Err(missing) => {
                return match self.inner.damage.container(word) {
                    Some(id) => self.remove_damaged(id, options.force).await,
                    None => Err(missing),
                };
            }
        };
        let force = if options.force { Force::Yes } else { Force::No };
        let volumes = if options.volumes { Volumes::Remove } else { Volumes::Keep };
        self.command(&container, Command::Remove(volumes, force)).await
    }

    async fn remove_damaged(&self, id: ContainerId, force: bool) -> Result<(), EngineError> {
        if !force {
            return Err(EngineError::conflict(format!(
                "cannot remove container {id}: its record is damaged; force remove"
            )));
        }
        let engine = self.clone();
        self.owned(async move {
            engine.delete_shim(&id).await?;
            engine.drop_memory_files(&id).await?;
            let released = engine.inner.attacher.detach(&id).await;
            released.map_err(|source| EngineError::Network {
                action: "release the networks",
                container: id.to_string(),
                source: Box::new(source),
            })?;
            let root = engine.inner.config.data_root.join("containers");
            let subject = id.clone();
            blocking("remove a container", move || {
                remove_directory(&root.join(subject.as_str()), &subject, || ())
            })
            .await?;
            engine.inner.images.release(&id);
            engine.inner.damage.mended(&id);
            Ok(())
        })
        .await
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
        let until = filters.until(self.now())?;
        let mut pruned = ContainersPruned::default();
        for container in self.all() {
            let wanted = container.read(|record| prunable(record, filters, until));
            if !wanted {
                continue;
            }
            let upper = container.files().upper();
            let size = blocking("measure", move || Ok(size_of(&upper))).await?;
            let command = Command::Remove(Volumes::Keep, Force::No);
            match self.command(&container, command).await {
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
        && filters.prunes(&labels)
}
