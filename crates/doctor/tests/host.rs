//! The host's checks on a real host. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use shoal_doctor::explain::{all, explain};
use shoal_doctor::host::{HostConfig, checks};
use shoal_doctor::report;
use shoal_doctor::run::{DEADLINE, run_all};
use shoal_model::check::{CheckResult, Verdict};

fn results(config: &HostConfig) -> Vec<CheckResult> {
    run_all(checks(config), DEADLINE, |_| {})
}

#[test]
fn every_check_answers_in_time_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = || std::fs::read_to_string("/proc/mounts").unwrap();
    let results = results(&HostConfig::new(directory.path()));
    for result in &results {
        assert_ne!(result.id, "SH-DOC-100", "{result:?}");
        assert!(result.id.starts_with("SH-DOC-1"), "{result:?}");
        assert!(!result.detail.is_empty(), "{result:?}");
        let told = matches!(result.verdict, Verdict::Warn | Verdict::Fail);
        assert_eq!(told, !result.remedy.is_empty(), "{result:?}");
    }
    for name in ["kernel", "seccomp filter", "overlay file system", "limits"] {
        let result = results.iter().find(|r| r.name == name).unwrap();
        assert_eq!(result.verdict, Verdict::Ok, "{result:?}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(!mounts().contains(directory.path().to_str().unwrap()));
    println!("{}", report::text(&results, 100));
}

#[test]
fn ids_and_pages_belong_together() {
    let results = results(&HostConfig::new("/var/lib/shoal"));
    let ids: BTreeSet<&str> = results.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids.len(), results.len(), "ids are unique");
    for id in &ids {
        assert!(explain(id).is_some(), "{id} has no page");
    }
    for (id, _) in all().filter(|(id, _)| id.starts_with("SH-DOC-1") && *id != "SH-DOC-100") {
        assert!(ids.contains(id), "the page {id} belongs to no check");
    }
}

#[test]
fn the_holder_of_a_port_is_named() {
    // Held by this very program: as good as free.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = HostConfig::new("/");
    config.tunnel_port = socket.local_addr().unwrap().port();
    // Held by another one.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut other = Command::new("busybox")
        .args(["httpd", "-f", "-p", &format!("127.0.0.1:{free}")])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    config.manager_port = free;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let results = results(&config);
        let find = |id: &str| results.iter().find(|r| r.id == id).unwrap().clone();
        assert!(find("SH-DOC-141").detail.starts_with("held by Shoal"), "{results:?}");
        let foreign = find("SH-DOC-140");
        if foreign.verdict == Verdict::Warn {
            assert_eq!(foreign.detail, format!("held by 'busybox' (process {})", other.id()));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{foreign:?}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}
