//! Read-only files: packed into the image, and mounted by the monitor at start.
//!
//! ```text
//! fs::add(unikernel::files! { "/index.html" => "../static/index.html" });
//! let page = fs::read("/index.html");
//! ```
//!
//! Contents are never copied: they lie in the image or in the archive that the monitor mapped. A
//! mount hides files of the image at the same path.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use crate::{boot, tar};

/// A file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: &'static [u8],
    /// When it was changed last, in seconds since 1970-01-01T00:00:00Z; 0 if nobody knows.
    pub modified: u64,
}

/// What lies in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, without the directory's path.
    pub name: String,
    /// `None`: it is a directory.
    pub file: Option<File>,
}

/// Files of the image, as [`files!`](crate::files) makes them: path and content.
pub type Packed = &'static [(&'static str, &'static [u8])];

/// All files by path, without slashes at its ends; a directory is `None`.
struct Tree {
    nodes: BTreeMap<String, Option<File>>,
    has_mounts: bool,
}

local! {
    static TREE: RefCell<Tree> = RefCell::new(Tree { nodes: BTreeMap::new(), has_mounts: false });
}

/// Packs files into the image: `files! { "/path" => "file relative to the source" }`.
#[macro_export]
macro_rules! files {
    ($($path:literal => $file:literal),* $(,)?) => {{
        static FILES: $crate::fs::Packed = &[$(($path, ::core::include_bytes!($file))),*];
        FILES
    }};
}

impl Tree {
    /// Adds a file or directory, and the directories that it lies in.
    fn insert(&mut self, path: &str, node: Option<File>) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(None);
        }
        if node.is_some() || !self.nodes.contains_key(path) {
            self.nodes.insert(path.to_owned(), node);
        }
    }

    /// Adds the archives of the boot information, once.
    fn mount(&mut self) {
        if core::mem::replace(&mut self.has_mounts, true) {
            return;
        }
        self.nodes.insert(String::new(), None);
        for mount in boot::mounts() {
            let Some(root) = tar::clean(boot::text(mount.path)) else { continue };
            self.insert(&root, None);
            for entry in tar::entries(boot::bytes(mount.archive)) {
                let path = if root.is_empty() {
                    entry.path
                } else {
                    [root.as_str(), entry.path.as_str()].join("/")
                };
                let file = File { data: entry.data, modified: entry.modified };
                self.insert(&path, (!entry.is_directory).then_some(file));
            }
        }
    }
}

fn with<R>(path: &str, with: impl FnOnce(&Tree, &str) -> Option<R>) -> Option<R> {
    let path = tar::clean(path)?;
    TREE.with(|tree| {
        let mut tree = tree.borrow_mut();
        tree.mount();
        with(&tree, &path)
    })
}

/// Adds files of the image, where no mount has one.
pub fn add(files: Packed) {
    TREE.with(|tree| {
        let mut tree = tree.borrow_mut();
        tree.mount();
        for (path, data) in files {
            if let Some(path) = tar::clean(path)
                && !tree.nodes.contains_key(&path)
            {
                tree.insert(&path, Some(File { data, modified: 0 }));
            }
        }
    });
}

/// The file at `path`.
#[must_use]
pub fn open(path: &str) -> Option<File> {
    with(path, |tree, path| *tree.nodes.get(path)?)
}

/// The content of the file at `path`.
#[must_use]
pub fn read(path: &str) -> Option<&'static [u8]> {
    open(path).map(|file| file.data)
}

/// Whether `path` is a directory.
#[must_use]
pub fn is_directory(path: &str) -> bool {
    with(path, |tree, path| tree.nodes.get(path).map(Option::is_none)).unwrap_or(false)
}

/// What lies in the directory `path`, by name. `None`: there is no such directory.
#[must_use]
pub fn list(path: &str) -> Option<Vec<Entry>> {
    with(path, |tree, path| {
        if tree.nodes.get(path)?.is_some() {
            return None;
        }
        let start = if path.is_empty() { String::new() } else { [path, "/"].concat() };
        let below = tree.nodes.range(start.clone()..);
        let entries = below
            .take_while(|(path, _)| path.starts_with(&start))
            .filter_map(|(path, file)| Some((path.strip_prefix(&start)?, file)))
            .filter(|(name, _)| !name.is_empty() && !name.contains('/'))
            .map(|(name, file)| Entry { name: name.to_owned(), file: *file });
        Some(entries.collect())
    })
}

#[cfg(not(shoal_image))]
pub(crate) fn clear() {
    TREE.with(|tree| {
        let mut tree = tree.borrow_mut();
        tree.nodes.clear();
        tree.has_mounts = false;
    });
}

/// For fuzzing: any bytes are read as an archive, and nothing of it lies outside of them.
#[cfg(not(shoal_image))]
#[doc(hidden)]
pub fn fuzz_archive(archive: &[u8]) {
    let bounds = archive.as_ptr_range();
    for entry in tar::entries(archive) {
        let data = entry.data.as_ptr_range();
        let inside = entry.data.is_empty() || data.start >= bounds.start && data.end <= bounds.end;
        assert!(inside, "content outside of the archive");
        assert_eq!(tar::clean(&entry.path), Some(entry.path), "a path in another form");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_image_are_found() {
        add(&[("/a/b.txt", b"1"), ("a/c/d", b"2"), ("/top", b"3")]);
        assert_eq!(read("/a/b.txt"), Some(&b"1"[..]));
        assert_eq!(read("a//c/./d"), Some(&b"2"[..]));
        assert_eq!(read("/a"), None);
        assert_eq!(read("/a/../top"), Some(&b"3"[..]));
        assert_eq!(read("/../top"), None);
        assert!(is_directory("/") && is_directory("/a/c") && !is_directory("/top"));
        let names = |path| {
            let entries = list(path).unwrap_or_default();
            entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
        };
        assert_eq!(names("/"), ["a", "top"]);
        assert_eq!(names("/a/"), ["b.txt", "c"]);
        assert_eq!(list("/top"), None);
        assert_eq!(list("/nothing"), None);
    }
}
