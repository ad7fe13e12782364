//! Exchanging the root directory of a process.
//!
//! Usually by pivot_root(2). Where `/` is the file system that the kernel itself began with (a
//! diskless host that runs from its initramfs) there is nothing to exchange it with: then the new
//! root is moved on top of it and entered, as switch_root(8) does.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A step of it failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct RootError {
    /// Which.
    pub action: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn check(answer: libc::c_long, action: &'static str) -> Result<(), RootError> {
    if answer < 0 { Err(RootError { action, source: io::Error::last_os_error() }) } else { Ok(()) }
}

/// Makes the file system that is mounted on `place` the root of this process, and lets go of all
/// others. To be called in a mount namespace of its own whose mounts are private.
///
/// # Errors
/// A system call is refused. In a chroot(2) environment whose root is no mount that is always so:
/// a root that was merely moved there could be left again.
pub fn exchange(place: &Path) -> Result<(), RootError> {
    let action = "enter the new root file system";
    let folder = CString::new(place.as_os_str().as_bytes())
        .map_err(|error| RootError { action, source: error.into() })?;
    let here = c".".as_ptr();
    // SAFETY: all strings are C strings that outlive the calls.
    unsafe {
        check(libc::chdir(folder.as_ptr()).into(), action)?;
        let answer = libc::syscall(libc::SYS_pivot_root, here, here);
        match check(answer, "exchange the root") {
            Ok(()) => {
                // The old root now lies on top of the new one at the same place.
                check(libc::umount2(here, libc::MNT_DETACH).into(), "leave the old root")?;
            }
            Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
                let table = std::fs::read("/proc/thread-self/mountinfo");
                let table = table.map_err(|source| RootError {
                    action: "read the table of mounts to exchange the root",
                    source,
                })?;
                match mounts_over_first(&table) {
                    Some(points) => cover(&points)?,
                    None => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        check(libc::chdir(c"/".as_ptr()).into(), "enter the new root")
    }
}

/// Moves the mount that is the working directory on top of the root and makes it the root.
fn cover(points: &[CString]) -> Result<(), RootError> {
    let (here, root) = (c".".as_ptr(), c"/".as_ptr());
    let none: *const libc::c_char = core::ptr::null();
    // SAFETY: all strings are C strings that outlive the calls.
    unsafe {
        let moved = libc::mount(here, root, none, libc::MS_MOVE, none.cast());
        check(moved.into(), "move the new root on top of the old one")?;
        // This process's root is still the old one, so that names lead there.
        for point in points {
            // Ignored because: what stays lies below the new root, where no name leads, and a
            // mount below one that went went with it.
            let _ = libc::umount2(point.as_ptr(), libc::MNT_DETACH);
        }
        check(libc::chroot(here).into(), "make the moved file system the root")
    }
}

/// The mount points other than the root, the last one first, if this process's root is the first
/// mount of its namespace (it has no parent); else `None`.
fn mounts_over_first(table: &[u8]) -> Option<Vec<CString>> {
    let mut points = Vec::new();
    let mut first = false;
    for line in table.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(id), Some(parent)) = (words.next(), words.next()) else { continue };
        let Some(point) = words.nth(2) else { continue };
        if point == b"/" {
            first |= id == parent;
        } else if let Ok(point) = CString::new(plain(point).into_vec()) {
            points.push(point);
        }
    }
    points.reverse();
    first.then_some(points)
}

/// A path of the mount table, where blanks and backslashes are octal numbers.
fn plain(word: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let number = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let number = number.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match number.filter(|_| *first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    OsStr::from_bytes(&out).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_root_without_a_parent_is_covered() {
        let diskless = b"1 1 0:2 / / rw - rootfs rootfs rw\n\
            20 1 0:21 / /proc rw - proc proc rw\n\
            30 1 0:22 / /a\\040b rw - tmpfs tmpfs rw\n";
        let points = mounts_over_first(diskless).unwrap();
        assert_eq!(points, [c"/a b".to_owned(), c"/proc".to_owned()]);
        let ordinary = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        assert!(mounts_over_first(ordinary).is_none());
        // In a chroot that is no mount there is no line for the root at all.
        assert!(mounts_over_first(b"20 1 0:21 / /proc rw - proc proc rw\n").is_none());
    }
}
