//! How content gets into the store: blobs, then layers, then images, then names.
//!
//! Everything is written below a directory of its own and renamed into place when it is whole. What
//! an [`Ingest`] has touched is pinned, so that no collection takes it away meanwhile; when it ends
//! without an image, a collection removes what it brought.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::compression::{Compression, decompress};
use crate::config::ImageConfig;
use crate::damage::Part;
use crate::digest::{ChainId, DiffId, Digest, Hashing, ImageId};
use crate::error::ImageError;
use crate::files::{remove, sync_directory, sync_file_system};
use crate::index::{ImageRecord, LayerRecord, lookup_key};
use crate::reference::Reference;
use crate::store::Inner;
use crate::unpack::unpack;

/// The most layers an image may have. The kernel takes mount options of one page (4,096 bytes), and
/// a layer's path costs about 40; Docker's own limit is 125.
pub(crate) const MAX_LAYERS: usize = 95;
/// The largest configuration or manifest that is read into memory. Real ones have a few kilobytes.
pub(crate) const MAX_DOCUMENT: u64 = 8 * 1024 * 1024;

/// Numbers directories of one process.
pub(crate) static NEXT: AtomicU64 = AtomicU64::new(0);

/// Content on its way into the store. Methods block. Cheap to share by `Arc`.
pub(crate) struct Ingest {
    store: Arc<Inner>,
    directory: PathBuf,
    pinned: Mutex<Vec<Digest>>,
}

/// A file that is on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spooled {
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
}

/// A layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layered {
    pub chain: ChainId,
    pub diff: DiffId,
}

impl Ingest {
    pub(crate) fn begin(store: &Arc<Inner>) -> Result<Self, ImageError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = store.files.ingest().join(format!("{}-{number}", std::process::id()));
        for directory in store.files.directories().iter().chain([&directory]) {
            shoal_durable::make_private_dir(directory)
                .map_err(ImageError::files("create the directory", directory))?;
        }
        Ok(Self { store: Arc::clone(store), directory, pinned: Mutex::default() })
    }

    /// A path for something unfinished.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.directory.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Keeps a blob or a chain while this ingest lives. Not during a collection: whoever pins must
    /// be able to rely on what is found afterwards.
    pub(crate) fn pin(&self, digest: &Digest) {
        let _writer = self.store.writer();
        self.store.state().pin(digest);
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).push(*digest);
    }

    /// Whether the store has a blob; pinned from now on.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.pin(digest);
        self.store.files.blob(digest).is_file()
    }

    /// Whether the store has a chain; pinned from now on, with its archive.
    pub(crate) fn has_layer(&self, chain: &ChainId) -> bool {
        self.pin(chain);
        self.store.layer(chain).is_ok_and(|layer| self.has_blob(&layer.blob))
    }

    /// A layer of the image `id` with its archive; pinned from now on.
    pub(crate) fn whole_layer(
        &self,
        id: &ImageId,
        chain: &ChainId,
    ) -> Result<LayerRecord, ImageError> {
        self.pin(chain);
        let damaged = |reason| {
            let reference = self.store.state().index.called(id);
            ImageError::DamagedImage { reference, reason }
        };
        let layer = self.store.layer(chain).map_err(damaged)?;
        if self.has_blob(&layer.blob) {
            return Ok(layer);
        }
        Err(damaged(format!("layer archive {} is gone", layer.blob.short())))
    }

    /// Writes a stream into a file of this ingest.
    pub(crate) fn spool(&self, reader: impl Read) -> Result<Spooled, SpoolError> {
        let path = self.scratch();
        let write = |e| SpoolError::Write(ImageError::files("write", &path)(e));
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(shoal_durable::PRIVATE_FILE);
        let mut file = BufWriter::new(file.open(&path).map_err(write)?);
        let mut reader = Hashing::new(reader);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match reader.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(SpoolError::Read)?,
            };
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            file.write_all(bytes).map_err(write)?;
        }
        file.flush().map_err(write)?;
        let (_, digest, size) = reader.finish();
        Ok(Spooled { path, digest, size })
    }

    /// Puts bytes into the store as a blob.
    pub(crate) fn add_bytes(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let spooled = self.spool(bytes).map_err(|error| match error {
            SpoolError::Read(error) => ImageError::ReadArchive(error),
            SpoolError::Write(error) => error,
        })?;
        self.add_blob(&spooled)?;
        Ok(spooled.digest)
    }

    /// Puts a spooled file into the store as a blob.
    pub(crate) fn add_blob(&self, spooled: &Spooled) -> Result<(), ImageError> {
        self.pin(&spooled.digest);
        let target = self.store.files.blob(&spooled.digest);
        File::open(&spooled.path)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&spooled.path, &target))
            .map_err(ImageError::files("write", &target))?;
        self.store.state().damage.mended(&Part::Archive(spooled.digest));
        Ok(())
    }

    /// The bytes of a blob of the store.
    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        read_document(&self.store.files.blob(digest))
    }

    /// Unpacks the blob `blob` of the store on top of `below` (bottom first), unless that is done
    /// already. `wanted` is the digest of the uncompressed archive as the configuration has it;
    /// `seen` is told how many bytes of the blob were read.
    pub(crate) fn add_layer(
        &self,
        below: &[ChainId],
        wanted: Option<DiffId>,
        blob: &Digest,
        mut seen: impl FnMut(u64) + Send,
    ) -> Result<Layered, ImageError> {
        let parent = below.last();
        let expected = wanted.map(|diff| Layered { chain: Digest::chain(parent, &diff), diff });
        // Two pulls may bring the same layer: the second one waits and finds it.
        let _busy = expected.as_ref().map(|layer| self.store.busy.enter(layer.chain));
        if let Some(layer) = expected
            && self.has_layer(&layer.chain)
        {
            return Ok(layer);
        }
        let target = self.scratch();
        let unpacked = self.unpack_blob(&target, below, blob, &mut seen)?;
        if let Some(wanted) = wanted
            && wanted != unpacked.diff
        {
            let what = format!("the uncompressed layer {}", blob.short());
            return Err(ImageError::DigestMismatch {
                what,
                expected: wanted,
                found: unpacked.diff,
            });
        }
        let layer = Layered { chain: Digest::chain(parent, &unpacked.diff), diff: unpacked.diff };
        self.pin(&layer.chain);
        self.place_layer(&target, layer.chain, unpacked)?;
        Ok(layer)
    }

    fn unpack_blob(
        &self,
        target: &Path,
        below: &[ChainId],
        blob: &Digest,
        seen: &mut (impl FnMut(u64) + Send),
    ) -> Result<LayerRecord, ImageError> {
        fs::create_dir(target).map_err(ImageError::files("create the directory", target))?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(target, permissions)
            .map_err(ImageError::files("set the mode of", target))?;
        let path = self.store.files.blob(blob);
        let file = File::open(&path).map_err(ImageError::files("open", &path))?;
        let blob_size = file.metadata().map_err(ImageError::files("look at", &path))?.len();
        let name = blob.short();
        let counting = Counting { inner: file, count: 0, seen };
        let failed =
            |source| ImageError::Unpack { layer: name.clone(), entry: String::new(), source };
        let (compression, reader) = decompress(counting).map_err(failed)?;
        let mut reader = Hashing::new(reader);
        let lower = self.store.layer_directories(below)?;
        let size = unpack(&mut reader, target, &lower, &name)?;
        // The archive's padding belongs to its digest.
        io::copy(&mut reader, &mut io::sink()).map_err(failed)?;
        let (_, diff, archive_size) = reader.finish();
        Ok(LayerRecord {
            directory: String::new(),
            diff,
            size,
            archive_size,
            blob: *blob,
            blob_size,
            media_type: media_type(compression),
        })
    }

    /// Moves an unpacked layer into place and records it in memory; the index on disk names it with
    /// the image.
    fn place_layer(
        &self,
        from: &Path,
        chain: ChainId,
        mut record: LayerRecord,
    ) -> Result<(), ImageError> {
        let _writer = self.store.writer();
        if let Ok(known) = self.store.layer(&chain) {
            // Somebody else was faster, and ours goes with the ingest directory; or the layer was
            // there and just its archive was not.
            if known.blob != record.blob && !self.store.files.blob(&known.blob).is_file() {
                record.directory = known.directory;
                self.store.state().index.layers.insert(chain, record);
            }
            return Ok(());
        }
        if let Some(lost) = self.store.state().index.layers.get(&chain).cloned() {
            self.store.discard(&self.store.files.layer(&lost.directory))?;
        }
        let digits = chain.hex();
        let free = |name: &String| !self.store.files.layer(name).exists();
        record.directory = (16..=digits.len())
            .filter_map(|length| digits.get(..length).map(str::to_owned))
            .find(free)
            .unwrap_or(digits);
        let target = self.store.files.layer(&record.directory);
        fs::rename(from, &target).map_err(ImageError::files("create the directory", &target))?;
        let mut state = self.store.state();
        state.index.layers.insert(chain, record);
        state.damage.mended(&Part::Layer(chain));
        Ok(())
    }

    /// Records an image whose layers are in the store, and gives it names. Durable when it returns.
    pub(crate) fn add_image(
        &self,
        config: &[u8],
        names: &[Reference],
    ) -> Result<ImageId, ImageError> {
        let id = self.add_bytes(config)?;
        let parsed = parse_config(config, &format!("the configuration {}", id.short()))?;
        let chains = Digest::chains(&parsed.rootfs.diff_ids);
        let files = &self.store.files;
        sync_file_system(&files.layers())?;
        sync_directory(&files.blobs())?;
        let now = (self.store.options.clock)();
        // Pinned above, so it stays until the index names it.
        {
            let mut state = self.store.state();
            state.configs.insert(id, Arc::new(parsed));
            state.damage.mended(&Part::Configuration(id));
        }
        self.store.change(|index| {
            for name in names {
                index.names.insert(lookup_key(name), id);
            }
            let record = ImageRecord { chains, tagged: now, hidden: false };
            let known = index.images.entry(id).or_insert_with(|| record.clone());
            known.hidden = false;
            if !names.is_empty() {
                known.tagged = now;
            }
            Ok(())
        })?;
        Ok(id)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        for digest in self.pinned.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.store.state().unpin(&digest);
        }
        // What stays is removed at the next collection, at the latest when the store is opened.
        let removed = remove(&self.directory);
        let cleaned = removed.and_then(|()| self.store.collect().map(|_| ()));
        self.store.state().damage.judge(Part::Cleaning, cleaned);
    }
}

/// Why a stream could not be spooled: its source, or our disk.
pub(crate) enum SpoolError {
    Read(io::Error),
    Write(ImageError),
}

impl SpoolError {
    /// With the reason for a source that fails.
    pub(crate) fn or(self, read: impl FnOnce(io::Error) -> ImageError) -> ImageError {
        match self {
            Self::Read(error) => read(error),
            Self::Write(error) => error,
        }
    }
}

fn media_type(compression: Compression) -> String {
    compression.layer_media_type().into()
}

/// Reads a configuration, and refuses what could never be mounted.
pub(crate) fn parse_config(bytes: &[u8], what: &str) -> Result<ImageConfig, ImageError> {
    let invalid = |reason: String| ImageError::InvalidDocument { what: what.into(), reason };
    let config: ImageConfig =
        serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    if config.rootfs.kind != "layers" {
        return Err(invalid("it has no 'rootfs' of the type 'layers'".into()));
    }
    let count = config.rootfs.diff_ids.len();
    if count > MAX_LAYERS {
        return Err(ImageError::TooManyLayers { count, most: MAX_LAYERS });
    }
    Ok(config)
}

/// Reads a small file whole.
pub(crate) fn read_document(path: &Path) -> Result<Vec<u8>, ImageError> {
    let read = shoal_durable::read(path, MAX_DOCUMENT)
        .and_then(|bytes| bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)));
    read.map_err(ImageError::files("read", path))
}

/// Tells how many bytes passed.
struct Counting<'a, R, F> {
    inner: R,
    count: u64,
    seen: &'a mut F,
}

impl<R: Read, F: FnMut(u64)> Read for Counting<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        (self.seen)(self.count);
        Ok(count)
    }
}

/// Chains that are being unpacked. Entering a busy one waits.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    chains: Mutex<HashSet<ChainId>>,
    left: Condvar,
}

impl Busy {
    pub(crate) fn enter(&self, chain: ChainId) -> BusyGuard<'_> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        while !chains.insert(chain) {
            chains = self.left.wait(chains).unwrap_or_else(PoisonError::into_inner);
        }
        BusyGuard { busy: self, chain }
    }
}

/// Leaves when dropped.
pub(crate) struct BusyGuard<'a> {
    busy: &'a Busy,
    chain: ChainId,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        self.busy.chains.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chain);
        self.busy.left.notify_all();
    }
}
