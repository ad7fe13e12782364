//! Certificates that last for seconds, driven by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::{Cluster, DaemonOptions, Host, Load, eventually, import_shoal};

/// How long all nodes may take to renew their certificates some times; machines stand still.
const RENEWALS: Duration = Duration::from_secs(120);
/// How often each certificate is to be renewed.
const TIMES: usize = 3;
/// Whose certificate has expired before it comes back.
const OFF: usize = 5;

fn options() -> DaemonOptions {
    let args = ["--test-min-certificate-expiry", "1"].map(str::to_owned).to_vec();
    DaemonOptions { args, ..DaemonOptions::default() }
}

fn log(host: &Host) -> String {
    std::fs::read_to_string(&host.logs()[0]).unwrap()
}

/// The node's certificate, by openssl's words for an option.
fn certificate(host: &Host, option: &str) -> std::process::Output {
    let path = host.place().data.join("swarm/identity.json");
    let text = std::fs::read_to_string(path).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let file = host.dir().join("cert.pem");
    std::fs::write(&file, kept["cert_pem"].as_str().unwrap()).unwrap();
    host.try_sh(&format!("openssl x509 -noout {option} -in {}", file.display()))
}

#[test]
fn certificates_of_seconds_are_renewed_live_under_load() {
    let mut cluster = Cluster::managers_with("cert_seconds", 3, 3, &options());
    let token = cluster.manager().docker("swarm join-token -q worker");
    for index in [4, OFF] {
        let worker = cluster.lab.host(index);
        worker.daemon_with(&options());
        import_shoal(worker);
        worker.docker(&format!("swarm join --token {token} {}:2377", cluster.manager().address()));
    }
    cluster.nodes = 4;
    cluster.wait_ready(OFF);
    let manager = cluster.manager();
    // Those of now last for long, and go with their root.
    manager.docker("swarm ca --rotate --quiet --cert-expiry 15s");
    let off = cluster.node(OFF);
    off.kill_daemon();
    manager.docker(&format!(
        "service create -d --name web --replicas 4 -p 8080:80 --constraint node.hostname!={} \
         shoal:lab shoal try whoami",
        off.name()
    ));
    cluster.wait_tasks("web", 4);
    cluster.wait_port(6, 8080);
    let load = Load::start(&cluster, 6, 8080);
    let began: Vec<usize> = (1..=4).map(|index| log(cluster.node(index)).len()).collect();
    let since = |index: usize| log(cluster.node(index))[began[index - 1]..].to_owned();
    let list = "node ls --format {{.Hostname}}/{{.Status}}/{{.ManagerStatus}}";
    eventually("every certificate to be renewed some times", RENEWALS, || {
        let counts: Vec<usize> =
            (1..=4).map(|index| since(index).matches("certificate was renewed").count()).collect();
        let said = manager.docker(list);
        let here = |line: &&str| !line.starts_with(off.name());
        let away = said.lines().filter(here).find(|line| !line.contains("/Ready/"));
        assert_eq!(away, None, "a node was not there: {said}");
        if counts.iter().all(|count| *count >= TIMES) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    load.finish(&cluster, 6, 20);
    for index in 1..=4 {
        let said = since(index);
        let anew = said.matches("the session is opened anew").count();
        assert!(anew >= TIMES - 1, "node {index}: sessions outlive their certificates: {anew}");
        for word in ["no session", "this manager leads"] {
            assert!(!said.contains(word), "node {index}: '{word}' in its log");
        }
    }
    // Its certificate has expired: it gets the next one by the key of that one.
    let expired = certificate(off, "-checkend 0");
    assert!(!expired.status.success(), "{}", String::from_utf8_lossy(&expired.stdout));
    // By its own clock, which is behind, it is not time yet: the manager's word counts.
    off.set_args(&[&options().args[..], &["--test-clock-offset=-37".to_owned()]].concat());
    off.restart();
    cluster.wait_ready(OFF);
    assert!(certificate(off, "-checkend 0").status.success());
    // Said in the session, which the manager knows of a moment earlier.
    eventually("the node to name its clock", RENEWALS, || {
        let out = off.try_docker("info");
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let named = ["36 s behind", "37 s behind"].iter().any(|word| said.contains(word));
        if named { Ok(()) } else { Err(said) }
    });
    cluster.finish();
}
