//! Secrets and configs: from the client's file to a file in every task, container or unikernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use shoal_lab::{CONVERGE, Cluster, Host, eventually, import_dns, import_guest};

/// What must not be on any disk.
const SECRET: &str = "hunter2-in-memory-only";

/// Writes a file of the client; gives its path.
fn file(host: &Host, name: &str, text: &str) -> PathBuf {
    let path = host.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn create(host: &Host, kind: &str, name: &str, text: &str) {
    let path = file(host, &format!("{kind}-{name}"), text);
    let id = host.docker(&format!("{kind} create --label from=lab {name} {}", path.display()));
    assert_eq!(id.len(), 25, "{id}");
}

/// A command in a service's task on a node.
fn inside(cluster: &Cluster, index: usize, service: &str, line: &str) -> String {
    let task = cluster.container(index, service);
    cluster.node(index).docker_args(&["exec", &task, "sh", "-c", line])
}

fn no_container_left(cluster: &Cluster) {
    for index in 1..=2 {
        eventually("the containers to go", CONVERGE, || {
            let left = cluster.node(index).docker("ps -aq");
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        let files = cluster.node(index).dir().join("d0/exec/files");
        let left: Vec<_> = std::fs::read_dir(files).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "memory files stay: {left:?}");
    }
}

#[test]
fn payloads_are_files_in_every_task_of_a_service() {
    let cluster = Cluster::start("payloads", 2, 0);
    let host = cluster.manager();
    create(host, "secret", "key", SECRET);
    create(host, "config", "conf", "colour = red\n");
    create(host, "config", "script", "#!/bin/sh\necho ran\n");
    let said = host.docker_fails(&format!("secret create key {}/secret-key", host.dir().display()));
    assert!(said.contains("secret key already exists"), "{said}");
    host.docker(
        "service create -d --mode global --name web \
         --secret source=key,target=pass,uid=65534,gid=65534,mode=0400 --secret key \
         --config source=conf,target=/etc/app/conf --config source=script,target=go,mode=0555 \
         shoal:lab",
    );
    cluster.wait_tasks("web", 2);
    for index in 1..=2 {
        let run = |line: &str| inside(&cluster, index, "web", line);
        assert_eq!(run("cat /run/secrets/pass"), SECRET);
        assert_eq!(run("cat /run/secrets/key"), SECRET);
        assert_eq!(run("cat /etc/app/conf"), "colour = red");
        assert_eq!(run("/go"), "ran");
        let stat = run("stat -c %a:%u:%g /run/secrets/pass /run/secrets/key /etc/app/conf /go");
        assert_eq!(
            stat.lines().collect::<Vec<_>>(),
            ["400:65534:65534", "444:0:0", "444:0:0", "555:0:0"]
        );
        for path in ["/run/secrets/pass", "/etc/app/conf"] {
            let said = run(&format!("echo x 2>&1 > {path} || grep {path} /proc/mounts"));
            assert!(said.contains("tmpfs") && said.contains(" ro,"), "{path}: {said}");
        }
        on_no_disk(cluster.node(index));
    }
    shown_as_docker_does(host);
    cluster.finish();
}

/// Neither records nor logs nor the store may have the secret in clear.
fn on_no_disk(host: &Host) {
    let dir = host.dir().join("d0").display().to_string();
    let line =
        format!("grep -rlF {SECRET} {dir}/data {dir}/log; grep -rlF {SECRET_TEXT} {dir}/data");
    let found = host.try_sh(&line);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

/// The same as the wire writes it.
const SECRET_TEXT: &str = "aHVudGVyMi1pbi1tZW1vcnktb25seQ";

fn shown_as_docker_does(host: &Host) {
    let secret = host.docker_json("secret inspect key");
    assert_eq!(secret[0]["Spec"]["Labels"]["from"], "lab");
    assert!(secret[0]["Spec"].get("Data").is_none(), "{secret}");
    let shown = host.docker("config inspect --pretty conf");
    assert!(shown.contains("colour = red"), "{shown}");
    assert_eq!(host.docker("config ls -q -f name=con").lines().count(), 1);
    let id = secret[0]["ID"].as_str().unwrap();
    assert_eq!(host.docker(&format!("secret ls -f id={} --format {{{{.Name}}}}", &id[..9])), "key");
    let said = host.docker_fails("secret rm key");
    assert!(said.contains("secret 'key' is in use by the following service: web"), "{said}");
    assert!(said.contains("SH-MGR-006"), "{said}");
    let said = host.docker_fails("config rm conf");
    assert!(said.contains("config 'conf' is in use by the following service: web"), "{said}");
    let said = host.docker_fails("secret create --driver vault other");
    assert!(said.contains("not implemented: secret driver 'vault'"), "{said}");
}

#[test]
fn payloads_outlive_a_daemon_and_are_replaced_by_an_update() {
    let cluster = Cluster::start("payload_life", 2, 0);
    let host = cluster.manager();
    create(host, "secret", "old", SECRET);
    create(host, "secret", "new", "rotated");
    let template = file(host, "template", "{{.Node.Hostname}} {{env \"COLOUR\"}}\n");
    host.docker(&format!("config create --template-driver golang template {}", template.display()));
    host.docker(
        "service create -d --mode global --name web -e COLOUR=red --config template \
         --secret source=old,target=pass shoal:lab",
    );
    cluster.wait_tasks("web", 2);
    assert_eq!(inside(&cluster, 2, "web", "cat /template"), "node-2 red");

    // The daemon goes, the container goes on; the next daemon has new tasks' files again.
    let before = cluster.container(2, "web");
    cluster.node(2).kill_daemon();
    cluster.node(2).restart();
    cluster.wait_ready(2);
    assert_eq!(cluster.container(2, "web"), before);
    assert_eq!(inside(&cluster, 2, "web", "cat /run/secrets/pass"), SECRET);
    let pass = |index: usize| {
        let node = cluster.node(index);
        let filter = "label=com.docker.swarm.service.name=web";
        let task = node.docker(&format!("ps -q --no-trunc -f {filter}"));
        // It may just be going, or not be there yet: then it says nothing.
        let out = node.try_docker(&format!("exec {task} cat /run/secrets/pass"));
        (task, String::from_utf8_lossy(&out.stdout).into_owned())
    };
    host.docker("service update --force -d web");
    eventually("another task with its secret", CONVERGE, || {
        let (task, said) = pass(2);
        if task != before && said == SECRET { Ok(()) } else { Err(format!("{task}: {said}")) }
    });

    host.docker("service update -d --secret-rm old --secret-add source=new,target=pass web");
    eventually("the new secret on both nodes", CONVERGE, || {
        let all = [pass(1).1, pass(2).1];
        if all == ["rotated", "rotated"] { Ok(()) } else { Err(format!("{all:?}")) }
    });
    eventually("the update to be complete", CONVERGE, || {
        let state = host.docker("service inspect web --format {{.UpdateStatus.State}}");
        if state == "completed" { Ok(()) } else { Err(state) }
    });
    host.docker("secret rm old");
    let said = host.docker_fails("service rollback -d web");
    assert!(said.contains("secret not found: old"), "{said}");
    eventually("the events", CONVERGE, || {
        let line = "events --since 10m --until 0s --filter type=secret --filter scope=swarm \
                    --format {{.Action}}:{{.Actor.Attributes.name}}";
        let all = host.docker(line);
        let all: Vec<&str> = all.lines().collect();
        let wanted = ["create:old", "create:new", "remove:old"];
        if all == wanted { Ok(()) } else { Err(format!("{all:?}")) }
    });
    host.docker("service rm web");
    no_container_left(&cluster);
    cluster.finish();
}

#[test]
fn payloads_of_a_stack_come_and_go_with_it() {
    let cluster = Cluster::start("stack", 2, 0);
    let host = cluster.manager();
    file(host, "key", SECRET);
    file(host, "conf", "colour = blue\n");
    let stack = file(
        host,
        "stack.yml",
        "version: '3.8'\n\
         services:\n  web:\n    image: shoal:lab\n    deploy: { mode: global }\n    \
         secrets: [key]\n    configs:\n      - { source: conf, target: /etc/conf, mode: 0440 }\n\
         secrets:\n  key: { file: ./key }\n\
         configs:\n  conf: { file: ./conf }\n",
    );
    let deploy = format!("stack deploy --resolve-image never -c {} st", stack.display());
    host.docker(&deploy);
    cluster.wait_tasks("st_web", 2);
    for index in 1..=2 {
        let said = inside(&cluster, index, "st_web", "cat /run/secrets/key /etc/conf");
        assert_eq!(said, format!("{SECRET}colour = blue"));
        assert_eq!(inside(&cluster, index, "st_web", "stat -c %a /etc/conf"), "440");
    }
    assert_eq!(host.docker("stack ls --format {{.Name}}/{{.Services}}"), "st/1");
    assert_eq!(host.docker("stack services st --format {{.Name}}/{{.Replicas}}"), "st_web/2/2");
    let tasks = host.docker("stack ps st --format {{.Node}}");
    assert_eq!(tasks.lines().count(), 2, "{tasks}");
    // Again: nothing changes. Other data under the same name is refused, as with Docker.
    host.docker(&deploy);
    file(host, "conf", "colour = green\n");
    let said = host.docker_fails(&deploy);
    assert!(said.contains("only updates to Labels are allowed"), "{said}");
    host.docker("stack rm st");
    assert_eq!(host.docker("secret ls -q") + &host.docker("config ls -q"), "");
    no_container_left(&cluster);
    cluster.finish();
}

#[test]
fn payloads_reach_a_unikernel() {
    let cluster = Cluster::start("payload-dns", 2, 1);
    let host = cluster.manager();
    for index in 1..=2 {
        import_dns(cluster.node(index));
        import_guest(cluster.node(index), "guest:red", "red");
    }
    create(
        host,
        "config",
        "zone",
        "$ORIGIN example.org.\n$TTL 60\n@ SOA ns hostmaster 7 3600 900 86400 60\n@ NS ns\n\
         ns A 192.0.2.1\nwww A 192.0.2.80\n",
    );
    host.docker(
        "service create -d --mode global --name dns \
         --config source=zone,target=/zones/example.org.zone \
         --publish published=5300,target=53,protocol=udp dns:lab",
    );
    cluster.wait_tasks("dns", 2);
    for index in 1..=2 {
        let address = cluster.node(index).address();
        eventually("the zone's answer", CONVERGE, || {
            let line = format!("dig +short +time=1 +tries=1 -p 5300 @{address} www.example.org");
            let out = cluster.lab.host(3).try_sh(&line);
            let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            if said == "192.0.2.80" { Ok(()) } else { Err(format!("{out:?}")) }
        });
    }
    let said = host.docker_fails("config rm zone");
    assert!(said.contains("in use by the following service: dns"), "{said}");

    // Secrets, and places elsewhere: the root, a folder that exists only for them.
    create(host, "secret", "key", SECRET);
    host.docker(
        "service create -d --mode global --name guest --secret key --config source=zone,target=z \
         --publish 8091:80 guest:red",
    );
    cluster.wait_tasks("guest", 2);
    cluster.wait_port(3, 8091);
    let get = |path: &str| {
        let url = format!("http://{}:8091/file{path}", cluster.node(2).address());
        cluster.lab.host(3).sh(&format!("curl -sS -m 3 {url}"))
    };
    assert_eq!(get("/run/secrets/key"), SECRET);
    assert!(get("/z").starts_with("$ORIGIN example.org."));
    for index in 1..=2 {
        on_no_disk(cluster.node(index));
    }
    host.docker("service rm dns guest");
    host.docker("config rm zone");
    no_container_left(&cluster);
    cluster.finish();
}
