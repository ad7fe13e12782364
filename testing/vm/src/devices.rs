//! Device rules, which cgroup version 2 has as a program in the kernel. Options that ask for
//! further devices are not there yet and are refused by name.

use anyhow::{Result, ensure};

use crate::node::{docker, equal, kernel_says, shell};
use crate::report::Claim;

/// What is claimed of devices. The disk of the test is the one that the machine swaps to.
pub const CLAIMS: &[Claim] = &[
    ("the usual devices can be used", usual),
    ("a device that nobody gave cannot be opened", refused),
    ("nor by a command of exec", refused_in_exec),
    ("a privileged container opens any device", privileged),
];

fn usual() -> Result<()> {
    let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 4 /dev/urandom \
        | wc -c && [ -c /dev/tty ] && [ -c /dev/full ] && echo all";
    equal(&shell(&[], script)?.replace('\n', " "), "4 4 all")
}

/// Major and minor number of the disk.
fn numbers() -> Result<(String, String)> {
    let said = kernel_says("/sys/block/vdb/dev")?;
    let (major, minor) = said.split_once(':').unwrap_or_default();
    Ok((major.to_owned(), minor.to_owned()))
}

/// Makes a node for the disk in a container, and reads from it.
fn read_disk() -> Result<String> {
    let (major, minor) = numbers()?;
    Ok(format!("mknod /tmp/d b {major} {minor} && head -c 16 /tmp/d | wc -c"))
}

fn refused() -> Result<()> {
    let said = shell(&[], &format!("{{ {}; }} 2>&1", read_disk()?))?;
    ensure!(said.contains("Operation not permitted"), "{said}");
    Ok(())
}

fn refused_in_exec() -> Result<()> {
    docker(&["run", "-d", "--name", "shut", "busybox:vm", "sleep", "100000"])?;
    let said = docker(&["exec", "shut", "sh", "-c", &format!("{{ {}; }} 2>&1", read_disk()?)])?;
    docker(&["rm", "-f", "shut"])?;
    ensure!(said.contains("Operation not permitted"), "{said}");
    Ok(())
}

fn privileged() -> Result<()> {
    equal(&shell(&["--privileged"], &read_disk()?)?, "16")
}
