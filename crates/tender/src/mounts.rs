//! Files for the guest: a tar archive as it is, or a folder packed into one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::TenderError;
use crate::memory;

/// Bytes of a tar block.
const BLOCK: usize = 512;
/// Most bytes of an archive.
const ARCHIVE_BYTES_MAX: u64 = 1 << 30;
/// Most files and folders of a folder that is packed.
const ENTRIES_MAX: usize = 65_536;
/// Deepest folder.
const DEPTH_MAX: usize = 32;

/// An archive that can be mapped.
#[derive(Debug)]
pub struct Archive {
    /// Where it is: the file itself, or one in memory.
    pub file: File,
    /// Its bytes.
    pub bytes: u64,
}

/// Opens an archive, or packs a folder.
///
/// # Errors
/// [`TenderError::PackMount`], with the file or folder that was the reason.
pub fn open(source: &Path) -> Result<Archive, TenderError> {
    let failed =
        |path: &Path, error| TenderError::PackMount { path: path.to_owned(), source: error };
    let kind = fs::metadata(source).map_err(|error| failed(source, error))?;
    if kind.is_dir() {
        let root = fs::canonicalize(source).map_err(|error| failed(source, error))?;
        let file = memory::memory_file(c"shoal-mount", 0)?;
        let mut packer = Packer { root, to: io::BufWriter::new(file), bytes: 0, entries: 0 };
        packer.folder(source, "", 0).map_err(|(path, error)| failed(&path, error))?;
        let (file, bytes) = packer.finish().map_err(|error| failed(source, error))?;
        return Ok(Archive { file, bytes });
    }
    if !kind.is_file() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "neither a folder nor a file");
        return Err(failed(source, error));
    }
    let file = File::open(source).map_err(|error| failed(source, error))?;
    let bytes = kind.len();
    let mut magic = [0; 5];
    let read = file.read_exact_at(&mut magic, 257);
    if bytes > ARCHIVE_BYTES_MAX || read.is_err() || &magic != b"ustar" {
        let error = io::Error::other("neither a folder nor a POSIX tar archive of at most 1 GiB");
        return Err(failed(source, error));
    }
    Ok(Archive { file, bytes })
}

type Failure = (PathBuf, io::Error);

struct Packer {
    root: PathBuf,
    to: io::BufWriter<File>,
    bytes: u64,
    entries: usize,
}

impl Packer {
    /// Packs what is in `folder`, sorted, so that equal folders make equal archives.
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), Failure> {
        let failed = |error| (folder.to_owned(), error);
        if depth > DEPTH_MAX {
            return Err(failed(io::Error::other("folders lie too deep in one another")));
        }
        let mut names: Vec<_> = fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name())).collect())
            .map_err(failed)?;
        names.sort();
        for name in names {
            let path = folder.join(&name);
            self.entry(&path, prefix, &name, depth).map_err(|failure| match failure {
                (place, error) if place.as_os_str().is_empty() => (path.clone(), error),
                failure => failure,
            })?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        prefix: &str,
        name: &std::ffi::OsStr,
        depth: usize,
    ) -> Result<(), Failure> {
        let here = |error| (PathBuf::new(), error);
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(here(io::Error::other("more files than can be packed")));
        }
        let name = std::str::from_utf8(name.as_bytes());
        let name = name.map_err(|error| here(io::Error::other(error)))?;
        let name = format!("{prefix}{name}");
        // A link is what it points to, if that is inside: the guest sees files only.
        let real = fs::canonicalize(path).map_err(here)?;
        if !real.starts_with(&self.root) {
            return Err(here(io::Error::other("a link that leads out of the folder")));
        }
        let kind = fs::metadata(&real).map_err(here)?;
        if kind.is_dir() {
            self.header(&format!("{name}/"), &kind).map_err(here)?;
            self.folder(path, &format!("{name}/"), depth + 1)
        } else if kind.is_file() {
            self.file(&real, &name, &kind).map_err(here)
        } else {
            Err(here(io::Error::other("neither a file nor a folder")))
        }
    }

    fn file(&mut self, path: &Path, name: &str, about: &fs::Metadata) -> io::Result<()> {
        let len = about.len();
        self.header(name, about)?;
        let copied = io::copy(&mut File::open(path)?.take(len), &mut self.to)?;
        if copied != len {
            return Err(io::Error::other("it became shorter while it was packed"));
        }
        let padding = copied.next_multiple_of(BLOCK as u64) - copied;
        self.to.write_all(&[0; BLOCK][..padding as usize])?;
        self.count(copied + padding)
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes > ARCHIVE_BYTES_MAX {
            return Err(io::Error::other("more than 1 GiB of files"));
        }
        Ok(())
    }

    fn header(&mut self, name: &str, about: &fs::Metadata) -> io::Result<()> {
        let (len, kind) = if about.is_dir() { (0, b'5') } else { (about.len(), b'0') };
        // Eleven octal digits, from 1970 on: a web server tells its clients how old a file is.
        let modified = about.mtime().clamp(0, (1 << 33) - 1);
        let too_long = || io::Error::other("its path is too long for a tar archive");
        let (prefix, name) = split(name).ok_or_else(too_long)?;
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = block.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        put(0, name.as_bytes());
        put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{len:011o}\0").as_bytes());
        put(136, format!("{modified:011o}\0").as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        put(345, prefix.as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let sum = format!("{sum:06o}\0 ");
        block[148..156].copy_from_slice(sum.as_bytes());
        self.to.write_all(&block)?;
        self.count(BLOCK as u64)
    }

    fn finish(mut self) -> io::Result<(File, u64)> {
        // Two blocks of zeros end an archive.
        self.to.write_all(&[0; 2 * BLOCK])?;
        self.count(2 * BLOCK as u64)?;
        let file = self.to.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, self.bytes))
    }
}

/// Splits a name at a slash so that both parts fit into a header.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return Some(("", name));
    }
    let fits = |at: &usize| *at <= 155 && (1..=100).contains(&(name.len() - at - 1));
    let at = name.match_indices('/').map(|(at, _)| at).find(fits)?;
    Some((name.get(..at)?, name.get(at + 1..)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_becomes_an_archive_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let deep = "d".repeat(90);
        fs::create_dir_all(dir.path().join(&deep).join(&deep)).unwrap();
        fs::write(dir.path().join("a.txt"), b"hello").unwrap();
        fs::write(dir.path().join(&deep).join(&deep).join("b"), vec![7; 1000]).unwrap();
        std::os::unix::fs::symlink("a.txt", dir.path().join("link")).unwrap();
        let archive = open(dir.path()).unwrap();
        assert_eq!(archive.bytes % BLOCK as u64, 0);
        let mut bytes = vec![0; archive.bytes as usize];
        archive.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut found = std::collections::BTreeMap::new();
        let mut reader = tar::Archive::new(&bytes[..]);
        for entry in reader.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if entry.path().unwrap().as_os_str() == "a.txt" {
                let modified = fs::metadata(dir.path().join("a.txt")).unwrap().mtime();
                assert_eq!(entry.header().mtime().unwrap(), modified as u64);
            }
            found.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        assert_eq!(found["a.txt"], b"hello");
        assert_eq!(found["link"], b"hello");
        assert_eq!(found[&format!("{deep}/{deep}/b")], vec![7; 1000]);
        let again = dir.path().join("made.tar");
        fs::write(&again, &bytes).unwrap();
        assert_eq!(open(&again).unwrap().bytes, archive.bytes);
    }

    #[test]
    fn what_leads_out_and_what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        assert!(open(dir.path()).is_err());
        let plain = dir.path().join("plain");
        fs::write(&plain, b"text").unwrap();
        assert!(open(&plain).is_err());
    }

    #[test]
    fn an_archive_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.tar");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"ustar", 257).unwrap();
        // Hardly anything of it is on the disk.
        file.set_len(ARCHIVE_BYTES_MAX).unwrap();
        assert_eq!(open(&path).unwrap().bytes, ARCHIVE_BYTES_MAX);
        file.set_len(ARCHIVE_BYTES_MAX + 1).unwrap();
        assert!(open(&path).is_err());
    }

    #[test]
    fn folders_lie_in_one_another_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let levels = |count: usize| dir.path().join(vec!["d"; count].join("/"));
        fs::create_dir_all(levels(DEPTH_MAX)).unwrap();
        assert!(open(dir.path()).is_ok());
        fs::create_dir_all(levels(DEPTH_MAX + 1)).unwrap();
        assert!(open(dir.path()).is_err());
    }

    #[test]
    fn what_is_packed_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"x").unwrap();
        let pack = |entries: usize, bytes: u64| {
            let root = fs::canonicalize(dir.path()).unwrap();
            let to = io::BufWriter::new(tempfile::tempfile().unwrap());
            let mut packer = Packer { root, to, bytes, entries };
            packer.folder(dir.path(), "", 0)
        };
        // As if so much had been packed before: now a header and a block, of one file.
        let block = BLOCK as u64;
        assert!(pack(ENTRIES_MAX - 1, ARCHIVE_BYTES_MAX - 2 * block).is_ok());
        assert!(pack(ENTRIES_MAX, 0).is_err());
        assert!(pack(0, ARCHIVE_BYTES_MAX - block).is_err());
    }
}
