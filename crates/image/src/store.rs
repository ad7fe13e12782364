//! The image store of one node: opening it, finding images, holding them for containers.
//!
//! Locks: `writer` serializes everything that changes the index or deletes files; it is taken on
//! threads that may block. `state` guards memory only and is held for moments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_model::id::ContainerId;
use shoal_model::time::Timestamp;

use crate::config::{ImageConfig, Platform};
use crate::damage::{Damage, Part};
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::files::{Files, is_layer, remove};
use crate::index::{Index, LayerRecord};
use crate::ingest::{Busy, NEXT};
use crate::lock::StoreLock;
use crate::reference::Reference;
use crate::registry::auth::RegistryAuth;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its directory, made if missing. Only one process may have it open.
    pub root: PathBuf,
    /// Registries (`host[:port]`) whose certificates are not checked and that may speak plain HTTP.
    /// Loopback addresses always may.
    pub insecure_registries: Vec<String>,
    /// What time it is.
    pub clock: fn() -> Timestamp,
}

/// What to pull.
#[derive(Clone, Debug, Default)]
pub struct PullRequest {
    /// The image as users write it; without a tag, `latest`.
    pub reference: String,
    /// Credentials.
    pub auth: Option<RegistryAuth>,
    /// For which machine; this one if unsaid.
    pub platform: Option<Platform>,
}

/// What was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub id: ImageId,
    /// Its name with tag or digest.
    pub reference: Reference,
    /// The digest that the registry has for it.
    pub digest: Digest,
    /// Whether it was not here before.
    pub newer: bool,
}

/// How to remove an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Even if stopped containers use it or it has several names.
    pub force: bool,
}

/// One image of a loaded archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The image.
    pub id: ImageId,
    /// The names it got, familiar form.
    pub names: Vec<String>,
}

/// What to make of a flat archive.
#[derive(Clone, Debug, Default)]
pub struct ImportRequest {
    /// The name to give, if any.
    pub reference: Option<String>,
    /// Lines such as `CMD ["sh"]`, `ENV A=b`.
    pub changes: Vec<String>,
    /// The comment in its history.
    pub message: String,
    /// For which machine; this one if unsaid.
    pub platform: Option<Platform>,
}

/// A stream of bytes with an end that can fail.
pub type ByteStream = BoxStream<'static, Result<Bytes, ImageError>>;

/// The images of this node. Cheap to clone; safe to use from many tasks.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

/// What all clones of a store share.
pub(crate) struct Inner {
    pub options: StoreOptions,
    pub files: Files,
    pub busy: Busy,
    /// One pull of the same image at a time: the second one finds everything there.
    pub pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) state: Mutex<State>,
    pub(crate) writer: Mutex<()>,
    /// One mends at a time.
    pub(crate) mending: Mutex<()>,
    /// Locked as long as the store is open.
    pub(crate) _lock: StoreLock,
}

/// What is kept in memory.
#[derive(Default)]
pub(crate) struct State {
    pub index: Index,
    pub configs: HashMap<ImageId, Arc<ImageConfig>>,
    pub holds: BTreeMap<ContainerId, Hold>,
    /// What of the index is not there, and why.
    pub damage: Damage,
    /// Whether every container's hold was said since the start.
    pub(crate) holds_complete: bool,
    pub(crate) pins: HashMap<Digest, usize>,
}

/// A container's use of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub image: ImageId,
    pub running: bool,
}

impl State {
    pub(crate) fn pin(&mut self, digest: &Digest) {
        *self.pins.entry(*digest).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, digest: &Digest) {
        if let Some(count) = self.pins.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(digest);
            }
        }
    }

    /// Containers that use an image.
    pub(crate) fn holders(&self, id: &ImageId) -> impl Iterator<Item = (&ContainerId, &Hold)> {
        self.holds.iter().filter(move |(_, hold)| hold.image == *id)
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the index: in memory only once it is on disk.
    pub(crate) fn change<T>(
        &self,
        edit: impl FnOnce(&mut Index) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let _writer = self.writer();
        let mut index = self.state().index.clone();
        let result = edit(&mut index)?;
        self.write(&index)?;
        self.state().index = index;
        Ok(result)
    }

    /// As [`Self::change`], for a change that takes images away: where the disk is too full to
    /// write it, the archives that nobody needs any more go first.
    pub(crate) fn change_freeing<T>(
        &self,
        edit: impl Fn(&mut Index) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        match self.change(&edit) {
            Err(ImageError::Files { source, .. }) if is_full(&source) => {}
            other => return other,
        }
        // A crash in between leaves an index whose images miss archives: they are named as damaged,
        // and whoever removed them removes them again.
        let mut index = self.state().index.clone();
        edit(&mut index)?;
        let used = index.used_chains();
        index.layers.retain(|chain, _| used.contains(chain));
        {
            let _writer = self.writer();
            self.collect_blobs(&index)?;
        }
        self.change(edit)
    }

    /// Writes what images need. Layers of unfinished work are left out: they may not be durable.
    pub(crate) fn write(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.files.index();
        let used = index.used_chains();
        let mut index = index.clone();
        index.layers.retain(|chain, _| used.contains(chain));
        let bytes = serde_json::to_vec(&index).map_err(|error| ImageError::InvalidDocument {
            what: "the image index".into(),
            reason: error.to_string(),
        })?;
        let replace = |path: &Path| {
            shoal_durable::replace(path, &bytes, shoal_durable::PRIVATE_FILE)
                .map_err(ImageError::files("write", path))
        };
        replace(&path)?;
        // The change is durable; a missing copy is only a risk, and is said.
        let copied = replace(&self.files.index_copy());
        self.state().damage.judge(Part::Copy, copied);
        Ok(())
    }

    /// A layer that is where it should be.
    pub(crate) fn layer(&self, chain: &ChainId) -> Result<LayerRecord, String> {
        let mut state = self.state();
        let gone = || format!("layer {} is gone", chain.short());
        let record = state.index.layers.get(chain).cloned().ok_or_else(gone)?;
        if state.damage.has(&Part::Layer(*chain)) {
            return Err(gone());
        }
        let path = self.files.layer(&record.directory);
        if !is_layer(&path, record.size) {
            let error = ImageError::Damaged { path, reason: gone() };
            state.damage.note(Part::Layer(*chain), &error);
            return Err(gone());
        }
        Ok(record)
    }

    /// Directories of chains, in the order given but topmost first.
    pub(crate) fn layer_directories(&self, chains: &[ChainId]) -> Result<Vec<PathBuf>, ImageError> {
        let directory = |chain: &ChainId| match self.layer(chain) {
            Ok(layer) => Ok(self.files.layer(&layer.directory)),
            Err(reason) => Err(self.damaged_image(chain, reason)),
        };
        chains.iter().rev().map(directory).collect()
    }

    /// The failure of the image that has the layer `chain`.
    fn damaged_image(&self, chain: &ChainId, reason: String) -> ImageError {
        let state = self.state();
        let image = state.index.images.iter().find(|(_, image)| image.chains.contains(chain));
        let reference = image.map(|(id, _)| state.index.called(id)).unwrap_or_default();
        ImageError::DamagedImage { reference, reason }
    }

    /// Whether every part of an image is there.
    pub(crate) fn check(&self, id: &ImageId) -> Result<(), ImageError> {
        let (chains, reference, configured) = {
            let state = self.state();
            let image = state.index.images.get(id).ok_or_else(|| no_such(id))?;
            let configured = state.configs.contains_key(id);
            (image.chains.clone(), state.index.called(id), configured)
        };
        if !configured {
            let reason = "its configuration is gone".into();
            return Err(ImageError::DamagedImage { reference, reason });
        }
        match chains.iter().find_map(|chain| self.layer(chain).err()) {
            Some(reason) => Err(ImageError::DamagedImage { reference, reason }),
            None => Ok(()),
        }
    }

    /// Deletes layers and blobs that no image, no pin and no hold needs. Gives the chains deleted.
    pub(crate) fn collect(&self) -> Result<Vec<ChainId>, ImageError> {
        let _writer = self.writer();
        let (index, gone) = {
            let state = self.state();
            let mut index = state.index.clone();
            let held: BTreeSet<ImageId> = state.holds.values().map(|hold| hold.image).collect();
            if state.holds_complete {
                index.images.retain(|id, image| !image.hidden || held.contains(id));
            }
            let used = index.used_chains();
            let keep = |chain: &ChainId| used.contains(chain) || state.pins.contains_key(chain);
            let gone: Vec<_> = index
                .layers
                .iter()
                .filter(|(c, _)| !keep(c))
                .map(|(c, l)| (*c, l.clone()))
                .collect();
            index.layers.retain(|chain, _| keep(chain));
            (index, gone)
        };
        // The index first: a layer that it names must exist. It never names layers without images,
        // so what goes with those alone goes on a full disk, too.
        if index.images.len() != self.state().index.images.len() {
            self.write(&index)?;
        }
        {
            let mut state = self.state();
            let State { configs, pins, .. } = &mut *state;
            configs.retain(|id, _| index.images.contains_key(id) || pins.contains_key(id));
            state.index = index;
        }
        for (_, layer) in &gone {
            self.discard(&self.files.layer(&layer.directory))?;
        }
        let index = self.state().index.clone();
        self.collect_blobs(&index)?;
        Ok(gone.into_iter().map(|(chain, _)| chain).collect())
    }

    /// Deletes blobs that neither `index` nor a pin needs.
    fn collect_blobs(&self, index: &Index) -> Result<(), ImageError> {
        let keep: BTreeSet<String> = {
            let state = self.state();
            let layers = index.layers.values().map(|layer| layer.blob);
            let pinned = state.pins.keys().filter_map(|pin| state.index.layers.get(pin));
            let known = index.images.keys().chain(state.pins.keys()).copied();
            let all = layers.chain(pinned.map(|layer| layer.blob)).chain(known);
            all.map(|digest| digest.hex()).collect()
        };
        self.remove_others(self.files.blobs(), &keep)
    }

    /// Removes whatever `directory` has beside `keep`; what cannot be removed keeps nothing else.
    pub(crate) fn remove_others(
        &self,
        directory: PathBuf,
        keep: &BTreeSet<String>,
    ) -> Result<(), ImageError> {
        let mut result = Ok(());
        let entries = fs::read_dir(&directory)
            .map_err(ImageError::files("read the directory", &directory))?;
        for entry in entries {
            let entry = entry.map_err(ImageError::files("read the directory", &directory))?;
            if entry.file_name().to_str().is_none_or(|name| !keep.contains(name)) {
                result = result.and(self.discard(&entry.path()));
            }
        }
        result
    }

    /// Removes a directory or a file; never half of it where it was.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let away = self.files.ingest().join(format!("{number}-{}", name.to_string_lossy()));
        match fs::rename(path, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ImageError::files("remove", path)),
        }?;
        remove(&away)
    }
}

impl ImageStore {
    /// The image that `word` means: a name with tag or digest, an id, or the beginning of an id.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`], [`ImageError::InvalidReference`].
    pub fn resolve(&self, word: &str) -> Result<ImageId, ImageError> {
        if let Some(id) = self.inner.state().index.find(word) {
            return Ok(id);
        }
        let reference = match Digest::from_hex(word).or_else(|| Digest::parse(word)) {
            Some(id) => id.to_string(),
            None => Reference::parse(word)?.or_latest().familiar(),
        };
        Err(ImageError::NoSuchImage { reference })
    }

    /// As [`Self::resolve`], for somebody who is about to run the image: every part of it is there.
    ///
    /// # Errors
    /// As there; [`ImageError::DamagedImage`], which getting the image again mends.
    pub fn ready(&self, word: &str) -> Result<ImageId, ImageError> {
        let id = self.resolve(word)?;
        let checked = self.inner.check(&id);
        checked.inspect_err(|_| self.mend_soon()).map(|()| id)
    }

    /// Tries to mend layers from their archives while others go on: what failed for want of space
    /// succeeds once there is some, and whoever asks again finds the image whole.
    fn mend_soon(&self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = Arc::clone(&self.inner);
            // It ends by itself, and the store's lock is kept until then.
            drop(runtime.spawn_blocking(move || inner.mend_layers()));
        }
    }

    /// What of the store is damaged now, and what that takes along: one text each, for people.
    /// Empty if nothing is.
    #[must_use]
    pub fn damaged(&self) -> Vec<String> {
        let state = self.inner.state();
        state.damage.texts(&state.index)
    }

    /// An image's configuration.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`], [`ImageError::DamagedImage`].
    pub fn config(&self, id: &ImageId) -> Result<Arc<ImageConfig>, ImageError> {
        if let Some(config) = self.inner.state().configs.get(id) {
            return Ok(Arc::clone(config));
        }
        self.inner.check(id)?;
        Err(no_such(id))
    }

    /// Directories for overlayfs' `lowerdir`, topmost first. All lie in one directory with short
    /// names. Hold the image first.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`], [`ImageError::DamagedImage`].
    pub fn mount_layers(&self, id: &ImageId) -> Result<Vec<PathBuf>, ImageError> {
        let record = self.inner.state().index.images.get(id).cloned();
        let chains = record.ok_or_else(|| no_such(id))?.chains;
        self.inner.layer_directories(&chains).inspect_err(|_| self.mend_soon())
    }

    /// Says that `container` uses `image`: its layers stay until [`Self::release`]. To be said
    /// again for every container after a restart, before [`Self::holds_complete`].
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`].
    pub fn hold(&self, container: &ContainerId, image: &ImageId) -> Result<(), ImageError> {
        let mut state = self.inner.state();
        if !state.index.images.contains_key(image) {
            return Err(no_such(image));
        }
        let hold = Hold { image: *image, running: false };
        state.holds.entry(container.clone()).or_insert(hold);
        Ok(())
    }

    /// Says whether a holding container runs now, for the texts of [`Self::remove`].
    pub fn set_running(&self, container: &ContainerId, running: bool) {
        if let Some(hold) = self.inner.state().holds.get_mut(container) {
            hold.running = running;
        }
    }

    /// Ends a [`Self::hold`].
    pub fn release(&self, container: &ContainerId) {
        self.inner.state().holds.remove(container);
    }

    /// Says that the hold of every container was said since the start: from now on, layers of
    /// deleted images go with their last container.
    pub fn holds_complete(&self) {
        self.inner.state().holds_complete = true;
    }

    /// Runs `work` on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|_| ImageError::Stopped)?
    }
}

fn no_such(id: &ImageId) -> ImageError {
    ImageError::NoSuchImage { reference: id.to_string() }
}

pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
