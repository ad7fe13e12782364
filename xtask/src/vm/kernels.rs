//! Debian's stock kernels, taken from their packages without installing them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::output;
use crate::packages;

/// The series that are tried: those of Debian 12, and of Debian 13 as brought to 12.
const SERIES: &[&str] = &["6.1", "6.12"];
/// What the names of packages with a kernel begin with.
const PACKAGE: &str = "linux-image-";
/// The flavour for virtual machines: the same kernel with fewer drivers.
const FLAVOUR: &str = "-cloud-amd64";

/// A kernel on this machine.
#[derive(Debug)]
pub struct Kernel {
    /// Its version, as `uname -r` says it there.
    pub version: String,
    /// What its package holds.
    pub dir: PathBuf,
}

impl Kernel {
    /// The file that is booted.
    pub fn image(&self) -> PathBuf {
        self.dir.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The folder of its modules.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.version)
    }
}

/// The versions of the newest kernel of each series, the newest last.
///
/// # Errors
/// If the package manager fails or knows none.
pub fn known() -> Result<Vec<String>> {
    let mut known = newest(&search()?);
    if known.len() < SERIES.len() {
        packages::update()?;
        known = newest(&search()?);
    }
    ensure!(!known.is_empty(), "the package manager knows no kernel '{PACKAGE}…{FLAVOUR}'");
    Ok(known)
}

fn search() -> Result<String> {
    output("apt-cache", &["search", "--names-only", &format!("^{PACKAGE}[0-9].*{FLAVOUR}$")])
}

/// Of the packages that were found, the newest kernel of each series.
fn newest(found: &str) -> Vec<String> {
    let versions: Vec<&str> = found
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix(PACKAGE))
        .filter(|version| version.ends_with(FLAVOUR))
        .collect();
    let of = |series: &&str| {
        let begin = format!("{series}.");
        let of_series = versions.iter().filter(|version| version.starts_with(&begin));
        of_series.max_by_key(|version| numbers(version)).map(|version| (*version).to_owned())
    };
    SERIES.iter().filter_map(of).collect()
}

/// The numbers in a version, by which versions are ordered.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Brings the newest known kernel whose version begins with `wanted` to a folder below `dir`.
///
/// # Errors
/// If there is none, or its package cannot be had.
pub fn fetch(wanted: &str, dir: &Path) -> Result<Kernel> {
    let known = known()?;
    let begins = |version: &&String| {
        version.strip_prefix(wanted).is_some_and(|rest| {
            wanted.is_empty() || !rest.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let version = known.iter().rev().find(begins);
    let version = version.with_context(|| format!("no kernel '{wanted}' among {known:?}"))?;
    let kernel = Kernel { version: version.clone(), dir: dir.join(version) };
    if !kernel.image().exists() {
        download(&kernel, dir).with_context(|| format!("get kernel {version}"))?;
    }
    Ok(kernel)
}

fn download(kernel: &Kernel, dir: &Path) -> Result<()> {
    let part = tempfile::tempdir_in(dir).context("make a folder for the package")?;
    let package = format!("{PACKAGE}{}", kernel.version);
    packages::download(&package, part.path())?;
    let unpacked = part.path().join("unpacked");
    let entries = std::fs::read_dir(part.path()).context("look for the package")?;
    let file = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("no package was brought")?;
    output("dpkg-deb", &["-x", &file.to_string_lossy(), &unpacked.to_string_lossy()])?;
    // Ignored because: there is nothing, or what an interrupted run left.
    let _ = std::fs::remove_dir_all(&kernel.dir);
    std::fs::rename(&unpacked, &kernel.dir).context("put the kernel into its place")?;
    ensure!(kernel.image().exists(), "package '{package}' holds no '{}'", kernel.image().display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_series_is_found() {
        let found = "linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)\n\
            linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n\
            linux-image-6.12.99+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)\n\
            linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)\n\
            linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n";
        let wanted = ["6.1.0-57-cloud-amd64", "6.12.117+deb12-cloud-amd64"];
        assert_eq!(newest(found), wanted);
    }
}
