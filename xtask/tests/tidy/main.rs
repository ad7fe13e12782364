//! Tidy: what reviewers would otherwise have to remember, as ordinary tests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod docs;
mod faults;
mod layers;
mod licences;
mod sleeps;
mod sources;
mod tree;

use std::path::{Path, PathBuf};

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A Rust file of the repository.
struct Source {
    /// Relative to the root, with slashes.
    path: String,
    /// Its text.
    text: String,
}

impl Source {
    /// Whether the file holds tests only.
    fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.starts_with("testing/")
            || self.path.starts_with("xtask/")
    }

    /// The text before the first inline test module.
    fn product(&self) -> &str {
        self.text.split("#[cfg(test)]").next().unwrap_or("")
    }
}

/// Every Rust file below `folder`.
fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with("target") && !name.starts_with('.') {
                open.push(path);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no Rust file below '{folder}': the check would prove nothing");
    found
}

/// Fails with one line for each finding.
fn none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}\n  {}", findings.join("\n  "));
}
