//! The files of an image archive, spooled, so that they can be read in the order we need.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

use crate::compression::decompress;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::ingest::{Ingest, MAX_DOCUMENT, Spooled};

/// The most files that an archive of images may have; a real one has a few for each layer.
const MAX_PARTS: usize = 100_000;
/// Links followed for one name before it counts as a loop.
const MAX_LINKS: usize = 16;

/// The files of an archive by their names.
pub(crate) struct Parts {
    files: HashMap<PathBuf, Spooled>,
    links: HashMap<PathBuf, PathBuf>,
}

impl Parts {
    /// Reads a whole archive, plain or compressed.
    pub(crate) fn read(ingest: &Ingest, reader: impl Read + Send) -> Result<Self, ImageError> {
        let (_, reader) = decompress(reader).map_err(ImageError::ReadArchive)?;
        let mut archive = Archive::new(reader);
        let mut parts = Self { files: HashMap::new(), links: HashMap::new() };
        for entry in archive.entries().map_err(ImageError::ReadArchive)? {
            let mut entry = entry.map_err(ImageError::ReadArchive)?;
            if parts.files.len() + parts.links.len() >= MAX_PARTS {
                return Err(invalid(format!("it has more than {MAX_PARTS} files")));
            }
            let path = clean(&PathBuf::from(OsStr::from_bytes(&entry.path_bytes())));
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let promised = entry.size();
                    let spooled =
                        ingest.spool(&mut entry).map_err(|e| e.or(ImageError::ReadArchive))?;
                    if spooled.size != promised {
                        let error = std::io::ErrorKind::UnexpectedEof.into();
                        return Err(ImageError::ReadArchive(error));
                    }
                    parts.files.insert(path, spooled);
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = PathBuf::from(OsStr::from_bytes(&target));
                    let from = if kind == EntryType::Symlink { path.parent() } else { None };
                    let target = clean(&from.unwrap_or(Path::new("")).join(target));
                    parts.links.insert(path, target);
                }
                _ => {}
            }
        }
        Ok(parts)
    }

    /// The file `name`, through links.
    pub(crate) fn find(&self, name: &str) -> Option<&Spooled> {
        let mut path = clean(Path::new(name));
        for _ in 0..MAX_LINKS {
            if let Some(file) = self.files.get(&path) {
                return Some(file);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }

    /// The file `name`, which another file of the archive names.
    pub(crate) fn need(&self, name: &str) -> Result<&Spooled, ImageError> {
        let file =
            self.find(name).ok_or_else(|| invalid(format!("the file '{name}' is missing")))?;
        // Names that are digests are promises.
        let stem = Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        match Digest::from_hex(stem) {
            Some(expected) if expected != file.digest => Err(ImageError::DigestMismatch {
                what: format!("the file '{name}' of the archive"),
                expected,
                found: file.digest,
            }),
            _ => Ok(file),
        }
    }

    /// The blob of an OCI layout.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<&Spooled, ImageError> {
        self.need(&format!("blobs/sha256/{}", digest.hex()))
    }
}

/// The content of a small file.
pub(crate) fn document(file: &Spooled, name: &str) -> Result<Vec<u8>, ImageError> {
    if file.size > MAX_DOCUMENT {
        return Err(invalid(format!("the file '{name}' has more than {MAX_DOCUMENT} bytes")));
    }
    let mut bytes = Vec::new();
    File::open(&file.path)
        .and_then(|mut open| open.read_to_end(&mut bytes))
        .map_err(ImageError::files("read", &file.path))?;
    Ok(bytes)
}

pub(crate) fn invalid(reason: String) -> ImageError {
    ImageError::InvalidArchive { reason }
}

/// A name without dots. Names are only looked up, so leading out does no harm.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}
