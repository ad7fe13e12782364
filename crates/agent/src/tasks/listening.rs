//! Whether a container's process takes connections yet, read from its network namespace's socket
//! tables (proc_pid_net(5)).
//!
//! A process runs some milliseconds before it listens. A connection that was balanced to it in
//! between would be refused, so a task counts as running, and gets connections, only once it
//! listens where its service publishes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use shoal_model::net::Protocol;
use shoal_model::object::Task;
use tokio::time::Instant;

/// How long a task that publishes ports may take until it listens on them; then it counts as
/// running all the same, because nobody can tell whether it ever will.
const PUBLISHED_MAX: Duration = Duration::from_secs(5);
/// How long a task on a network may take until it listens anywhere. Many never do (clients, jobs
/// of all kinds), and those wait it out.
const ANYWHERE_MAX: Duration = Duration::from_millis(500);
/// First pause between two looks at the tables. It grows with each, so that many tasks that never
/// listen cost little.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Column of a socket's state, and the state of one that listens (`TCP_LISTEN`).
const STATE_COLUMN: usize = 3;
const STATE_LISTEN: &str = "0A";

/// Returns true once the task's process takes connections, or when it is time to assume so; false
/// if the process has ended.
pub(super) async fn until_listening(task: &Task, pid: u32) -> bool {
    let unpublished = task.networks.is_empty() && task.endpoint_ports.is_empty();
    if unpublished || is_in_our_namespace(pid) {
        return true;
    }
    let mut published: BTreeSet<u16> = BTreeSet::new();
    for port in &task.endpoint_ports {
        if port.protocol() == Protocol::Tcp {
            published.insert(port.target_port);
        }
    }
    let limit = if published.is_empty() { ANYWHERE_MAX } else { PUBLISHED_MAX };
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE_FIRST;
    while let Some(open) = listening_ports(pid) {
        let ready =
            if published.is_empty() { !open.is_empty() } else { published.is_subset(&open) };
        if ready || Instant::now() >= deadline {
            return true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
    false
}

/// Whether the process has no network namespace of its own. A unikernel's monitor has not: its
/// guest's sockets are in no table of the kernel, and those of the host say nothing of it.
fn is_in_our_namespace(pid: u32) -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    namespace("self").is_some_and(|own| namespace(&pid.to_string()) == Some(own))
}

/// TCP ports that listen in the process's namespace on any but loopback addresses; `None` if the
/// process is gone.
fn listening_ports(pid: u32) -> Option<BTreeSet<u16>> {
    let table = |name: &str| PathBuf::from(format!("/proc/{pid}/net/{name}"));
    let v4 = std::fs::read_to_string(table("tcp")).ok()?;
    // Absent where the kernel has no IPv6.
    let v6 = std::fs::read_to_string(table("tcp6")).unwrap_or_default();
    Some(ports_in(&v4).chain(ports_in(&v6)).collect())
}

/// The listening ports in one of the kernel's tables.
fn ports_in(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if *columns.get(STATE_COLUMN)? != STATE_LISTEN {
            return None;
        }
        let (address, port) = columns.get(1)?.split_once(':')?;
        // 127.0.0.0/8, as the kernel prints it on a little-endian machine: the resolver's, and what
        // others cannot reach.
        let loopback = address.len() == 8 && address.ends_with("7F");
        let port = u16::from_str_radix(port, 16).ok()?;
        (!loopback).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0B00007F:03F3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   2: 0400000A:1F90 0500000A:C000 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0
";

    #[test]
    fn only_reachable_listeners_count() {
        assert_eq!(ports_in(TABLE).collect::<Vec<_>>(), [80]);
        let v6 = "header\n 0: 00000000000000000000000000000000:1F90 \
                  00000000000000000000000000000000:0000 0A x";
        assert_eq!(ports_in(v6).collect::<Vec<_>>(), [8080]);
        assert_eq!(ports_in("").count(), 0);
    }

    #[test]
    fn the_hosts_sockets_are_not_taken_for_a_guests() {
        assert!(is_in_our_namespace(std::process::id()));
        assert!(!is_in_our_namespace(u32::MAX));
    }

    #[test]
    fn a_process_that_is_gone_has_no_table() {
        assert_eq!(listening_ports(u32::MAX), None);
    }
}
