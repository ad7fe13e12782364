//! Import directions and purity: the table of ARCHITECTURE.md, held.

use super::{none, root, sources};

/// Which crates a crate may import: exactly the rows of ARCHITECTURE.md.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("durable", &[]),
    ("life", &["model"]),
    ("netlink", &["model"]),
    ("usernet", &["unikernel-abi"]),
    ("tender", &["unikernel-abi", "usernet"]),
    ("unikernel-abi", &[]),
    ("unikernel-tools", &["image", "tender", "unikernel-abi", "usernet", "model"]),
    ("unikernel", &["unikernel-abi", "usernet"]),
    ("plan", &["model"]),
    ("identity", &["durable", "model"]),
    ("store", &["life", "durable", "model"]),
    ("wire", &["model", "identity"]),
    ("image", &["durable", "model"]),
    ("runtime", &["tender", "unikernel-abi", "durable", "model"]),
    ("network", &["netlink", "durable", "model"]),
    ("engine", &["image", "runtime", "life", "durable", "model"]),
    ("manager", &["plan", "store", "identity", "wire", "model"]),
    (
        "agent",
        &["wire", "engine", "network", "image", "runtime", "identity", "life", "durable", "model"],
    ),
    (
        "node",
        &[
            "manager", "agent", "identity", "plan", "store", "wire", "engine", "network", "image",
            "life", "durable", "model",
        ],
    ),
    (
        "doctor",
        &[
            "node", "agent", "manager", "engine", "network", "runtime", "image", "wire", "store",
            "identity", "plan", "tender", "netlink", "model",
        ],
    ),
    ("api", &["node", "manager", "engine", "image", "model"]),
];

/// Crates without I/O, clock, environment and randomness.
const PURE: &[&str] = &["crates/model/src", "crates/plan/src", "crates/life/src"];

/// Pure files inside other crates.
const PURE_FILES: &[&str] = &[
    "crates/network/src/balancer.rs",
    "crates/network/src/claims.rs",
    "crates/network/src/desired.rs",
    "crates/network/src/layout/doors.rs",
];

/// What pure code must not mention, and why.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "no runtime: take what you need as an argument"),
    ("Instant::now", "time is an argument"),
    ("SystemTime::now", "time is an argument"),
    ("OffsetDateTime::now", "time is an argument"),
    ("std::env::", "configuration is an argument"),
    ("std::fs::", "no I/O"),
    ("std::process", "no I/O"),
    ("rand::", "randomness is an argument"),
    ("TcpStream", "no I/O"),
];

#[test]
fn crates_import_only_what_their_row_allows() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().file_name().to_string_lossy().into_owned();
        let manifest = root().join("crates").join(&folder).join("Cargo.toml");
        let Ok(text) = std::fs::read_to_string(manifest) else { continue };
        seen += 1;
        if folder == "shoal" {
            continue;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == folder) else {
            wrong.push(format!("crate '{folder}' has no row in the table"));
            continue;
        };
        let shipped = text.split("[dev-dependencies]").next().unwrap_or("");
        for line in shipped.lines().filter_map(|l| l.strip_prefix("shoal-")) {
            let import: String =
                line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            if !allowed.contains(&import.as_str()) {
                wrong.push(format!("'{folder}' imports '{import}'"));
            }
        }
    }
    assert!(seen > 10, "only {seen} crates found: the check would prove nothing");
    none(&wrong, "a crate imports one that its row does not allow (see ARCHITECTURE.md)");
}

#[test]
fn nobody_imports_the_program() {
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let manifest = entry.unwrap().path().join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).unwrap_or_default();
        if text.lines().any(|l| l.starts_with("shoal.") || l.starts_with("shoal =")) {
            wrong.push(manifest.display().to_string());
        }
    }
    none(&wrong, "the program is the composition root; nobody imports it");
}

#[test]
fn pure_code_stays_pure() {
    let mut wrong = Vec::new();
    let folders = PURE.iter().flat_map(|folder| sources(folder));
    let files = PURE_FILES.iter().filter_map(|file| {
        let text = std::fs::read_to_string(root().join(file)).ok()?;
        Some(super::Source { path: (*file).to_owned(), text })
    });
    for source in folders.chain(files) {
        for (number, line) in source.product().lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for (word, instead) in IMPURE.iter().filter(|(word, _)| line.contains(word)) {
                wrong.push(format!("{}:{}: {word} ({instead})", source.path, number + 1));
            }
        }
    }
    none(&wrong, "pure code reaches outside");
}
