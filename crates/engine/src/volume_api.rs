//! `docker volume`.

use shoal_model::filter::Filters;
use shoal_model::id::ContainerId;
use shoal_model::spec::StringMap;

use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::names;
use crate::view::volume::{Volume, VolumeCreate, VolumeUsage, VolumesPruned};
use crate::volumes::{ANONYMOUS, size_of};

impl Engine {
    /// Makes a volume; one that exists is given back as it is.
    ///
    /// # Errors
    /// A name that is not allowed, another driver than `local`, or options.
    pub async fn create_volume(&self, body: VolumeCreate) -> Result<Volume, EngineError> {
        if !matches!(body.driver.as_str(), "" | "local" | "default") {
            return Err(EngineError::missing(format!("volume driver '{}'", body.driver)));
        }
        if body.cluster_volume_spec.as_ref().is_some_and(|spec| !spec.is_null()) {
            return Err(EngineError::missing("cluster volumes"));
        }
        if let Some(option) = body.driver_opts.keys().next() {
            return Err(EngineError::missing(format!("volume driver option '{option}'")));
        }
        let mut labels = body.labels;
        let mut name = body.name;
        if name.is_empty() {
            name = names::random_hex();
            labels.insert(ANONYMOUS.into(), String::new());
        }
        let engine = self.clone();
        // A thread's work is done to its end, whoever waits for it.
        blocking("make a volume", move || {
            let volumes = &engine.inner.volumes;
            if volumes.create(&name, labels, None, engine.now())? {
                engine.note_volume(&name, "create", &[]);
            }
            volumes.get(&name)
        })
        .await
    }

    /// Volumes by name. Filters: `name`, `label`, `driver`, `dangling`.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn list_volumes(&self, filters: &Filters) -> Result<Vec<Volume>, EngineError> {
        filters.only(&["name", "label", "driver", "dangling"])?;
        let dangling = filters.flag("dangling")?;
        let mut list = self.inner.volumes.list();
        list.retain(|volume| {
            filters.any("name", |want| volume.name.contains(want))
                && filters.exact("driver", &volume.driver)
                && filters.labels("label", &volume.labels)
                && dangling.is_none_or(|want| want == self.volume_users(&volume.name).is_empty())
        });
        Ok(list)
    }

    /// All volumes with their sizes and users, for `system df`. Reads every file's size.
    ///
    /// # Errors
    /// A worker ended early.
    pub async fn volume_usage(&self) -> Result<Vec<Volume>, EngineError> {
        let engine = self.clone();
        blocking("measure volumes", move || {
            let mut list = engine.inner.volumes.list();
            for volume in &mut list {
                let size = size_of(volume.mountpoint.as_ref());
                let users = engine.volume_users(&volume.name).len();
                volume.usage_data = Some(VolumeUsage {
                    size: i64::try_from(size).unwrap_or(i64::MAX),
                    ref_count: i64::try_from(users).unwrap_or(i64::MAX),
                });
            }
            Ok(list)
        })
        .await
    }

    /// One volume.
    ///
    /// # Errors
    /// No such volume.
    pub async fn inspect_volume(&self, name: &str) -> Result<Volume, EngineError> {
        self.inner.volumes.get(name)
    }

    /// Removes a volume with everything in it.
    ///
    /// # Errors
    /// A container uses it, or (without `force`) there is none.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        match self.inner.volumes.get(name) {
            Ok(volume) => {
                let engine = self.clone();
                self.owned(async move { engine.remove_unused(&volume, &[]).await }).await
            }
            Err(EngineError::NoSuchVolume { .. }) if force => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a volume that only the container `id` uses.
    pub(crate) async fn remove_volume_of(
        &self,
        name: &str,
        id: &ContainerId,
    ) -> Result<(), EngineError> {
        let volume = self.inner.volumes.get(name)?;
        self.remove_unused(&volume, &[id.as_str()]).await
    }

    async fn remove_unused(&self, volume: &Volume, but: &[&str]) -> Result<(), EngineError> {
        let name = &volume.name;
        let mut users = self.volume_users(name);
        users.retain(|user| !but.contains(&user.as_str()));
        if !users.is_empty() {
            let text = format!("remove {name}: volume is in use - [{}]", users.join(", "));
            return Err(EngineError::conflict(text));
        }
        let (engine, name) = (self.clone(), name.clone());
        blocking("remove a volume", move || engine.inner.volumes.remove(&name)).await?;
        self.note_volume(&volume.name, "destroy", &[]);
        Ok(())
    }

    /// Removes volumes that nobody uses: the anonymous ones, or with the filter `all` every one.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn prune_volumes(&self, filters: &Filters) -> Result<VolumesPruned, EngineError> {
        filters.only(&["label", "label!", "all", "until"])?;
        let all = filters.flag("all")?.unwrap_or(false);
        let until = filters.until(self.now())?;
        let mut pruned = VolumesPruned::default();
        for volume in self.inner.volumes.list() {
            let wanted = (all || volume.labels.contains_key(ANONYMOUS))
                && until.is_none_or(|until| volume.created_at < until)
                && filters.prunes(&volume.labels)
                && self.volume_users(&volume.name).is_empty();
            if !wanted {
                continue;
            }
            let path = volume.mountpoint.clone();
            let size = blocking("measure", move || Ok(size_of(path.as_ref()))).await?;
            self.remove_volume(&volume.name, false).await?;
            pruned.volumes_deleted.push(volume.name);
            pruned.space_reclaimed += size;
        }
        let reclaimed = pruned.space_reclaimed.to_string();
        let attributes = StringMap::from([("reclaimed".to_owned(), reclaimed)]);
        self.inner.events.emit("volume", "prune", "", attributes);
        Ok(pruned)
    }

    /// Ids of the containers that use a volume.
    fn volume_users(&self, name: &str) -> Vec<String> {
        let uses = |record: &crate::record::Record| {
            record.mounts.iter().any(|mount| mount.volume() == Some(name))
        };
        let all = self.all();
        all.iter().filter(|c| c.read(uses)).map(|c| c.id.to_string()).collect()
    }
}
