//! An index made of what is on the disk, for a store that lost its own. Names are in no other file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use shoal_model::time::Timestamp;

use crate::compression::{Compression, decompress};
use crate::digest::{ChainId, DiffId, Digest, Hashing};
use crate::files::Files;
use crate::index::{ImageRecord, Index, LayerRecord};
use crate::ingest::{MAX_DOCUMENT, parse_config, read_document};

/// Fewer digits of a chain do not name a layer's directory.
const NAME_DIGITS: usize = 16;

/// Every image whose configuration is here, with those of its layers whose archive is here.
pub(crate) fn from_disk(files: &Files, now: Timestamp) -> Index {
    let mut index = Index::default();
    let mut diffs: BTreeMap<ChainId, DiffId> = BTreeMap::new();
    let mut archives = Vec::new();
    for (blob, size) in blobs(files) {
        match configuration(files, &blob, size) {
            Some(layers) => {
                let chains = Digest::chains(&layers);
                diffs.extend(chains.iter().copied().zip(layers));
                index.images.insert(blob, ImageRecord { chains, tagged: now, hidden: false });
            }
            None => archives.push((blob, size)),
        }
    }
    let archives: Vec<LayerRecord> =
        archives.iter().filter_map(|(blob, size)| archive(files, *blob, *size)).collect();
    let directories = names(&files.layers());
    for (chain, diff) in diffs {
        let Some(archive) = archives.iter().find(|archive| archive.diff == diff) else { continue };
        let digits = chain.hex();
        let named = |name: &&String| name.len() >= NAME_DIGITS && digits.starts_with(name.as_str());
        let directory = directories.iter().find(named).cloned();
        let directory = directory.unwrap_or_else(|| digits.chars().take(NAME_DIGITS).collect());
        let size = bytes_below(&files.layer(&directory));
        index.layers.insert(chain, LayerRecord { directory, size, ..archive.clone() });
    }
    index
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn blobs(files: &Files) -> Vec<(Digest, u64)> {
    let blob = |name: String| {
        let blob = Digest::from_hex(&name)?;
        let about = fs::symlink_metadata(files.blob(&blob)).ok()?;
        about.is_file().then_some((blob, about.len()))
    };
    names(&files.blobs()).into_iter().filter_map(blob).collect()
}

/// The layers of a configuration, if the blob is one.
fn configuration(files: &Files, blob: &Digest, size: u64) -> Option<Vec<DiffId>> {
    if size > MAX_DOCUMENT {
        return None;
    }
    let bytes = read_document(&files.blob(blob)).ok()?;
    let config = parse_config(&bytes, "a blob").ok()?;
    (Digest::of(&bytes) == *blob).then_some(config.rootfs.diff_ids)
}

/// What an archive holds. That it is whole shows in the digest of what it holds.
fn archive(files: &Files, blob: Digest, blob_size: u64) -> Option<LayerRecord> {
    let hash = || -> io::Result<(Compression, DiffId, u64)> {
        let (compression, reader) = decompress(File::open(files.blob(&blob))?)?;
        let mut reader = Hashing::new(reader);
        io::copy(&mut reader, &mut io::sink())?;
        let (_, diff, size) = reader.finish();
        Ok((compression, diff, size))
    };
    let (compression, diff, archive_size) = hash().ok()?;
    Some(LayerRecord {
        directory: String::new(),
        diff,
        size: 0,
        archive_size,
        blob,
        blob_size,
        media_type: compression.layer_media_type().into(),
    })
}

/// Bytes of the files of a layer, as its unpacking counts them.
fn bytes_below(directory: &Path) -> u64 {
    let mut bytes = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                open.push(entry.path());
            } else if about.is_file() || about.is_symlink() {
                bytes += about.len();
            }
        }
    }
    bytes
}
