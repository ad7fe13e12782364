//! Writes a tree of a container as a tar stream.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rustix::fs::{FileType, OFlags, Stat, readlinkat};
use tar::{Builder, EntryType, Header};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Place;
use crate::error::EngineError;
use crate::tree;

/// The size of a piece.
const PIECE: usize = 64 << 10;

/// Bytes of a name in a tar header.
const NAME_FIELD: usize = 100;

/// The way to the client, from a thread that may block.
pub(super) struct Pieces {
    pub pieces: mpsc::Sender<Result<Bytes, EngineError>>,
    pub runtime: Handle,
}

impl Pieces {
    /// Sends a piece; fails if nobody reads any more or the reader stalls for too long.
    pub fn send(&self, piece: Result<Bytes, EngineError>) -> io::Result<()> {
        let sent = async { timeout(super::STALL_MAX, self.pieces.send(piece)).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Sends the place with everything below it.
pub(super) fn send(place: &Place, pieces: &Pieces) {
    run(pieces, &place.path, Mounts::Cross, |archive| {
        let title = Path::new(&place.title);
        match &place.base {
            Some(base) => archive.entry(place.parent.as_fd(), base, title, &place.stat, 0),
            None => {
                archive.directory(title, &place.stat)?;
                archive.below(place.parent.as_fd(), title, 0)
            }
        }
    });
}

/// Whether a tree goes on in what is mounted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mounts {
    Cross,
    /// Mount points are empty: they are not the container's own files.
    Leave,
}

/// Sends everything below a root, with names that begin at it.
pub(super) fn send_export(place: &Place, pieces: &Pieces) {
    run(pieces, &place.path, Mounts::Leave, |archive| {
        archive.below(place.parent.as_fd(), Path::new(""), 0)
    });
}

fn run(
    pieces: &Pieces,
    path: &Path,
    mounts: Mounts,
    work: impl FnOnce(&mut Archive<'_>) -> io::Result<()>,
) {
    let writer = PieceWriter { pieces, piece: BytesMut::with_capacity(PIECE) };
    let mut archive = Archive { builder: Builder::new(writer), mounts, seen: HashMap::new() };
    let done = work(&mut archive).and_then(|()| archive.builder.into_inner()?.flush());
    match done {
        // Nobody reads any more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let error = EngineError::io("archive", path)(error);
            // Ignored because: nobody reads any more.
            let _ = pieces.send(Err(error));
        }
        Ok(()) => {}
    }
}

struct Archive<'a> {
    builder: Builder<PieceWriter<'a>>,
    mounts: Mounts,
    /// Where files with several names were met first.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Archive<'_> {
    fn below(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> io::Result<()> {
        if depth > tree::DEPTH_MAX {
            return Err(io::Error::other(format!("'{}' lies too deep", path.display())));
        }
        for name in tree::names(dir)? {
            let stat = match tree::look(dir, &name) {
                Ok(stat) => stat,
                // A running container may remove what was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let text = name.to_string_lossy().into_owned();
            self.entry(dir, &name, &path.join(text), &stat, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        match tree::kind(stat) {
            FileType::Directory => {
                self.directory(path, stat)?;
                match self.open(dir, name, OFlags::DIRECTORY) {
                    Ok(None) => Ok(()),
                    Ok(Some(below)) => self.below(below.as_fd(), path, depth + 1),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                }
            }
            FileType::RegularFile => self.file(dir, name, path, stat),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                let header = header(stat, EntryType::Symlink);
                self.put(header, path.as_os_str(), target.as_bytes(), io::empty())
            }
            FileType::Fifo => self.special(path, stat, EntryType::Fifo),
            FileType::CharacterDevice => self.special(path, stat, EntryType::Char),
            FileType::BlockDevice => self.special(path, stat, EntryType::Block),
            // A socket without its process is nothing.
            _ => Ok(()),
        }
    }

    /// Opens an entry for reading; `None` if it is a mount that is left out.
    fn open(&self, dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        match self.mounts {
            Mounts::Leave => tree::open_unmounted(dir, name, flags),
            Mounts::Cross if flags.contains(OFlags::DIRECTORY) => {
                tree::open_dir(dir, name).map(Some)
            }
            Mounts::Cross => tree::open_file(dir, name).map(|file| Some(file.into())),
        }
    }

    fn directory(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        if name != "/" {
            name.push("/");
        }
        self.put(header(stat, EntryType::Directory), &name, &[], io::empty())
    }

    /// Appends an entry under exactly this name: clients replace the beginning of names, so `./x`
    /// may not become `x`.
    fn put(
        &mut self,
        mut header: Header,
        name: &OsStr,
        link: &[u8],
        content: impl Read,
    ) -> io::Result<()> {
        self.put_long(EntryType::GNULongName, name.as_bytes())?;
        self.put_long(EntryType::GNULongLink, link)?;
        let fields = header.as_old_mut();
        fields.name = cut(name.as_bytes());
        fields.linkname = cut(link);
        header.set_cksum();
        self.builder.append(&header, content)
    }

    /// A name that does not fit its field goes ahead as an entry of its own.
    fn put_long(&mut self, kind: EntryType, name: &[u8]) -> io::Result<()> {
        if name.len() <= NAME_FIELD {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(name.len() as u64 + 1);
        header.as_old_mut().name = cut(b"././@LongLink");
        header.set_cksum();
        self.builder.append(&header, name.chain(&[0_u8][..]))
    }

    fn special(&mut self, path: &Path, stat: &Stat, kind: EntryType) -> io::Result<()> {
        let mut header = header(stat, kind);
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        self.put(header, path.as_os_str(), &[], io::empty())
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        stat: &Stat,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let first = self.seen.entry((stat.st_dev, stat.st_ino)).or_insert(path.to_owned());
            if first != path {
                let first = first.clone();
                let header = header(stat, EntryType::Link);
                return self.put(
                    header,
                    path.as_os_str(),
                    first.as_os_str().as_bytes(),
                    io::empty(),
                );
            }
        }
        let file = match self.open(dir, name, OFlags::NONBLOCK) {
            Ok(Some(file)) => File::from(file),
            Ok(None) => {
                let header = header(stat, EntryType::Regular);
                return self.put(header, path.as_os_str(), &[], io::empty());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(value) = tree::capability(&file) {
            let extension = [("SCHILY.xattr.security.capability", value.as_slice())];
            self.builder.append_pax_extensions(extension)?;
        }
        let mut header = header(stat, EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        // A file that shrinks or grows meanwhile still gives as many bytes as the header says.
        let content = file.chain(io::repeat(0)).take(size);
        self.put(header, path.as_os_str(), &[], content)
    }
}

/// The first bytes of a name, as many as the field holds.
fn cut(name: &[u8]) -> [u8; NAME_FIELD] {
    let mut field = [0; NAME_FIELD];
    for (slot, byte) in field.iter_mut().zip(name) {
        *slot = *byte;
    }
    field
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(u64::from(stat.st_uid));
    header.set_gid(u64::from(stat.st_gid));
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// Collects what is written into pieces.
struct PieceWriter<'a> {
    pieces: &'a Pieces,
    piece: BytesMut,
}

impl Write for PieceWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.pieces.send(Ok(piece))
    }
}
