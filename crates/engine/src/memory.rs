//! Files of containers that must not reach a disk: secrets, configs, archives for unikernels.
//!
//! They live below the run-time root, in one folder that is on a memory file system: the run-time
//! root's own where it is one, otherwise one that is mounted when it is first needed and taken away
//! when the engine ends. A container's are removed when it ends; one that runs keeps what it was
//! given, whatever becomes of the folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use shoal_model::id::ContainerId;
use shoal_runtime::container_plan::{MountKind, MountPlan, Propagation};

use crate::error::EngineError;
use crate::request::InjectedFile;

/// The magic number of a memory file system in `statfs`.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Two containers that start at once must not mount twice.
static MOUNTING: Mutex<()> = Mutex::new(());

/// The folder of all containers' memory files.
fn root(exec_root: &Path) -> PathBuf {
    exec_root.join("files")
}

/// The folder of one container's memory files; [`make`] makes it.
pub(crate) fn dir(exec_root: &Path, id: &ContainerId) -> PathBuf {
    root(exec_root).join(id.as_str())
}

/// Makes a container's folder anew, on a memory file system. Blocks.
///
/// # Errors
/// The file system cannot be mounted, or the folder cannot be made.
pub(crate) fn make(dir: &Path) -> Result<(), EngineError> {
    let root = dir.parent().unwrap_or(dir);
    let _one = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    fs::create_dir_all(root).map_err(EngineError::io("create the directory", root))?;
    let kind = nix::sys::statfs::statfs(root)
        .map_err(|e| EngineError::io("look at", root)(e.into()))?
        .filesystem_type();
    if kind.0 as i64 != TMPFS_MAGIC {
        // Executable: a config may be a script that the container runs.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), root, Some("tmpfs"), flags, Some("mode=0700"))
            .map_err(|e| EngineError::io("mount a memory file system on", root)(e.into()))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700))
        .map_err(EngineError::io("protect", root))?;
    remove(dir)?;
    fs::create_dir(dir).map_err(EngineError::io("create the directory", dir))
}

/// Removes a container's folder, if there is one. Blocks.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn remove(dir: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EngineError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Takes away what [`make`] mounted. Containers that run keep their files. Blocks.
///
/// # Errors
/// It cannot be taken away.
pub(crate) fn unmount(exec_root: &Path) -> Result<(), EngineError> {
    let root = root(exec_root);
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let mounted = match (device(&root), device(exec_root)) {
        (Ok(own), Ok(outer)) => own != outer,
        // Nothing was ever put there.
        _ => false,
    };
    if !mounted {
        return Ok(());
    }
    umount2(&root, MntFlags::MNT_DETACH).map_err(|e| EngineError::io("unmount", &root)(e.into()))
}

/// Writes a container's files, each to be mounted read-only. Blocks.
///
/// # Errors
/// One cannot be written.
pub(crate) fn write(dir: &Path, files: &[InjectedFile]) -> Result<Vec<MountPlan>, EngineError> {
    if files.is_empty() {
        remove(dir)?;
        return Ok(Vec::new());
    }
    make(dir)?;
    let mut by_target = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        let path = dir.join(number.to_string());
        write_one(&path, file)?;
        by_target.insert(file.target.clone(), path);
    }
    let plan = |(target, source): (String, PathBuf)| MountPlan {
        target: target.into(),
        read_only: true,
        kind: MountKind::Bind { source, recursive: false, propagation: Propagation::Rprivate },
    };
    Ok(by_target.into_iter().map(plan).collect())
}

fn write_one(path: &Path, file: &InjectedFile) -> Result<(), EngineError> {
    let mut options = fs::OpenOptions::new();
    let mut open = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(EngineError::io("make", path))?;
    io::Write::write_all(&mut open, &file.data).map_err(EngineError::io("write", path))?;
    // The owner first: the kernel takes set-user-id away from a file that changes hands.
    std::os::unix::fs::chown(path, Some(file.uid), Some(file.gid))
        .map_err(EngineError::io("give away", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(file.mode & 0o7777))
        .map_err(EngineError::io("protect", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_are_written_anew_as_they_are_asked_for() {
        // Every Linux has its shared memory on a memory file system: nothing is mounted here.
        let exec_root = tempfile::tempdir_in("/dev/shm").unwrap();
        let own = fs::metadata(exec_root.path()).unwrap();
        let file = |target: &str, mode| InjectedFile {
            target: target.into(),
            data: bytes::Bytes::from_static(b"hunter2"),
            uid: own.uid(),
            gid: own.gid(),
            mode,
        };
        let dir = dir(exec_root.path(), &ContainerId::new("c1"));
        let two = [file("/run/secrets/b", 0o400), file("/a", 0o755)];
        let mounts = write(&dir, &two).unwrap();
        let targets: Vec<_> = mounts.iter().map(|m| m.target.display().to_string()).collect();
        assert_eq!(targets, ["/a", "/run/secrets/b"]);
        assert!(mounts.iter().all(|m| m.read_only));
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("0"), mode("1")), (0o400, 0o755));
        assert_eq!(fs::metadata(dir.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        write(&dir, &two[..1]).unwrap();
        assert!(!dir.join("1").exists(), "what was there before must not stay");
        assert!(write(&dir, &[]).unwrap().is_empty());
        assert!(!dir.exists());
        unmount(exec_root.path()).unwrap();
    }
}
