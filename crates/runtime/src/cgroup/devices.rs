//! Which device nodes a container may make and open.

use std::fs;

use super::{Cgroup, CgroupError};
use crate::process::bpf;

/// Which devices a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevicePolicy {
    /// Docker's default: make any node, but open only the harmless ones.
    Standard,
    /// Those, and what the tender opens before it locks itself in: TAP devices and KVM.
    Tender,
    /// Any: `--privileged`.
    Everything,
}

/// A rule: major and minor number (`None`: any), and whether it may be opened or just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    /// `c` or `b`.
    pub(crate) block: bool,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    /// Else only `mknod`.
    pub(crate) open: bool,
}

const fn open(major: u32, minor: Option<u32>) -> DeviceRule {
    DeviceRule { block: false, major: Some(major), minor, open: true }
}

const fn make(block: bool) -> DeviceRule {
    DeviceRule { block, major: None, minor: None, open: false }
}

/// null, zero, full, random, urandom, tty, console, ptmx, every pseudo-terminal; tun is not among
/// them.
pub(crate) const STANDARD: [DeviceRule; 11] = [
    make(false),
    make(true),
    open(1, Some(3)),
    open(1, Some(5)),
    open(1, Some(7)),
    open(1, Some(8)),
    open(1, Some(9)),
    open(5, Some(0)),
    open(5, Some(1)),
    open(5, Some(2)),
    open(136, None),
];

/// What a tender opens beyond [`STANDARD`]: `/dev/net/tun` and `/dev/kvm`.
const TENDER: [DeviceRule; 2] = [open(10, Some(200)), open(10, Some(232))];

pub(super) fn apply(cgroup: &Cgroup, policy: DevicePolicy) -> Result<(), CgroupError> {
    let Some(dir) = cgroup.dir("devices") else {
        return match policy {
            DevicePolicy::Everything => Ok(()),
            DevicePolicy::Standard | DevicePolicy::Tender => {
                Err(CgroupError::Missing { controller: "devices", what: "access to devices" })
            }
        };
    };
    if policy == DevicePolicy::Everything {
        return if cgroup.layout.is_v2() { Ok(()) } else { write(&dir.join("devices.allow"), "a") };
    }
    let mut rules = STANDARD.to_vec();
    if policy == DevicePolicy::Tender {
        rules.extend(TENDER);
    }
    if cgroup.layout.is_v2() {
        return restrict(&dir, &rules);
    }
    write(&dir.join("devices.deny"), "a")?;
    for rule in rules {
        write(&dir.join("devices.allow"), &line(rule))?;
    }
    Ok(())
}

/// Applies [`DevicePolicy::Standard`] to the version 2 group at `dir`.
///
/// # Errors
/// The kernel refuses the program.
pub fn restrict_v2(dir: &std::path::Path) -> Result<(), CgroupError> {
    restrict(dir, &STANDARD)
}

fn restrict(dir: &std::path::Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    bpf::restrict_devices(dir, rules)
        .map_err(|source| CgroupError::Devices { path: dir.to_owned(), source })
}

/// The rule in version 1's words.
fn line(rule: DeviceRule) -> String {
    let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
    format!(
        "{} {}:{} {}",
        if rule.block { 'b' } else { 'c' },
        number(rule.major),
        number(rule.minor),
        if rule.open { "rwm" } else { "m" }
    )
}

fn write(path: &std::path::Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Limit {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_in_version_1_words() {
        assert_eq!(line(make(true)), "b *:* m");
        assert_eq!(line(open(136, None)), "c 136:* rwm");
        assert_eq!(line(open(1, Some(3))), "c 1:3 rwm");
    }
}
