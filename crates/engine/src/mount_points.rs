//! The places that every container has something mounted on, as one layer that all containers
//! share below their image's. Without it each start makes those that its image lacks in the
//! container's own layer, through the overlay: a dozen files, and a copy of `/etc`. What the image
//! has at such a place, also a link, stands before this layer.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const DIRS: &[&str] = &["dev", "etc", "proc", "sys"];
/// The last tells programs what they run in.
const FILES: &[&str] = &["etc/hostname", "etc/hosts", "etc/resolv.conf", ".dockerenv"];
/// A link and where it leads: what old programs read mounts from.
const MTAB: (&str, &str) = ("etc/mtab", "/proc/mounts");

/// The layer below `exec_root`, made if it is not there.
pub(crate) fn layer(exec_root: &Path) -> io::Result<PathBuf> {
    let layer = exec_root.join("mount-points");
    // The last thing that is made says that the others are there.
    if fs::symlink_metadata(layer.join(MTAB.0)).is_err() {
        make(&layer)?;
    }
    Ok(layer)
}

/// Two threads may do this at once: each finds or makes every part.
fn make(layer: &Path) -> io::Result<()> {
    directory(layer)?;
    DIRS.iter().try_for_each(|name| directory(&layer.join(name)))?;
    for name in FILES {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o644);
        let file = options.open(layer.join(name))?;
        // Whatever this process's mask leaves out.
        file.set_permissions(Permissions::from_mode(0o644))?;
    }
    match symlink(MTAB.1, layer.join(MTAB.0)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_away_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let layer = layer(root.path()).unwrap();
        fs::remove_dir_all(&layer).unwrap();
        assert_eq!(super::layer(root.path()).unwrap(), layer);
        for name in DIRS {
            let mode = fs::metadata(layer.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o755, "{name}");
        }
        for name in FILES {
            assert_eq!(fs::metadata(layer.join(name)).unwrap().len(), 0, "{name}");
        }
        assert_eq!(fs::read_link(layer.join("etc/mtab")).unwrap(), Path::new("/proc/mounts"));
    }
}
