//! Unikernels wherever containers run: by hand and as services, on the same networks as containers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Output;
use std::time::Duration;

use shoal_lab::{CONVERGE, Cluster, Host, Lab, backends, eventually, import_guest, shoal};

/// A host with a daemon, the lab's unikernel and a container image; and a client's host.
fn start(name: &str) -> Lab {
    let lab = Lab::start(name, 2);
    lab.host(1).daemon();
    import_guest(lab.host(1), "guest:red", "red");
    lab
}

/// A cluster whose nodes have the lab's unikernel in two colours.
fn cluster(name: &str, nodes: u8) -> Cluster {
    let cluster = Cluster::start(name, nodes, 1);
    for index in 1..=usize::from(nodes) {
        import_guest(cluster.node(index), "guest:red", "red");
        import_guest(cluster.node(index), "guest:blue", "blue");
    }
    cluster
}

fn curl(host: &Host, url: &str) -> Output {
    host.try_sh(&format!("curl -sS -m 3 {url}"))
}

/// Waits for an answer.
fn answer(host: &Host, url: &str) -> String {
    eventually(&format!("an answer of {url}"), CONVERGE, || {
        let out = curl(host, url);
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        if out.status.success() && !text.is_empty() { Ok(text) } else { Err(format!("{out:?}")) }
    })
}

fn log_has(host: &Host, container: &str, words: &str) {
    eventually(&format!("'{words}' in the log"), CONVERGE, || {
        let out = host.try_docker(&format!("logs {container}"));
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        if text.contains(words) { Ok(()) } else { Err(text) }
    });
}

/// `shoal unikernel …` on a host.
fn tool(host: &Host, args: &str) -> String {
    host.sh(&format!("DOCKER_HOST={} {} unikernel {args}", host.socket(), shoal().display()))
}

/// The ways in which this host runs unikernels.
fn backends_of(host: &Host) -> Vec<String> {
    let known = host.docker_args(&["info", "--format", "{{json .Labels}}"]);
    let known: serde_json::Value = serde_json::from_str(&known).unwrap();
    let known = known.as_array().unwrap().iter().filter_map(|label| label.as_str());
    let own = known.filter_map(|label| label.strip_prefix("shoal.unikernel.backends=")).next();
    own.expect("info names the backends").split(',').map(str::to_owned).collect()
}

#[test]
fn docker_run_runs_a_unikernel_in_every_way_that_the_host_has() {
    let lab = start("uk-run");
    let backends = backends_of(lab.host(1));
    assert!(backends.contains(&"process".to_owned()), "{backends:?}");
    for backend in backends {
        run_and_end(&lab, &backend);
    }
    lab.finish();
}

fn run_and_end(lab: &Lab, backend: &str) {
    let (host, client) = (lab.host(1), lab.host(2));
    host.docker(&format!(
        "run -d --name web -p 8080:80 -h first -e X=y --memory 64m \
         --label shoal.backend={backend} guest:red one two"
    ));
    let url = |path: &str| format!("http://{}:8080{path}", host.address());
    let said = answer(client, &url("/"));
    assert_eq!(said, format!("first at 172.17.0.2 sees {}", client.address()));
    assert_eq!(answer(client, &url("/env/X")), "y");
    assert_eq!(answer(client, &url("/env/COLOUR")), "red");
    assert_eq!(answer(client, &url("/args")), "/unikernel one two");
    // The host itself, and loopback.
    assert!(answer(host, "http://127.0.0.1:8080/").starts_with("first at"));
    log_has(host, "web", "asked for /args");

    let shown = host.docker_json("inspect web");
    assert_eq!(shown[0]["Unikernel"]["Backend"], backend);
    assert_eq!(shown[0]["NetworkSettings"]["Networks"]["bridge"]["IPAddress"], "172.17.0.2");
    let stats = host.docker("stats --no-stream --format {{.Name}}|{{.MemUsage}}|{{.NetIO}} web");
    assert!(stats.starts_with("web|") && stats.contains("64MiB"), "{stats}");
    assert!(!stats.contains("|0B / 0B"), "no traffic is counted: {stats}");

    for refused in ["exec web sh", "top web", "cp web:/etc/hosts -", "kill -s USR1 web"] {
        let said = host.docker_fails(refused);
        assert!(said.contains("unikernel: ") && said.contains("; use "), "{refused}: {said}");
    }
    let said = host.docker_fails("create -it guest:red");
    assert!(said.contains("no terminal") && said.contains("docker logs"), "{said}");

    // It is told to stop, and ends by itself with its own status.
    host.docker("stop -t 5 web");
    log_has(host, "web", "asked to stop");
    assert_eq!(host.docker("inspect web --format {{.State.ExitCode}}"), "0");
    assert!(!curl(client, &url("/")).status.success());
    host.docker("start web");
    assert!(answer(client, &url("/")).starts_with("first at"));

    // A crash says where; the policy decides what follows.
    curl(client, &url("/crash"));
    let error = eventually("the crash", CONVERGE, || {
        let state = host.docker("inspect web --format {{.State.ExitCode}}|{{.State.Error}}");
        if state.starts_with("134|") { Ok(state) } else { Err(state) }
    });
    assert!(error.contains("crashed as asked"), "{error}");
    host.docker("rm web");
    host.docker("run -d --name again --restart on-failure -p 8080:80 guest:red");
    answer(client, &url("/"));
    curl(client, &url("/crash"));
    eventually("the restart", CONVERGE, || {
        let count = host.docker("inspect again --format {{.RestartCount}}");
        if count == "1" { Ok(()) } else { Err(count) }
    });
    answer(client, &url("/"));
    host.docker("rm -f again");
}

#[test]
fn files_and_volumes_reach_a_unikernel() {
    let lab = start("uk-files");
    let (host, client) = (lab.host(1), lab.host(2));
    let site = host.dir().join("site");
    std::fs::create_dir_all(site.join("sub")).unwrap();
    std::fs::write(site.join("sub/page"), "a page").unwrap();
    std::fs::write(host.dir().join("one.conf"), "one").unwrap();
    let dir = host.dir().display().to_string();
    let run = |name: &str| {
        host.docker(&format!(
            "run -d --name {name} -p 8080:80 -v {dir}/site:/www:ro -v {dir}/one.conf:/etc/one:ro \
             --mount type=bind,source={dir}/one.conf,target=/etc/two,readonly -v data:/dev/data \
             --label shoal.block.data=1m guest:red"
        ))
    };
    run("first");
    let ask = |path: &str| answer(client, &format!("http://{}:8080{path}", host.address()));
    assert_eq!(ask("/file/www/sub/page"), "a page");
    assert_eq!((ask("/file/etc/one"), ask("/file/etc/two")), ("one".into(), "one".into()));
    assert_eq!(ask("/sector/kept"), "2048 sectors");
    let mounts = host.docker_json("inspect first")[0]["Mounts"].to_string();
    assert!(mounts.contains("/dev/data") && mounts.contains("/www"), "{mounts}");
    host.docker("rm -f first");
    // The volume stays, as it was written.
    run("second");
    assert_eq!(ask("/sector"), "kept");
    let said = host.docker_fails(&format!("run -d -v {dir}/site:/www guest:red"));
    assert!(said.contains("readonly"), "{said}");
    let said = host.docker_fails("run --rm -d -v data:/dev/other guest:red");
    assert!(said.contains("no block device 'other'"), "{said}");
    host.docker("rm -f second");
    host.docker("volume rm data");
    lab.finish();
}

#[test]
fn health_is_asked_over_the_network() {
    let lab = start("uk-health");
    let host = lab.host(1);
    let run = |name: &str, label: &str| {
        host.docker(&format!(
            "run -d --name {name} --health-interval 200ms --health-retries 2 --label {label} \
             guest:red"
        ));
        eventually("a verdict", CONVERGE, || {
            let health =
                host.docker(&format!("inspect {name} --format {{{{.State.Health.Status}}}}"));
            if health == "starting" { Err(health) } else { Ok(health) }
        })
    };
    assert_eq!(run("http", "shoal.health.http=/"), "healthy");
    assert_eq!(run("tcp", "shoal.health.tcp=80"), "healthy");
    assert_eq!(run("missing", "shoal.health.http=/nowhere"), "unhealthy");
    assert_eq!(run("closed", "shoal.health.tcp=81"), "unhealthy");
    let said = host.docker_json("inspect missing")[0]["State"]["Health"].to_string();
    assert!(said.contains("404"), "{said}");
    host.docker("rm -f http tcp missing closed");
    lab.finish();
}

#[test]
fn a_running_unikernel_is_looked_into_from_outside() {
    let lab = start("uk-tools");
    let (host, client) = (lab.host(1), lab.host(2));
    host.docker("run -d --name web -p 8080:80 guest:red");
    let url = format!("http://{}:8080/", host.address());
    answer(client, &url);
    let capture = host.dir().join("web.pcap");
    let mut pcap = host
        .command(&shoal().to_string_lossy())
        .env("DOCKER_HOST", host.socket())
        .args(["unikernel", "pcap", "web", "-c", "6", "-w"])
        .arg(&capture)
        .spawn()
        .unwrap();
    let ended = eventually("six frames", CONVERGE, || {
        curl(client, &url);
        pcap.try_wait().unwrap().ok_or_else(|| "it still waits".to_owned())
    });
    assert!(ended.success(), "{ended}");
    let bytes = std::fs::read(&capture).unwrap();
    assert_eq!(bytes.get(..4), Some(&0xa1b2_3c4d_u32.to_ne_bytes()[..]));
    assert!(bytes.len() > 24 + 6 * (16 + 54), "{} bytes", bytes.len());
    let table = tool(host, "top web");
    assert!(table.contains("BACKEND") && table.contains("web"), "{table}");
    let all: serde_json::Value = serde_json::from_str(&tool(host, "top --json -i 0.2")).unwrap();
    assert_eq!(all[0]["name"], "web");
    assert!(all[0]["devices"][0]["received"][0].as_u64().unwrap() > 6, "{all}");
    assert!(all[0]["memory_bytes"].as_u64().unwrap() > 0, "{all}");
    host.docker("rm -f web");
    assert!(tool(host, "top").contains("no unikernel runs here"));
    lab.finish();
}

#[test]
fn a_service_of_unikernels_is_one_among_containers() {
    let cluster = cluster("uk-service", 2);
    let host = cluster.manager();
    host.docker("network create -d overlay mynet1");
    cluster.clients("mynet1");
    host.docker("service create -d --name box --network mynet1 shoal:lab");
    host.docker(
        "service create -d --replicas 3 --name web --network mynet1 --publish 8091:80 guest:red",
    );
    cluster.wait_tasks("web", 3);
    cluster.wait_tasks("box", 1);
    cluster.wait_port(3, 8091);
    // The mesh: every node, every task, the client's own address.
    for index in 1..=2 {
        let url = format!("http://{}:8091/", cluster.node(index).address());
        let answers = cluster.ask_from_host(3, &url, 30);
        assert_eq!(backends(&answers), 3, "{answers:?}");
        assert!(answers.iter().all(|a| a.ends_with("sees 198.51.100.3")), "{answers:?}");
    }
    // Containers on the overlay: by name through the virtual address, on both nodes.
    for index in 1..=2 {
        let answers = eventually("all three", CONVERGE, || {
            let answers = cluster.ask_from_task(index, "http://web/", 30);
            if backends(&answers) == 3 { Ok(answers) } else { Err(format!("{answers:?}")) }
        });
        assert!(answers.iter().all(|a| a.contains("sees 10.0.")), "{answers:?}");
    }
    // A unikernel reaches a container of the overlay, by its name; and itself.
    for service in ["box", "web", "tasks.box.mynet1"] {
        let url = format!("http://{}:8091/call/{service}:80", host.address());
        let said = answer(cluster.lab.host(3), &url);
        assert!(said.contains("sees 10.0."), "{service}: {said}");
    }
    let network = host.docker_json("service inspect box");
    let address = network[0]["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().unwrap();
    let url = format!("http://{}:8091/lookup/box", host.address());
    assert_eq!(Some(answer(cluster.lab.host(3), &url).as_str()), address.split('/').next());
    let url = format!("http://{}:8091/lookup/nowhere", host.address());
    assert!(answer(cluster.lab.host(3), &url).contains("name"));

    let text = eventually("every task's log", CONVERGE, || {
        let out = host.try_docker("service logs web");
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        if text.matches("answers on port 80").count() == 3 { Ok(text) } else { Err(text) }
    });
    assert!(text.contains("node-1") && text.contains("node-2"), "{text}");
    cluster.finish();
}

#[test]
fn an_update_rolls_from_one_image_to_another_without_a_failed_request() {
    let cluster = cluster("uk-update", 2);
    let (host, client) = (cluster.manager(), cluster.lab.host(3));
    host.docker(
        "service create -d --replicas 3 --name web --publish 8091:80 \
         --update-order start-first --update-monitor 500ms guest:red",
    );
    cluster.wait_tasks("web", 3);
    cluster.wait_port(3, 8091);
    // Requests one after the other, until the file is gone.
    let (go, seen) = (client.dir().join("go"), client.dir().join("seen"));
    std::fs::write(&go, "").unwrap();
    let line = format!(
        "while [ -e {} ]; do curl -sS -m 5 http://{}:8091/env/COLOUR || echo FAILED; done > {} 2>&1",
        go.display(),
        host.address(),
        seen.display()
    );
    let mut load = client.command("sh").args(["-c", &line]).spawn().unwrap();
    let said = host.docker("service update --image guest:blue web");
    assert!(said.contains("converged"), "{said}");
    let text = eventually("blue answers only", CONVERGE, || {
        let text = std::fs::read_to_string(&seen).unwrap();
        let last: Vec<&str> = text.lines().rev().take(10).collect();
        if last.iter().all(|l| *l == "blue") { Ok(text.clone()) } else { Err(text.clone()) }
    });
    std::fs::remove_file(&go).unwrap();
    assert!(load.wait().unwrap().success());
    let colours: Vec<&str> = text.lines().collect();
    assert!(colours.contains(&"red") && colours.len() > 20, "{colours:?}");
    let failed: Vec<&&str> = colours.iter().filter(|l| !["red", "blue"].contains(*l)).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), colours.len());
    cluster.finish();
}

/// A client task's connection to `address` that says nothing; returned once it is open.
fn idle(cluster: &Cluster, index: usize, address: &str) -> std::process::Child {
    let host = cluster.node(index);
    let client = cluster.container(index, "client");
    let child = host
        .docker_cmd(&["exec", "-i", &client, "nc", address, "80"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = host.docker(&format!("inspect -f {{{{.State.Pid}}}} {client}"));
    eventually("the idle connection", CONVERGE, || {
        let table = host.sh(&format!("nsenter -t {pid} -n ss -tn state established"));
        if table.contains(address) { Ok(()) } else { Err(table) }
    });
    child
}

#[test]
fn a_lost_tender_is_replaced_and_a_lost_daemon_is_not_missed() {
    let cluster = cluster("uk-loss", 2);
    let (host, client) = (cluster.manager(), cluster.lab.host(3));
    host.docker("network create -d overlay mynet1");
    host.docker(
        "service create -d --replicas 2 --name web --network mynet1 --publish 8091:80 guest:red",
    );
    cluster.wait_tasks("web", 2);
    cluster.wait_port(3, 8091);
    cluster.clients("mynet1");

    // The daemon goes, the unikernel does not notice; the next daemon takes it over.
    let container = cluster.container(2, "web");
    let pid =
        || cluster.node(2).docker(&format!("inspect {container} --format {{{{.State.Pid}}}}"));
    let before = pid();
    cluster.node(2).kill_daemon();
    let url = format!("http://{}:8091/", cluster.node(2).address());
    for _ in 0..5 {
        answer(client, &url);
    }
    cluster.node(2).restart();
    assert_eq!(pid(), before);
    cluster.wait_ready(2);
    let answers = cluster.ask_from_host(3, &url, 10);
    assert_eq!(backends(&answers), 2, "{answers:?}");

    // The tender is killed: containers that wait for it, on both nodes, hear of it at once; its
    // task fails with the reason and another one takes its place.
    let address = cluster.node(2).docker_json(&format!("inspect {container}"))[0]
        ["NetworkSettings"]["Networks"]["mynet1"]["IPAddress"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut waiting = [idle(&cluster, 1, &address), idle(&cluster, 2, &address)];
    let task = cluster.tasks("web");
    assert_eq!(cluster.node(2).sh(&format!("kill -9 {before}; echo $?")), "0");
    for child in &mut waiting {
        // The guest itself would let go of an idle client after ten seconds.
        eventually("the idle client to be reset", Duration::from_secs(5), || {
            child.try_wait().unwrap().map(drop).ok_or_else(|| "it still waits".to_owned())
        });
    }
    eventually("another task", CONVERGE, || {
        let now = cluster.tasks("web");
        let fresh = now.keys().filter(|id| !task.contains_key(*id)).count();
        if now.len() == 2 && fresh == 1 { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let list = host.docker("service ps web --no-trunc --format {{.CurrentState}}|{{.Error}}");
    assert!(list.lines().any(|l| l.starts_with("Failed") && l.contains("137")), "{list}");
    cluster.wait_port(3, 8091);
    host.docker("service rm web client");
    eventually("the tasks to go", Duration::from_secs(30), || {
        let left = cluster.node(2).docker("ps -q");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    cluster.finish();
}
