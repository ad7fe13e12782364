//! Every fault id has a page, every page has a fault id.

use std::collections::BTreeSet;

use super::{none, root, sources};

/// Finds ids of the form `SH-ABC-123` in `text`.
fn ids_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("SH-") {
        let id: String = text[at..].chars().take(10).collect();
        let parts: Vec<&str> = id.split('-').collect();
        let fits = parts.len() == 3
            && parts[1].len() == 3
            && parts[1].chars().all(|c| c.is_ascii_uppercase())
            && parts[2].len() == 3
            && parts[2].chars().all(|c| c.is_ascii_digit());
        if fits {
            found.insert(id);
        }
    }
    found
}

#[test]
fn faults_and_pages_belong_together() {
    let mut in_code = BTreeSet::new();
    for source in sources("crates") {
        if !source.is_test() {
            let code: String = source
                .product()
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect::<Vec<_>>()
                .join("\n");
            in_code.extend(ids_in(&code));
        }
    }
    let mut pages = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root().join("docs/errors")).unwrap() {
        let path = entry.unwrap().path();
        let id = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !id.starts_with("SH-") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for section in ["Meaning", "Evidence", "Remedy"] {
            if !text.contains(&format!("## {section}")) {
                wrong.push(format!("{id}: no section '{section}'"));
            }
        }
        pages.insert(id);
    }
    assert!(in_code.len() > 5, "only {} ids found: the check would prove nothing", in_code.len());
    wrong.extend(in_code.difference(&pages).map(|id| format!("{id}: no page")));
    wrong.extend(pages.difference(&in_code).map(|id| format!("{id}: a page, but no fault")));
    none(&wrong, "faults and pages");
}
