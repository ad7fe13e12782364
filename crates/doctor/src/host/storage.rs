//! The data root: overlayfs as image layers need it, space, inodes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use shoal_model::check::Need;

use super::{Finding, HostCheck, HostConfig};

/// Below this, nothing that matters fits: 256 MiB.
const LEAST_BYTES: u64 = 256 << 20;
/// Below this, a few images fill the disk: 2 GiB.
const FEW_BYTES: u64 = 2 << 30;
/// Below this percentage of inodes, layers of many small files fail first.
const FEW_INODES: u64 = 5;
/// State is in directories of directories at most: containers/ID/file.
const DEPTH_MAX: usize = 2;
/// As many files as a check may look at.
const FILES_MAX: usize = 20_000;

pub(super) fn checks(config: &HostConfig) -> Vec<HostCheck> {
    let (for_overlay, for_space) = (config.data_root.clone(), config.data_root.clone());
    let for_modes = config.data_root.clone();
    vec![
        HostCheck::new("SH-DOC-110", "overlay file system", Need::Containers, move || {
            overlay(&for_overlay)
        }),
        HostCheck::new("SH-DOC-111", "disk space", Need::Nothing, move || space(&for_space)),
        HostCheck::new("SH-DOC-112", "state files", Need::Nothing, move || modes(&for_modes)),
    ]
}

/// The directory itself or its nearest parent that exists.
pub(crate) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn overlay(data_root: &Path) -> Finding {
    let base = existing(data_root);
    match try_overlay(base) {
        Ok(()) => Finding::ok(format!("mounted, written and unmounted below '{}'", base.display())),
        Err((action, error)) => {
            Finding::fail(format!("{action} below '{}': {error}", base.display()), remedy(&error))
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV) => "load the kernel module 'overlay'",
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, and not on NFS or in an unprivileged container"
        }
        Some(libc::ENOSPC | libc::EDQUOT) => "free space below the data root",
        _ => "put '--data-root' on ext4, XFS (ftype=1) or btrfs, not on another overlay",
    }
}

/// A scratch directory that is unmounted and removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(base: &Path) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!(".shoal-check-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Ignored because: the check's verdict is known; what stays has a name that says whose it
        // is, and the first run after this process tries again and says why it cannot.
        let _ = remove_scratch(&self.0);
    }
}

/// Removes a scratch directory and the mount in it.
///
/// # Errors
/// What stays, and why.
pub(crate) fn remove_scratch(path: &Path) -> io::Result<()> {
    // Ignored because: as a rule nothing is mounted here any more, and that is the failure. A
    // mount that stays makes the removal fail.
    let _ = take_away(&path.join("merged"));
    fs::remove_dir_all(path)
}

type Attempt<T> = Result<T, (&'static str, io::Error)>;

fn step<T, E: Into<io::Error>>(action: &'static str, result: Result<T, E>) -> Attempt<T> {
    result.map_err(|error| (action, error.into()))
}

/// Everything that layers and containers do: whiteouts, opaque directories, a mount, a deletion.
fn try_overlay(base: &Path) -> Attempt<()> {
    let scratch = step("make a directory", Scratch::new(base))?;
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"];
    let lower = step("make a directory", scratch.directory(lower))?;
    let upper = step("make a directory", scratch.directory(upper))?;
    let work = step("make a directory", scratch.directory(work))?;
    let merged = step("make a directory", scratch.directory(merged))?;
    step("write a file", fs::write(lower.join("file"), "lower"))?;
    let whiteout = lower.join("whiteout");
    step("make a whiteout", mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0))?;
    let opaque = step("make a directory", scratch.directory("lower/opaque"))?;
    let name = "trusted.overlay.opaque";
    step("set an extended attribute", lsetxattr(&opaque, name, b"y", XattrFlags::empty()))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options = step("name the directories", std::ffi::CString::new(options))?;
    step(
        "mount an overlay",
        mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str())),
    )?;
    step("delete a file of a lower layer", fs::remove_file(merged.join("file")))?;
    let hidden = step("look for the whiteout", fs::symlink_metadata(upper.join("file")))?;
    if !hidden.file_type().is_char_device() {
        return Err(("look for the whiteout", io::Error::other("it is no character device")));
    }
    step("write through the overlay", fs::write(merged.join("file"), "new"))?;
    step("unmount the overlay", take_away(&merged))
}

/// Unmounts what is at `place`. Another thread may be starting a program: until that has begun it
/// holds copies of the files that were open here, and a plain unmount would find the mount busy.
fn take_away(place: &Path) -> rustix::io::Result<()> {
    unmount(place, UnmountFlags::DETACH)
}

fn space(data_root: &Path) -> Finding {
    let base = existing(data_root);
    match statvfs(base) {
        Err(error) => Finding::warn(
            format!("ask the file system of '{}': {error}", base.display()),
            "check that the file system is sound",
        ),
        Ok(about) => judge_space(
            &base.display().to_string(),
            about.f_bavail.saturating_mul(about.f_frsize),
            (about.f_favail, about.f_files),
        ),
    }
}

fn judge_space(path: &str, free: u64, (inodes, all_inodes): (u64, u64)) -> Finding {
    let remedy = "free space: 'docker image prune' deletes images that nothing uses";
    let text = format!("'{path}' has {:.1} GB free", free as f64 / 1e9);
    // File systems without a fixed number of inodes say 0.
    let percent = (all_inodes > 0).then(|| inodes.saturating_mul(100) / all_inodes);
    match percent {
        Some(percent) if percent < FEW_INODES => {
            Finding::warn(format!("{text}, and only {percent}% of its inodes"), remedy)
        }
        _ if free < LEAST_BYTES => Finding::fail(text, remedy),
        _ if free < FEW_BYTES => Finding::warn(text, remedy),
        Some(percent) => Finding::ok(format!("{text}, and {percent}% of its inodes")),
        None => Finding::ok(text),
    }
}

/// Whether somebody beside root reads what the daemon keeps: environments, keys, tokens.
fn modes(data_root: &Path) -> Finding {
    let mut open = Vec::new();
    let mut left = FILES_MAX;
    look_below(data_root, 0, &mut left, &mut open);
    match open.as_slice() {
        [] if !data_root.is_dir() => Finding::ok("there are none yet"),
        [] if left == 0 => Finding::ok(format!(
            "only root reads the first {FILES_MAX} below '{}'",
            data_root.display()
        )),
        [] => Finding::ok(format!("only root reads those below '{}'", data_root.display())),
        [first, rest @ ..] => Finding::warn(
            format!("others can read '{}' and {} more", first.display(), rest.len()),
            format!("run 'chmod 0700 {}'", data_root.display()),
        ),
    }
}

/// Goes where others can go, but not into images and volumes, whose modes are somebody's wish.
fn look_below(dir: &Path, depth: usize, left: &mut usize, open: &mut Vec<PathBuf>) {
    let foreign = |name: &std::ffi::OsStr| name == "images" || name == "volumes";
    let shut = |mode: u32| mode & 0o077 == 0;
    let mode = |path: &Path| fs::symlink_metadata(path).map(|about| (about.mode(), about));
    // Ignored because: what is not there, or goes meanwhile, nobody reads.
    let Ok((own, _)) = mode(dir) else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    if shut(own) {
        return;
    }
    for entry in entries.flatten() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        let path = entry.path();
        match mode(&path) {
            Ok(_) if foreign(&entry.file_name()) => {}
            Ok((_, about)) if about.is_dir() && depth < DEPTH_MAX => {
                look_below(&path, depth + 1, left, open);
            }
            Ok((file, about)) if about.is_file() && !shut(file) => open.push(path),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use shoal_model::check::Verdict;

    use super::*;

    #[test]
    fn space_is_judged() {
        let verdict = |free, inodes| judge_space("/x", free, inodes).verdict;
        assert_eq!(verdict(1 << 40, (90, 100)), Verdict::Ok);
        assert_eq!(verdict(1 << 40, (0, 0)), Verdict::Ok);
        assert_eq!(verdict(1 << 40, (4, 100)), Verdict::Warn);
        assert_eq!(verdict(1 << 30, (90, 100)), Verdict::Warn);
        assert_eq!(verdict(1 << 20, (90, 100)), Verdict::Fail);
    }

    #[test]
    fn state_that_others_read_is_named() {
        let root = std::env::temp_dir().join(format!("shoal-modes-{}", std::process::id()));
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(modes(&root).verdict, Verdict::Ok);
        fs::create_dir_all(root.join("agent")).unwrap();
        fs::create_dir_all(root.join("images")).unwrap();
        fs::write(root.join("images/blob"), "x").unwrap();
        let file = root.join("agent/assignment.json");
        fs::write(&file, "{}").unwrap();
        set(&file, 0o644);
        set(&root, 0o755);
        let open = modes(&root);
        assert_eq!(open.verdict, Verdict::Warn);
        assert!(open.detail.contains("assignment.json' and 0 more"), "{}", open.detail);
        set(&file, 0o600);
        assert_eq!(modes(&root).verdict, Verdict::Ok);
        set(&file, 0o644);
        set(&root, 0o700);
        assert_eq!(modes(&root).verdict, Verdict::Ok, "nobody gets that far");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_nearest_directory_is_found() {
        assert_eq!(existing(Path::new("/no/such/thing")), Path::new("/"));
    }

    /// A program that is being started holds copies of this program's open files for a moment.
    #[test]
    fn a_mount_goes_though_a_file_on_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let held = fs::File::create(dir.path().join("file")).unwrap();
        let gone = take_away(dir.path());
        drop(held);
        assert!(gone.is_ok(), "{gone:?}");
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()));
    }
}
