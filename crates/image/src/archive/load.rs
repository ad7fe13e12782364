//! `docker load`: archives with Docker's `manifest.json`, and OCI layouts with `index.json`.

use std::io::Read;

use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::manifest::{Document, ManifestIndex, SavedImage};
use super::parts::{Parts, document, invalid};
use crate::config::{ImageConfig, Platform};
use crate::error::ImageError;
use crate::ingest::{Ingest, Spooled, parse_config};
use crate::progress::{Progress, ProgressMessage};
use crate::reference::Reference;
use crate::store::{ImageStore, Loaded};
use crate::view::Descriptor;

/// Names that archives of containerd carry.
const FULL_NAME: &str = "io.containerd.image.name";
/// A tag or a name (OCI image layout).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes within indexes: an image's own, within the layout's.
const MAX_DEPTH: usize = 4;
/// Bytes between two bars of one layer.
const BAR_STEP: u64 = 512 * 1024;

/// An image as an archive describes it.
struct Described<'a> {
    config: Vec<u8>,
    layers: Vec<&'a Spooled>,
    names: Vec<Reference>,
}

impl ImageStore {
    /// Reads an archive of `docker save` or of an OCI layout, plain or compressed.
    ///
    /// # Errors
    /// Archives that are none, truncated, or lie about a digest. Nothing is left behind.
    pub async fn load<R>(&self, reader: R, progress: Progress) -> Result<Vec<Loaded>, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let reader = SyncIoBridge::new(reader);
        self.blocking(move |inner| load(&Ingest::begin(inner)?, reader, &progress)).await
    }
}

pub(crate) fn load(
    ingest: &Ingest,
    reader: impl Read + Send,
    progress: &Progress,
) -> Result<Vec<Loaded>, ImageError> {
    let parts = Parts::read(ingest, reader)?;
    let described = match parts.find("manifest.json") {
        Some(file) => docker_images(&parts, &document(file, "manifest.json")?)?,
        None => match parts.find("index.json") {
            Some(file) => layout_images(&parts, &document(file, "index.json")?)?,
            None => {
                return Err(invalid("it has neither 'manifest.json' nor 'index.json'".into()));
            }
        },
    };
    if described.is_empty() {
        return Err(invalid("it has no image".into()));
    }
    // All layers of all images first: an archive is loaded whole or not at all.
    for image in &described {
        add_layers(ingest, image, progress)?;
    }
    let mut loaded = Vec::new();
    for image in &described {
        let id = ingest.add_image(&image.config, &image.names)?;
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        for name in &names {
            progress.tell_blocking(ProgressMessage::line(&format!("Loaded image: {name}")));
        }
        if names.is_empty() {
            progress.tell_blocking(ProgressMessage::line(&format!("Loaded image ID: {id}")));
        }
        loaded.push(Loaded { id, names });
    }
    Ok(loaded)
}

fn add_layers(
    ingest: &Ingest,
    image: &Described<'_>,
    progress: &Progress,
) -> Result<(), ImageError> {
    let config: ImageConfig = parse_config(&image.config, "the configuration of the archive")?;
    let diffs = &config.rootfs.diff_ids;
    if diffs.len() != image.layers.len() {
        return Err(invalid(format!(
            "invalid manifest, layers length mismatch: expected {}, got {}",
            diffs.len(),
            image.layers.len()
        )));
    }
    let mut below = Vec::with_capacity(diffs.len());
    for (diff, file) in diffs.iter().zip(&image.layers) {
        // A layer that several images share was moved into the store by the first one. What the
        // store has already is written over: it may have changed since.
        ingest.pin(&file.digest);
        if file.path.exists() {
            ingest.add_blob(file)?;
        }
        let (name, total) = (diff.short(), file.size);
        let mut told = 0;
        let seen = |count: u64| {
            if progress.wanted() && (count >= told + BAR_STEP || count == total) {
                told = count;
                progress.hint(ProgressMessage::bar(&name, "Loading layer", count, total));
            }
        };
        below.push(ingest.add_layer(&below, Some(*diff), &file.digest, seen)?.chain);
    }
    Ok(())
}

fn docker_images<'a>(parts: &'a Parts, json: &[u8]) -> Result<Vec<Described<'a>>, ImageError> {
    let saved: Vec<SavedImage> = serde_json::from_slice(json)
        .map_err(|error| invalid(format!("'manifest.json' is not valid: {error}")))?;
    let describe = |image: &SavedImage| {
        let config = document(parts.need(&image.config)?, &image.config)?;
        let layers =
            image.layers.iter().map(|name| parts.need_layer(name)).collect::<Result<_, _>>()?;
        let names =
            image.repo_tags.iter().map(|name| parse_name(name)).collect::<Result<_, _>>()?;
        Ok(Described { config, layers, names })
    };
    saved.iter().map(describe).collect()
}

fn parse_name(name: &str) -> Result<Reference, ImageError> {
    Ok(Reference::parse(name)?.or_latest())
}

fn layout_images<'a>(parts: &'a Parts, json: &[u8]) -> Result<Vec<Described<'a>>, ImageError> {
    let Document::Index(index) = Document::parse(json, super::manifest::OCI_INDEX, "'index.json'")?
    else {
        return Err(invalid("'index.json' is no index".into()));
    };
    let mut images = Vec::new();
    for entry in index.images() {
        images.push(layout_image(parts, entry, layout_names(entry)?, 0)?);
    }
    Ok(images)
}

fn layout_image<'a>(
    parts: &'a Parts,
    entry: &Descriptor,
    names: Vec<Reference>,
    depth: usize,
) -> Result<Described<'a>, ImageError> {
    if depth > MAX_DEPTH {
        return Err(invalid("its indexes are nested too deeply".into()));
    }
    let name = format!("the manifest {}", entry.digest.short());
    let json = document(parts.blob(&entry.digest)?, &name)?;
    match Document::parse(&json, &entry.media_type, &name)? {
        Document::Image(manifest) => {
            let config = document(parts.blob(&manifest.config.digest)?, "the configuration")?;
            let layers =
                manifest.layers.iter().map(|l| parts.blob(&l.digest)).collect::<Result<_, _>>()?;
            Ok(Described { config, layers, names })
        }
        Document::Index(index) => {
            let index: ManifestIndex = present(parts, index);
            let shown = names.first().map_or(name, Reference::familiar);
            let chosen = index.choose(&Platform::host(), &shown)?;
            layout_image(parts, chosen, names, depth + 1)
        }
    }
}

/// An index without the manifests that the archive leaves out: exports of one platform keep the
/// whole index.
fn present(parts: &Parts, mut index: ManifestIndex) -> ManifestIndex {
    index.manifests.retain(|entry| parts.blob(&entry.digest).is_ok());
    index
}

/// Names of an entry of a layout's index. A bare tag without a repository names nothing.
fn layout_names(entry: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    let note = |key: &str| entry.annotations.as_ref().and_then(|notes| notes.get(key));
    if let Some(name) = note(FULL_NAME) {
        return Ok(vec![parse_name(name)?]);
    }
    match note(REF_NAME) {
        Some(name) if name.contains([':', '/']) => Ok(vec![parse_name(name)?]),
        _ => Ok(Vec::new()),
    }
}

impl Parts {
    /// A layer's file. In old archives layers are called `layer.tar` below a directory whose name
    /// is no digest of anything here.
    fn need_layer(&self, name: &str) -> Result<&Spooled, ImageError> {
        self.need(name)
    }
}
