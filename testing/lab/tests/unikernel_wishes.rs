//! Unikernels and what the CLI can ask for: done, or refused with the reason and what serves
//! instead; names and datagrams; and what is said when one cannot go on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use shoal_lab::{
    CONVERGE, Cluster, Host, Lab, eventually, guest, import_dns, import_guest, import_unikernel,
};

/// A zone with one name.
const ZONE: &str = "$TTL 60\n\
    example.org. SOA ns.example.org. root.example.org. 1 60 60 60 60\n\
    example.org. NS ns.example.org.\n\
    ns.example.org. A 192.0.2.53\n\
    www.example.org. A 192.0.2.80\n";

/// Sends a datagram to the lab's unikernel and gives its answer.
const ASK_UDP: &str = "import socket,sys\n\
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
    s.settimeout(1)\n\
    s.sendto(b'?',(sys.argv[1],int(sys.argv[2])))\n\
    print(s.recv(200).decode().strip())\n";

/// A folder with `text` as its only zone file.
fn zones(host: &Host, folder: &str, text: &str) -> String {
    let zones = host.dir().join(folder);
    std::fs::create_dir_all(&zones).unwrap();
    std::fs::write(zones.join("example.org"), text).unwrap();
    zones.display().to_string()
}

/// Asks a name server with dig until it answers.
fn dig(from: &Host, words: &str) -> String {
    eventually(&format!("an answer to dig {words}"), CONVERGE, || {
        let out = from.try_sh(&format!("dig {words} +time=1 +tries=1 +short"));
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let fine = out.status.success() && !text.is_empty() && !text.contains(';');
        if fine { Ok(text) } else { Err(format!("{out:?}")) }
    })
}

/// Asks the lab's unikernel over UDP until it answers.
fn ask_udp(from: &Host, address: &str, port: u16) -> String {
    let script = from.dir().join("ask.py");
    std::fs::write(&script, ASK_UDP).unwrap();
    eventually("an answer over UDP", CONVERGE, || {
        let out = from.try_sh(&format!("python3 {} {address} {port}", script.display()));
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        if out.status.success() { Ok(text) } else { Err(format!("{out:?}")) }
    })
}

#[test]
fn options_are_done_or_refused_with_what_serves_instead() {
    let lab = Lab::start("uk-options", 1);
    let host = lab.host(1);
    host.daemon();
    import_guest(host, "guest:red", "red");
    for (options, instead) in [
        ("-it", "docker logs"),
        ("-i", "docker logs"),
        ("--entrypoint /bin/sh", "arguments only"),
        ("--user 1000", "its tender has"),
        ("--group-add 10", "its tender has"),
        ("--workdir /srv", "absolute paths"),
        ("--privileged", "a container"),
        ("--cap-add NET_ADMIN", "a container"),
        ("--security-opt seccomp=unconfined", "a container"),
        ("--device /dev/null", "target /dev/NAME"),
        ("--gpus all", "target /dev/NAME"),
        ("--init", "program alone"),
        ("--pid host", "a container"),
        ("--ipc host", "a container"),
        ("--uts host", "a container"),
        ("--ulimit nofile=10", "--pids-limit"),
        ("--sysctl net.core.somaxconn=1", "environment"),
        ("--shm-size 1m", "--memory"),
        ("--tmpfs /tmp", "--memory"),
        ("--network host", "--publish"),
        ("--domainname example.org", "--hostname"),
        ("--add-host db:192.0.2.1", "--network-alias"),
        ("--dns-search example.org", "full names"),
        ("--dns-option ndots:2", "--dns"),
        ("--stop-signal QUIT", "SIGTERM"),
        ("--health-cmd true", "shoal.health.tcp"),
    ] {
        let said = host.docker_fails(&format!("create {options} guest:red"));
        assert!(said.contains("a unikernel: "), "{options}: {said}");
        let (_, rest) = said.split_once("; use ").unwrap_or_else(|| panic!("{options}: {said}"));
        assert!(rest.contains(instead) && rest.contains("SH-ENG-007"), "{options}: {said}");
    }
    assert_eq!(host.docker("ps -aq"), "", "something was made");
    host.docker(
        "create --hostname h --dns 192.0.2.1 --cap-drop ALL --read-only -m 32m --cpus 0.5 \
         --security-opt no-new-privileges --pids-limit 64 --stop-timeout 3 guest:red",
    );
    lab.finish();
}

#[test]
fn tasks_of_a_service_are_refused_what_containers_by_hand_are() {
    let cluster = Cluster::start("uk-refused", 1, 0);
    let host = cluster.manager();
    import_guest(host, "guest:red", "red");
    let options = [
        "--tty",
        "--entrypoint /bin/sh",
        "--user 1000",
        "--group 10",
        "--workdir /srv",
        "--cap-add NET_ADMIN",
        "--init",
        "--ulimit nofile=10",
        "--sysctl net.core.somaxconn=1",
        "--mount type=tmpfs,target=/tmp",
        "--mount type=volume,source=data,target=/data",
        "--host db:192.0.2.1",
        "--dns-search example.org",
        "--dns-option ndots:2",
        "--stop-signal QUIT",
        "--health-cmd true",
    ];
    for (number, option) in options.iter().enumerate() {
        let line = format!("-d --name s{number} --restart-condition none {option} guest:red");
        host.docker(&format!("service create {line}"));
    }
    for (number, option) in options.iter().enumerate() {
        let said = eventually(&format!("the refusal of {option}"), CONVERGE, || {
            let list = format!("service ps s{number} --no-trunc --format");
            let list = host.docker(&format!("{list} {{{{.Error}}}}|{{{{.CurrentState}}}}"));
            if list.contains("a unikernel: ") { Ok(list) } else { Err(list) }
        });
        assert!(said.contains("SH-ENG-007") && said.contains("; use "), "{option}: {said}");
    }
    host.docker("service create -d --name fine --hostname h --dns 192.0.2.1 guest:red");
    cluster.wait_tasks("fine", 1);
    cluster.finish();
}

#[test]
fn what_an_image_needs_is_asked_for_when_it_is_made() {
    let lab = Lab::start("uk-needs", 1);
    let host = lab.host(1);
    host.daemon();
    let needs = "LABEL shoal.unikernel.devices=\"net=network,data=block\" \
                 shoal.unikernel.heap-bytes-min=33554432";
    import_unikernel(host, &guest(), "needs:1", &[needs]);
    let block = "-v data:/dev/data";
    for (options, says) in [
        ("", "block device 'data' has no volume"),
        ("-v data:/dev/data -v more:/dev/more", "no block device 'more' is in the image"),
        ("--network none -v data:/dev/data", "no network for the device 'net'"),
        ("-m 32m -v data:/dev/data", "memory limit is too small"),
    ] {
        let said = host.docker_fails(&format!("create {options} needs:1"));
        assert!(said.contains(says) && said.contains("SH-ENG-009"), "{options}: {said}");
    }
    assert_eq!(host.docker("volume ls -q"), "", "a volume was made");
    host.docker(&format!("create -m 64m {block} needs:1"));
    lab.finish();
}

#[test]
fn datagrams_and_connections_reach_a_unikernel_on_a_bridge() {
    let lab = Lab::start("uk-udp", 2);
    let (host, client) = (lab.host(1), lab.host(2));
    host.daemon();
    import_dns(host);
    import_guest(host, "guest:red", "red");
    let zones = zones(host, "zones", ZONE);
    host.docker("network create mybr");
    host.docker(&format!(
        "run -d --name dns --network mybr -p 5353:53/udp -p 5353:53/tcp -v {zones}:/zones:ro \
         -e DNS_TRANSFER={} dns:lab",
        client.address()
    ));
    let at = format!("@{} -p 5353 www.example.org", host.address());
    assert_eq!(dig(client, &at), "192.0.2.80");
    assert_eq!(dig(client, &format!("{at} +tcp")), "192.0.2.80");
    // The host itself, by its own address and by loopback.
    assert_eq!(dig(host, &at), "192.0.2.80");
    assert_eq!(dig(host, "@127.0.0.1 -p 5353 www.example.org"), "192.0.2.80");
    // Whole zones are for that client alone: its address is seen.
    let whole = format!("@{} -p 5353 example.org axfr", host.address());
    assert!(dig(client, &whole).contains("192.0.2.80"));
    let refused = host.try_sh(&format!("dig {whole} +time=1 +tries=1"));
    assert!(String::from_utf8_lossy(&refused.stdout).contains("Transfer failed"), "{refused:?}");

    // Another one asks it for names that no network knows.
    let address = host.docker("inspect dns --format {{.NetworkSettings.Networks.mybr.IPAddress}}");
    host.docker(&format!(
        "run -d --name web --network mybr --dns {address} -p 5390:80/udp -p 8080:80 guest:red"
    ));
    assert!(ask_udp(client, host.address(), 5390).ends_with(&format!("sees {}", client.address())));
    let url = format!("http://{}:8080/lookup/www.example.org", host.address());
    let said = eventually("the name's address", CONVERGE, || {
        let out = client.try_sh(&format!("curl -sS -m 5 {url}"));
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        if text == "192.0.2.80" { Ok(text) } else { Err(format!("{out:?}")) }
    });
    assert_eq!(said, "192.0.2.80");
    host.docker("rm -f web dns");
    lab.finish();
}

#[test]
fn datagrams_and_connections_reach_a_service_of_unikernels_on_every_node() {
    let cluster = Cluster::start("uk-mesh", 2, 1);
    let (host, client) = (cluster.manager(), cluster.lab.host(3));
    for index in 1..=2 {
        import_dns(cluster.node(index));
        import_guest(cluster.node(index), "guest:red", "red");
    }
    let zones = zones(host, "zones", ZONE);
    host.docker(&format!(
        "service create -d --name dns --replicas 2 --publish 5391:53/udp --publish 5391:53/tcp \
         --env DNS_TRANSFER={} --mount type=bind,source={zones},target=/zones,readonly dns:lab",
        client.address()
    ));
    host.docker("service create -d --name web --publish 5390:80/udp guest:red");
    cluster.wait_tasks("dns", 2);
    cluster.wait_tasks("web", 1);
    for index in 1..=2 {
        let address = cluster.node(index).address();
        let at = format!("@{address} -p 5391 www.example.org");
        assert_eq!(dig(client, &at), "192.0.2.80");
        assert_eq!(dig(client, &format!("{at} +tcp")), "192.0.2.80");
        let whole = dig(client, &format!("@{address} -p 5391 example.org axfr"));
        assert!(whole.contains("192.0.2.80"), "the client's address is not seen: {whole}");
        let said = ask_udp(client, address, 5390);
        assert!(said.ends_with(&format!("sees {}", client.address())), "{said}");
    }
    cluster.finish();
}

/// The errors of a service's tasks, whole.
fn errors(host: &Host, service: &str) -> String {
    host.docker(&format!("service ps {service} --no-trunc --format {{{{.Error}}}}"))
}

#[test]
fn a_deleted_tap_ends_its_task_and_another_takes_its_place() {
    let cluster = Cluster::start("uk-tap", 1, 0);
    let host = cluster.manager();
    import_guest(host, "guest:red", "red");
    host.docker("network create -d overlay mynet1");
    host.docker("service create -d --name web --network mynet1 guest:red");
    let before = cluster.wait_tasks("web", 1);
    let container = cluster.container(1, "web");
    let config =
        host.sh(&format!("find {} -path '*{container}*' -name tender.json", host.dir().display()));
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(config).unwrap()).unwrap();
    let tap = &config["devices"]["net"]["net"]["attach"]["tap"];
    let (netns, name) = (tap["netns"].as_str().unwrap(), tap["name"].as_str().unwrap());
    host.sh(&format!("nsenter --net={netns} ip link del {name}"));
    eventually("another task", CONVERGE, || {
        let now = cluster.tasks("web");
        let fresh = now.keys().filter(|id| !before.contains_key(*id)).count();
        if now.len() == 1 && fresh == 1 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let said = errors(host, "web");
    let said = said.lines().find(|line| !line.is_empty()).unwrap_or_default();
    assert!(said.starts_with("\"network device 'net' is gone: "), "{said}");
    assert!(said.contains("SH-TEN-012"), "{said}");
    cluster.finish();
}

#[test]
fn an_appliance_that_cannot_start_says_why_where_people_look() {
    let cluster = Cluster::start("uk-why", 1, 0);
    let host = cluster.manager();
    import_dns(host);
    let wrong = zones(host, "wrong", &ZONE.replace("www.example.org. A", "www.example.org. AAAB"));
    let mount = format!("--mount type=bind,source={wrong},target=/zones,readonly");
    for (name, options, words, cause) in [
        ("syntax", mount.as_str(), "", "zone line 5: 'AAAB' is not a record type"),
        ("none", "", "", "no zone file in '/zones'"),
        ("port", "--env DNS_PORT=99999", "", "'99999' is not a port"),
        ("word", "", "--prot 53", "unknown argument '--prot'"),
    ] {
        host.docker(&format!(
            "service create -d --name {name} --restart-condition none {options} dns:lab {words}"
        ));
        let said = eventually("the reason", CONVERGE, || {
            let said = errors(host, name);
            if said.len() > 2 { Ok(said) } else { Err(said) }
        });
        assert!(said.trim_matches('"').starts_with(cause), "{name}: {said}");
        // The narrow table shows 29 characters: enough of the cause.
        let narrow = host.docker(&format!("service ps {name} --format {{{{.Error}}}}"));
        let shown: String = cause.chars().take(20).collect();
        assert!(narrow.contains(&shown), "{name}: {narrow}");
        eventually("the reason in the log", CONVERGE, || {
            let out = host.try_docker(&format!("service logs {name}"));
            let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
            if text.contains(&format!("error: {cause}")) { Ok(()) } else { Err(text) }
        });
    }
    let log = host.docker("ps -aq -f label=com.docker.swarm.service.name=syntax");
    let log = host.try_docker(&format!("logs {log}"));
    let log = String::from_utf8_lossy(&log.stderr).into_owned();
    assert!(log.contains("(in '/zones/example.org')"), "{log}");
    cluster.finish();
}
