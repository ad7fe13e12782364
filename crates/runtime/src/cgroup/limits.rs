//! Writes limits in the words of either cgroup version.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Cgroup, CgroupError};
use crate::container_plan::Limits;

/// Docker's period when a quota is given without one, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

pub(super) fn apply(cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
    memory(cgroup, limits)?;
    cpu(cgroup, limits)?;
    if let Some(pids) = limits.pids {
        set(&find(cgroup, "pids", "the number of processes")?.join("pids.max"), pids)?;
    }
    for (file, value) in
        [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)]
    {
        if let Some(value) = value {
            set(&find(cgroup, "cpuset", "the set of CPUs")?.join(file), value)?;
        }
    }
    Ok(())
}

fn memory(cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
    if limits.memory_bytes.is_none()
        && limits.memory_swap_bytes.is_none()
        && limits.memory_reservation_bytes.is_none()
    {
        return Ok(());
    }
    let dir = find(cgroup, "memory", "memory")?;
    let v2 = cgroup.layout.is_v2();
    if let Some(memory) = limits.memory_bytes {
        if v2 { memory_v2(&dir, memory, limits)? } else { memory_v1(&dir, memory, limits)? }
    }
    if let Some(reservation) = limits.memory_reservation_bytes {
        let file = if v2 { "memory.low" } else { "memory.soft_limit_in_bytes" };
        set(&dir.join(file), reservation)?;
    }
    Ok(())
}

/// Memory and swap together, `None` for no limit.
fn total(memory: u64, limits: &Limits) -> Option<u64> {
    match limits.memory_swap_bytes {
        None | Some(0) => Some(memory.saturating_mul(2)),
        Some(total) => u64::try_from(total).ok(),
    }
}

fn memory_v2(dir: &Path, memory: u64, limits: &Limits) -> Result<(), CgroupError> {
    set(&dir.join("memory.max"), memory)?;
    let swap = total(memory, limits).map(|total| total.saturating_sub(memory));
    let swap = swap.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
    optional(limits.memory_swap_bytes.is_some(), &dir.join("memory.swap.max"), swap)
}

/// The kernel insists at every moment that memory is not more than memory and swap together, so the
/// order depends on whether the limits grow.
fn memory_v1(dir: &Path, memory: u64, limits: &Limits) -> Result<(), CgroupError> {
    let (plain, both) =
        (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
    let value = total(memory, limits).map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
    let asked = limits.memory_swap_bytes.is_some();
    match set(&plain, memory) {
        Ok(()) => optional(asked, &both, value),
        Err(_) if both.exists() => {
            set(&both, value)?;
            set(&plain, memory)
        }
        Err(error) => Err(error),
    }
}

/// Swap accounting can be switched off in the kernel; then only an explicit wish fails.
fn optional(asked: bool, file: &Path, value: String) -> Result<(), CgroupError> {
    if asked || file.exists() { set(file, value) } else { Ok(()) }
}

fn cpu(cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
    let v2 = cgroup.layout.is_v2();
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares != 0) {
        let dir = find(cgroup, "cpu", "CPU time")?;
        if v2 {
            set(&dir.join("cpu.weight"), weight(shares))?;
        } else {
            set(&dir.join("cpu.shares"), shares)?;
        }
    }
    if let Some(quota) = limits.cpu_quota_us.filter(|quota| *quota != 0) {
        let dir = find(cgroup, "cpu", "CPU time")?;
        let period = limits.cpu_period_us.filter(|p| *p != 0).unwrap_or(DEFAULT_PERIOD_US);
        if v2 {
            let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
            set(&dir.join("cpu.max"), format!("{quota} {period}"))?;
        } else {
            set(&dir.join("cpu.cfs_period_us"), period)?;
            set(&dir.join("cpu.cfs_quota_us"), quota)?;
        }
    }
    Ok(())
}

/// Version 1's shares (2 to 262144) on version 2's scale (1 to 10000).
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

fn find(
    cgroup: &Cgroup,
    controller: &'static str,
    what: &'static str,
) -> Result<PathBuf, CgroupError> {
    cgroup.dir(controller).ok_or(CgroupError::Missing { controller, what })
}

fn set(path: &Path, value: impl ToString) -> Result<(), CgroupError> {
    let value = value.to_string();
    fs::write(path, &value).map_err(|source| CgroupError::Limit {
        path: path.to_owned(),
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }

    #[test]
    fn swap_defaults_to_as_much_again() {
        let mut limits = Limits::default();
        assert_eq!(total(10, &limits), Some(20));
        limits.memory_swap_bytes = Some(-1);
        assert_eq!(total(10, &limits), None);
        limits.memory_swap_bytes = Some(10);
        assert_eq!(total(10, &limits), Some(10));
    }
}
