//! What is in the repository: sources, and nothing that a build or a test made.

use std::process::Command;

use super::{none, root};

/// More is a product of something, or a recording that should be made smaller.
const FILE_BYTES_MAX: u64 = 200 * 1024;
/// Folders whose files may have any bytes: inputs of parsers.
const BINARY_ALLOWED: &[&str] = &["fuzz/seeds/"];

#[test]
fn the_tree_has_no_products() {
    if !root().join(".git").exists() {
        return; // Sources without their history have no list of files.
    }
    let mut list = Command::new("git");
    list.args(["-c", "safe.directory=*", "ls-files", "-z"]).current_dir(root());
    let output = list.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).unwrap();
    let files: Vec<&str> = list.split_terminator('\0').collect();
    assert!(files.len() > 500, "only {} files found: the check would prove nothing", files.len());
    let mut wrong = Vec::new();
    for file in files {
        // A file that was deleted stays in the list until that is committed.
        let Ok(bytes) = std::fs::read(root().join(file)) else { continue };
        if bytes.len() as u64 > FILE_BYTES_MAX {
            wrong.push(format!("{file}: {} bytes, more than {FILE_BYTES_MAX}", bytes.len()));
        }
        if bytes.contains(&0) && !BINARY_ALLOWED.iter().any(|folder| file.starts_with(folder)) {
            wrong.push(format!("{file}: a binary file"));
        }
    }
    none(&wrong, "files that do not belong into the repository");
}
