//! Documents that must keep up with the code.

use super::{none, root, sources};

#[test]
fn architecture_mentions_every_crate() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut wrong = Vec::new();
    for folder in ["crates", "testing"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            if !text.contains(&format!("`{folder}/{name}`")) {
                wrong.push(format!("{folder}/{name}"));
            }
        }
    }
    none(&wrong, "ARCHITECTURE.md does not mention");
}

#[test]
fn nomenclature_defines_every_public_type_of_the_model() {
    let text = std::fs::read_to_string(root().join("docs/nomenclature.md")).unwrap();
    let mut wrong = Vec::new();
    for source in sources("crates/model/src") {
        for line in source.product().lines() {
            let Some(rest) = ["pub struct ", "pub enum ", "pub trait "]
                .iter()
                .find_map(|start| line.strip_prefix(start))
            else {
                continue;
            };
            let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            if !text.contains(&format!("`{name}`")) {
                wrong.push(format!("{name} ({})", source.path));
            }
        }
    }
    none(&wrong, "docs/nomenclature.md does not define");
}

#[test]
fn the_founding_files_are_there() {
    let files = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "SPEC.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        ".ci/run",
        "docs/nomenclature.md",
        "docs/security.md",
        "docs/compatibility.md",
        "docs/benchmarks.md",
    ];
    let missing: Vec<String> = files
        .iter()
        .filter(|file| !root().join(file).exists())
        .map(|file| (*file).to_owned())
        .collect();
    none(&missing, "missing");
}

/// Every line of docs/security.md names tests that exist, or says that nothing holds it.
#[test]
fn what_security_promises_has_its_test() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let mut tests = std::collections::BTreeSet::new();
    for source in ["crates", "testing", "xtask"].into_iter().flat_map(sources) {
        for line in source.text.lines() {
            let Some((_, rest)) = line.split_once("fn ") else { continue };
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            tests.insert(rest.chars().take_while(is_name).collect::<String>());
        }
    }
    let mut wrong = Vec::new();
    let mut lines = 0;
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [what, _, named] = cells.as_slice() else { continue };
        if *what == "What" || what.starts_with("--") {
            continue;
        }
        lines += 1;
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if named.is_empty() != what.starts_with("**not enforced**") {
            wrong.push(format!("'{what}' names no test, or needs none"));
        }
        let missing = named.iter().filter(|name| !tests.contains(**name));
        wrong.extend(missing.map(|name| format!("there is no test '{name}'")));
    }
    assert!(lines > 20, "the tables are not read");
    none(&wrong, "docs/security.md promises what nothing holds");
}
