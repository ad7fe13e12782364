//! What a unikernel sees of the host's files: directories as they are when it starts, single files
//! packed into an archive for the directory that they appear in.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_runtime::unikernel::GuestFiles;

use crate::error::EngineError;
use crate::request::InjectedFile;

/// Bytes of an archive's header, and what a file's content is rounded up to.
const HEADER_BYTES: u64 = 512;
/// The largest single file that is shown to a guest; folders are packed by the tender.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Deepest directory that the tender packs.
const DEPTH_MAX: usize = 32;

/// Something that shall appear at a path in the guest.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Absolute path in the guest.
    pub target: String,
    /// A file or directory of the host.
    pub source: PathBuf,
}

/// Puts together what the tender packs: each directory as it is, and for each directory in the
/// guest that has single files one archive below `dir`, which is made anew. Blocks.
///
/// # Errors
/// A source cannot be read or is too large, or an archive cannot be written.
pub(crate) fn assemble(
    dir: &Path,
    shown: &[Shown],
    injected: &[InjectedFile],
) -> Result<Vec<GuestFiles>, EngineError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(EngineError::io("remove", dir))?;
    }
    let mut files = Vec::new();
    let mut singles: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for one in shown {
        let kind = fs::metadata(&one.source).map_err(EngineError::io("look at", &one.source))?;
        if kind.is_dir() {
            files.push(GuestFiles { path: one.target.clone(), source: one.source.clone() });
            continue;
        }
        // A FIFO or a device has no end.
        if !kind.is_file() || kind.len() > FILE_BYTES_MAX {
            let why = format!("'{}' is no regular file of 64 MiB or less", one.source.display());
            return Err(EngineError::invalid(why));
        }
        let data = fs::read(&one.source).map_err(EngineError::io("read", &one.source))?;
        let (parent, name) = split(&one.target);
        singles.entry(parent).or_default().push((name, data));
    }
    for file in injected {
        let (parent, name) = split(&file.target);
        singles.entry(parent).or_default().push((name, file.data.to_vec()));
    }
    for (number, (path, members)) in singles.into_iter().enumerate() {
        fs::create_dir_all(dir).map_err(EngineError::io("create the directory", dir))?;
        let source = dir.join(format!("{number}.tar"));
        pack(&source, &members).map_err(EngineError::io("write", &source))?;
        files.push(GuestFiles { path, source });
    }
    Ok(files)
}

/// Bytes of memory that the tender takes for them: directories are packed into it, archives are
/// mapped as they are. Blocks. What cannot be read counts nothing here; the tender says so.
pub(crate) fn packed_bytes(files: &[GuestFiles]) -> u64 {
    files.iter().filter(|file| file.source.is_dir()).map(|file| below(&file.source, 0)).sum()
}

fn below(dir: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |path: PathBuf| match fs::metadata(&path) {
        Ok(kind) if kind.is_dir() && depth < DEPTH_MAX => HEADER_BYTES + below(&path, depth + 1),
        Ok(kind) => HEADER_BYTES + kind.len().next_multiple_of(HEADER_BYTES),
        Err(_) => 0,
    };
    entries.map(|entry| bytes(entry.path())).sum()
}

/// Directory and name of a path in the guest.
fn split(target: &str) -> (String, String) {
    let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
    let parent = if parent.is_empty() { "/" } else { parent };
    (parent.to_owned(), name.to_owned())
}

fn pack(path: &Path, members: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(fs::File::create(path)?);
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o444);
        archive.append_data(&mut header, name, data.as_slice())?;
    }
    archive.into_inner()?.sync_data()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn directories_stay_and_single_files_share_an_archive() {
        let host = tempfile::tempdir().unwrap();
        let site = host.path().join("site");
        fs::create_dir(&site).unwrap();
        let zone = host.path().join("zone");
        fs::write(&zone, "example. SOA").unwrap();
        let show = |target: &str, source: &Path| Shown {
            target: target.to_owned(),
            source: source.to_owned(),
        };
        let shown = [show("/www", &site), show("/etc/zones/a", &zone), show("/etc/zones/b", &zone)];
        let files = assemble(&host.path().join("made"), &shown, &[]).unwrap();
        assert_eq!(files[0], GuestFiles { path: "/www".into(), source: site });
        assert_eq!((files.len(), files[1].path.as_str()), (2, "/etc/zones"));
        assert_eq!(packed_bytes(&files), 0);
        fs::create_dir(host.path().join("site/sub")).unwrap();
        fs::write(host.path().join("site/sub/page"), [0; 513]).unwrap();
        assert_eq!(packed_bytes(&files), 512 + 512 + 1024);
        let mut archive = tar::Archive::new(fs::File::open(&files[1].source).unwrap());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("a"), Path::new("b")]);
        let missing = assemble(host.path(), &[show("/x", Path::new("/nowhere"))], &[]);
        assert!(matches!(missing, Err(EngineError::Io { .. })));
    }

    #[test]
    fn a_single_file_has_a_bound() {
        let host = tempfile::tempdir().unwrap();
        let large = host.path().join("large");
        // Nothing of it is on the disk: its length alone is looked at.
        fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        let shown = [Shown { target: "/etc/large".to_owned(), source: large }];
        let refused = assemble(&host.path().join("made"), &shown, &[]).unwrap_err();
        assert!(matches!(refused, EngineError::Invalid { .. }), "{refused}");
    }
}
