//! Bad input gets a clear error, and changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use shoal_lab::{Cluster, Lab, import_shoal, within};

/// Sends a body to a route; gives status and body.
fn send(host: &shoal_lab::Host, method: &str, path: &str, body: &str) -> (u16, String) {
    let file = host.dir().join("body");
    std::fs::write(&file, body).unwrap();
    let socket = host.dir().join("d0/docker.sock");
    let line = format!(
        "curl -sS -m 10 -X {method} -H 'Content-Type: application/json' --data-binary @{} \
         -w '\\n%{{http_code}}' --unix-socket {} http://localhost/v1.50{path}",
        file.display(),
        socket.display()
    );
    let text = host.sh(&line);
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.trim().parse().unwrap(), body.to_owned())
}

#[test]
fn bodies_that_make_no_sense_change_nothing() {
    let cluster = Cluster::start("bad_bodies", 1, 0);
    let host = cluster.manager();
    let long = "x".repeat(64);
    let cases = [
        ("/services/create", "{".to_owned(), 400, "JSON"),
        ("/services/create", "[]".to_owned(), 400, "JSON"),
        ("/services/create", r#"{"Name":5}"#.to_owned(), 400, "Name"),
        (
            "/services/create",
            r#"{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":["x"]}}}"#.to_owned(),
            400,
            "Image",
        ),
        (
            "/services/create",
            format!(r#"{{"Name":"{long}","TaskTemplate":{{"ContainerSpec":{{"Image":"x"}}}}}}"#),
            400,
            "63 characters",
        ),
        (
            "/services/create",
            r#"{"Name":"a b","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#.to_owned(),
            400,
            "DNS",
        ),
        ("/services/create", r#"{"Name":"a","TaskTemplate":{}}"#.to_owned(), 400, "ContainerSpec"),
        (
            "/networks/create",
            r#"{"Name":"n","Driver":"overlay","IPAM":{"Config":[{"Subnet":"x"}]}}"#.to_owned(),
            400,
            "x",
        ),
        ("/networks/create", r#"{"Name":"","Driver":"overlay"}"#.to_owned(), 400, "name"),
        ("/containers/create?name=cc", "nonsense".to_owned(), 400, "JSON"),
        (
            "/containers/create?name=cc",
            r#"{"Image":"nosuch:1"}"#.to_owned(),
            404,
            "No such image: nosuch:1",
        ),
        ("/containers/create?name=-", r#"{"Image":"shoal:lab"}"#.to_owned(), 400, "name"),
    ];
    for (path, body, status, word) in cases {
        let (got, said) = send(host, "POST", path, &body);
        assert_eq!(got, status, "{path} {body}: {said}");
        assert!(said.contains(word), "{path} {body}: '{word}' is not in {said}");
        assert!(said.starts_with("{\"message\":"), "{said}");
    }
    assert_eq!(host.docker("service ls -q"), "");
    assert_eq!(host.docker("ps -aq"), "");
    assert_eq!(host.docker("network ls -q -f driver=overlay").lines().count(), 1);
    let (status, said) = send(host, "GET", "/nosuch", "");
    assert_eq!(status, 404, "{said}");
    for missing in ["/commit", "/plugins/create", "/build"] {
        let (status, said) = send(host, "POST", missing, "{}");
        assert!(status == 501 && said.contains("not implemented"), "{missing}: {status} {said}");
    }
    cluster.finish();
}

#[test]
fn wrong_tokens_and_wrong_clusters_are_refused_with_the_reason() {
    let lab = Lab::start("bad_tokens", 3);
    for index in 1..=3 {
        lab.host(index).daemon();
    }
    lab.host(1).docker("swarm init --advertise-addr 198.51.100.1");
    lab.host(3).docker("swarm init --advertise-addr 198.51.100.3");
    let token = lab.host(1).docker("swarm join-token -q worker");
    let foreign = lab.host(3).docker("swarm join-token -q worker");
    let joiner = lab.host(2);
    let mut wrong_secret = token.clone();
    let last = if wrong_secret.pop() == Some('0') { '1' } else { '0' };
    wrong_secret.push(last);
    for (token, addr, word) in [
        ("nonsense", "198.51.100.1:2377", "token"),
        ("SWMTKN-1-short-x", "198.51.100.1:2377", "token"),
        (wrong_secret.as_str(), "198.51.100.1:2377", "token"),
        (foreign.as_str(), "198.51.100.1:2377", "digest"),
        (token.as_str(), "198.51.100.1:2399", "2399"),
        (token.as_str(), "nosuch.invalid:2377", "nosuch.invalid"),
    ] {
        let said = within(word, Duration::from_secs(20), || {
            joiner.docker_fails(&format!("swarm join --token {token} {addr}"))
        });
        assert!(said.to_lowercase().contains(word), "{token} {addr}: {said}");
        let state = joiner.docker("info --format {{.Swarm.LocalNodeState}}");
        assert_eq!(state, "inactive", "a failed join left something: {said}");
    }
    joiner.docker(&format!("swarm join --token {token} 198.51.100.1:2377"));
    lab.finish();
}

#[test]
fn a_published_port_that_is_taken_names_its_holder() {
    let cluster = Cluster::start("port_taken", 1, 0);
    let host = cluster.manager();
    import_shoal(host);
    host.docker("service create -d --name first -p 8091:80 shoal:lab");
    let said = host.docker_fails("service create -d --name second -p 8091:80 shoal:lab");
    assert!(said.contains("8091") && said.contains("first"), "{said}");
    cluster.wait_tasks("first", 1);
    let said = host.docker_fails("run --rm -p 8091:80 shoal:lab true");
    assert!(said.contains("8091") && said.contains("first"), "{said}");
    cluster.finish();
}
