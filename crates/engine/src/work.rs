//! Work for a container, as its owner orders it: each piece can be done again at any time.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use shoal_life::container::{Intent, Volumes, Work};
use shoal_model::id::ContainerId;
use shoal_runtime::{RuntimeError, Shim};

use crate::attacher::Attachment;
use crate::container::{Container, PendingAttach};
use crate::engine::{Engine, blocking, brief};
use crate::error::EngineError;
use crate::memory;
use crate::mounts::MountSource;
use crate::remove::REMOVING;
use crate::start::{network_error, runtime_error, start_error};

impl Engine {
    /// Does one piece of work. A panic in it is a failure like any other.
    pub(crate) async fn carry_out(
        &self,
        container: &Arc<Container>,
        work: Work,
    ) -> Result<(), EngineError> {
        let job = async {
            match work {
                Work::Save => self.save(container).await,
                Work::Attach => self.attach_networks(container).await,
                Work::Launch => self.launch(container).await,
                Work::Run => self.run_process(container).await,
                Work::DeleteShim => self.delete_shim(&container.id).await,
                Work::DropFiles => self.drop_memory_files(&container.id).await,
                Work::ReleaseNetwork => self.release_networks(container).await,
                Work::DeleteDirectory => self.delete_directory(container).await,
                Work::Lend => Ok(()),
            }
        };
        let caught = std::panic::AssertUnwindSafe(job).catch_unwind().await;
        caught.unwrap_or(Err(EngineError::Worker { action: "work for a container" }))
    }

    async fn attach_networks(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let attachment = self.attached(container).await?;
        container.change(|record| record.run.attachment = Some(attachment.clone()));
        self.note_networks(container, "connect", &attachment);
        Ok(())
    }

    async fn attached(&self, container: &Container) -> Result<Attachment, EngineError> {
        if let Some(word) = container.read(|r| r.shares_network_of().map(str::to_owned)) {
            let other = self.find(&word)?;
            if !other.phase().is_alive() {
                return Err(EngineError::conflict(format!(
                    "cannot join network of a non running container: {}",
                    other.id
                )));
            }
            let theirs = other.read(|record| record.run.attachment.clone()).unwrap_or_default();
            let netns = theirs.netns;
            return Ok(Attachment { netns, ..Attachment::default() });
        }
        let request = self.attach_request(container);
        let attached = self.inner.attacher.attach(request).await;
        attached.map_err(|source| network_error("attach the networks", container, source))
    }

    /// Gives back what [`Self::attach_networks`] made, and says so.
    async fn release_networks(&self, container: &Container) -> Result<(), EngineError> {
        let attachment = container.read(|record| record.run.attachment.clone());
        if container.read(|record| record.shares_network_of().is_none()) {
            // Also without an attachment: the attempt to make one may have failed halfway.
            let released = self.inner.attacher.detach(&container.id).await;
            released.map_err(|e| network_error("release the networks", container, e))?;
            if let Some(attachment) = attachment {
                self.note_networks(container, "disconnect", &attachment);
            }
        }
        container.change(|record| record.run.attachment = None);
        Ok(())
    }

    async fn launch(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let attachment = container.read(|record| record.run.attachment.clone());
        let plan = self.prepare(container, attachment.unwrap_or_default()).await?;
        let fail = |source| runtime_error("make", container, source);
        let shim = match self.inner.runtime.create(&plan).await {
            Err(RuntimeError::Exists { .. }) => {
                // What an earlier daemon left; nothing else uses it.
                self.delete_shim(&container.id).await?;
                self.inner.runtime.create(&plan).await.map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        for pending in container.live(|live| std::mem::take(&mut live.pending)) {
            join(container, &shim, pending).await?;
        }
        container.live(|live| live.shim = Some(shim));
        Ok(())
    }

    async fn run_process(&self, container: &Container) -> Result<(), EngineError> {
        let shim = container.live(|live| live.shim.clone());
        let shim = shim.ok_or(EngineError::Worker { action: "start a process" })?;
        let pid = shim.start().await.map_err(|source| start_error(container, source))?;
        container.change(|record| record.run.pid = pid);
        Ok(())
    }

    /// Kills what runs of a container, and removes its shim, whatever state that is in.
    pub(crate) async fn delete_shim(&self, id: &ContainerId) -> Result<(), EngineError> {
        let fail = |source| EngineError::Runtime {
            action: "clean up after",
            container: id.to_string(),
            source: Box::new(source),
        };
        match self.inner.runtime.connect(id).await {
            Ok(shim) => shim.delete().await.map_err(fail),
            // Without a plan that can be read the shim cannot be asked.
            Err(_) => self.delete_shim_by_force(id).await,
        }
    }

    /// Ends a container that was killed and does not end, without asking its shim, which may be
    /// what is stuck.
    pub(crate) async fn crush(&self, id: &ContainerId) -> Result<(), EngineError> {
        match self.inner.runtime.connect(id).await {
            Ok(shim) => shim.crush().await.map_err(|source| EngineError::Runtime {
                action: "kill",
                container: id.to_string(),
                source: Box::new(source),
            }),
            Err(_) => self.delete_shim_by_force(id).await,
        }
    }

    async fn delete_shim_by_force(&self, id: &ContainerId) -> Result<(), EngineError> {
        let dir = self.inner.runtime.shims().join(id.as_str());
        let path = format!("shoal-{}/{id}", self.inner.config.instance);
        let id = id.to_string();
        blocking("remove a shim", move || {
            let fail = |source| EngineError::Runtime {
                action: "kill",
                container: id.clone(),
                source: Box::new(source),
            };
            let cgroup = shoal_runtime::cgroup::Cgroup::open(&path).map_err(fail)?;
            cgroup.kill_and_remove().map_err(fail)?;
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(EngineError::io("remove", dir)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Removes what a start wrote for the container's memory file system: it is of use only while
    /// the container runs, and the next start writes it anew.
    pub(crate) async fn drop_memory_files(&self, id: &ContainerId) -> Result<(), EngineError> {
        let dir = memory::dir(&self.inner.config.exec_root, id);
        brief("remove memory files", move || memory::remove(&dir)).await
    }

    async fn delete_directory(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        let subject = Arc::clone(container);
        brief("remove a container", move || {
            // From there on there is nothing to write a record to.
            let moved = || subject.live(|live| live.gone = true);
            remove_directory(&subject.dir, &subject.id, moved)
        })
        .await?;
        let volumes = container.read(|record| record.run.life.intent);
        if volumes == Intent::Remove(Volumes::Remove) {
            self.remove_anonymous(container).await?;
        }
        self.inner.images.release(&container.id);
        self.inner.execs.container_removed(&container.id);
        self.forget(container);
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
            match self.remove_volume_of(&name, &container.id).await {
                // Somebody else uses it, or it is gone already: both are fine.
                Ok(()) | Err(EngineError::Conflict { .. } | EngineError::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Moves a container's directory aside, if it is there, and removes it; `moved` runs between. A
/// removal that was cut off goes on. Blocks.
pub(crate) fn remove_directory(
    dir: &Path,
    id: &ContainerId,
    moved: impl FnOnce(),
) -> Result<(), EngineError> {
    let aside = dir.with_file_name(format!("{REMOVING}{id}"));
    if dir.exists() {
        fs::rename(dir, &aside).map_err(EngineError::io("move aside", dir))?;
    }
    moved();
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(EngineError::io("remove", &aside))?;
    }
    Ok(())
}

/// Joins a client that attached before the start.
async fn join(
    container: &Container,
    shim: &Shim,
    pending: PendingAttach,
) -> Result<(), EngineError> {
    if pending.ready.is_closed() {
        return Ok(());
    }
    let streams = shim
        .attach(pending.stdin, pending.stdout, pending.stderr)
        .await
        .map_err(|source| runtime_error("attach to", container, source))?;
    // Ignored because: a client that just went away loses nothing.
    let _ = pending.ready.send(streams);
    Ok(())
}
