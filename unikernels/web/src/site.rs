//! The files that are served, by path.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::fmt::Write;

use unikernel::fs::{self, File};
use unikernel::http::date;

/// The page that stands for a folder.
const INDEX: &str = "index.html";
/// Deepest folder that is looked into; a file system without links has no deeper one by accident.
const DEPTH_MAX: usize = 64;

/// A file and how it is answered.
#[derive(Debug)]
pub struct Page {
    /// Content and time.
    pub file: File,
    kind: &'static str,
    prepared: OnceCell<Prepared>,
}

/// What is worked out when a file is first asked for: its bytes are not touched before.
#[derive(Debug)]
pub struct Prepared {
    /// Entity tag with its quotes, strong: it is made of the content, so that two files that happen
    /// to have one size and one time (reproducible archives) differ.
    pub etag: String,
    /// `ETag`, `Last-Modified` and `Accept-Ranges` as lines.
    pub lines: Vec<u8>,
    /// `Content-Type` as a line.
    pub type_line: Vec<u8>,
    /// Both.
    pub all_lines: Vec<u8>,
}

/// What a path means.
#[derive(Clone, Copy, Debug)]
enum Target {
    Page(usize),
    /// A folder without its final slash.
    Folder,
}

/// What was found.
#[derive(Debug)]
pub enum Found<'a> {
    /// A file.
    Page(&'a Page),
    /// A folder that has an index page: its path needs a final slash.
    Folder,
    /// Nothing.
    Nothing,
}

/// All files below a root.
#[derive(Debug, Default)]
pub struct Site {
    pages: Vec<Page>,
    targets: BTreeMap<String, Target>,
}

impl Site {
    /// Finds all files below `root`, a path without a slash at its end.
    #[must_use]
    pub fn load(root: &str) -> Self {
        let mut site = Self::default();
        let mut folders = alloc::vec![(String::new(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let path = [root, folder.as_str(), "/"].concat();
            for entry in fs::list(&path).unwrap_or_default() {
                let path = [folder.as_str(), "/", entry.name.as_str()].concat();
                match entry.file {
                    Some(file) => site.add(&path, file),
                    None if depth < DEPTH_MAX => folders.push((path, depth + 1)),
                    None => {}
                }
            }
        }
        site
    }

    /// Adds the file at `path`, which begins with a slash.
    pub fn add(&mut self, path: &str, file: File) {
        let page = self.pages.len();
        self.pages.push(Page { file, kind: kind_of(path), prepared: OnceCell::new() });
        self.targets.insert(path.to_string(), Target::Page(page));
        if let Some(folder) = path.strip_suffix(INDEX).filter(|folder| folder.ends_with('/')) {
            self.targets.insert(folder.to_string(), Target::Page(page));
            if folder.len() > 1 {
                let name = folder.trim_end_matches('/').to_string();
                self.targets.insert(name, Target::Folder);
            }
        }
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// What a normal path means.
    #[must_use]
    pub fn find(&self, path: &str) -> Found<'_> {
        match self.targets.get(path) {
            Some(Target::Page(page)) => Found::Page(&self.pages[*page]),
            Some(Target::Folder) => Found::Folder,
            None => Found::Nothing,
        }
    }
}

impl Page {
    /// Tag and lines, made when they are first needed.
    pub fn prepared(&self) -> &Prepared {
        self.prepared.get_or_init(|| {
            let etag = alloc::format!("\"{:016x}\"", hash(self.file.data));
            let mut text = alloc::format!("ETag: {etag}\r\nAccept-Ranges: bytes\r\n");
            let mut lines = core::mem::take(&mut text).into_bytes();
            if let Some(modified) = self.modified() {
                lines.extend_from_slice(b"Last-Modified: ");
                lines.extend_from_slice(&date::format(modified));
                lines.extend_from_slice(b"\r\n");
            }
            // Ignored because: writing to a string cannot fail.
            let _ = write!(text, "Content-Type: {}\r\n", self.kind);
            let type_line = text.into_bytes();
            let all_lines = [type_line.as_slice(), &lines].concat();
            Prepared { etag, lines, type_line, all_lines }
        })
    }

    /// When the file changed last, in seconds since 1970.
    #[must_use]
    pub fn modified(&self) -> Option<u64> {
        Some(self.file.modified).filter(|modified| *modified != 0)
    }
}

/// A hash that differs for different contents unless someone means it to be the same: whoever can
/// change the files can do worse.
fn hash(data: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = data.len() as u64 ^ FACTOR;
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        // Cannot fail: a chunk has eight bytes.
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        hash = (hash ^ word).wrapping_mul(FACTOR);
        hash ^= hash >> 32;
    }
    for byte in chunks.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(FACTOR);
        hash ^= hash >> 32;
    }
    hash
}

/// The media type by the name's end.
fn kind_of(path: &str) -> &'static str {
    const KINDS: [(&str, &str); 32] = [
        ("html", "text/html; charset=utf-8"),
        ("htm", "text/html; charset=utf-8"),
        ("css", "text/css; charset=utf-8"),
        ("js", "text/javascript; charset=utf-8"),
        ("mjs", "text/javascript; charset=utf-8"),
        ("json", "application/json"),
        ("map", "application/json"),
        ("txt", "text/plain; charset=utf-8"),
        ("md", "text/markdown; charset=utf-8"),
        ("csv", "text/csv; charset=utf-8"),
        ("xml", "application/xml"),
        ("svg", "image/svg+xml"),
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("jpeg", "image/jpeg"),
        ("gif", "image/gif"),
        ("webp", "image/webp"),
        ("avif", "image/avif"),
        ("ico", "image/x-icon"),
        ("woff", "font/woff"),
        ("woff2", "font/woff2"),
        ("ttf", "font/ttf"),
        ("otf", "font/otf"),
        ("wasm", "application/wasm"),
        ("pdf", "application/pdf"),
        ("zip", "application/zip"),
        ("gz", "application/gzip"),
        ("mp3", "audio/mpeg"),
        ("ogg", "audio/ogg"),
        ("mp4", "video/mp4"),
        ("webm", "video/webm"),
        ("webmanifest", "application/manifest+json"),
    ];
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((_, end)) = name.rsplit_once('.') else { return "application/octet-stream" };
    KINDS
        .iter()
        .find(|(known, _)| end.eq_ignore_ascii_case(known))
        .map_or("application/octet-stream", |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_found() {
        let mut site = Site::default();
        let file = |data: &'static [u8]| File { data, modified: 784_111_777 };
        site.add("/index.html", file(b"home"));
        site.add("/docs/index.html", file(b"docs"));
        site.add("/docs/a.TXT", file(b"a"));
        let data = |path: &str| match site.find(path) {
            Found::Page(page) => page.file.data,
            Found::Folder => b"->",
            Found::Nothing => b"-",
        };
        assert_eq!(data("/"), b"home");
        assert_eq!(data("/index.html"), b"home");
        assert_eq!(data("/docs"), b"->");
        assert_eq!(data("/docs/"), b"docs");
        assert_eq!(data("/docs/a.TXT"), b"a");
        assert_eq!(data("/docs/a.TXT/"), b"-");
        assert_eq!(data("/xindex.html"), b"-");
        let Found::Page(page) = site.find("/docs/a.TXT") else { panic!("no page") };
        let lines = core::str::from_utf8(&page.prepared().all_lines).unwrap_or_default();
        assert!(
            lines.starts_with("Content-Type: text/plain; charset=utf-8\r\nETag: \""),
            "{lines}"
        );
        assert!(lines.ends_with("Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), "{lines}");
    }

    #[test]
    fn contents_differ_in_their_tags() {
        let texts: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"a", b"aaaaaaaa", b"aaaaaaab", b"aaaaaaaaa"];
        let hashes: alloc::collections::BTreeSet<u64> = texts.iter().map(|t| hash(t)).collect();
        assert_eq!(hashes.len(), texts.len());
    }
}
