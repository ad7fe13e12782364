//! `docker cp` and `docker export`: trees out of and into a container's root, as tar streams.

mod read;
mod write;

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FileType, OFlags, Stat};
use shoal_model::time::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::request::PutOptions;
use crate::root::{Root, Shows};
use crate::session::receiver;
use crate::stream::ByteStream;
use crate::tree;
use crate::unikernel::IMAGES;
use crate::view::summary::PathStat;

/// Pieces of a tar stream on their way to a client, 64 KiB each.
const PIECES: usize = 8;

/// How long a client may take nothing, or send nothing, before its archive is given up: meanwhile a
/// stopped container cannot be started, and one of few threads is taken.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Reads what a client sends, on a thread that may block.
struct Upload {
    body: Box<dyn AsyncRead + Send + Unpin>,
    runtime: Handle,
}

impl Read for Upload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { body, runtime } = self;
        runtime
            .block_on(async { timeout(STALL_MAX, body.read(buffer)).await })
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// A path of a client, looked up: the directory that it is in, and its last part.
struct Place {
    parent: OwnedFd,
    /// `None`: the directory itself, for `/`, `dir/` and `dir/.`.
    base: Option<CString>,
    stat: Stat,
    /// What entries of an archive begin with.
    title: String,
    /// The cleaned path.
    path: PathBuf,
}

impl Engine {
    /// What is at a path.
    ///
    /// # Errors
    /// Nothing is there.
    pub async fn archive_stat(&self, word: &str, path: &str) -> Result<PathStat, EngineError> {
        let container = self.find(word)?;
        container.needs_container("read files in", IMAGES)?;
        let (word, path) = (word.to_owned(), path.to_owned());
        self.with_root(&container, move |root| Ok(path_stat(&find(root, &path, &word)?))).await
    }

    /// A path with everything below it, as a tar stream.
    ///
    /// # Errors
    /// Nothing is there. Later failures come through the stream.
    pub async fn archive_get(
        &self,
        word: &str,
        path: &str,
    ) -> Result<(PathStat, ByteStream), EngineError> {
        let container = self.find(word)?;
        container.needs_container("read files in", IMAGES)?;
        let (word, path) = (word.to_owned(), path.to_owned());
        let (found, stat) = oneshot::channel();
        let (pieces, stream) = mpsc::channel::<Result<Bytes, EngineError>>(PIECES);
        let pieces = read::Pieces { pieces, runtime: Handle::current() };
        self.enter_root(&container, Shows::Everything, move |root| {
            let opened = root.and_then(|root| {
                let place = find(&root, &path, &word)?;
                Ok((root, place))
            });
            match opened {
                // Ignored because: a caller that went away wants no answer.
                Err(error) => drop(found.send(Err(error))),
                Ok((_root, place)) => {
                    // Ignored because: the writer notices itself when nobody reads.
                    let _ = found.send(Ok(path_stat(&place)));
                    read::send(&place, &pieces);
                }
            }
        })
        .await?;
        let stat = stat.await.unwrap_or(Err(EngineError::Worker { action: "read an archive" }))?;
        self.note(&container, "archive-path", &[]);
        Ok((stat, receiver(stream)))
    }

    /// Unpacks a tar stream, plain or compressed by gzip, into a directory.
    ///
    /// # Errors
    /// There is no such directory, it may not be written, or the stream is damaged; what came
    /// before the damage stays.
    pub async fn archive_put(
        &self,
        word: &str,
        path: &str,
        options: PutOptions,
        body: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Result<(), EngineError> {
        let container = self.find(word)?;
        container.needs_container("write files in", IMAGES)?;
        check_writable(&container, path)?;
        let user = container.read(|record| record.config.user.clone()).unwrap_or_default();
        let (word, path) = (word.to_owned(), path.to_owned());
        let runtime = Handle::current();
        self.with_root(&container, move |root| {
            let target = find(root, &format!("{path}/."), &word)?;
            if tree::kind(&target.stat) != FileType::Directory {
                return Err(EngineError::invalid("extraction point is not a directory"));
            }
            let owner = match options.copy_uid_gid && !user.is_empty() {
                true => Some(write::owner(root, &user)?),
                false => None,
            };
            let body = Upload { body, runtime };
            write::unpack(root, &target.path, body, options, owner)
        })
        .await?;
        self.note(&container, "extract-to-dir", &[]);
        Ok(())
    }

    /// The whole root as a tar stream, without volumes.
    ///
    /// # Errors
    /// The root cannot be entered. Later failures come through the stream.
    pub async fn export(&self, word: &str) -> Result<ByteStream, EngineError> {
        let container = self.find(word)?;
        container.needs_container("export", IMAGES)?;
        let (pieces, stream) = mpsc::channel::<Result<Bytes, EngineError>>(PIECES);
        let pieces = read::Pieces { pieces, runtime: Handle::current() };
        self.enter_root(&container, Shows::OwnFiles, move |root| {
            let place = root.and_then(|root| find(&root, "/", "/"));
            match place {
                Ok(place) => read::send_export(&place, &pieces),
                // Ignored because: nobody reads any more.
                Err(error) => drop(pieces.send(Err(error))),
            }
        })
        .await?;
        self.note(&container, "export", &[]);
        Ok(receiver(stream))
    }

    /// What a container changed in its image's files.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub async fn fs_changes(
        &self,
        word: &str,
    ) -> Result<Vec<crate::view::summary::FsChange>, EngineError> {
        let container = self.find(word)?;
        container.needs_container("list changed files of", IMAGES)?;
        let (upper, engine) = (container.files().upper(), self.clone());
        crate::engine::blocking("compare files", move || {
            let layers = engine.layers(&container)?;
            crate::fs_changes::changes(&upper, &layers)
                .map_err(EngineError::io("compare files below", upper))
        })
        .await
    }
}

/// A read-only root may only be written where a writable mount is.
fn check_writable(container: &Container, path: &str) -> Result<(), EngineError> {
    let refused = container.read(|record: &Record| {
        let below = |target: &str| Path::new(path).starts_with(target);
        let mount =
            record.mounts.iter().filter(|m| below(&m.target)).max_by_key(|m| m.target.len());
        match mount {
            Some(mount) if mount.read_only => Some("mounted volume is marked read-only"),
            Some(_) => None,
            None if record.host.readonly_rootfs.unwrap_or(false) => {
                Some("container rootfs is marked read-only")
            }
            None => None,
        }
    });
    match refused {
        Some(text) => Err(EngineError::invalid(text)),
        None => Ok(()),
    }
}

/// Looks a client's path up. Its last part is not followed if it is a link, unless the path ends
/// with a slash or a dot.
fn find(root: &Root, path: &str, word: &str) -> Result<Place, EngineError> {
    let clean = clean(path);
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            EngineError::NoSuchPath { path: path.to_owned(), container: word.to_owned() }
        }
        _ => EngineError::io("find", path)(error),
    };
    let name = clean.file_name().map(|n| n.to_string_lossy().into_owned());
    let dotted = path.ends_with("/.") || path == ".";
    match name.filter(|_| !dotted && !path.ends_with('/')) {
        Some(name) => {
            let parent = root.open_dir(clean.parent().unwrap_or(Path::new("/")));
            let parent = parent.map_err(missing)?;
            let base = CString::new(name.as_str())
                .map_err(|_| EngineError::invalid("a path may not contain a zero byte"))?;
            let stat = tree::look(&parent, &base).map_err(missing)?;
            Ok(Place { parent, base: Some(base), stat, title: name, path: clean })
        }
        None => {
            let parent = root.open(&clean, OFlags::RDONLY | OFlags::DIRECTORY).map_err(missing)?;
            let stat = rustix::fs::fstat(&parent).map_err(|e| missing(e.into()))?;
            let last = clean.file_name().map(|n| n.to_string_lossy().into_owned());
            let title = match last {
                Some(name) if !dotted => name,
                _ if dotted => ".".to_owned(),
                _ => "/".to_owned(),
            };
            Ok(Place { parent, base: None, stat, title, path: clean })
        }
    }
}

/// An absolute path without `.`, `..` and doubled slashes; `..` never leads above the root.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn path_stat(place: &Place) -> PathStat {
    let mut link_target = String::new();
    if let (FileType::Symlink, Some(base)) = (tree::kind(&place.stat), &place.base) {
        let target = rustix::fs::readlinkat(&place.parent, base, Vec::new()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        let full = match target.starts_with('/') {
            true => PathBuf::from(target),
            false => place.path.parent().unwrap_or(Path::new("/")).join(target),
        };
        link_target = clean(&full.to_string_lossy()).to_string_lossy().into_owned();
    }
    let secs = place.stat.st_mtime;
    PathStat {
        name: place.title.clone(),
        size: place.stat.st_size,
        mode: go_mode(&place.stat),
        mtime: Timestamp(secs.saturating_mul(1_000_000_000)).to_string(),
        link_target,
    }
}

/// Go's `os.FileMode`: permissions as usual, everything else in its own high bits.
fn go_mode(stat: &Stat) -> u32 {
    let kind = match tree::kind(stat) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => (1 << 26) | (1 << 21),
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    let bit = |unix: u32, go: u32| if stat.st_mode & unix != 0 { 1 << go } else { 0 };
    (stat.st_mode & 0o777) | kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_never_lead_above_the_root() {
        let cases = [("/a/../../b", "/b"), ("a/./b//c", "/a/b/c"), ("/", "/"), ("..", "/")];
        for (path, want) in cases {
            assert_eq!(clean(path), Path::new(want), "{path}");
        }
    }
}
