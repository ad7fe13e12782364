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
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::files::{Files, remove, replace};
use crate::index::{INDEX_VERSION, Index};
use crate::ingest::{Busy, NEXT, parse_config, read_document};
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

/// Which images to list. Empty lists: all. Values of one filter are alternatives, except labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListFilters {
    /// Only images without (`true`) or with (`false`) a name.
    pub dangling: Option<bool>,
    /// Patterns of names, with `*` and `?`.
    pub reference: Vec<String>,
    /// `key` or `key=value`, all of them.
    pub label: Vec<String>,
    /// Made before this image.
    pub before: Vec<String>,
    /// Made after this image.
    pub since: Vec<String>,
    /// Made before this time, seconds since 1970.
    pub until: Option<i64>,
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
    state: Mutex<State>,
    writer: Mutex<()>,
    /// Locked as long as the store is open.
    _lock: StoreLock,
}

/// What is kept in memory.
#[derive(Default)]
pub(crate) struct State {
    pub index: Index,
    pub configs: HashMap<ImageId, Arc<ImageConfig>>,
    pub holds: BTreeMap<ContainerId, Hold>,
    /// Whether every container's hold was said since the start.
    holds_complete: bool,
    pins: HashMap<Digest, usize>,
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

    /// Writes what images need. Layers of unfinished work are left out: they may not be durable.
    fn write(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.files.index();
        let used = index.used_chains();
        let mut index = index.clone();
        index.layers.retain(|chain, _| used.contains(chain));
        let bytes = serde_json::to_vec(&index).map_err(|error| ImageError::InvalidDocument {
            what: "the image index".into(),
            reason: error.to_string(),
        })?;
        replace(&path, &bytes)
    }

    /// Directories of chains, in the order given but topmost first.
    pub(crate) fn layer_directories(&self, chains: &[ChainId]) -> Result<Vec<PathBuf>, ImageError> {
        let state = self.state();
        let directory = |chain: &ChainId| {
            let layer = state.index.layers.get(chain);
            layer.map(|layer| self.files.layer(&layer.directory)).ok_or_else(|| {
                ImageError::InvalidDocument {
                    what: "the image index".into(),
                    reason: format!("the layer {} is missing", chain.short()),
                }
            })
        };
        chains.iter().rev().map(directory).collect()
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
        // The index first: a layer that it names must exist.
        if !gone.is_empty() || index.images.len() != self.state().index.images.len() {
            self.write(&index)?;
            let mut state = self.state();
            let State { configs, pins, .. } = &mut *state;
            configs.retain(|id, _| index.images.contains_key(id) || pins.contains_key(id));
            state.index = index;
        }
        for (_, layer) in &gone {
            self.discard(&self.files.layer(&layer.directory))?;
        }
        self.collect_blobs()?;
        Ok(gone.into_iter().map(|(chain, _)| chain).collect())
    }

    fn collect_blobs(&self) -> Result<(), ImageError> {
        let keep: BTreeSet<String> = {
            let state = self.state();
            let layers = state.index.layers.values().map(|layer| layer.blob);
            let known = state.index.images.keys().chain(state.pins.keys()).copied();
            layers.chain(known).map(|digest| digest.hex()).collect()
        };
        self.remove_others(self.files.blobs(), &keep)
    }

    /// Removes whatever `directory` has beside `keep`.
    fn remove_others(&self, directory: PathBuf, keep: &BTreeSet<String>) -> Result<(), ImageError> {
        let entries = fs::read_dir(&directory)
            .map_err(ImageError::files("read the directory", &directory))?;
        for entry in entries {
            let entry = entry.map_err(ImageError::files("read the directory", &directory))?;
            if entry.file_name().to_str().is_none_or(|name| !keep.contains(name)) {
                self.discard(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes a directory or a file; never half of it where it was.
    fn discard(&self, path: &Path) -> Result<(), ImageError> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let away = self.files.ingest().join(format!("{number}-{}", name.to_string_lossy()));
        match fs::rename(path, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(ImageError::files("remove", path)),
        }?;
        remove(&away)
    }

    /// Removes what an interrupted run left, and checks that what the index names is there.
    fn tidy(&self) -> Result<(), ImageError> {
        self.remove_others(self.files.ingest(), &BTreeSet::new())?;
        let directories: BTreeSet<String> = {
            let state = self.state();
            state.index.layers.values().map(|layer| layer.directory.clone()).collect()
        };
        for name in &directories {
            let path = self.files.layer(name);
            fs::metadata(&path).map_err(ImageError::files("find the layer", &path))?;
        }
        self.remove_others(self.files.layers(), &directories)?;
        self.collect()?;
        let ids: Vec<ImageId> = self.state().index.images.keys().copied().collect();
        for id in ids {
            let path = self.files.blob(&id);
            let bytes = read_document(&path)?;
            let found = Digest::of(&bytes);
            if found != id {
                let reason = format!("the configuration {id} has the digest {found}");
                return Err(ImageError::DamagedIndex { path, reason });
            }
            let config = parse_config(&bytes, &format!("the configuration {}", id.short()))?;
            self.state().configs.insert(id, Arc::new(config));
        }
        Ok(())
    }
}

impl ImageStore {
    /// Opens the store, makes it if it is new, and removes what an interrupted run left. Blocks.
    ///
    /// # Errors
    /// Files that cannot be made or read, another process that has it open, a damaged index.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        let files = Files::create(&options.root)?;
        let lock = StoreLock::take(&files.lock())?;
        let index = read_index(&files)?;
        let inner = Inner {
            options,
            files,
            busy: Busy::default(),
            pulls: Mutex::default(),
            state: Mutex::new(State { index, ..State::default() }),
            writer: Mutex::default(),
            _lock: lock,
        };
        inner.tidy()?;
        Ok(Self { inner: Arc::new(inner) })
    }

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

    /// An image's configuration.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`].
    pub fn config(&self, id: &ImageId) -> Result<Arc<ImageConfig>, ImageError> {
        let state = self.inner.state();
        state.configs.get(id).cloned().ok_or_else(|| no_such(id))
    }

    /// Directories for overlayfs' `lowerdir`, topmost first. All lie in one directory with short
    /// names. Hold the image first.
    ///
    /// # Errors
    /// [`ImageError::NoSuchImage`].
    pub fn mount_layers(&self, id: &ImageId) -> Result<Vec<PathBuf>, ImageError> {
        let record = self.inner.state().index.images.get(id).cloned();
        self.inner.layer_directories(&record.ok_or_else(|| no_such(id))?.chains)
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

fn read_index(files: &Files) -> Result<Index, ImageError> {
    let path = files.index();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
        other => other.map_err(ImageError::files("read", &path))?,
    };
    let damaged = |reason| ImageError::DamagedIndex { path: path.clone(), reason };
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if index.version != INDEX_VERSION {
        return Err(damaged(format!(
            "it has version {}, this program reads version {INDEX_VERSION}",
            index.version
        )));
    }
    Ok(index)
}
