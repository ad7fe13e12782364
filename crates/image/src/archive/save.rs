//! `docker save`: an archive that is an OCI layout and has Docker's `manifest.json` as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::manifest::{Manifest, ManifestIndex, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, SavedImage};
use crate::compression::decompress;
use crate::digest::{Digest, Hashing, ImageId};
use crate::error::ImageError;
use crate::files::sync_directory;
use crate::index::LayerRecord;
use crate::ingest::Ingest;
use crate::reference::Reference;
use crate::store::{ByteStream, ImageStore, Inner};
use crate::view::Descriptor;

/// Pieces of an archive that may wait for a slow reader, each of at most [`PIECE`] bytes.
const WAITING_PIECES: usize = 8;
/// Bytes of one piece.
const PIECE: usize = 64 * 1024;
/// The media type of an uncompressed layer.
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One image to be saved.
struct Saved {
    id: ImageId,
    names: Vec<Reference>,
    layers: Vec<LayerRecord>,
}

impl ImageStore {
    /// An archive of the named images, readable by `docker load`. A word with a tag saves that
    /// name; a repository alone, all its tags; an id, the image without names.
    ///
    /// # Errors
    /// As [`Self::resolve`]; later ones come through the stream.
    pub fn save(&self, words: &[String]) -> Result<ByteStream, ImageError> {
        let mut images: BTreeMap<ImageId, BTreeSet<Reference>> = BTreeMap::new();
        for word in words {
            for (id, name) in self.chosen(word)? {
                images.entry(id).or_default().extend(name);
            }
        }
        let (sender, receiver) = mpsc::channel(WAITING_PIECES);
        let inner = Arc::clone(&self.inner);
        let failed = sender.clone();
        // Ends by itself when the reader goes away: its next write fails.
        tokio::task::spawn_blocking(move || {
            let mut out = io::BufWriter::with_capacity(PIECE, Pieces(sender));
            let written = write_all(&inner, &images, &mut out)
                .and_then(|()| out.flush().map_err(ImageError::ReadArchive));
            if let Err(error) = written {
                // Ignored because: a reader that went away wants no reason.
                let _ = failed.blocking_send(Err(error));
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }

    /// The images that a word selects, each with the name to save.
    fn chosen(&self, word: &str) -> Result<Vec<(ImageId, Option<Reference>)>, ImageError> {
        if let Ok(name) = Reference::parse(word) {
            let state = self.inner.state();
            let index = &state.index;
            if name.tag().is_none() && name.digest().is_none() {
                let repository = name.repository();
                let of_it = |(other, id): (&Reference, &ImageId)| {
                    let fits = other.repository() == repository && other.digest().is_none();
                    fits.then(|| (*id, Some(other.clone())))
                };
                let all: Vec<_> = index.names.iter().filter_map(of_it).collect();
                if !all.is_empty() {
                    return Ok(all);
                }
            } else if let Some(id) = index.named(&name) {
                let kept = name.digest().is_none().then_some(name);
                return Ok(vec![(id, kept)]);
            }
        }
        Ok(vec![(self.resolve(word)?, None)])
    }
}

fn write_all(
    inner: &Arc<Inner>,
    images: &BTreeMap<ImageId, BTreeSet<Reference>>,
    out: &mut impl Write,
) -> Result<(), ImageError> {
    let ingest = Ingest::begin(inner)?;
    let mut saved = Vec::new();
    for (id, names) in images {
        saved.push(pinned(inner, &ingest, id, names.iter().cloned().collect())?);
    }
    sync_directory(&inner.files.blobs())?;
    let mut archive = Builder::new(out);
    let mut written = BTreeSet::new();
    let (mut manifest, mut index) = (Vec::new(), Vec::new());
    directory(&mut archive, "blobs/")?;
    directory(&mut archive, "blobs/sha256/")?;
    for image in &saved {
        for layer in image.layers.iter().filter(|layer| written.insert(layer.diff)) {
            append_layer(&mut archive, inner, layer)?;
        }
        let config = ingest.read_blob(&image.id)?;
        if written.insert(image.id) {
            append(&mut archive, &blob_name(&image.id), &config)?;
        }
        let described = manifest_of(image, config.len() as u64);
        let json = to_json(&described)?;
        let digest = Digest::of(&json);
        if written.insert(digest) {
            append(&mut archive, &blob_name(&digest), &json)?;
        }
        manifest.push(SavedImage {
            config: blob_name(&image.id),
            repo_tags: image.names.iter().map(Reference::familiar).collect(),
            layers: image.layers.iter().map(|layer| blob_name(&layer.diff)).collect(),
        });
        index.extend(entries(image, digest, json.len() as u64));
    }
    let index =
        ManifestIndex { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: index };
    append(&mut archive, "index.json", &to_json(&index)?)?;
    append(&mut archive, "manifest.json", &to_json(&manifest)?)?;
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.finish().map_err(ImageError::ReadArchive)
}

/// An image whose content stays until `ingest` ends.
fn pinned(
    inner: &Inner,
    ingest: &Ingest,
    id: &ImageId,
    names: Vec<Reference>,
) -> Result<Saved, ImageError> {
    let gone = || ImageError::NoSuchImage { reference: id.to_string() };
    ingest.pin(id);
    let chains = inner.state().index.images.get(id).map(|image| image.chains.clone());
    let mut layers = Vec::new();
    for chain in chains.ok_or_else(gone)? {
        layers.push(ingest.whole_layer(id, &chain)?);
    }
    Ok(Saved { id: *id, names, layers })
}

fn manifest_of(image: &Saved, config_size: u64) -> Manifest {
    let layer = |layer: &LayerRecord| descriptor(PLAIN_LAYER, layer.diff, layer.archive_size);
    Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: descriptor(OCI_CONFIG, image.id, config_size),
        layers: image.layers.iter().map(layer).collect(),
    }
}

/// The image's entries in the layout's index: one for each name, or one without a name.
fn entries(image: &Saved, digest: Digest, size: u64) -> Vec<Descriptor> {
    let plain = descriptor(OCI_MANIFEST, digest, size);
    let named = |name: &Reference| {
        let notes = [
            ("io.containerd.image.name", name.to_string()),
            ("org.opencontainers.image.ref.name", name.tag().unwrap_or_default().to_owned()),
        ];
        let notes = notes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Descriptor { annotations: Some(notes), ..plain.clone() }
    };
    if image.names.is_empty() {
        return vec![plain];
    }
    image.names.iter().map(named).collect()
}

pub(crate) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        platform: None,
        annotations: None,
        urls: None,
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::InvalidDocument {
        what: "the new manifest".into(),
        reason: error.to_string(),
    })
}

fn append_layer(
    archive: &mut Builder<impl Write>,
    inner: &Inner,
    layer: &LayerRecord,
) -> Result<(), ImageError> {
    let path = inner.files.blob(&layer.blob);
    let file = File::open(&path).map_err(ImageError::files("open", &path))?;
    let (_, reader) = decompress(file).map_err(ImageError::files("read", &path))?;
    let mut reader = Hashing::new(reader.take(layer.archive_size));
    let mut header = header(EntryType::Regular, 0o444, layer.archive_size);
    archive
        .append_data(&mut header, blob_name(&layer.diff), &mut reader)
        .map_err(ImageError::files("read", &path))?;
    let (_, found, _) = reader.finish();
    if found != layer.diff {
        let what = format!("the layer archive {}", layer.blob.short());
        return Err(ImageError::DigestMismatch { what, expected: layer.diff, found });
    }
    Ok(())
}

/// Adds a small file.
pub(crate) fn append(
    archive: &mut Builder<impl Write>,
    name: &str,
    bytes: &[u8],
) -> Result<(), ImageError> {
    let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
    archive.append_data(&mut header, name, bytes).map_err(ImageError::ReadArchive)
}

fn directory(archive: &mut Builder<impl Write>, name: &str) -> Result<(), ImageError> {
    let mut header = header(EntryType::Directory, 0o755, 0);
    archive.append_data(&mut header, name, io::empty()).map_err(ImageError::ReadArchive)
}

/// A header with fixed times and owner, so that equal images give equal archives.
pub(crate) fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Sends what is written to it as pieces.
struct Pieces(mpsc::Sender<Result<Bytes, ImageError>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(piece)).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
