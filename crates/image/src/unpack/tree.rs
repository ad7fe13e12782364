//! The directory of the layer that is being unpacked, on top of the layers below it.
//!
//! Paths of an archive are resolved here component by component, links included, as they would be
//! inside the mounted image, so no link ever leads out. The kernel is then only given paths without
//! links, and told to refuse them (`openat2`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, mkdirat, mknodat, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::{Attributes, is_opaque, set_opaque};
use super::lower::{Lower, Seen, is_whiteout, open_beneath};

/// Links followed for one path before it counts as a loop, as in the kernel.
const MAX_LINKS: usize = 40;
/// Mode of directories that no layer describes.
const DEFAULT_DIRECTORY: u32 = 0o755;

/// A directory under construction.
pub(super) struct Tree {
    path: PathBuf,
    own: OwnedFd,
    lower: Lower,
    /// Parents as archives name them → where they really are.
    resolved: HashMap<PathBuf, PathBuf>,
    /// Links that the answers in `resolved` depend on.
    followed: HashSet<PathBuf>,
    /// Times of directories, set last: every file made inside would change them.
    times: HashMap<PathBuf, Attributes>,
    /// The directory used last.
    current: Option<(PathBuf, OwnedFd)>,
}

/// A place in the tree: an open directory and a name inside it.
pub(super) struct Place<'a> {
    pub directory: &'a OwnedFd,
    pub name: OsString,
    pub path: PathBuf,
}

impl Tree {
    /// Works in `path`, an empty directory, on top of `lower` (topmost first).
    pub(super) fn open(path: &Path, lower: &[PathBuf]) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            own: File::open(path)?.into(),
            lower: Lower::open(lower)?,
            resolved: HashMap::new(),
            followed: HashSet::new(),
            times: HashMap::new(),
            current: None,
        })
    }

    /// Finds the real directory of `path`'s parent, makes it here if needed, and opens it.
    pub(super) fn place(&mut self, path: &Path) -> io::Result<Place<'_>> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        if self.current.as_ref().is_none_or(|(open, _)| *open != parent) {
            let opened = open_beneath(&self.own, &parent, OFlags::DIRECTORY)?;
            self.current = Some((parent.clone(), opened));
        }
        let path = parent.join(&name);
        let (_, directory) = self.current.as_ref().ok_or(Errno::NOENT)?;
        Ok(Place { directory, name, path })
    }

    /// Resolves a directory that must exist here or may be made here.
    fn directory(&mut self, path: &Path) -> io::Result<PathBuf> {
        if path.as_os_str().is_empty() {
            return Ok(PathBuf::new());
        }
        if let Some(known) = self.resolved.get(path) {
            return Ok(known.clone());
        }
        let mut left: VecDeque<OsString> = components(path)?.into();
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            match self.step(&next)? {
                None => at = next,
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    self.followed.insert(next);
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    for part in link_components(&target).into_iter().rev() {
                        left.push_front(part);
                    }
                }
            }
        }
        self.resolved.insert(path.to_owned(), at.clone());
        Ok(at)
    }

    /// Goes into `path`, whose parents are resolved: makes the directory if needed, or gives the
    /// target of a link.
    fn step(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        match self.own_stat(path)? {
            Some(stat) if is_whiteout(&stat) => {
                unlinkat(&self.own, path, AtFlags::empty())?;
                self.make_directory(path)?;
                set_opaque(open_beneath(&self.own, path, OFlags::DIRECTORY)?)?;
                Ok(None)
            }
            Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(None),
                FileType::Symlink => {
                    let target = readlinkat(&self.own, path, Vec::new())?.into_bytes();
                    Ok(Some(OsString::from_vec(target).into()))
                }
                _ => Err(Errno::NOTDIR.into()),
            },
            None => match self.below(path)? {
                Seen::Directory(layers) => {
                    self.copy_directory(path, layers.first().copied())?;
                    Ok(None)
                }
                Seen::Symlink(target) => Ok(Some(target)),
                Seen::File(_) => Err(Errno::NOTDIR.into()),
                Seen::Nothing => {
                    self.make_directory(path)?;
                    Ok(None)
                }
            },
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        mkdirat(&self.own, path, Mode::from_raw_mode(DEFAULT_DIRECTORY))?;
        let plain = Attributes { mode: DEFAULT_DIRECTORY, ..Attributes::default() };
        plain.apply(open_beneath(&self.own, path, OFlags::DIRECTORY)?)
    }

    /// Makes a directory like the one of a lower layer: overlayfs shows the topmost attributes.
    fn copy_directory(&mut self, path: &Path, layer: Option<usize>) -> io::Result<()> {
        self.make_directory(path)?;
        let Some(layer) = layer else { return Ok(()) };
        let old = self.lower.open_at(layer, path)?;
        let attributes = Attributes::of(old.as_fd(), &rustix::fs::fstat(&old)?)?;
        attributes.apply(open_beneath(&self.own, path, OFlags::DIRECTORY)?)?;
        self.times.insert(path.to_owned(), attributes);
        Ok(())
    }

    /// What lower layers show at `path`, unless a directory here hides it.
    pub(super) fn below(&mut self, path: &Path) -> io::Result<Seen> {
        for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if is_opaque(open_beneath(&self.own, parent, OFlags::DIRECTORY)?)? {
                return Ok(Seen::Nothing);
            }
        }
        self.lower.look(path)
    }

    pub(super) fn own_stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        match statat(&self.own, path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Makes room for a new file at `path`. Says whether anything stood there, since it hid what is
    /// below and a directory in its place must go on hiding it.
    pub(super) fn make_room(&mut self, path: &Path) -> io::Result<bool> {
        let Some(stat) = self.own_stat(path)? else {
            if self.followed.contains(path) {
                self.forget();
            }
            return Ok(false);
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            // No component of `path` is a link, and this call follows none below it.
            fs::remove_dir_all(self.path.join(path))?;
        } else {
            unlinkat(&self.own, path, AtFlags::empty())?;
        }
        self.times.retain(|known, _| !known.starts_with(path));
        self.forget();
        Ok(true)
    }

    fn forget(&mut self) {
        self.resolved.clear();
        self.followed.clear();
        self.current = None;
    }

    /// Sets attributes of a directory that exists here; its times when everything is done.
    pub(super) fn describe_directory(
        &mut self,
        path: &Path,
        attributes: Attributes,
    ) -> io::Result<()> {
        attributes.apply(open_beneath(&self.own, path, OFlags::DIRECTORY)?)?;
        self.times.insert(path.to_owned(), attributes);
        Ok(())
    }

    /// Hides what lower layers have in the directory `path`, which exists here.
    pub(super) fn hide_below(&mut self, path: &Path) -> io::Result<()> {
        if matches!(self.below(path)?, Seen::Directory(_)) {
            set_opaque(open_beneath(&self.own, path, OFlags::DIRECTORY)?)?;
            // Links that were followed through lower layers may be hidden now.
            self.forget();
        }
        Ok(())
    }

    /// Resolves a directory as [`Self::place`] does its parent, making it if needed.
    pub(super) fn enter(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.directory(path)
    }

    /// Says that `path` is deleted in lower layers.
    pub(super) fn white_out(&mut self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?.path;
        match self.own_stat(&place)? {
            // Made by this layer: only what is below it is meant.
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.hide_below(&place)
            }
            Some(_) => Ok(()),
            None if self.below(&place)? == Seen::Nothing => Ok(()),
            None => {
                if self.followed.contains(&place) {
                    self.forget();
                }
                let mode = Mode::empty();
                Ok(mknodat(&self.own, &place, FileType::CharacterDevice, mode, 0)?)
            }
        }
    }

    /// The place of an existing file that a hard link names; a file of a lower layer is copied here
    /// first, because links do not reach across layers.
    pub(super) fn link_target(&mut self, path: &Path) -> io::Result<PathBuf> {
        let place = self.place(path)?.path;
        match self.own_stat(&place)? {
            Some(stat) if is_whiteout(&stat) => Err(Errno::NOENT.into()),
            Some(_) => Ok(place),
            None => match self.below(&place)? {
                Seen::File(layer) => self.copy_file(&place, layer).map(|()| place),
                Seen::Symlink(target) => {
                    rustix::fs::symlinkat(&target, &self.own, &place)?;
                    Ok(place)
                }
                Seen::Directory(_) => Err(Errno::ISDIR.into()),
                Seen::Nothing => Err(Errno::NOENT.into()),
            },
        }
    }

    fn copy_file(&self, path: &Path, layer: usize) -> io::Result<()> {
        let old = self.lower.open_at(layer, path)?;
        let stat = rustix::fs::fstat(&old)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let attributes = Attributes::of(old.as_fd(), &stat)?;
        let mut new = File::from(create(&self.own, path.as_os_str())?);
        io::copy(&mut File::from(old), &mut new)?;
        attributes.apply(&new)?;
        attributes.apply_times(&new)
    }

    /// Hard-links two places.
    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::linkat(&self.own, from, &self.own, to, AtFlags::empty())?)
    }

    /// Makes the directory `path`, whose parent exists here.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        self.make_directory(path)
    }

    /// Sets the times of directories. To be called last.
    pub(super) fn finish(self) -> io::Result<()> {
        for (path, attributes) in &self.times {
            let directory = open_beneath(&self.own, path, OFlags::DIRECTORY)?;
            attributes.apply_times(directory)?;
        }
        Ok(())
    }
}

/// Makes a new regular file.
pub(super) fn create(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::from_raw_mode(0o600))?)
}

/// The parts of an archive's path: relative, without dots; `None` if it leads out.
pub(super) fn normalize(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

fn components(path: &Path) -> io::Result<Vec<OsString>> {
    let clean = normalize(path).ok_or(Errno::INVAL)?;
    Ok(clean.iter().map(OsStr::to_owned).collect())
}

/// The parts of a link's target; `..` stays, because it is meant after links are followed.
fn link_components(target: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    target.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_archives_are_made_relative() {
        let clean = |path: &str| normalize(Path::new(path)).map(|p| p.display().to_string());
        assert_eq!(clean("./a/./b/").as_deref(), Some("a/b"));
        assert_eq!(clean("/a//b").as_deref(), Some("a/b"));
        assert_eq!(clean("a/../b").as_deref(), Some("b"));
        assert_eq!(clean("./").as_deref(), Some(""));
        assert_eq!(clean("../a"), None);
        assert_eq!(clean("a/../../b"), None);
    }
}
