//! Docker's default system call filter, by the capabilities of the process.
//!
//! Two programs: the allow list, compiled by seccompiler, with "operation not permitted" for
//! everything else; and a second, hand-made one that answers "no such system call" for `clone3`
//! (without `CAP_SYS_ADMIN`) and for calls newer than the list. Where both refuse, the one that was
//! installed last decides the error.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use crate::caps;
use crate::syscalls::{ALWAYS, BY_CAPABILITY, CLONE3, MACHINE, MACHINE_BY_CAPABILITY, NEWEST};

/// Flags of `clone` that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Values of `personality`: Linux, BSD-like address-compatibility, and the question for the value.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The socket family that reaches the host of a virtual machine past every network filter.
const AF_VSOCK: u64 = 40;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The programs for a process with the capabilities of these numbers, in the order of installation.
pub(crate) fn compile(capabilities: &[u32]) -> Result<Vec<BpfProgram>, String> {
    let has = |name: &str| caps::number(name).is_some_and(|n| capabilities.contains(&n));
    let admin = has("CAP_SYS_ADMIN");
    let rules = rules(&has, admin).map_err(|e| e.to_string())?;
    let arch: TargetArch =
        std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter =
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(|e| e.to_string())?;
    let allowed = BpfProgram::try_from(filter).map_err(|e| e.to_string())?;
    Ok(vec![allowed, missing(admin)])
}

fn rules(has: &dyn Fn(&str) -> bool, admin: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALWAYS.iter().chain(MACHINE).map(|call| (*call, vec![])).collect();
    for (capability, calls) in BY_CAPABILITY.iter().chain(MACHINE_BY_CAPABILITY) {
        if has(capability) {
            rules.extend(calls.iter().map(|call| (*call, vec![])));
        }
    }
    // Without CAP_SYS_ADMIN the second program answers.
    rules.insert(CLONE3, vec![]);
    let clone = if admin {
        vec![]
    } else {
        let none = SeccompCmpOp::MaskedEq(NAMESPACE_FLAGS);
        vec![rule(CLONE_FLAGS, SeccompCmpArgLen::Qword, none, 0)?]
    };
    rules.insert(libc::SYS_clone, clone);
    let not_vsock = rule(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, AF_VSOCK)?;
    rules.insert(libc::SYS_socket, vec![not_vsock]);
    let personality = |value: &u64| rule(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value);
    rules.insert(
        libc::SYS_personality,
        PERSONALITIES.iter().map(personality).collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

/// Which argument of `clone` holds the flags.
const CLONE_FLAGS: u8 = 0;

fn rule(
    argument: u8,
    len: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, len, operator, value)?])
}

/// Answers "no such system call" for what programs have a fallback for.
fn missing(admin: bool) -> BpfProgram {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_ABOVE: u16 = 0x25;
    const RETURN: u16 = 0x06;
    /// Numbers with this bit belong to the x32 ABI, which the first program refuses.
    const X32_BIT: u32 = 0x4000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS.cast_unsigned();
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let clone3 = if admin { u32::MAX } else { u32::try_from(CLONE3).unwrap_or(u32::MAX) };
    vec![
        op(LOAD, 0, 0, 0), // The call's number is the first field.
        op(JUMP_IF_EQUAL, 2, 0, clone3),
        op(JUMP_IF_ABOVE, 2, 0, X32_BIT - 1),
        op(JUMP_IF_ABOVE, 0, 1, NEWEST),
        op(RETURN, 0, 0, ENOSYS),
        op(RETURN, 0, 0, ALLOW),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn allowed(capabilities: &[&str]) -> Rules {
        let has = |name: &str| capabilities.contains(&name);
        rules(&has, has("CAP_SYS_ADMIN")).unwrap()
    }

    #[test]
    fn capabilities_bring_their_calls() {
        let plain = allowed(&caps::DEFAULT);
        assert!(plain.contains_key(&libc::SYS_chroot));
        for call in [libc::SYS_mount, libc::SYS_reboot, libc::SYS_bpf, libc::SYS_keyctl] {
            assert!(!plain.contains_key(&call), "{call}");
        }
        assert_eq!(plain.get(&libc::SYS_clone).unwrap().len(), 1);
        let admin = allowed(&["CAP_SYS_ADMIN"]);
        assert!(admin.contains_key(&libc::SYS_mount) && admin.contains_key(&libc::SYS_bpf));
        assert!(admin.get(&libc::SYS_clone).unwrap().is_empty());
    }

    #[test]
    fn every_set_of_capabilities_compiles() {
        assert_eq!(compile(&[]).unwrap().len(), 2);
        let all: Vec<u32> = (0..41).collect();
        let programs = compile(&all).unwrap();
        assert!(programs.iter().all(|p| p.len() < 4096), "the kernel's bound");
    }
}
