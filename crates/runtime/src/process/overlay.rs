//! The options of an overlay mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The kernel copies one page of options; some room is left for its own.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Options of an overlay mount, and the descriptors that must stay open until it is mounted.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) text: Vec<u8>,
    pub(crate) held: Vec<OwnedFd>,
}

/// The options by the layers' own paths where they fit, else by descriptors, whose names are short:
/// an image may have 128 layers with paths of any length.
pub(crate) fn options(lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<Options> {
    let text = join(lower, upper, work);
    if text.len() <= OPTIONS_BYTES_MAX {
        return Ok(Options { text, held: Vec::new() });
    }
    let mut held = Vec::new();
    let mut short = Vec::new();
    for layer in lower {
        let fd = OwnedFd::from(File::open(layer)?);
        short.push(PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        held.push(fd);
    }
    Ok(Options { text: join(&short, upper, work), held })
}

fn join(lower: &[PathBuf], upper: &Path, work: &Path) -> Vec<u8> {
    let mut text = b"lowerdir=".to_vec();
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            text.push(b':');
        }
        escape(layer, &mut text);
    }
    for (key, path) in [(",upperdir=", upper), (",workdir=", work)] {
        text.extend_from_slice(key.as_bytes());
        escape(path, &mut text);
    }
    text
}

/// Colons part layers, commas part options, backslashes quote.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_quoted() {
        let lower = [PathBuf::from("/a:b"), PathBuf::from("/c,d")];
        let options = options(&lower, Path::new("/u"), Path::new("/w")).unwrap();
        let text = String::from_utf8(options.text).unwrap();
        assert_eq!(text, "lowerdir=/a\\:b:/c\\,d,upperdir=/u,workdir=/w");
    }
}
