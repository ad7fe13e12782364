//! Unpacks a tar stream into a container's root. Every entry's directory is looked up inside the
//! root, and nothing is written through a link.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, linkat,
    mkdirat, mknodat, openat, symlinkat, utimensat,
};
use tar::{Archive, Entry, EntryType};

use crate::error::EngineError;
use crate::request::PutOptions;
use crate::root::Root;
use crate::tree;

/// The longest user file that is read, in bytes.
const PASSWD_MAX: u64 = 1 << 20;

/// Who gets what is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

/// Finds the container's user: a number, or a name in its own file.
pub(super) fn owner(root: &Root, user: &str) -> Result<Owner, EngineError> {
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    if let Ok(uid) = name.parse::<u32>() {
        return Ok(Owner { uid, gid: group.parse().unwrap_or(0) });
    }
    let fail = |error| EngineError::io("read", "/etc/passwd")(error);
    // The container may have made anything of it: a FIFO that nobody writes to is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = File::from(root.open(Path::new("/etc/passwd"), flags).map_err(fail)?);
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(EngineError::invalid(format!("unable to find user {name}: no passwd file")));
    }
    let mut bytes = Vec::new();
    file.take(PASSWD_MAX).read_to_end(&mut bytes).map_err(fail)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let ids = line.and_then(|line| {
        let mut fields = line.split(':').skip(2);
        Some(Owner { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    });
    ids.ok_or_else(|| EngineError::invalid(format!("unable to find user {name}")))
}

/// Unpacks `body` below `target`.
pub(super) fn unpack(
    root: &Root,
    target: &Path,
    body: impl Read,
    options: PutOptions,
    owner: Option<Owner>,
) -> Result<(), EngineError> {
    let mut body = BufReader::new(body);
    let start = io::BufRead::fill_buf(&mut body)
        .map_err(|e| EngineError::invalid(format!("read the archive: {e}")))?;
    let body: Box<dyn Read + '_> = match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(body)),
        _ => Box::new(body),
    };
    let mut archive = Archive::new(body);
    let damaged = |e: io::Error| EngineError::invalid(format!("read the archive: {e}"));
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        let Some(path) = inner_path(&path)? else { continue };
        let unpacker = Unpacker { root, target, options, owner };
        unpacker.entry(&mut entry, &path)?;
        if entry.header().entry_type().is_dir() {
            let mtime = entry.header().mtime().unwrap_or(0);
            directories.push((target.join(&path), mtime));
        }
    }
    // Last, since every entry in a directory changes its time.
    for (path, mtime) in directories.iter().rev() {
        let dir = root.open_dir(path).map_err(EngineError::io("open", path))?;
        rustix::fs::futimens(&dir, &times(*mtime))
            .map_err(|e| EngineError::io("set the time of", path)(e.into()))?;
    }
    Ok(())
}

/// The path of an entry, relative and without dots; `None` for the target itself.
fn inner_path(path: &Path) -> Result<Option<PathBuf>, EngineError> {
    let mut inner = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inner.push(name),
            Component::ParentDir => {
                let text = format!("\"{}\" is outside of the target", path.display());
                return Err(EngineError::invalid(text));
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok((!inner.as_os_str().is_empty()).then_some(inner))
}

struct Unpacker<'a> {
    root: &'a Root,
    target: &'a Path,
    options: PutOptions,
    owner: Option<Owner>,
}

impl Unpacker<'_> {
    fn entry(&self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), EngineError> {
        let full = self.target.join(path);
        let fail = |action: &'static str| {
            let full = full.clone();
            move |error: io::Error| EngineError::io(action, full)(error)
        };
        let parent_path = full.parent().unwrap_or(Path::new("/"));
        let parent = self.make_parents(parent_path).map_err(fail("make the directory of"))?;
        let name = full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = CString::new(name)
            .map_err(|_| EngineError::invalid("a path may not contain a zero byte"))?;
        let kind = entry.header().entry_type();
        self.make_room(&parent, &name, kind, &full)?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o7777;
        match kind {
            EntryType::Directory => self.directory(&parent, &name),
            EntryType::Regular | EntryType::Continuous => {
                self.file(&parent, &name, entry, mode).map_err(fail("write"))?;
                return self.finish(&parent, &name, entry).map_err(fail("finish"));
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                symlinkat(target, &parent, &name).map_err(io::Error::from)
            }
            EntryType::Link => self.link(&parent, &name, &link_name(entry)?),
            EntryType::Fifo => {
                mknodat(&parent, &name, FileType::Fifo, Mode::from_raw_mode(mode), 0)
                    .map_err(io::Error::from)
            }
            EntryType::Char | EntryType::Block => self.device(&parent, &name, entry, mode),
            // Entries that only describe others are read by the archive itself.
            _ => return Ok(()),
        }
        .map_err(fail("write"))?;
        if kind != EntryType::Link {
            self.finish(&parent, &name, entry).map_err(fail("finish"))?;
        }
        if matches!(kind, EntryType::Directory) {
            let dir = tree::open_dir(&parent, &name).map_err(fail("open"))?;
            fchmod(&dir, Mode::from_raw_mode(mode)).map_err(|e| fail("protect")(e.into()))?;
        }
        Ok(())
    }

    /// Opens the directory of an entry; what is missing is made.
    fn make_parents(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.root.open_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = path.parent().ok_or(io::ErrorKind::NotFound)?;
                let dir = self.make_parents(above)?;
                let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
                mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                self.root.open_dir(path)
            }
            other => other,
        }
    }

    /// Removes what is in the way of an entry.
    fn make_room(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        kind: EntryType,
        full: &Path,
    ) -> Result<(), EngineError> {
        let Ok(there) = tree::look(parent, name) else { return Ok(()) };
        let is_dir = tree::kind(&there) == FileType::Directory;
        let shown = full.display();
        match (is_dir, kind.is_dir()) {
            (true, true) => return Ok(()),
            (true, false) if self.options.no_overwrite_dir_non_dir => {
                let text = format!("cannot overwrite directory \"{shown}\" with non-directory");
                return Err(EngineError::invalid(text));
            }
            (false, true) if self.options.no_overwrite_dir_non_dir => {
                let text = format!("cannot overwrite non-directory \"{shown}\" with directory");
                return Err(EngineError::invalid(text));
            }
            _ => {}
        }
        tree::remove(parent, name, 0).map_err(EngineError::io("replace", full))
    }

    fn directory(&self, parent: &OwnedFd, name: &CStr) -> io::Result<()> {
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn file(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        entry: &mut Entry<'_, impl Read>,
        mode: u32,
    ) -> io::Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File = openat(parent, name, flags, Mode::from_raw_mode(0o600))?.into();
        io::copy(entry, &mut file)?;
        // The owner first: a change of owner takes set-user-id bits away.
        let owner = self.owner_of(entry)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
        Ok(fchmod(&file, Mode::from_raw_mode(mode))?)
    }

    fn link(&self, parent: &OwnedFd, name: &CStr, target: &Path) -> io::Result<()> {
        let inner = inner_path(target).map_err(io::Error::other)?;
        let inner = self.target.join(inner.ok_or(io::ErrorKind::InvalidInput)?);
        let dir = self.root.open_dir(inner.parent().unwrap_or(Path::new("/")))?;
        let base = inner.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(linkat(&dir, base, parent, name, AtFlags::empty())?)
    }

    fn device(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        entry: &Entry<'_, impl Read>,
        mode: u32,
    ) -> io::Result<()> {
        let header = entry.header();
        let (major, minor) = shoal_image::header::device(header)?;
        let kind = match header.entry_type() {
            EntryType::Char => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        let device = rustix::fs::makedev(major, minor);
        Ok(mknodat(parent, name, kind, Mode::from_raw_mode(mode), device)?)
    }

    /// Owner and time.
    fn finish(
        &self,
        parent: &OwnedFd,
        name: &CStr,
        entry: &Entry<'_, impl Read>,
    ) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous) {
            let Owner { uid, gid } = self.owner_of(entry)?;
            chownat(parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
        }
        let mtime = entry.header().mtime().unwrap_or(0);
        Ok(utimensat(parent, name, &times(mtime), flags)?)
    }

    fn owner_of(&self, entry: &Entry<'_, impl Read>) -> io::Result<Owner> {
        if let Some(owner) = self.owner {
            return Ok(owner);
        }
        let (uid, gid) = shoal_image::header::owner(entry.header())?;
        Ok(Owner { uid, gid })
    }
}

fn link_name(entry: &Entry<'_, impl Read>) -> Result<PathBuf, EngineError> {
    let name =
        entry.link_name().map_err(|e| EngineError::invalid(format!("read the archive: {e}")))?;
    name.map(|name| name.into_owned())
        .ok_or_else(|| EngineError::invalid("read the archive: a link without a target"))
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
