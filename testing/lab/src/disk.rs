//! A file system of its own, small enough to fill up.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

use crate::{must, run};

/// Its name in a lab's folder.
const NAME: &str = "disk";
/// The file that takes the space.
const BALLAST: &str = "ballast";

/// A small file system in a lab's folder; the lab unmounts it.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Mounts one of `mib` MiB in a lab's folder.
    pub(crate) fn mount(lab: &Path, mib: u32) -> Self {
        let dir = at(lab);
        std::fs::create_dir(&dir).unwrap();
        let options = format!("size={mib}m,mode=700");
        must(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "lab"]).arg(&dir));
        Self { dir }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes all space that is left, to the last block; again if some became free.
    pub fn fill(&self) {
        let path = self.dir.join(BALLAST);
        let Ok(file) = File::options().create(true).append(true).open(path) else { return };
        let mut at = file.metadata().map_or(0, |about| about.len());
        for step in [1 << 20, 64 << 10, 4 << 10] {
            while fallocate(&file, FallocateFlags::empty(), at, step).is_ok() {
                at += step;
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        // Ignored because: it may not have been taken.
        let _ = std::fs::remove_file(self.dir.join(BALLAST));
    }
}

/// Where a lab's disk is, if it has one.
pub(crate) fn at(lab: &Path) -> PathBuf {
    lab.join(NAME)
}

/// Unmounts a lab's disk, if it has one.
pub(crate) fn unmount(lab: &Path) {
    let dir = at(lab);
    if dir.exists() {
        run(Command::new("umount").arg("-l").arg(&dir));
    }
}
