//! Owner, mode, times and extended attributes of unpacked files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;

/// Prefix of overlayfs' own attributes: they steer the mount, so an archive must not set them.
pub(super) const OVERLAY_PREFIX: &str = "trusted.overlay.";
/// Marks a directory that hides everything below it (kernel documentation, overlayfs).
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// The most bytes that the names, or one value, of attributes may have (`XATTR_LIST_MAX`).
const XATTR_MAX: usize = 64 * 1024;

/// What a file has beside its content.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub modified: (i64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// Those of an unpacked file, without overlayfs' own.
    pub(super) fn of(file: BorrowedFd<'_>, stat: &Stat) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        for name in names(file)? {
            if !name.starts_with(OVERLAY_PREFIX) {
                let mut value = vec![0; XATTR_MAX];
                let size = fgetxattr(file, name.as_str(), value.as_mut_slice())?;
                value.truncate(size);
                xattrs.push((name, value));
            }
        }
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs,
        })
    }

    /// Sets everything but the times on an open file or directory. The owner comes first, because
    /// changing it clears the setuid bit and file capabilities.
    pub(super) fn apply(&self, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd();
        fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(file, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            tolerate(fsetxattr(file, name.as_str(), value, XattrFlags::empty()))?;
        }
        Ok(())
    }

    /// Sets the times of an open file.
    pub(super) fn apply_times(&self, file: impl AsFd) -> io::Result<()> {
        Ok(futimens(file, &self.timestamps())?)
    }

    /// Sets everything on a file that cannot be opened: a link, a device, a pipe.
    pub(super) fn apply_at(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        kind: FileType,
    ) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            // The name was just made by us and is no link, so following links changes nothing.
            let mode = Mode::from_raw_mode(self.mode);
            rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
        }
        for (attribute, value) in &self.xattrs {
            // There is no call for "name below this descriptor"; procfs gives the path.
            let mut path = std::path::PathBuf::from("/proc/self/fd");
            path.push(directory.as_raw_fd().to_string());
            path.push(name);
            tolerate(lsetxattr(&path, attribute.as_str(), value, XattrFlags::empty()))?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(utimensat(directory, name, &self.timestamps(), flags)?)
    }

    fn timestamps(&self) -> Timestamps {
        let (secs, nanos) = self.modified;
        let at = Timespec { tv_sec: secs, tv_nsec: i64::from(nanos) };
        Timestamps { last_access: at, last_modification: at }
    }
}

/// Docker leaves out attributes that the file system cannot keep, and so do we: an image must not
/// be unusable because of, say, an SELinux label on a file system without labels.
fn tolerate(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

fn names(file: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut list = vec![0u8; XATTR_MAX];
    let size = match flistxattr(file, list.as_mut_slice()) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    list.truncate(size);
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// Whether an open directory hides what lies below it in lower layers.
pub(super) fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 8];
    match fgetxattr(directory, OPAQUE, value.as_mut_slice()) {
        Ok(size) => Ok(value.get(..size) == Some(b"y".as_slice())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes an open directory hide what lies below it.
pub(super) fn set_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}
