//! New projects.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::ToolError;

/// Names the checkout of Shoal whose library new projects use.
pub const SOURCE_VARIABLE: &str = "SHOAL_SOURCE";
/// Where the library is within a checkout.
const LIBRARY: &str = "crates/unikernel";

/// Where cargo notes the versions of dependencies.
const VERSIONS: &str = "Cargo.lock";

const MANIFEST: &str = include_str!("template/manifest.toml");
const MAIN: &str = include_str!("template/main.rs");
const README: &str = include_str!("template/README.md");
const IGNORED: &str = "/target\n";

/// Makes a project in the folder `path`; its name is the folder's.
///
/// # Errors
/// [`ToolError::ProjectName`], [`ToolError::ProjectExists`], [`ToolError::File`].
pub fn create(path: &Path, checkout: &Path) -> Result<(), ToolError> {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if !is_package_name(&name) {
        return Err(ToolError::ProjectName { name: name.into_owned() });
    }
    if path.exists() {
        return Err(ToolError::ProjectExists { path: path.to_owned() });
    }
    let library = checkout.join(LIBRARY);
    let fill = |text: &str| {
        text.replace("{name}", &name).replace("{library}", &library.display().to_string())
    };
    let sources = path.join("src");
    fs::create_dir_all(&sources).map_err(ToolError::file("make", &sources))?;
    for (file, text) in [
        ("Cargo.toml", MANIFEST),
        ("src/main.rs", MAIN),
        ("README.md", README),
        (".gitignore", IGNORED),
    ] {
        let file = path.join(file);
        fs::write(&file, fill(text)).map_err(ToolError::file("write", &file))?;
    }
    // The library's dependencies in the versions that it is tested with; cargo drops the rest.
    let versions = checkout.join(VERSIONS);
    if versions.is_file() {
        let own = path.join(VERSIONS);
        fs::copy(&versions, &own).map_err(ToolError::file("write", &own))?;
    }
    Ok(())
}

fn is_package_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// Finds a checkout of Shoal: the one given, or one that `from` lies in.
///
/// # Errors
/// [`ToolError::NoCheckout`].
pub fn find_checkout(given: Option<&Path>, from: &Path) -> Result<PathBuf, ToolError> {
    let is_checkout = |path: &&Path| path.join(LIBRARY).join("Cargo.toml").is_file();
    let found = match given {
        Some(given) => Some(given).filter(is_checkout),
        None => from.ancestors().find(is_checkout),
    };
    let found = found.and_then(|path| fs::canonicalize(path).ok());
    found.ok_or_else(|| ToolError::NoCheckout { from: given.unwrap_or(from).to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_project_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let checkout = dir.path().join("checkout");
        fs::create_dir_all(checkout.join(LIBRARY)).unwrap();
        fs::write(checkout.join(LIBRARY).join("Cargo.toml"), "").unwrap();
        let found = find_checkout(None, &checkout.join(LIBRARY)).unwrap();
        assert_eq!(found, fs::canonicalize(&checkout).unwrap());
        assert!(find_checkout(Some(dir.path()), &checkout).is_err());
        let project = dir.path().join("my-app");
        create(&project, &found).unwrap();
        let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"my-app\""), "{manifest}");
        assert!(manifest.contains(&found.join(LIBRARY).display().to_string()), "{manifest}");
        assert!(!manifest.contains('{') || !manifest.contains("{name}"));
        assert!(matches!(create(&project, &found), Err(ToolError::ProjectExists { .. })));
        let bad = dir.path().join("1 bad");
        assert!(matches!(create(&bad, &found), Err(ToolError::ProjectName { .. })));
    }
}
