//! Where the store keeps its files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::ImageError;

/// The files below a store's root.
///
/// ```text
/// index.json        names, images, layers
/// index.copy.json   the same, for when the first one is damaged
/// *.damaged         what was found damaged, kept for whoever wants to look
/// blobs/sha256/     configurations and layer archives, as they came
/// l/                unpacked layers, short names
/// ingest/           whatever is not finished; emptied when the store is opened
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    /// Those below `root`, which is made if it is missing and locked by the process that has the
    /// store open.
    pub(crate) fn create(root: &Path) -> Result<Self, ImageError> {
        shoal_durable::make_private_dir(root)
            .map_err(ImageError::files("create the directory", root))?;
        Ok(Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directories of the store.
    pub(crate) fn directories(&self) -> [PathBuf; 4] {
        [self.root.join("blobs"), self.blobs(), self.layers(), self.ingest()]
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn index_copy(&self) -> PathBuf {
        self.root.join("index.copy.json")
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

/// Moves something damaged out of the way, to be looked at: the last one of its name is kept.
pub(crate) fn put_aside(path: &Path) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    if let Err(ImageError::Files { source, .. }) = remove(&aside) {
        return Err(source);
    }
    fs::rename(path, &aside)
}

/// Whether a layer is at `path`: a directory, with something in it if its files have bytes.
pub(crate) fn is_layer(path: &Path, size: u64) -> bool {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|about| about.is_dir());
    is_directory
        && (size == 0 || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()))
}

/// Makes renames within `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), ImageError> {
    shoal_durable::sync_dir(directory).map_err(ImageError::files("sync the directory", directory))
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
