//! Where the store keeps its files, and how files are replaced without ever being half there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::ImageError;

/// The files below a store's root.
///
/// ```text
/// lock            held by the process that has the store open
/// index.json      names, images, layers
/// blobs/sha256/   configurations and layer archives, as they came
/// l/              unpacked layers, short names
/// ingest/         whatever is not finished; emptied when the store is opened
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    /// Makes the directories, readable by root only.
    pub(crate) fn create(root: &Path) -> Result<Self, ImageError> {
        let files = Self { root: root.to_owned() };
        for directory in [&files.root, &files.blobs(), &files.layers(), &files.ingest()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(ImageError::files("create the directory", directory))?;
        }
        Ok(files)
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("l")
    }

    pub(crate) fn layer(&self, directory: &str) -> PathBuf {
        self.layers().join(directory)
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }
}

/// Replaces `path` by `bytes`: a crash leaves the old or the new content, a full disk the old one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let written = write().map_err(ImageError::files("write", path));
    if written.is_err() {
        // Ignored because: the failure is already being reported, and the next write replaces it.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    match path.parent() {
        Some(directory) => sync_directory(directory),
        None => Ok(()),
    }
}

/// Makes renames within `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), ImageError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(ImageError::files("sync the directory", directory))
}

/// Makes everything written to the file system of `directory` durable.
pub(crate) fn sync_file_system(directory: &Path) -> Result<(), ImageError> {
    let sync = || Ok(rustix::fs::syncfs(File::open(directory)?)?);
    sync().map_err(ImageError::files("sync the file system of", directory))
}

/// Removes a file or a directory with all it holds; nothing there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(about) if about.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(ImageError::files("remove", path)),
    }
}
