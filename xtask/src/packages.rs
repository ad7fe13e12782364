//! The Debian packages that the tests use. The program itself needs none of them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file that tells whether a package is there, the package, and what the tests do with it.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("/usr/sbin/ip", "iproute2", "lays out the lab's networks"),
    ("/usr/sbin/nft", "nftables", "oracle for the rulesets that the program writes"),
    ("/usr/sbin/conntrack", "conntrack", "evidence kept when a lab test fails"),
    ("/usr/bin/dig", "dnsutils", "asks the resolver what users would ask"),
    ("/usr/bin/curl", "curl", "the client of the scenario"),
    ("/usr/bin/openssl", "openssl", "makes the root certificates of an operator"),
    ("/usr/bin/lsof", "lsof", "who listens on a published port"),
    ("/bin/busybox", "busybox-static", "root file system of the test images"),
    ("/usr/sbin/nginx", "nginx-light", "the server of the scenario"),
    ("/usr/bin/docker-registry", "docker-registry", "a real registry on loopback"),
    ("/usr/sbin/dockerd", "docker.io", "Docker itself, to compare containers with"),
    ("/usr/sbin/nsd", "nsd", "the name server that ours must answer like"),
    ("/usr/bin/python3", "python3", "small test servers"),
];

/// The same for benchmarks.
const FOR_BENCHMARKS: &[(&str, &str, &str)] = &[
    ("/usr/sbin/ip", "iproute2", "lays out the ground"),
    ("/usr/bin/curl", "curl", "asks every instance"),
    ("/usr/bin/dig", "dnsutils", "asks whether a name server is up"),
    ("/usr/bin/wrk", "wrk", "HTTP load"),
    ("/usr/bin/dnsperf", "dnsperf", "DNS load"),
    ("/usr/sbin/nginx", "nginx-light", "the web server to compare with"),
    ("/usr/sbin/nsd", "nsd", "the name server to compare with"),
];

/// The same for machines with a kernel of their own.
const FOR_MACHINES: &[(&str, &str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86", "emulates the machine"),
    ("/usr/sbin/depmod", "kmod", "tells the machine which module needs which"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs", "makes its disk"),
    ("/usr/bin/strip", "binutils", "makes its programs small"),
    ("/usr/bin/xz", "xz-utils", "unpacks its modules"),
    ("/bin/busybox", "busybox-static", "is the rest of its system"),
];

/// Where the docker CLI may be.
pub const DOCKER: [&str; 2] = ["/usr/local/bin/docker", "/usr/bin/docker"];

/// Installs what the tests need and is missing, by name.
///
/// # Errors
/// If the package manager fails, a package does not bring its file, or there is no docker client.
pub fn install() -> Result<()> {
    install_all(PACKAGES)?;
    ensure!(
        DOCKER.iter().any(|file| Path::new(file).exists()),
        "the docker client is missing: the lab is driven by it"
    );
    Ok(())
}

/// Installs what the benchmarks need and is missing, by name.
///
/// # Errors
/// If the package manager fails, or a package does not bring its file.
pub fn install_for_benchmarks() -> Result<()> {
    install_all(FOR_BENCHMARKS)
}

/// Installs what machines with a kernel of their own need and is missing, by name.
///
/// # Errors
/// If the package manager fails, or a package does not bring its file.
pub fn install_for_machines() -> Result<()> {
    install_all(FOR_MACHINES)
}

/// Brings the package manager's lists up to date.
///
/// # Errors
/// If it fails.
pub fn update() -> Result<()> {
    apt(&["update", "-q"], Path::new("/"))
}

/// Brings a package into a folder without installing it.
///
/// # Errors
/// If there is no such package, also after an update of the lists.
pub fn download(package: &str, to: &Path) -> Result<()> {
    let download = ["download", "-q", package];
    if apt(&download, to).is_ok() {
        return Ok(());
    }
    update()?;
    apt(&download, to)
}

fn install_all(packages: &[(&str, &str, &str)]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(file, _, _)| !Path::new(file).exists())
        .map(|(_, package, _)| *package)
        .collect();
    if !missing.is_empty() {
        println!("installing {}", missing.join(" "));
        update()?;
        // Services must not start by themselves: the tests start what they need.
        let mut args = vec!["install", "-y", "-q", "--no-install-recommends"];
        args.extend(&missing);
        apt(&args, Path::new("/"))?;
    }
    for (file, package, purpose) in packages {
        ensure!(Path::new(file).exists(), "'{package}' brought no '{file}' ({purpose})");
    }
    Ok(())
}

fn apt(args: &[&str], dir: &Path) -> Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .current_dir(dir)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Read by invoke-rc.d: installing a package must not start its service.
        .env("RUNLEVEL", "1")
        .status()
        .context("start apt-get")?;
    ensure!(status.success(), "apt-get {} ended with {status}", args.join(" "));
    Ok(())
}
