//! Trees of files by handles: no step follows a link, so nobody can lead it elsewhere meanwhile.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fchmod,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat, unlinkat, utimensat,
};

/// How deep trees may be: each level holds a handle.
pub(crate) const DEPTH_MAX: usize = 512;

/// The xattr of file capabilities, the only one that images are made with.
pub(crate) const CAPABILITY: &CStr = c"security.capability";

/// What an entry is, without following a link.
pub(crate) fn look(dir: impl AsFd, name: &CStr) -> io::Result<Stat> {
    Ok(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Its type.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Opens an entry that is a directory.
pub(crate) fn open_dir(dir: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Opens an entry that is a file, for reading.
pub(crate) fn open_file(dir: impl AsFd, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(openat(dir, name, flags, Mode::empty())?.into())
}

/// Opens an entry unless something is mounted over it (`None` then).
pub(crate) fn open_unmounted(
    dir: impl AsFd,
    name: &CStr,
    flags: OFlags,
) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
        Ok(handle) => Ok(Some(handle)),
        Err(rustix::io::Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The entries of a directory, in order.
pub(crate) fn names(dir: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes an entry with everything below it.
pub(crate) fn remove(dir: impl AsFd, name: &CStr, depth: usize) -> io::Result<()> {
    let dir = dir.as_fd();
    let stat = look(dir, name)?;
    if kind(&stat) != FileType::Directory {
        return Ok(unlinkat(dir, name, AtFlags::empty())?);
    }
    if depth > DEPTH_MAX {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    let below = open_dir(dir, name)?;
    for entry in names(&below)? {
        remove(&below, &entry, depth + 1)?;
    }
    Ok(unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Copies everything in `from` into `to`, and the attributes of `from` itself.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    for name in names(from)? {
        let stat = look(from, &name)?;
        match kind(&stat) {
            FileType::Directory => {
                mkdirat(to, &name, Mode::from_raw_mode(0o700))?;
                copy(&open_dir(from, &name)?, &open_dir(to, &name)?, depth + 1)?;
            }
            FileType::RegularFile => copy_file(from, to, &name, &stat)?,
            FileType::Symlink => {
                let target = readlinkat(from, &name, Vec::new())?;
                symlinkat(&target, to, &name)?;
                own(to, &name, &stat)?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                let mode = Mode::from_raw_mode(stat.st_mode);
                mknodat(to, &name, kind(&stat), mode, stat.st_rdev)?;
                own(to, &name, &stat)?;
            }
            // A socket without its process is nothing.
            _ => {}
        }
    }
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(owner(&stat)), Some(group(&stat)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(rustix::fs::futimens(to, &times(&stat))?)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let mut source = open_file(from, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut target: File = openat(to, name, flags, Mode::from_raw_mode(0o600))?.into();
    io::copy(&mut source, &mut target)?;
    rustix::fs::fchown(&target, Some(owner(stat)), Some(group(stat)))?;
    fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
    if let Some(value) = capability(&source) {
        rustix::fs::fsetxattr(&target, CAPABILITY, &value, rustix::fs::XattrFlags::empty())?;
    }
    Ok(rustix::fs::futimens(&target, &times(stat))?)
}

/// The file capabilities of a file, if it has any.
pub(crate) fn capability(file: &File) -> Option<Vec<u8>> {
    // The kernel's structure has 24 bytes.
    let mut value = vec![0_u8; 64];
    let len = rustix::fs::fgetxattr(file, CAPABILITY, &mut value).ok()?;
    value.truncate(len);
    (!value.is_empty()).then_some(value)
}

fn own(dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(owner(stat)), Some(group(stat)), flags)?;
    Ok(utimensat(dir, name, &times(stat), flags)?)
}

fn owner(stat: &Stat) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(stat.st_uid)
}

fn group(stat: &Stat) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(stat.st_gid)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |secs: i64, nanos: i64| Timespec { tv_sec: secs, tv_nsec: nanos };
    #[allow(clippy::unnecessary_cast)] // The width differs between machines.
    Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn trees_have_a_bound() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("a/b")).unwrap();
        let open = |dir: &tempfile::TempDir| OwnedFd::from(File::open(dir.path()).unwrap());
        let (source, target) = (open(&from), open(&to));
        let too_deep = io::ErrorKind::QuotaExceeded;
        assert_eq!(copy(&source, &target, DEPTH_MAX - 1).unwrap_err().kind(), too_deep);
        assert_eq!(remove(&source, c"a", DEPTH_MAX).unwrap_err().kind(), too_deep);
        assert!(from.path().join("a/b").exists());
        remove(&source, c"a", DEPTH_MAX - 1).unwrap();
        assert!(!from.path().join("a").exists());
    }
}
