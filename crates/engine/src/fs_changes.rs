//! What a container changed in its image's files, read from its writable layer.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::view::summary::FsChange;

/// How many changes are told: a client that wants more exports the container.
const CHANGES_MAX: usize = 1_000_000;

const CHANGED: u8 = 0;
const ADDED: u8 = 1;
const DELETED: u8 = 2;

/// Compares the writable layer with the layers below it, topmost first. Blocks.
pub(crate) fn changes(upper: &Path, layers: &[PathBuf]) -> io::Result<Vec<FsChange>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(upper.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let meta = entry.metadata()?;
            let below = exists_below(layers, &path);
            let kind = match (is_whiteout(&meta), below) {
                (true, _) => DELETED,
                (false, true) => CHANGED,
                (false, false) => ADDED,
            };
            if meta.is_dir() {
                waiting.push(path.clone());
            }
            if found.len() >= CHANGES_MAX {
                return Err(io::Error::other(format!("more than {CHANGES_MAX} changes")));
            }
            found.push(FsChange { path: format!("/{}", path.display()), kind });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn exists_below(layers: &[PathBuf], path: &Path) -> bool {
    let first = layers.iter().find_map(|layer| fs::symlink_metadata(layer.join(path)).ok());
    first.is_some_and(|meta| !is_whiteout(&meta))
}

/// Overlayfs hides a lower entry by a character device 0/0.
fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}
