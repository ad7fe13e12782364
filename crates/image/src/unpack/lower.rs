//! The layers below the one that is being unpacked, seen as overlayfs shows them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::attributes::is_opaque;

/// What lower layers show at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// A directory, merged of these layers (indices, topmost first).
    Directory(Rc<Vec<usize>>),
    Symlink(PathBuf),
    /// Anything else, of this layer.
    File(usize),
}

/// Lower layers, topmost first. They never change, so every answer is remembered.
pub(super) struct Lower {
    layers: Vec<OwnedFd>,
    seen: HashMap<PathBuf, Seen>,
}

impl Lower {
    pub(super) fn open(layers: &[PathBuf]) -> io::Result<Self> {
        let open = |path: &PathBuf| File::open(path).map(OwnedFd::from);
        let layers = layers.iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { layers, seen: HashMap::new() })
    }

    /// What is at `path`, whose parents are no links.
    pub(super) fn look(&mut self, path: &Path) -> io::Result<Seen> {
        if let Some(seen) = self.seen.get(path) {
            return Ok(seen.clone());
        }
        let seen = match path.parent() {
            None => Seen::Directory(Rc::new((0..self.layers.len()).collect())),
            Some(parent) => match self.look(parent)? {
                Seen::Directory(layers) => self.merge(&layers, path)?,
                _ => Seen::Nothing,
            },
        };
        self.seen.insert(path.to_owned(), seen.clone());
        Ok(seen)
    }

    fn merge(&self, candidates: &[usize], path: &Path) -> io::Result<Seen> {
        let mut merged = Vec::new();
        for index in candidates {
            let Some(layer) = self.layers.get(*index) else { continue };
            let stat = match statat(layer, path, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => other?,
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    merged.push(*index);
                    if is_opaque(open_beneath(layer, path, OFlags::DIRECTORY)?)? {
                        break;
                    }
                }
                // A whiteout, or a file that a directory above it hides.
                _ if is_whiteout(&stat) || !merged.is_empty() => break,
                FileType::Symlink => {
                    let target = readlinkat(layer, path, Vec::new())?.into_bytes();
                    return Ok(Seen::Symlink(OsString::from_vec(target).into()));
                }
                _ => return Ok(Seen::File(*index)),
            }
        }
        Ok(if merged.is_empty() { Seen::Nothing } else { Seen::Directory(Rc::new(merged)) })
    }

    /// Opens what layer `index` has at `path`.
    pub(super) fn open_at(&self, index: usize, path: &Path) -> io::Result<OwnedFd> {
        let layer = self.layers.get(index).ok_or(Errno::NOENT)?;
        open_beneath(layer, path, OFlags::NOFOLLOW)
    }
}

/// Opens `path` for reading; no link is followed on the way and the way never leaves `root`.
pub(super) fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )?)
}

/// Whether a file says "what is below is deleted": a character device 0/0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
