//! The root certificate takes another one's place, driven by the real docker CLI.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shoal_lab::{Cluster, DaemonOptions, Host, Load, eventually, import_shoal};

/// How long a rotation may take; it waits for elections and daemons that start.
const ROTATION: Duration = Duration::from_secs(90);

/// Three managers, a worker, and a host that is none of them.
fn cluster(name: &str) -> Cluster {
    let mut cluster = Cluster::managers(name, 3, 2);
    let worker = cluster.lab.host(4);
    worker.daemon_with(&DaemonOptions::default());
    import_shoal(worker);
    join(&cluster, worker, "worker");
    cluster.nodes = 4;
    cluster.wait_ready(4);
    cluster
}

fn token(cluster: &Cluster, role: &str) -> String {
    cluster.manager().docker(&format!("swarm join-token -q {role}")).trim().to_owned()
}

fn join(cluster: &Cluster, host: &Host, role: &str) {
    let (token, to) = (token(cluster, role), cluster.manager().address());
    host.docker(&format!("swarm join --token {token} {to}:2377"));
}

/// The root certificate, as `swarm ca` prints it.
fn root(host: &Host) -> String {
    host.docker("swarm ca").trim().to_owned()
}

fn rotates(host: &Host) -> bool {
    host.docker("info -f {{.Swarm.Cluster.RootRotationInProgress}}").trim() == "true"
}

/// Runs a command where it has a terminal, and so shows its progress.
fn in_terminal(host: &Host, line: &str) -> String {
    host.sh(&format!("DOCKER_HOST={} script -qec '{line}' /dev/null", host.socket()))
}

/// What every node trusts and by whom its certificate is, as a manager says.
fn nodes_tls(host: &Host) -> Vec<(String, String)> {
    let ids = host.docker("node ls -q");
    let of = |id: &str| {
        let format =
            "{{.Description.TLSInfo.CertIssuerPublicKey}}|{{.Description.TLSInfo.TrustRoot}}";
        let said = host.docker_args(&["node", "inspect", "-f", format, id]);
        let (key, roots) = said.trim().split_once('|').unwrap();
        (key.to_owned(), roots.trim().to_owned())
    };
    ids.lines().map(of).collect()
}

/// Waits until no rotation is under way and every node has and trusts the root.
fn wait_rotated(host: &Host) {
    eventually("the rotation to be complete", ROTATION, || {
        if rotates(host) {
            return Err(format!("it goes on; {}", host.docker("info -f {{.Swarm.Cluster}}")));
        }
        let (root, nodes) = (root(host), nodes_tls(host));
        let one = nodes.first().map(|(key, _)| key.clone());
        let same = nodes.iter().all(|(key, roots)| Some(key) == one.as_ref() && *roots == root);
        if same { Ok(()) } else { Err(format!("{nodes:#?}")) }
    });
}

fn web(cluster: &Cluster) {
    let line = "service create -d --name web --replicas 4 -p 8080:80 shoal:lab shoal try whoami";
    cluster.manager().docker(line);
    cluster.wait_tasks("web", 4);
    cluster.wait_port(5, 8080);
}

fn containers(cluster: &Cluster) -> Vec<String> {
    let of = |index| cluster.node(index).docker("ps -q --no-trunc");
    (1..=cluster.nodes).map(of).collect()
}

#[test]
fn the_root_is_rotated_under_load() {
    let cluster = cluster("ca_rotate");
    web(&cluster);
    let manager = cluster.manager();
    let (first, tokens) = (root(manager), [token(&cluster, "worker"), token(&cluster, "manager")]);
    assert!(first.starts_with("-----BEGIN CERTIFICATE-----"), "{first}");
    let before = containers(&cluster);
    let load = Load::start(&cluster, 5, 8080);
    let mut last = first;
    for round in 0..2 {
        // It shows its progress, comes back when all is done, and prints the new root.
        let said = match round {
            0 => in_terminal(manager, "docker swarm ca --rotate"),
            _ => cluster.node(2).docker("swarm ca --rotate --quiet --cert-expiry 720h"),
        };
        if round == 0 {
            for part in ["desired root digest", "rotated TLS certificates", "4/4 nodes"] {
                assert!(said.contains(part), "no '{part}' in:\n{said}");
            }
        }
        wait_rotated(manager);
        let now = root(manager);
        assert_ne!(now, last, "round {round}");
        let printed = said.replace('\r', "");
        assert!(round != 0 || printed.contains(&now), "{printed}");
        last = now;
    }
    load.finish(&cluster, 5, 20);
    assert_eq!(containers(&cluster), before, "containers were stopped or started");
    for index in 2..=3 {
        eventually("another manager to say the same", ROTATION, || {
            let said = root(cluster.node(index));
            if said == last { Ok(()) } else { Err(said) }
        });
    }
    // Tokens name the root: those of before let nobody in, and say why.
    assert_ne!(token(&cluster, "worker"), tokens[0]);
    let late = cluster.lab.host(5);
    late.daemon_with(&DaemonOptions::default());
    import_shoal(late);
    for old in &tokens {
        let line = format!("swarm join --token {old} {}:2377", manager.address());
        let refused = late.docker_fails(&line);
        assert!(refused.contains("rotated"), "{refused}");
    }
    join(&cluster, late, "manager");
    cluster.wait_ready(5);
    wait_rotated(manager);
    cluster.finish();
}

#[test]
fn a_node_that_was_off_comes_back_and_a_leader_dies_amid_it() {
    let cluster = cluster("ca_off");
    web(&cluster);
    let (manager, worker) = (cluster.manager(), cluster.node(4));
    worker.kill_daemon();
    cluster.wait_ready(3);
    let first = root(manager);
    for _ in 0..2 {
        let before = root(manager);
        manager.docker("swarm ca --rotate --detach");
        eventually("a rotation without the worker", ROTATION, || {
            if rotates(manager) { Err("it goes on".to_owned()) } else { Ok(()) }
        });
        assert_ne!(root(manager), before);
    }
    let third = root(manager);
    assert_ne!(third, first);
    // Its certificate is of a root that nobody trusts any more, and its key is known.
    worker.restart();
    cluster.wait_ready(4);
    wait_rotated(manager);
    // The leader dies in the middle: another one goes on, and the old root stays until it is back.
    manager.docker("swarm ca --rotate --detach");
    manager.kill_daemon();
    let second = cluster.node(2);
    eventually("another manager to lead", ROTATION, || {
        let out = second.try_docker("node ls --format {{.Hostname}}/{{.ManagerStatus}}");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let leads = said.lines().any(|l| !l.starts_with("node-1/") && l.ends_with("/Leader"));
        if leads { Ok(()) } else { Err(said) }
    });
    assert_ne!(root(second), third, "what was acknowledged is known");
    // A second one replaces it.
    second.docker("swarm ca --rotate --detach");
    let wanted = root(second);
    manager.restart();
    cluster.wait_ready(4);
    wait_rotated(second);
    assert_eq!(root(second), wanted);
    eventually("the first manager to say the same", ROTATION, || {
        let out = manager.try_docker("swarm ca");
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        if said == wanted { Ok(()) } else { Err(said) }
    });
    cluster.wait_tasks("web", 4);
    cluster.finish();
}

/// Where a node keeps its certificate and whom it trusts.
fn identity_of(host: &Host) -> PathBuf {
    host.place().data.join("swarm/identity.json")
}

/// Kills the daemon of each of `hosts`, the last of which is a worker, as soon as it has written
/// its identity for the `nth` time from here on, and starts it again at once, managers with `key`.
fn kill_each_at(hosts: &[&Host], nth: usize, key: &str) {
    let watched = hosts.iter().map(|host| {
        let (path, pid) = (identity_of(host), host.daemon_pid());
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let of = |path: &Path| std::fs::metadata(path).map(|data| data.ino()).ok();
        let mut last = of(&path);
        let thread = std::thread::spawn(move || {
            let end = Instant::now() + ROTATION;
            let mut count = 0;
            while count < nth {
                let now = of(&path);
                count += usize::from(now != last);
                last = now;
                assert!(Instant::now() < end, "only {count} writes of {}", path.display());
                std::thread::sleep(Duration::from_millis(1));
            }
            kill_process(pid, Signal::KILL).unwrap();
        });
        (*host, thread)
    });
    let mut watched: Vec<_> = watched.collect();
    // Ignored because: whoever is asked may be killed before it has answered.
    let _ = hosts[0].try_docker("swarm ca --rotate --detach");
    eventually("every daemon to be killed", ROTATION, || {
        for (host, thread) in watched.extract_if(.., |(_, thread)| thread.is_finished()) {
            thread.join().unwrap();
            host.kill_daemon();
            let text = std::fs::read_to_string(identity_of(host)).unwrap();
            let locked = host.name() != hosts[hosts.len() - 1].name();
            // Roots are kept with the node's key: that they are others must not bring that into
            // the clear.
            assert_eq!(text.contains("PRIVATE KEY"), !locked, "{}", host.name());
            host.restart();
            if locked {
                host.sh(&format!("echo {key} | DOCKER_HOST={} docker swarm unlock", host.socket()));
            }
        }
        if watched.is_empty() { Ok(()) } else { Err(format!("{} run still", watched.len())) }
    });
}

/// Managers, the leader among them, and a worker, each right after each of its writes: that it
/// trusts the next root, too; that it has a certificate of it; that it trusts the old one no more.
#[test]
fn a_rotation_survives_a_kill_of_every_node_after_each_of_its_writes() {
    let cluster = cluster("ca_killed");
    let manager = cluster.manager();
    manager.docker("swarm update --autolock=true");
    let key = manager.docker("swarm unlock-key -q").trim().to_owned();
    let hosts: Vec<&Host> = (1..=4).map(|index| cluster.node(index)).collect();
    eventually("every manager's key to be sealed", ROTATION, || {
        let clear = |host: &&Host| {
            std::fs::read_to_string(identity_of(host)).unwrap().contains("PRIVATE KEY")
        };
        let left = hosts[..3].iter().filter(|host| clear(host)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} are in clear")) }
    });
    let mut last = root(manager);
    for nth in 1..=3 {
        kill_each_at(&hosts, nth, &key);
        wait_ready_and_rotated(&cluster);
        let now = root(manager);
        assert_ne!(now, last, "what was acknowledged has come to its end");
        last = now;
    }
    cluster.finish();
}

/// As [`wait_rotated`], where managers may still be about to find each other.
fn wait_ready_and_rotated(cluster: &Cluster) {
    let manager = cluster.manager();
    eventually("the rotation to be complete", ROTATION, || {
        let out = manager.try_docker("info -f {{.Swarm.Cluster.RootRotationInProgress}}");
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let list = manager.try_docker("node ls --format {{.Status}}/{{.ManagerStatus}}");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let ready = list.lines().filter(|line| line.starts_with("Ready/")).count();
        if said == "false" && ready == 4 && list.contains("/Leader") {
            return Ok(());
        }
        Err(format!("rotates: {said}\n{list}"))
    });
    wait_rotated(manager);
}

#[test]
fn an_operators_own_root_is_checked_and_taken() {
    let cluster = Cluster::start("ca_own", 2, 0);
    let manager = cluster.manager();
    let first = root(manager);
    // As operators make them: one with an old form of key, one whose key is another's, one that is
    // no authority's, one that ends soon.
    let make = |name: &str, key: &str, subject: &str, more: &str| {
        manager.sh(&format!(
            "cd {dir} && {key} && openssl req -x509 -new -key {name}.key -subj '{subject}' {more} \
             -out {name}.pem 2>&1",
            dir = manager.dir().display()
        ));
    };
    let ec =
        |name: &str| format!("openssl ecparam -name prime256v1 -genkey -noout -out {name}.key");
    let rsa = |name: &str| format!("openssl genrsa -traditional -out {name}.key 2048 2>&1");
    make("own", &ec("own"), "/O=Example Ltd/CN=Example Root", "-days 3650");
    make("second", &rsa("second"), "/CN=second", "-days 3650");
    make("soon", &ec("soon"), "/CN=soon", "-days 30");
    make("leaf", &ec("leaf"), "/CN=leaf", "-days 3650 -addext basicConstraints=critical,CA:FALSE");
    manager.sh(&format!("echo hello > {}", manager.dir().join("text.pem").display()));
    let rotate = |cert: &str, key: &str| {
        let at = |name: &str| manager.dir().join(name).display().to_string();
        format!("swarm ca --rotate --ca-cert {} --ca-key {}", at(cert), at(key))
    };
    for (cert, key, why) in [
        ("own.pem", "second.key", "certificate key mismatch"),
        // Of what is no PEM at all the CLI says so itself.
        ("text.pem", "own.key", "must be in PEM format"),
        ("soon.pem", "soon.key", "expires too soon"),
        ("leaf.pem", "leaf.key", "CA:FALSE"),
        ("own.pem", "text.pem", "must be in PEM format"),
    ] {
        let refused = manager.docker_fails(&rotate(cert, key));
        assert!(refused.contains(why), "{cert} with {key}: {refused}");
    }
    assert_eq!(root(manager), first, "what was refused changes nothing");
    for name in ["own", "second"] {
        let said = manager.docker(&rotate(&format!("{name}.pem"), &format!("{name}.key")));
        let file = std::fs::read_to_string(manager.dir().join(format!("{name}.pem"))).unwrap();
        assert!(said.contains(file.trim()), "{said}");
        wait_rotated(manager);
    }
    // An external CA must issue by the root that it is for, before anything depends on it.
    let file = manager.dir().join("own.pem").display().to_string();
    let external = "protocol=cfssl,url=https://127.0.0.1:9/api/v1/cfssl/sign";
    let line = format!("swarm ca --rotate --ca-cert {file} --external-ca {external}");
    let refused = manager.docker_fails(&line);
    assert!(refused.contains("127.0.0.1:9"), "{refused}");
    assert!(!rotates(manager));
    cluster.finish();
}
