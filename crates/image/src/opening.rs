//! What a start makes of the store that it finds: it opens whatever is damaged.
//!
//! Damage is named and stays with what depends on it. A layer is unpacked again from its archive;
//! the index is read from its copy, or made of what is on the disk. What else is missing comes back
//! when its image is pulled or loaded again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};

use crate::damage::{Damage, Part};
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::files::{Files, put_aside};
use crate::index::{INDEX_VERSION, Index};
use crate::ingest::{Busy, Ingest, parse_config, read_document};
use crate::lock::StoreLock;
use crate::rebuild;
use crate::store::{ImageStore, Inner, State, StoreOptions, is_full};

/// The largest index that is read: about 100,000 layers.
const MAX_INDEX: u64 = 64 * 1024 * 1024;

impl ImageStore {
    /// Opens the store, makes it if it is new, and removes what an interrupted run left. Damage
    /// keeps nothing closed; it is what [`Self::damaged`] tells. Blocks.
    ///
    /// # Errors
    /// The store's directory cannot be made, or another process has it open.
    pub fn open(options: StoreOptions) -> Result<Self, ImageError> {
        let files = Files::create(&options.root)?;
        let lock = StoreLock::take(files.root())?;
        let mut damage = Damage::default();
        make_directories(&files, &mut damage);
        let found = find_index(&files, &mut damage);
        let known = matches!(found, Found::Whole(_));
        let index = match found {
            Found::Whole(index) | Found::Copy(index) => index,
            Found::Nothing => rebuild::from_disk(&files, (options.clock)()),
        };
        let inner = Arc::new(Inner {
            options,
            files,
            busy: Busy::default(),
            pulls: Mutex::default(),
            state: Mutex::new(State { index, damage, ..State::default() }),
            writer: Mutex::default(),
            mending: Mutex::default(),
            _lock: lock,
        });
        inner.take_stock(known);
        Ok(Self { inner })
    }
}

/// What there is of an index.
enum Found {
    /// It, or a store that is new.
    Whole(Index),
    /// Only its copy.
    Copy(Index),
    /// Neither.
    Nothing,
}

fn make_directories(files: &Files, damage: &mut Damage) {
    for path in files.directories() {
        let mut made = shoal_durable::make_private_dir(&path);
        if made.as_ref().is_err_and(|error| !is_full(error)) && !path.is_dir() {
            made = put_aside(&path).and_then(|()| shoal_durable::make_private_dir(&path));
            if made.is_ok() {
                let reason = "it was no directory; it is put aside".into();
                damage.note(
                    Part::Directory(path.clone()),
                    &ImageError::Damaged { path: path.clone(), reason },
                );
            }
        }
        if let Err(error) = made {
            let error = ImageError::files("create the directory", &path)(error);
            damage.note(Part::Directory(path), &error);
        }
    }
}

fn find_index(files: &Files, damage: &mut Damage) -> Found {
    let path = files.index();
    let mut note = |reason: String| {
        damage.note(Part::Index, &ImageError::Damaged { path: path.clone(), reason });
    };
    let wrong = match read_index(&path) {
        Ok(Some(index)) => return Found::Whole(index),
        Ok(None) => "it is gone".to_owned(),
        Err(error) => match put_aside(&path) {
            Ok(()) => format!("{error}; it is kept as 'index.json.damaged'"),
            Err(aside) => format!("{error}; it cannot be put aside: {aside}"),
        },
    };
    match read_index(&files.index_copy()) {
        Ok(Some(index)) => {
            note(format!("{wrong}; its copy is used instead"));
            Found::Copy(index)
        }
        Ok(None) if is_empty(&files.blobs()) && is_empty(&files.layers()) => {
            if wrong != "it is gone" {
                note(wrong);
            }
            Found::Whole(Index::default())
        }
        Ok(None) => {
            note(format!("{wrong}; what is on the disk is used instead, names are lost"));
            Found::Nothing
        }
        Err(error) => {
            note(format!("{wrong}; nor its copy: {error}; names are lost"));
            Found::Nothing
        }
    }
}

fn read_index(path: &Path) -> io::Result<Option<Index>> {
    let index: Option<Index> = shoal_durable::read_json(path, MAX_INDEX)?;
    match index {
        Some(index) if index.version != INDEX_VERSION => {
            let text = format!(
                "it has version {}, this program reads version {INDEX_VERSION}",
                index.version
            );
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        other => Ok(other),
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

impl Inner {
    /// Finds out what of the index is there, mends what can be mended from here, and removes what
    /// an interrupted run left. `known`: what the index does not name is nobody's.
    fn take_stock(self: &Arc<Self>, known: bool) {
        let cleaned = self.remove_others(self.files.ingest(), &BTreeSet::new());
        let (images, blobs) = {
            let state = self.state();
            let images: Vec<ImageId> = state.index.images.keys().copied().collect();
            let blobs: Vec<_> =
                state.index.layers.values().map(|l| (l.blob, l.blob_size)).collect();
            (images, blobs)
        };
        for (blob, size) in blobs {
            self.check_archive(blob, size);
        }
        for id in images {
            self.read_configuration(id);
        }
        self.mend_layers();
        let cleaned = if known {
            let state = self.state();
            let kept = state.index.layers.values().map(|layer| layer.directory.clone()).collect();
            drop(state);
            cleaned.and(self.remove_others(self.files.layers(), &kept))
        } else {
            cleaned
        };
        let cleaned = cleaned.and(self.collect().map(|_| ()));
        self.state().damage.judge(Part::Cleaning, cleaned);
        self.renew_copy(known);
    }

    /// Writes the index and its copy anew unless both are there.
    fn renew_copy(&self, known: bool) {
        let copy = self.files.index_copy();
        let found = read_index(&copy);
        if known && matches!(found, Ok(Some(_))) {
            return;
        }
        if found.is_err()
            && let Err(error) = put_aside(&copy)
        {
            let error = ImageError::files("put aside", &copy)(error);
            return self.state().damage.note(Part::Copy, &error);
        }
        let index = self.state().index.clone();
        if let Err(error) = self.write(&index) {
            self.state().damage.note(Part::Copy, &error);
        }
    }

    /// An archive of another size is of no use: gone, it is fetched again.
    fn check_archive(&self, blob: Digest, size: u64) {
        let path = self.files.blob(&blob);
        let about = fs::symlink_metadata(&path);
        if about.as_ref().is_ok_and(|about| about.is_file() && about.len() == size) {
            return;
        }
        let what = if about.is_ok() { "it is damaged" } else { "it is gone" };
        let reason = format!("{what}: the image runs, but cannot be saved or pushed");
        self.state().damage.note(Part::Archive(blob), &ImageError::Damaged { path, reason });
        self.drop_blob(&blob);
    }

    fn read_configuration(&self, id: ImageId) {
        let path = self.files.blob(&id);
        let what = format!("the configuration {}", id.short());
        let read = read_document(&path).and_then(|bytes| match Digest::of(&bytes) {
            found if found == id => parse_config(&bytes, &what),
            found => Err(ImageError::DigestMismatch { what: what.clone(), expected: id, found }),
        });
        match read {
            Ok(config) => {
                self.state().configs.insert(id, Arc::new(config));
            }
            Err(error) => {
                self.state().damage.note(Part::Configuration(id), &error);
                self.drop_blob(&id);
            }
        }
    }

    fn drop_blob(&self, blob: &Digest) {
        if let Err(error) = self.discard(&self.files.blob(blob)) {
            self.state().damage.note(Part::Cleaning, &error);
        }
    }

    /// Mends what can be mended of the layers that images miss; nothing while another does.
    pub(crate) fn mend_layers(self: &Arc<Self>) {
        let _mending = match self.mending.try_lock() {
            Ok(mending) => mending,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let images: Vec<Vec<ChainId>> =
            self.state().index.images.values().map(|image| image.chains.clone()).collect();
        for chains in images {
            for (at, chain) in chains.iter().enumerate() {
                if self.layer(chain).is_err() {
                    self.mend_layer(chains.get(..at).unwrap_or_default(), *chain);
                }
            }
        }
    }

    /// Unpacks a layer again, if its archive is here.
    fn mend_layer(self: &Arc<Self>, below: &[ChainId], chain: ChainId) {
        let Some(layer) = self.state().index.layers.get(&chain).cloned() else {
            let reason = format!("the layer {} is not in it", chain.short());
            let error = ImageError::Damaged { path: self.files.index(), reason };
            return self.state().damage.note(Part::Layer(chain), &error);
        };
        if self.state().damage.has(&Part::Archive(layer.blob)) {
            return;
        }
        let mended = Ingest::begin(self)
            .and_then(|ingest| ingest.add_layer(below, Some(layer.diff), &layer.blob, |_| ()));
        if let Err(error) = mended {
            self.state().damage.note(Part::Layer(chain), &error);
        }
    }
}
