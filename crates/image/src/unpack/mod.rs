//! Unpacks a layer's archive into a directory that overlayfs can use as it is.
//!
//! A layer is unpacked on its own, yet sees the layers below it: a parent directory that its
//! archive does not mention gets the attributes of the one below (overlayfs shows the topmost), a
//! link on the way is followed as in the mounted image, and a hard link to a file below copies that
//! file.

mod attributes;
mod lower;
mod tree;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, makedev, mknodat, symlinkat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::error::ImageError;
use attributes::{Attributes, OVERLAY_PREFIX};
use tree::{Tree, create, normalize};

/// Begins the name of a whiteout (OCI image spec, "Whiteouts").
const WHITEOUT: &str = ".wh.";
/// The whiteout of everything below a directory.
const OPAQUE_WHITEOUT: &str = ".wh..wh..opq";
/// Begins names that AUFS kept for itself; old images still carry some.
const AUFS_PRIVATE: &str = ".wh..wh.";
/// Keys of PAX records that carry extended attributes.
const PAX_XATTR: &str = "SCHILY.xattr.";

/// Unpacks `archive`, uncompressed, into the empty directory `target`. `lower` are the directories
/// of the layers below, topmost first. Gives the bytes of all files.
pub(crate) fn unpack(
    archive: impl Read,
    target: &Path,
    lower: &[PathBuf],
    layer: &str,
) -> Result<u64, ImageError> {
    let failed = |entry: &Path, source: io::Error| ImageError::Unpack {
        layer: layer.into(),
        entry: entry.display().to_string(),
        source,
    };
    let root = Path::new("");
    let mut tree = Tree::open(target, lower).map_err(|e| failed(root, e))?;
    let mut archive = Archive::new(archive);
    let mut last = PathBuf::new();
    let mut size = 0;
    for entry in archive.entries().map_err(|e| failed(root, e))? {
        let mut entry = entry.map_err(|e| failed(&last, e))?;
        let path = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let refuse = |reason: &str| ImageError::EntryRefused {
            layer: layer.into(),
            entry: path.display().to_string(),
            reason: reason.into(),
        };
        if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
            continue;
        }
        let clean = normalize(&path).ok_or_else(|| refuse("it leads out of the image"))?;
        let attributes = attributes_of(&mut entry).map_err(|e| failed(&path, e))?;
        if attributes.xattrs.iter().any(|(name, _)| name.starts_with(OVERLAY_PREFIX)) {
            return Err(refuse("it sets an attribute that belongs to the overlay file system"));
        }
        let link =
            entry.link_name_bytes().map(|l| PathBuf::from(OsString::from_vec(l.into_owned())));
        let step = Step { path: clean, kind: entry.header().entry_type(), attributes, link };
        if step.kind == EntryType::Link && step.link.as_deref().and_then(normalize).is_none() {
            return Err(refuse("it links to something outside of the image"));
        }
        if !step.supported() {
            return Err(refuse("its type is not supported"));
        }
        size += step.run(&mut tree, &mut entry).map_err(|e| failed(&path, e))?;
        last = path;
    }
    tree.finish().map_err(|e| failed(root, e))?;
    Ok(size)
}

/// One entry of an archive.
struct Step {
    path: PathBuf,
    kind: EntryType,
    attributes: Attributes,
    link: Option<PathBuf>,
}

impl Step {
    fn supported(&self) -> bool {
        matches!(
            self.kind,
            EntryType::Regular
                | EntryType::Continuous
                | EntryType::GNUSparse
                | EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Fifo
                | EntryType::Directory
        )
    }

    /// Puts it into the tree; gives the bytes of its content.
    fn run(self, tree: &mut Tree, entry: &mut Entry<'_, impl Read>) -> io::Result<u64> {
        let name = self.path.file_name().unwrap_or_default().as_bytes();
        if name == OPAQUE_WHITEOUT.as_bytes() {
            let directory = tree.enter(self.path.parent().unwrap_or(Path::new("")))?;
            return tree.hide_below(&directory).map(|()| 0);
        }
        if name.starts_with(AUFS_PRIVATE.as_bytes()) {
            return Ok(0);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT.as_bytes()) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Errno::INVAL.into());
            }
            let path = self.path.with_file_name(OsStr::from_bytes(hidden));
            return tree.white_out(&path).map(|()| 0);
        }
        match self.kind {
            EntryType::Directory => self.directory(tree).map(|()| 0),
            EntryType::Link => self.hard_link(tree).map(|()| 0),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(tree, entry)
            }
            _ => self.special(tree, entry),
        }
    }

    fn directory(self, tree: &mut Tree) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return tree.describe_directory(Path::new(""), self.attributes);
        }
        let path = tree.place(&self.path)?.path;
        let is_directory = tree
            .own_stat(&path)?
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !is_directory {
            let hid = tree.make_room(&path)?;
            tree.make(&path)?;
            if hid {
                tree.hide_below(&path)?;
            }
        }
        tree.describe_directory(&path, self.attributes)
    }

    fn file(self, tree: &mut Tree, entry: &mut Entry<'_, impl Read>) -> io::Result<u64> {
        let path = tree.place(&self.path)?.path;
        tree.make_room(&path)?;
        let place = tree.place(&self.path)?;
        let mut file = File::from(create(place.directory, &place.name)?);
        let promised = entry.size();
        let size = io::copy(entry, &mut file)?;
        if size != promised {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.attributes.apply(&file)?;
        self.attributes.apply_times(&file)?;
        Ok(size)
    }

    fn hard_link(self, tree: &mut Tree) -> io::Result<()> {
        let target = self.link.as_deref().and_then(normalize).ok_or(Errno::INVAL)?;
        let from = tree.link_target(&target)?;
        let to = tree.place(&self.path)?.path;
        if from == to {
            return Ok(());
        }
        tree.make_room(&to)?;
        tree.link(&from, &to)
    }

    /// Links, devices and pipes. A link's content is its target, in Docker's sizes too.
    fn special(self, tree: &mut Tree, entry: &Entry<'_, impl Read>) -> io::Result<u64> {
        let path = tree.place(&self.path)?.path;
        tree.make_room(&path)?;
        let place = tree.place(&self.path)?;
        let device = |kind: FileType| {
            let (major, minor) = crate::header::device(entry.header())?;
            let device = if kind == FileType::Fifo { 0 } else { makedev(major, minor) };
            let mode = Mode::from_raw_mode(0o600);
            Ok::<_, io::Error>(mknodat(place.directory, &place.name, kind, mode, device)?)
        };
        let kind = match self.kind {
            EntryType::Symlink => {
                let target = self.link.as_deref().ok_or(Errno::INVAL)?;
                symlinkat(target, place.directory, &place.name)?;
                FileType::Symlink
            }
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind != FileType::Symlink {
            device(kind)?;
        }
        self.attributes.apply_at(place.directory.as_fd(), &place.name, kind)?;
        let target = self.link.as_deref().filter(|_| kind == FileType::Symlink);
        Ok(target.map_or(0, |target| target.as_os_str().len() as u64))
    }
}

/// What an entry says about its file; PAX records win over the header.
fn attributes_of(entry: &mut Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let (uid, gid) = crate::header::owner(header)?;
    let mut attributes = Attributes {
        mode: header.mode()? & 0o7777,
        uid,
        gid,
        modified: (i64::try_from(header.mtime()?).unwrap_or(0), 0),
        xattrs: Vec::new(),
    };
    let Some(records) = entry.pax_extensions()? else { return Ok(attributes) };
    for record in records {
        let record = record?;
        let Ok(key) = record.key() else { continue };
        if let Some(name) = key.strip_prefix(PAX_XATTR) {
            attributes.xattrs.push((name.into(), record.value_bytes().to_vec()));
        } else if key == "mtime"
            && let Some(modified) = record.value().ok().and_then(pax_time)
        {
            attributes.modified = modified;
        } else if key == "uid" || key == "gid" {
            let value = record.value().ok().and_then(|v| v.parse().ok()).ok_or(Errno::INVAL)?;
            if key == "uid" {
                attributes.uid = value;
            } else {
                attributes.gid = value;
            }
        }
    }
    Ok(attributes)
}

/// A PAX time: decimal seconds since 1970, with or without a fraction.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = secs.starts_with('-');
    let secs: i64 = secs.parse().ok()?;
    let mut digits: String = fraction.chars().take(9).collect();
    while digits.len() < 9 {
        digits.push('0');
    }
    let nanos: u32 = digits.parse().ok()?;
    if negative && nanos > 0 {
        return Some((secs.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((secs, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_have_fractions() {
        assert_eq!(pax_time("12"), Some((12, 0)));
        assert_eq!(pax_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time("12.123456789123"), Some((12, 123_456_789)));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("x"), None);
    }
}
