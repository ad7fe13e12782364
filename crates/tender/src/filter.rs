//! The system calls that are left once the guest can run. Every other one is not made: it ends the
//! instance with a crash record.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::error::TenderError;

/// What the filter allows calls on.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Files to read frames from and write them to.
    pub net: Vec<i32>,
    /// Files to read and write sectors.
    pub block: Vec<i32>,
    /// Files to write text to.
    pub log: Vec<i32>,
    /// The virtual processor and the requests to it.
    pub vcpu: Option<(i32, Vec<u64>)>,
}

/// What an instance has, as far as its system calls go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// A network device.
    pub net: bool,
    /// A block device.
    pub block: bool,
    /// A virtual processor.
    pub vcpu: bool,
}

/// Names of the calls that an instance with these parts has left.
#[must_use]
pub fn names(parts: Parts) -> Vec<&'static str> {
    let always = ["writev", "ppoll", "clock_gettime", "getrandom", "rt_sigreturn", "exit_group"];
    let mut names = always.to_vec();
    for (has, calls) in [
        (parts.net, &["readv"][..]),
        (parts.block, &["pread64", "pwrite64", "fdatasync"]),
        (parts.vcpu, &["ioctl"]),
    ] {
        names.extend(calls.iter().filter(|_| has));
    }
    names
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TenderError {
    TenderError::Jail { action: "making the system call filter", source: io::Error::other(error) }
}

/// Rules that allow a call if its first argument is one of `files`.
fn on(files: &[i32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    files
        .iter()
        .map(|fd| {
            let fd = u64::try_from(*fd).unwrap_or(u64::MAX);
            let same = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, fd)?;
            SeccompRule::new(vec![same])
        })
        .collect()
}

fn rules(allowed: &Allowed) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    let written: Vec<i32> = allowed.net.iter().chain(&allowed.log).copied().collect();
    for (call, files) in [
        (libc::SYS_readv, &allowed.net),
        (libc::SYS_writev, &written),
        (libc::SYS_pread64, &allowed.block),
        (libc::SYS_pwrite64, &allowed.block),
        (libc::SYS_fdatasync, &allowed.block),
    ] {
        if !files.is_empty() {
            rules.insert(call, on(files)?);
        }
    }
    for call in [
        libc::SYS_ppoll,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_rt_sigreturn,
        libc::SYS_exit_group,
    ] {
        rules.insert(call, Vec::new());
    }
    if let Some((fd, requests)) = &allowed.vcpu {
        let fd = u64::try_from(*fd).unwrap_or(u64::MAX);
        let mut each = Vec::new();
        for request in requests {
            each.push(SeccompRule::new(vec![
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, fd)?,
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *request)?,
            ])?);
        }
        rules.insert(libc::SYS_ioctl, each);
    }
    let arch = TargetArch::x86_64;
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, arch)?.try_into()
}

/// Applies the filter, for good.
pub(crate) fn apply(allowed: &Allowed) -> Result<(), TenderError> {
    let program = rules(allowed).map_err(failed)?;
    seccompiler::apply_filter(&program).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_at_most_ten_calls_left() {
        assert!(names(Parts { net: true, block: true, vcpu: false }).len() <= 10);
        let allowed = Allowed { net: vec![3], block: vec![4], log: vec![1, 2, 5], vcpu: None };
        assert!(!rules(&allowed).unwrap().is_empty());
    }
}
