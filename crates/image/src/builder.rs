//! Makes an image of one layer from a list of files: for `shoal demo` and for tests.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

use shoal_model::spec::container::ContainerConfig;
use shoal_model::time::GO_ZERO_TIME;
use tar::{Builder, EntryType};

use crate::archive::import::encode;
use crate::archive::load::load;
use crate::archive::manifest::SavedImage;
use crate::archive::save::{append, header, to_json};
use crate::config::{HistoryEntry, ImageConfig, Platform, RootFs};
use crate::digest::{Digest, Hashing, ImageId};
use crate::error::ImageError;
use crate::ingest::Ingest;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::ImageStore;

/// One file of an image.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// Its absolute path within the image.
    pub path: String,
    /// Permission bits, with setuid and the like.
    pub mode: u32,
    /// What it is.
    pub content: Content,
}

/// What a file of an image is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A regular file with these bytes.
    Bytes(Vec<u8>),
    /// A regular file with the bytes of this file on the host.
    HostFile(PathBuf),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(String),
}

impl FileSpec {
    /// A regular file with these bytes.
    #[must_use]
    pub fn bytes(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), mode, content: Content::Bytes(bytes.into()) }
    }

    /// A regular file with the bytes of a file on the host.
    #[must_use]
    pub fn host(path: &str, mode: u32, file: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode, content: Content::HostFile(file.into()) }
    }

    /// A directory.
    #[must_use]
    pub fn directory(path: &str, mode: u32) -> Self {
        Self { path: path.into(), mode, content: Content::Directory }
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { path: path.into(), mode: 0o777, content: Content::Symlink(target.into()) }
    }
}

/// An image to be made, for this machine.
#[derive(Clone, Debug, Default)]
pub struct ImageSpec {
    /// Its name, for example `shoal-demo:latest`; empty: none.
    pub name: String,
    /// Its files; missing parent directories are added with mode 0755.
    pub files: Vec<FileSpec>,
    /// Entry point, command, environment, labels, exposed ports…
    pub config: ContainerConfig,
}

impl ImageSpec {
    /// Writes an archive for `docker load`. Equal specs give equal bytes. Blocks.
    ///
    /// # Errors
    /// Host files that cannot be read or change meanwhile; names that cannot be; what `out` says.
    pub fn write_archive(&self, out: impl Write) -> Result<ImageId, ImageError> {
        let names = self.names()?;
        // Twice over the files instead of once in memory: the layer's digest and size come first.
        let mut first = Hashing::new(io::sink());
        self.write_layer(&mut first)?;
        let (_, diff, size) = first.finish();
        let config = self.config_json(diff)?;
        let id = Digest::of(&config);
        let mut archive = Builder::new(out);
        let manifest = [SavedImage {
            config: format!("{}.json", id.hex()),
            repo_tags: names.iter().map(Reference::familiar).collect(),
            layers: vec!["layer.tar".into()],
        }];
        append(&mut archive, "manifest.json", &to_json(&manifest)?)?;
        append(&mut archive, &format!("{}.json", id.hex()), &config)?;
        self.append_layer(&mut archive, diff, size)?;
        archive.finish().map_err(ImageError::ReadArchive)?;
        Ok(id)
    }

    fn append_layer(
        &self,
        archive: &mut Builder<impl Write>,
        diff: Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let mut header = header(EntryType::Regular, 0o644, size);
        header.set_path("layer.tar").map_err(ImageError::ReadArchive)?;
        header.set_cksum();
        let out = archive.get_mut();
        out.write_all(header.as_bytes()).map_err(ImageError::ReadArchive)?;
        let mut second = Hashing::new(&mut *out);
        self.write_layer(&mut second)?;
        let (_, found, _) = second.finish();
        if found != diff {
            let what = "files of the new image that changed while it was made".into();
            return Err(ImageError::DigestMismatch { what, expected: diff, found });
        }
        // Archives count in blocks of 512 bytes; a layer is itself an archive, so it fits.
        Ok(())
    }

    fn names(&self) -> Result<Vec<Reference>, ImageError> {
        if self.name.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Reference::parse(&self.name)?.or_latest()])
    }

    fn config_json(&self, diff: Digest) -> Result<Vec<u8>, ImageError> {
        let platform = Platform::host();
        encode(&ImageConfig {
            created: Some("1970-01-01T00:00:00Z".into()),
            architecture: platform.architecture,
            os: platform.os,
            config: self.config.clone(),
            rootfs: RootFs { diff_ids: vec![diff], ..RootFs::default() },
            history: vec![HistoryEntry {
                created: Some(GO_ZERO_TIME.into()),
                created_by: Some("shoal".into()),
                ..HistoryEntry::default()
            }],
            ..ImageConfig::default()
        })
    }

    /// Writes the only layer.
    fn write_layer(&self, out: impl Write) -> Result<(), ImageError> {
        let mut archive = Builder::new(out);
        let mut made = BTreeSet::new();
        for file in &self.files {
            let path = Path::new(file.path.trim_start_matches('/'));
            let parents: Vec<&Path> = path.ancestors().skip(1).collect();
            for parent in parents.into_iter().rev().filter(|p| !p.as_os_str().is_empty()) {
                if made.insert(parent.to_owned()) {
                    let mut header = header(EntryType::Directory, 0o755, 0);
                    add(&mut archive, &mut header, parent, io::empty())?;
                }
            }
            if made.insert(path.to_owned()) {
                self.write_file(&mut archive, path, file)?;
            }
        }
        archive.finish().map_err(ImageError::ReadArchive)
    }

    fn write_file(
        &self,
        archive: &mut Builder<impl Write>,
        path: &Path,
        file: &FileSpec,
    ) -> Result<(), ImageError> {
        match &file.content {
            Content::Bytes(bytes) => {
                let mut header = header(EntryType::Regular, file.mode, bytes.len() as u64);
                add(archive, &mut header, path, bytes.as_slice())
            }
            Content::HostFile(host) => {
                let open = File::open(host).map_err(ImageError::files("open", host))?;
                let about = open.metadata().map_err(ImageError::files("look at", host))?;
                let mut header = header(EntryType::Regular, file.mode, about.len());
                add(archive, &mut header, path, open)
            }
            Content::Directory => {
                let mut header = header(EntryType::Directory, file.mode, 0);
                add(archive, &mut header, path, io::empty())
            }
            Content::Symlink(target) => {
                let mut header = header(EntryType::Symlink, file.mode, 0);
                archive
                    .append_link(&mut header, path, target)
                    .map_err(ImageError::files("add to the new image", path))
            }
        }
    }
}

fn add(
    archive: &mut Builder<impl Write>,
    header: &mut tar::Header,
    path: &Path,
    content: impl io::Read,
) -> Result<(), ImageError> {
    archive
        .append_data(header, path, content)
        .map_err(ImageError::files("add to the new image", path))
}

impl ImageStore {
    /// Makes an image from files.
    ///
    /// # Errors
    /// Host files that cannot be read; as [`Self::load`].
    pub async fn build(&self, spec: ImageSpec) -> Result<ImageId, ImageError> {
        self.blocking(move |inner| {
            let ingest = Ingest::begin(inner)?;
            let path = ingest.scratch();
            let file = File::create_new(&path).map_err(ImageError::files("write", &path))?;
            let id = spec.write_archive(io::BufWriter::new(file))?;
            let file = File::open(&path).map_err(ImageError::files("read", &path))?;
            load(&ingest, file, &Progress::none())?;
            Ok(id)
        })
        .await
    }

    /// As [`ImageSpec::write_archive`], into memory.
    ///
    /// # Errors
    /// As there.
    pub fn archive_of(spec: &ImageSpec) -> Result<Vec<u8>, ImageError> {
        let mut out = Cursor::new(Vec::new());
        spec.write_archive(&mut out)?;
        Ok(out.into_inner())
    }
}
