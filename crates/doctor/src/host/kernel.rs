//! The kernel itself: version, privileges, seccomp, TUN, clock.

use std::fs::OpenOptions;
use std::io;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use shoal_model::check::Need;

use super::{Finding, HostCheck, read};

/// The oldest kernel that Shoal is tried on.
const OLDEST: (u32, u32) = (5, 15);
/// No clock that is right shows a time before this program was written: 2025-01-01.
const EARLIEST: u64 = 1_735_689_600;
/// No clock that is right shows a time this far away: 2100-01-01.
const LATEST: u64 = 4_102_444_800;

/// Without it containers run, but none gets higher process limits than the daemon has.
const RESOURCE: (u32, &str) = (24, "CAP_SYS_RESOURCE");
/// Capabilities that the daemon cannot do without, by their number in `/proc/self/status`.
const CAPABILITIES: [(u32, &str); 12] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

pub(super) fn checks() -> Vec<HostCheck> {
    vec![
        HostCheck::new("SH-DOC-101", "kernel", Need::Nothing, version),
        HostCheck::new("SH-DOC-102", "privileges", Need::Containers, privileges),
        HostCheck::new("SH-DOC-103", "seccomp filter", Need::Containers, seccomp),
        HostCheck::new("SH-DOC-104", "TUN device", Need::Nothing, tun),
        HostCheck::new("SH-DOC-105", "clock", Need::Nothing, clock),
    ]
}

fn version() -> Finding {
    let Ok(release) = read("/proc/sys/kernel/osrelease") else {
        return Finding::warn("the version cannot be read", "mount /proc");
    };
    let shown = format!("Linux {release}, {}", std::env::consts::ARCH);
    match parse_version(&release) {
        Some(version) if version < OLDEST => Finding::warn(
            format!("{shown} is older than {}.{}", OLDEST.0, OLDEST.1),
            "use a newer kernel; the other checks say what this one lacks",
        ),
        _ => Finding::ok(shown),
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn privileges() -> Finding {
    let status = read("/proc/self/status").unwrap_or_default();
    let remedy = "run it as root, and inside a container with '--privileged'";
    match missing(&status, &CAPABILITIES) {
        None => Finding::warn("the capabilities cannot be read", "mount /proc"),
        Some(missing) if !missing.is_empty() => {
            Finding::fail(format!("this process lacks {}", missing.join(", ")), remedy)
        }
        Some(_) if missing(&status, &[RESOURCE]) != Some(Vec::new()) => Finding::warn(
            format!("this process lacks {}, so containers cannot get higher limits", RESOURCE.1),
            remedy,
        ),
        Some(_) => Finding::ok("all capabilities that are needed"),
    }
}

fn missing(status: &str, needed: &[(u32, &'static str)]) -> Option<Vec<&'static str>> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let have = u64::from_str_radix(line.trim(), 16).ok()?;
    let lacks = |(number, _): &&(u32, &str)| have >> number & 1 == 0;
    Some(needed.iter().filter(lacks).map(|(_, name)| *name).collect())
}

/// Installs a filter that forbids one harmless call, in a thread that ends with the trial: filters
/// hold for a thread and cannot be taken away.
fn seccomp() -> Finding {
    let remedy = "use a kernel with CONFIG_SECCOMP_FILTER";
    match thread::spawn(try_seccomp).join() {
        Ok(Ok(())) => Finding::ok("a filter was installed and forbade what it should"),
        Ok(Err(error)) => Finding::fail(error, remedy),
        Err(_) => Finding::fail("the trial ended early", remedy),
    }
}

fn try_seccomp() -> Result<(), String> {
    // `getpriority(PRIO_PROCESS = 0, …)` fails for no process that exists, but for the filter.
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)
        .map_err(|error| format!("write a filter: {error}"))?;
    let rule =
        SeccompRule::new(vec![condition]).map_err(|error| format!("write a filter: {error}"))?;
    let architecture = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|error| format!("write a filter: {error}"))?;
    let filter = SeccompFilter::new(
        [(libc::SYS_getpriority, vec![rule])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        architecture,
    )
    .map_err(|error| format!("write a filter: {error}"))?;
    let program: BpfProgram =
        filter.try_into().map_err(|error| format!("write a filter: {error}"))?;
    apply_filter(&program).map_err(|error| format!("install a filter: {error}"))?;
    match rustix::process::getpriority_process(None) {
        Err(rustix::io::Errno::NOSYS) => Ok(()),
        _ => Err("a filter was installed but forbade nothing".into()),
    }
}

fn tun() -> Finding {
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::ok(format!("'{path}' opens")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::warn(
            format!("'{path}' does not exist"),
            "load the module 'tun': unikernels and the tunnel between nodes need it",
        ),
        Err(error) => Finding::warn(
            format!("open '{path}': {error}"),
            "load the module 'tun' and allow the device: unikernels and tunnels need it",
        ),
    }
}

fn clock() -> Finding {
    // This check is about the real clock, so it has to read it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    judge_clock(now, read("/sys/class/rtc/rtc0/since_epoch").ok().and_then(|t| t.parse().ok()))
}

fn judge_clock(now: u64, hardware: Option<u64>) -> Finding {
    let remedy = "set the clock and keep it right with NTP: certificates are valid for a time only";
    let shown = shoal_model::time::Timestamp::from_secs(i64::try_from(now).unwrap_or(0));
    if !(EARLIEST..LATEST).contains(&now) {
        return Finding::fail(format!("it shows {shown}"), remedy);
    }
    // A hardware clock in local time differs by at most a day.
    match hardware {
        Some(hardware) if hardware.abs_diff(now) > 86_400 => {
            let days = hardware.abs_diff(now) / 86_400;
            Finding::warn(format!("it differs from the hardware clock by {days} days"), remedy)
        }
        _ => Finding::ok(format!("{shown}")),
    }
}

#[cfg(test)]
mod tests {
    use shoal_model::check::Verdict;

    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(parse_version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_version("x"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing("CapEff:\t000001ffffffffff\n", &CAPABILITIES), Some(vec![]));
        let docker = missing("CapEff:\t00000000a80425fb\n", &CAPABILITIES);
        assert!(docker.is_some_and(|missing| missing.contains(&"CAP_SYS_ADMIN")));
        assert_eq!(missing("", &CAPABILITIES), None);
    }

    #[test]
    fn clocks_are_judged() {
        assert_eq!(judge_clock(0, None).verdict, Verdict::Fail);
        assert_eq!(judge_clock(1_790_000_000, None).verdict, Verdict::Ok);
        assert_eq!(judge_clock(1_790_000_000, Some(1_700_000_000)).verdict, Verdict::Warn);
    }
}
