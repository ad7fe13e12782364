//! What a shim costs. Needs root, cgroups and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Host;

/// A shim's own memory (not shared with another process of the same program), in KiB. Measured with
/// a debug build of this crate's small helper: 176 KiB private, 1.4 MiB proportional, 2.6 MiB
/// resident.
const PRIVATE_KIB_MAX: u64 = 1024;

#[tokio::test]
async fn a_shim_is_small_and_has_one_thread() {
    let host = Host::new();
    let first = host.start(&host.plan(&["sleep", "1000"])).await;
    let second = host.start(&host.plan(&["sleep", "1000"])).await;
    let pid = second.state().await.unwrap().shim_pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let figure = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let private = figure("Private_Clean:") + figure("Private_Dirty:");
    println!("shim: Rss {} Pss {} private {private} KiB", figure("Rss:"), figure("Pss:"));
    assert!(private < PRIVATE_KIB_MAX, "{text}");
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(fds < 20, "{fds} descriptors");
    for shim in [first, second] {
        shim.delete().await.unwrap();
    }
}
