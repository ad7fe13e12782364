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
