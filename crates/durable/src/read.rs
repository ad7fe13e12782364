//! Reads of files that somebody else may have made.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::de::DeserializeOwned;

/// How every file here is opened: a FIFO does not wait for a writer, a terminal does not become
/// this process's own, nothing is inherited.
const FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Reads a regular file of at most `len_max` bytes; `None` if there is none.
///
/// # Errors
/// It is no regular file (`InvalidInput`), longer (`FileTooLarge`), or cannot be read.
pub fn read(path: &Path, len_max: u64) -> io::Result<Option<Vec<u8>>> {
    match rustix::fs::openat(CWD, path, FLAGS, Mode::empty()) {
        Ok(file) => bounded(File::from(file), len_max).map(Some),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// As [`read`], with every name and symbolic link of `path` resolved below the directory `root`,
/// which is a foreign file system's root (openat2(2), `RESOLVE_IN_ROOT`).
///
/// # Errors
/// As [`read`].
pub fn read_beneath(root: impl AsFd, path: &Path, len_max: u64) -> io::Result<Option<Vec<u8>>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, FLAGS, Mode::empty(), resolve) {
        Ok(file) => bounded(File::from(file), len_max).map(Some),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a regular file of at most `len_max` bytes as JSON; `None` if there is none.
///
/// # Errors
/// As [`read`]; text that is no such value is `InvalidData` or `UnexpectedEof`.
pub fn read_json<T: DeserializeOwned>(path: &Path, len_max: u64) -> io::Result<Option<T>> {
    let Some(bytes) = read(path, len_max)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn bounded(file: File, len_max: u64) -> io::Result<Vec<u8>> {
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if about.len() > len_max {
        return Err(too_large(len_max));
    }
    let mut bytes = Vec::new();
    // A file may grow, or be one of /proc, whose length is said to be 0.
    file.take(len_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max { Err(too_large(len_max)) } else { Ok(bytes) }
}

fn too_large(len_max: u64) -> io::Error {
    let text = format!("it has more than {len_max} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_device_a_fifo_and_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        for path in [Path::new("/dev/zero"), fifo.as_path(), dir.path()] {
            let error = read(path, 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
    }

    #[test]
    fn bytes_are_bounded_and_absence_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(read(&path, 10).unwrap().is_none());
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"0123456789");
        assert_eq!(read(&path, 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // Their length is not known before they are read.
        assert!(read(Path::new("/proc/self/status"), 3).is_err());
    }

    #[test]
    fn links_do_not_lead_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("passwd")).unwrap();
        let root = File::open(dir.path()).unwrap();
        assert!(read_beneath(&root, Path::new("passwd"), 100).unwrap().is_none());
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        assert_eq!(read_beneath(&root, Path::new("passwd"), 100).unwrap().unwrap(), b"inside");
    }

    #[test]
    fn half_a_json_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "{\"a\":").unwrap();
        assert!(read_json::<serde_json::Value>(&path, 100).is_err());
    }
}
