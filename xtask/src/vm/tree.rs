//! What is on the machine: busybox, the docker CLI, the program, the test's own, modules, images.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernels::Kernel;
use super::output;

/// The first process.
const INIT: &str = include_str!("../../../testing/vm/init");
/// Folders that are there from the start.
const FOLDERS: &[&str] = &[
    "bin",
    "sbin",
    "usr/bin",
    "proc",
    "sys",
    "dev",
    "tmp",
    "etc",
    "run",
    "var/lib",
    "var/log",
    "root",
    "lib/modules",
    "images",
];
/// Files that programs expect.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/resolv.conf", ""),
];
/// Below the modules' folder: what the machine can have a use for.
const MODULES: &[&str] = &[
    "arch",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char",
    "drivers/net",
    "drivers/virtio",
    "fs/fuse",
    "fs/overlayfs",
    "lib",
    "mm",
    "net",
];
/// Of those: what the kernel needs before it has its disk.
const FOR_THE_DISK: &[&str] = &["arch", "crypto", "drivers/block", "drivers/virtio", "lib"];

/// Makes the tree in the new folder `tree`.
///
/// # Errors
/// If a part is missing or cannot be put there.
pub fn build(tree: &Path, kernel: &Kernel) -> Result<()> {
    for folder in FOLDERS {
        std::fs::create_dir_all(tree.join(folder)).with_context(|| format!("make '{folder}'"))?;
    }
    for (name, text) in FILES {
        std::fs::write(tree.join(name), text).with_context(|| format!("write '{name}'"))?;
    }
    let init = tree.join("init");
    std::fs::write(&init, INIT).context("write the first process")?;
    let executable = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&init, executable).context("make the first process executable")?;
    busybox(tree)?;
    let me = std::env::current_exe().context("find this program")?;
    let docker = crate::packages::DOCKER.iter().map(Path::new).find(|path| path.exists());
    program(docker.context("there is no docker CLI")?, &tree.join("usr/bin/docker"))?;
    // The programs that were built are beside this one. They are linked statically.
    for name in ["shoal", "vm-guest"] {
        program(&me.with_file_name(name), &tree.join("bin").join(name))?;
    }
    modules(tree, kernel)?;
    images(tree, &me.with_file_name("lab-guest.unikernel"))
}

/// Without its symbols a program is a fraction of the size.
fn program(from: &Path, to: &Path) -> Result<()> {
    output("strip", &["-o", &to.to_string_lossy(), &from.to_string_lossy()])?;
    Ok(())
}

fn busybox(tree: &Path) -> Result<()> {
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy busybox")?;
    for command in output("/bin/busybox", &["--list"])?.lines() {
        let link = tree.join("bin").join(command);
        if !link.exists() {
            symlink("busybox", link).with_context(|| format!("link '{command}'"))?;
        }
    }
    // By this name the kernel loads modules when something needs them.
    symlink("../bin/busybox", tree.join("sbin/modprobe")).context("link 'modprobe'")
}

/// The modules, those that this machine can have a use for. They are unpacked here: an emulated
/// processor takes seconds for what this one does at once.
fn modules(tree: &Path, kernel: &Kernel) -> Result<()> {
    let (from, to) = (kernel.modules(), tree.join("lib/modules").join(&kernel.version));
    std::fs::create_dir_all(to.join("kernel")).context("make the modules' folder")?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        std::fs::copy(from.join(list), to.join(list)).with_context(|| format!("copy '{list}'"))?;
    }
    for folder in MODULES {
        let (from, to) = (from.join("kernel").join(folder), to.join("kernel").join(folder));
        if !from.exists() {
            continue;
        }
        std::fs::create_dir_all(&to).with_context(|| format!("make '{}'", to.display()))?;
        let all = from.join(".").to_string_lossy().into_owned();
        output("cp", &["-r", &all, &to.to_string_lossy()])?;
    }
    let to = to.to_string_lossy();
    output("find", &[&to, "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"])?;
    output("depmod", &["-b", &tree.to_string_lossy(), &kernel.version])?;
    Ok(())
}

/// Two root file systems as archives for `docker import`: busybox's and a unikernel's.
fn images(tree: &Path, unikernel: &Path) -> Result<()> {
    let part = tempfile::tempdir().context("make a folder for an image")?;
    let pack = |root: &Path, name: &str| {
        let to = tree.join("images").join(name);
        output("tar", &["-C", &root.to_string_lossy(), "-cf", &to.to_string_lossy(), "."])
    };
    let root = part.path().join("busybox");
    shoal_lab::busybox_rootfs(&root);
    std::fs::write(root.join("www/index.html"), "a page\n").context("write a page")?;
    std::fs::create_dir_all(root.join("data")).context("make a folder for a volume")?;
    for command in ["mknod", "true"] {
        let link = root.join("bin").join(command);
        if !link.exists() {
            symlink("busybox", link).with_context(|| format!("link '{command}'"))?;
        }
    }
    pack(&root, "busybox.tar")?;
    let root = part.path().join("unikernel");
    std::fs::create_dir_all(&root).context("make a folder for a unikernel")?;
    std::fs::copy(unikernel, root.join("unikernel")).context("copy the unikernel")?;
    pack(&root, "guest.tar")?;
    Ok(())
}

/// Whether something of the tree is needed to mount the disk, which has it all.
pub fn needed_to_mount_the_disk(path: &Path) -> bool {
    let mut parts = path.components();
    let first: PathBuf = parts.by_ref().take(1).collect();
    match first.to_str() {
        Some("init" | "proc" | "sys" | "dev" | "root" | "sbin") => true,
        Some("bin") => !path.ends_with("shoal") && !path.ends_with("vm-guest"),
        Some("lib") => {
            // lib/modules/VERSION/kernel/…
            let below: PathBuf = parts.skip(3).collect();
            let is_folder_of =
                |wanted: &&str| below.starts_with(wanted) || Path::new(wanted).starts_with(&below);
            FOR_THE_DISK.iter().any(is_folder_of)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_a_disk_brings_only_what_mounts_it() {
        let needed = |path: &str| needed_to_mount_the_disk(Path::new(path));
        for path in [
            "init",
            "bin",
            "bin/mount",
            "lib",
            "lib/modules/6.1.0/modules.dep",
            "lib/modules/6.1.0/kernel/drivers",
            "lib/modules/6.1.0/kernel/drivers/block/x.ko",
        ] {
            assert!(needed(path), "{path}");
        }
        for path in ["bin/shoal", "usr/bin/docker", "lib/modules/6.1.0/kernel/net/x.ko", "images"] {
            assert!(!needed(path), "{path}");
        }
    }
}
