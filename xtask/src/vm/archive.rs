//! The archive that a kernel unpacks as its first file system: cpio in the format `newc`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What the archive ends with.
const END: &str = "TRAILER!!!";

/// Writes what is in `tree` and wanted, by its path there, to `to`. Everything belongs to root.
///
/// # Errors
/// If something cannot be read or written.
pub fn write(tree: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    let file = File::create(to).with_context(|| format!("make '{}'", to.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), number: 0 };
    archive.folder(tree, Path::new(""), wanted)?;
    archive.entry(END, 0, &[])?;
    archive.out.flush().context("write the archive")
}

struct Archive<W> {
    out: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    fn folder(&mut self, tree: &Path, dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
        let entries = std::fs::read_dir(tree.join(dir));
        let entries = entries.with_context(|| format!("list '{}'", dir.display()))?;
        let names: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        let mut names = names.with_context(|| format!("list '{}'", dir.display()))?;
        names.sort();
        for name in names {
            let path = dir.join(name);
            if wanted(&path) {
                self.file(tree, &path, wanted)
                    .with_context(|| format!("archive '{}'", path.display()))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, tree: &Path, path: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
        let from = tree.join(path);
        let about = from.symlink_metadata().context("look at it")?;
        let name = path.to_string_lossy();
        if about.is_dir() {
            self.entry(&name, about.mode(), &[])?;
            return self.folder(tree, path, wanted);
        }
        let content = if about.is_symlink() {
            std::fs::read_link(&from)
                .context("read the link")?
                .to_string_lossy()
                .into_owned()
                .into()
        } else {
            ensure!(about.is_file(), "neither a file nor a folder nor a link");
            std::fs::read(&from).context("read it")?
        };
        let mode = if about.is_symlink() { about.mode() } else { about.permissions().mode() };
        self.entry(&name, mode, &content)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.number += 1;
        let size = u32::try_from(content.len()).context("a file of more than 4 GB")?;
        let name_size = u32::try_from(name.len() + 1).context("a very long name")?;
        // Number, mode, user, group, links, time, size, four numbers of devices, name's size, sum.
        let fields = [self.number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = "070701".to_owned();
        head.extend(fields.iter().map(|field| format!("{field:08X}")));
        self.padded(&[head.as_bytes(), name.as_bytes(), b"\0"].concat())?;
        self.padded(content)
    }

    /// Everything begins at a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> Result<()> {
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.write_all(bytes).context("write the archive")?;
        self.out.write_all(&[0; 4][..padding]).context("write the archive")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_form_that_kernels_read() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("bin")).unwrap();
        std::fs::write(tree.join("bin/tool"), "12345").unwrap();
        std::fs::write(tree.join("unwanted"), "x").unwrap();
        std::os::unix::fs::symlink("bin/tool", tree.join("link")).unwrap();
        let to = dir.path().join("cpio");
        write(&tree, &to, &|path| path != Path::new("unwanted")).unwrap();

        let bytes = std::fs::read(&to).unwrap();
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).unwrap();
            let content = (at + 110 + name_size).next_multiple_of(4);
            if name == END {
                break;
            }
            let text = std::str::from_utf8(&bytes[content..content + size]).unwrap();
            found.push((name.to_owned(), mode & 0o170_000, text.to_owned()));
            at = (content + size).next_multiple_of(4);
        }
        let entry = |name: &str, kind: usize, text: &str| (name.to_owned(), kind, text.to_owned());
        let wanted = [
            entry("bin", 0o040_000, ""),
            entry("bin/tool", 0o100_000, "12345"),
            entry("link", 0o120_000, "bin/tool"),
        ];
        assert_eq!(found, wanted);
    }
}
