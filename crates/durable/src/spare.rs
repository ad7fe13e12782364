//! Replacing a file whose next replacement has its space already.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;

use crate::write::{PRIVATE_FILE, beside, split, sync_dir};

/// Files are padded to a multiple of this, so that one which grows a little needs no more space.
const STEP_BYTES: usize = 4096;
/// Room for growth at least.
const GROWTH_BYTES: usize = 1024;

/// [`crate::replace_json`], but a full disk refuses no replacement that has grown little since the
/// one before: what was replaced stays beside the file (`.NAME.spare`), and the next text is
/// written over it before the two change places (renameat2(2), `RENAME_EXCHANGE`). The file is
/// padded with spaces. On file systems that write every change to new blocks it can still fail.
///
/// # Errors
/// As [`crate::replace_json`].
pub fn replace_json_in_spare<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let spare = beside(path, "spare")?;
    write_over(&spare, &bytes)?.sync_all()?;
    match renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        // The first time, or where two files cannot change places.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::rename(&spare, path)?;
            // Not synced: what is in it does not matter, only that it has the space.
            // Ignored because: the text is in place, which is all that was asked for; the next
            // replacement makes the spare itself, and says so if it cannot.
            let _ = write_over(&spare, &bytes);
        }
        Err(error) => return Err(error.into()),
    }
    sync_dir(split(path)?.0)
}

/// Writes into the space that a file has, as far as it goes, and keeps that space unless it is far
/// more than is needed.
fn write_over(spare: &Path, bytes: &[u8]) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(PRIVATE_FILE);
    let mut file = options.open(spare)?;
    file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))?;
    let has = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let wanted = (bytes.len() + GROWTH_BYTES).next_multiple_of(STEP_BYTES);
    let len = if has >= bytes.len() && has < 2 * wanted { has } else { wanted };
    let mut padded = bytes.to_vec();
    padded.resize(len, b' ');
    file.write_all(&padded)?;
    file.set_len(len as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn read(path: &Path) -> String {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn two_files_change_places_and_grow_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let spare = dir.path().join(".state.json.spare");
        let files = || {
            let ino = |path: &Path| fs::metadata(path).unwrap().ino();
            std::collections::BTreeSet::from([ino(&path), ino(&spare)])
        };
        replace_json_in_spare(&path, &"first").unwrap();
        let first = files();
        for text in ["second", "a", &"x".repeat(5000), "short again"] {
            replace_json_in_spare(&path, &text).unwrap();
            assert_eq!(read(&path), text);
            assert_eq!(files(), first);
            for file in [&path, &spare] {
                let meta = fs::metadata(file).unwrap();
                assert_eq!(meta.permissions().mode() & 0o777, PRIVATE_FILE);
                assert_eq!(meta.len() % STEP_BYTES as u64, 0);
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_spare_that_a_crash_left_half_written_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace_json_in_spare(&path, &"first").unwrap();
        fs::write(dir.path().join(".state.json.spare"), "\"sec").unwrap();
        assert_eq!(read(&path), "first");
        replace_json_in_spare(&path, &"second").unwrap();
        assert_eq!(read(&path), "second");
        fs::remove_file(dir.path().join(".state.json.spare")).unwrap();
        replace_json_in_spare(&path, &"third").unwrap();
        assert_eq!(read(&path), "third");
    }
}
