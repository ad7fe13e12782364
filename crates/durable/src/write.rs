//! Replacing a file so that a crash leaves the old one or the new one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Mode of a state file: environments, keys and tokens are in them, so only root reads them.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of a directory of state files.
pub const PRIVATE_DIR: u32 = 0o700;

/// Replaces the file at `path` by one with `bytes` and `mode`: written beside it, synced, renamed,
/// and the directory synced (rename(2), fsync(2)).
///
/// Two writers of one path at a time would share the file beside it; order them.
///
/// # Errors
/// The file system refuses; the old file is then untouched, or already replaced if just the last
/// sync failed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = split(path)?.0;
    let beside = beside(path, "new")?;
    let written = write_beside(&beside, bytes, mode).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // Ignored because: the failure that is reported is the one that matters, and the next
        // replacement writes over what is left.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    sync_dir(dir)
}

/// [`replace`] with `value` as JSON, readable by root alone.
///
/// # Errors
/// As [`replace`]; a value that has no JSON form is `InvalidData`.
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace(path, &serde_json::to_vec(value)?, PRIVATE_FILE)
}

/// Makes what was renamed, made or removed in `dir` survive a crash.
///
/// # Errors
/// The file system refuses.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Makes a directory, and those above it, for root alone. One that is there gets the mode too.
///
/// # Errors
/// The file system refuses.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir)?;
    let mode = fs::metadata(dir)?.permissions().mode();
    if mode & 0o777 != PRIVATE_DIR {
        fs::set_permissions(dir, fs::Permissions::from_mode(PRIVATE_DIR))?;
    }
    Ok(())
}

fn write_beside(beside: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(mode).open(beside)?;
    // One that a crash left has whatever mode it had.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// `.NAME.SUFFIX` in the directory of `path`.
pub(crate) fn beside(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let (dir, name) = split(path)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    Ok(dir.join(hidden))
}

pub(crate) fn split(path: &Path) -> io::Result<(&Path, &std::ffi::OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) if !dir.as_os_str().is_empty() => Ok((dir, name)),
        (Some(_), Some(name)) => Ok((Path::new("."), name)),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        fs::write(&path, "old").unwrap();
        replace(&path, b"new", PRIVATE_FILE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_of_a_crash_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join(".state.json.new");
        fs::write(&beside, "a much longer text than the next one").unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o644)).unwrap();
        let path = dir.path().join("state.json");
        replace_json(&path, &1).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
    }

    #[test]
    fn a_failed_replacement_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        // A directory with something in it cannot be renamed over.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(replace(&path, b"new", PRIVATE_FILE).is_err());
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_others_could_read_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        make_private_dir(&inner).unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, PRIVATE_DIR);
    }
}
