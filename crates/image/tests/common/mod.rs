//! What the integration tests share: a store in a directory of its own, archives made by hand.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use shoal_image::digest::{Digest, ImageId};
use shoal_image::error::ImageError;
use shoal_image::progress::{Progress, ProgressMessage};
use shoal_image::store::{ImageStore, Loaded, StoreOptions};
use shoal_model::time::Timestamp;
use tar::{Builder, EntryType, Header};

pub struct Bench {
    pub directory: tempfile::TempDir,
    pub store: ImageStore,
}

pub fn options(root: &Path) -> StoreOptions {
    StoreOptions {
        root: root.to_owned(),
        insecure_registries: Vec::new(),
        clock: || Timestamp::from_secs(1_700_000_000),
    }
}

impl Bench {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(options(&directory.path().join("image"))).unwrap();
        Self { directory, store }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Closes the store and opens it again, as after a restart of the daemon.
    pub fn reopen(self) -> Self {
        let Self { directory, store } = self;
        drop(store);
        let store = ImageStore::open(options(&directory.path().join("image"))).unwrap();
        Self { directory, store }
    }

    pub async fn load(&self, archive: Vec<u8>) -> Result<Vec<Loaded>, ImageError> {
        self.store.load(Cursor::new(archive), Progress::none()).await
    }

    /// Loads and collects what is told meanwhile.
    pub async fn load_telling(&self, archive: Vec<u8>) -> Vec<ProgressMessage> {
        let (progress, mut told) = Progress::channel();
        let store = self.store.clone();
        let load = tokio::spawn(async move { store.load(Cursor::new(archive), progress).await });
        let mut messages = Vec::new();
        while let Some(message) = told.recv().await {
            messages.push(message);
        }
        load.await.unwrap().unwrap();
        messages
    }

    /// Everything that the store keeps, but the lock and the index.
    pub fn kept(&self) -> Vec<String> {
        let mut kept = Vec::new();
        for directory in ["blobs/sha256", "l", "ingest"] {
            for entry in std::fs::read_dir(self.root().join(directory)).unwrap() {
                kept.push(format!("{directory}/{}", entry.unwrap().file_name().display()));
            }
        }
        kept.sort();
        kept
    }
}

/// A layer's archive, made entry by entry.
pub struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header
    }

    /// Puts a name into the header as it is: the library would refuse `..`.
    fn raw(mut self, name: &str, mut header: Header, content: &[u8]) -> Self {
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.file_mode(name, content, 0o644)
    }

    pub fn file_mode(self, name: &str, content: &str, mode: u32) -> Self {
        let header = Self::header(EntryType::Regular, mode, content.len() as u64);
        self.raw(name, header, content.as_bytes())
    }

    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.raw(name, Self::header(EntryType::Directory, mode, 0), &[])
    }

    pub fn owned_directory(self, name: &str, mode: u32, owner: u64) -> Self {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        header.set_uid(owner);
        header.set_gid(owner);
        self.raw(name, header, &[])
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        header.set_link_name_literal(target).unwrap();
        self.raw(name, header, &[])
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        let mut header = Self::header(EntryType::Link, 0o644, 0);
        header.set_link_name_literal(target).unwrap();
        self.raw(name, header, &[])
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(key.as_str(), value)]).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An archive of `docker save` with these layers.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    docker_archive_of(name, layers, layers)
}

/// The same, whose configuration promises other layers than it has.
pub fn docker_archive_of(name: &str, promised: &[Vec<u8>], layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config_json(promised);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [name], "Layers": names}
    ]);
    let mut archive = Layer::new();
    for (name, layer) in names.iter().zip(layers) {
        archive = archive.bytes(name, layer);
    }
    archive
        .bytes("config.json", &config)
        .bytes("manifest.json", &serde_json::to_vec(&manifest).unwrap())
        .done()
}

pub fn config_json(layers: &[Vec<u8>]) -> Vec<u8> {
    let diffs: Vec<String> = layers.iter().map(|l| Digest::of(&plain(l)).to_string()).collect();
    let history: Vec<_> =
        layers.iter().map(|_| serde_json::json!({"created_by": "test"})).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/true"], "Labels": {"test": "yes"}},
        "rootfs": {"type": "layers", "diff_ids": diffs}, "history": history,
    }))
    .unwrap()
}

fn plain(layer: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match layer {
        [0x1f, 0x8b, ..] => {
            flate2::read::GzDecoder::new(layer).read_to_end(&mut out).unwrap();
        }
        [0x28, 0xb5, ..] => out = zstd::decode_all(layer).unwrap(),
        _ => out = layer.to_vec(),
    }
    out
}

impl Layer {
    pub fn bytes(self, name: &str, content: &[u8]) -> Self {
        let header = Self::header(EntryType::Regular, 0o644, content.len() as u64);
        self.raw(name, header, content)
    }
}

/// Mounts the layers of an image read-only; unmounts when dropped.
pub struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    pub fn new(store: &ImageStore, id: &ImageId) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut layers = store.mount_layers(id).unwrap();
        if layers.len() == 1 {
            // Overlayfs wants two lower directories when there is no upper one.
            let empty = directory.path().join("empty");
            std::fs::create_dir(&empty).unwrap();
            layers.push(empty);
        }
        std::fs::create_dir(directory.path().join("m")).unwrap();
        let lower: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
        let status = std::process::Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!("lowerdir={}", lower.join(":")))
            .arg(directory.path().join("m"))
            .status()
            .unwrap();
        assert!(status.success());
        Self { directory }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("m").join(path)
    }

    pub fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Ignored because: the directory's removal fails visibly if this did not work.
        let _ = std::process::Command::new("umount").arg(self.directory.path().join("m")).status();
    }
}

/// A file system of a fixed size, unmounted when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", size, "tmpfs"];
        let mut command = std::process::Command::new("mount");
        assert!(command.args(mount).arg(directory.path()).status().unwrap().success());
        Self(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no byte free; gives the file to remove for some space.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Ignored because: the directory's removal fails visibly if this did not work.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
