//! The steps of the scenario. Each prints what was really answered, and claims what must hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::load::{Background, Tally, requests};
use super::scenario::{CLIENTS, IMAGE, NETWORK, PORT, SERVICE, Stage};
use crate::client::Api;
use crate::tools::request::Summary;

/// How long a daemon may take until it answers.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long the cluster may take to do what it was told, also on a slow machine.
const CONVERGE_DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Requests in each round.
const ROUND: u32 = 20;
/// No new connection may wait longer when a node loses its power, and no task be missed longer.
const POWER_LOSS_BOUND: Duration = Duration::from_secs(5);

/// Starts three daemons.
pub async fn start_nodes(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.step("three hosts, one daemon on each", "shoal daemon");
    for node in &stage.topology.nodes {
        let mut node = node.lock().map_err(|_| anyhow::anyhow!("a step panicked"))?;
        node.start()?;
        stage.apis.push(Api::new(&node.socket()));
    }
    let began = Instant::now();
    for (index, api) in stage.apis.iter().enumerate() {
        loop {
            if api.get("/version").await.is_ok() {
                break;
            }
            let node = stage.topology.nodes.get(index).context("there is no such node")?;
            let ended = node.lock().map_err(|_| anyhow::anyhow!("a step panicked"))?.ended();
            if let Some(ended) = ended {
                bail!("node-{} ended: {ended}", index + 1);
            }
            if began.elapsed() > START_DEADLINE {
                bail!("node-{} does not answer", index + 1);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    for (name, address) in stage.nodes()? {
        stage.report.said(&format!("{name} {address}"));
    }
    Ok(())
}

/// Loads the image on every node.
pub async fn load_image(stage: &mut Stage<'_>, archive: Bytes) -> Result<()> {
    stage.report.step("the image: this program as its only layer", "docker load");
    let loads = stage.apis.iter().map(|api| api.upload("/images/load?quiet=1", archive.clone()));
    let said = futures::future::try_join_all(loads).await?;
    let size = format!("{:.1} MB", archive.len() as f64 / 1e6);
    stage.report.said(&format!("{} ({size}) on {} nodes", IMAGE, said.len()));
    Ok(())
}

/// `swarm init`.
pub async fn init(stage: &mut Stage<'_>) -> Result<()> {
    let (_, address) = stage.nodes()?.into_iter().next().context("there is no node")?;
    let command = format!("docker swarm init --advertise-addr {address}");
    stage.report.step("a swarm", &command);
    let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address, "Spec": {}});
    let id = stage.manager()?.post("/swarm/init", &body).await?;
    let swarm = stage.manager()?.get("/swarm").await?;
    let token = swarm["JoinTokens"]["Worker"].as_str().unwrap_or_default().to_owned();
    stage.report.said(&format!("node {}", id.as_str().unwrap_or_default()));
    stage.report.said(&format!("docker swarm join --token {token} {address}:2377"));
    stage.report.claim(token.starts_with("SWMTKN-1-") && token.len() == 85, "a token to join with");
    Ok(())
}

/// `swarm join`.
pub async fn join(stage: &mut Stage<'_>) -> Result<()> {
    let nodes = stage.nodes()?;
    let manager = nodes.first().context("there is no node")?.1.clone();
    stage.report.step("two more nodes", &format!("docker swarm join --token … {manager}:2377"));
    let swarm = stage.manager()?.get("/swarm").await?;
    let token = &swarm["JoinTokens"]["Worker"];
    for (api, (_, address)) in stage.apis.iter().zip(&nodes).skip(1) {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address,
            "RemoteAddrs": [format!("{manager}:2377")], "JoinToken": token,
        });
        api.post("/swarm/join", &body).await?;
    }
    let ready = eventually("three nodes to be ready", || async {
        let list = stage.manager()?.get("/nodes").await?;
        let ready = array(&list).filter(|n| n["Status"]["State"] == "ready").count();
        Ok((ready == nodes.len()).then_some(list))
    });
    let list = ready.await?;
    for node in array(&list) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let leader = if node["ManagerStatus"]["Leader"] == true { "Leader" } else { "" };
        let name = text(&node["Description"]["Hostname"]);
        let state = text(&node["Status"]["State"]);
        stage.report.said(&format!("{} {name} {state} {leader}", text(&node["ID"])));
    }
    stage.report.claim(true, "all three nodes are ready");
    Ok(())
}

/// `network create`.
pub async fn create_network(stage: &mut Stage<'_>) -> Result<()> {
    stage
        .report
        .step("a network across them", &format!("docker network create -d overlay {NETWORK}"));
    let body = json!({"Name": NETWORK, "Driver": "overlay"});
    let made = stage.manager()?.post("/networks/create", &body).await?;
    let id = made["Id"].as_str().unwrap_or_default().to_owned();
    stage.report.said(&id);
    stage.report.claim(id.len() == 25, "a swarm network's id has 25 characters");
    Ok(())
}

/// `service create` with a virtual address and a published port.
pub async fn create_service(stage: &mut Stage<'_>) -> Result<()> {
    let command = format!(
        "docker service create --replicas 2 --name {SERVICE} --network {NETWORK} \
         --publish {PORT}:80 {IMAGE}"
    );
    stage.report.step("a service of two tasks", &command);
    let body = json!({
        "Name": SERVICE,
        "TaskTemplate": {
            "ContainerSpec": {"Image": IMAGE},
            "RestartPolicy": {"Condition": "any", "Delay": 1_000_000_000},
            "Networks": [{"Target": NETWORK}],
        },
        "Mode": {"Replicated": {"Replicas": 2}},
        "EndpointSpec": {"Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT}]},
    });
    stage.manager()?.post("/services/create", &body).await?;
    let tasks = running(stage.manager()?, SERVICE, 2).await?;
    let nodes = show_tasks(stage, &tasks).await?;
    stage.report.claim(nodes.len() == 2, "its tasks run on different nodes");
    Ok(())
}

/// One client on each node.
pub async fn create_clients(stage: &mut Stage<'_>) -> Result<()> {
    let command =
        format!("docker service create --mode global --name {CLIENTS} --network {NETWORK} …");
    stage.report.step("a client task on each node", &command);
    let body = json!({
        "Name": CLIENTS,
        "TaskTemplate": {
            "ContainerSpec": {"Image": IMAGE, "Args": ["try", "pause"]},
            "Networks": [{"Target": NETWORK}],
        },
        "Mode": {"Global": {}},
    });
    stage.manager()?.post("/services/create", &body).await?;
    let tasks = running(stage.manager()?, CLIENTS, stage.apis.len()).await?;
    show_tasks(stage, &tasks).await?;
    Ok(())
}

/// The name, as a client sees it.
pub async fn resolve(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.step("the service's name", &format!("dig {SERVICE}   # inside a client"));
    let services = stage.manager()?.get(&format!("/services/{SERVICE}")).await?;
    let vips: Vec<String> = array(&services["Endpoint"]["VirtualIPs"])
        .filter_map(|v| v["Addr"].as_str()?.split('/').next().map(str::to_owned))
        .collect();
    for (index, api) in stage.apis.iter().enumerate() {
        let client = client_on(api).await?;
        let (text, status) = api.exec(&client, &["/shoal", "try", "resolve", SERVICE]).await?;
        stage.report.said(&format!("node-{}: {}", index + 1, text.trim().replace('\n', " | ")));
        let right = status == 0 && vips.iter().any(|vip| text.contains(vip.as_str()));
        stage.report.claim(right, "the answer is the service's virtual address, from 127.0.0.11");
    }
    Ok(())
}

/// Requests to the virtual address, from a task on each node.
pub async fn ask_virtual_address(stage: &mut Stage<'_>) -> Result<()> {
    let command = format!("curl {SERVICE}   # {ROUND} times, inside the client of each node");
    stage.report.step("the virtual address, from every node", &command);
    let url = format!("http://{SERVICE}/");
    for index in 0..stage.apis.len() {
        let api = stage.apis.get(index).context("there is no such node")?.clone();
        let client = client_on(&api).await?;
        let count = ROUND.to_string();
        let command = ["/shoal", "try", "get", &url, "-n", &count, "--json"];
        let (text, _) = api.exec(&client, &command).await?;
        let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        let summary: Summary = serde_json::from_str(line)
            .with_context(|| format!("understand the client's answer '{}'", text.trim()))?;
        stage.report.said(&format!("from node-{}:", index + 1));
        say_answers(stage, &summary.answers, &summary.failures);
        let answered: u32 = summary.answers.values().sum();
        let backends = who_answered(&summary.answers);
        stage.report.claim(
            answered == ROUND && backends == 2,
            &format!("{answered} of {ROUND} answered, by {backends} tasks"),
        );
    }
    Ok(())
}

/// Requests to the published port of each node, from outside.
pub async fn ask_published_port(stage: &mut Stage<'_>) -> Result<()> {
    let outside = stage.topology.outside.address.clone();
    stage.report.step(
        "the published port of every node, from outside",
        &format!("curl http://<node>:{PORT}/   # {ROUND} times each, from {outside}"),
    );
    for (name, address) in stage.nodes()? {
        let to: SocketAddr = format!("{address}:{PORT}").parse().context("make an address")?;
        let tally = requests(&stage.topology.outside, to, ROUND).await?;
        stage.report.said(&format!("{name}:"));
        say_answers(stage, &tally.answers, &tally.failures);
        let all = tally.answered() == ROUND;
        let backends = who_answered(&tally.answers);
        stage.report.claim(
            all && backends == 2,
            &format!("{} of {ROUND} answered, by {backends} tasks", tally.answered()),
        );
        let seen = tally.answers.keys().all(|a| a.ends_with(&format!("sees {outside}")));
        stage
            .report
            .claim(all && seen, &format!("the tasks saw the client's own address {outside}"));
    }
    Ok(())
}

/// `service scale`.
pub async fn scale(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.step("more tasks", &format!("docker service scale {SERVICE}=6"));
    let began = Instant::now();
    set_replicas(stage.manager()?, 6).await?;
    let tasks = running(stage.manager()?, SERVICE, 6).await?;
    let took = began.elapsed().as_secs_f64();
    let nodes = show_tasks(stage, &tasks).await?;
    stage.report.said(&format!("after {took:.1} s"));
    let even = nodes.values().all(|count| *count == 2) && nodes.len() == 3;
    stage.report.claim(even, "two on each node");
    let to = published(stage)?;
    let heard = eventually("all six to answer", || async {
        let tally = requests(&stage.topology.outside, to, 10 * ROUND).await?;
        Ok((who_answered(&tally.answers) == 6 || tally.failed() > 0).then_some(tally))
    });
    let tally = heard.await?;
    stage.report.claim(
        tally.failed() == 0,
        &format!("{} requests, {} failed, 6 tasks answer", tally.answered(), tally.failed()),
    );
    Ok(())
}

/// A node's cable is pulled and its power cut, under load.
pub async fn lose_a_node(stage: &mut Stage<'_>) -> Result<()> {
    let victim = stage.nodes()?.last().context("there is no node")?.0.clone();
    stage.report.step(
        &format!("a power cut at {victim}, under load"),
        &format!("# cable out, then kill -9 everything on {victim}"),
    );
    let to = published(stage)?;
    let load = Background::begin(&stage.topology.outside, to);
    let before = requests(&stage.topology.outside, to, ROUND).await?;
    stage.topology.unplug(&victim)?;
    let began = Instant::now();
    {
        let machine = stage.topology.nodes.last().context("there is no node")?;
        machine.lock().map_err(|_| anyhow::anyhow!("a step panicked"))?.cut_power()?;
    }
    stage.apis.pop();
    let replaced = eventually("six tasks on the other nodes", || async {
        let list = running_now(stage.manager()?, SERVICE).await?;
        let nodes = node_names(stage.manager()?).await?;
        let alive = list.iter().filter(|t| {
            nodes.get(t["NodeID"].as_str().unwrap_or_default()).is_some_and(|n| *n != victim)
        });
        Ok((alive.count() >= 6).then_some(list.clone()))
    });
    let tasks = replaced.await?;
    let took = began.elapsed().as_secs_f64();
    // A little longer, so that the load also sees the settled state.
    let after = requests(&stage.topology.outside, to, ROUND).await?;
    let tally = load.end().await?;
    show_tasks(stage, &tasks).await?;
    show_loss(stage, &tally, took);
    let bound = POWER_LOSS_BOUND * stage.slower;
    let seconds = bound.as_secs();
    stage.report.claim(
        took <= bound.as_secs_f64(),
        &format!("its tasks run elsewhere within {seconds} s of the power cut"),
    );
    stage.report.claim(
        tally.longest_connect <= bound,
        &format!("no new connection waited longer than {seconds} s"),
    );
    stage
        .report
        .claim(tally.longest <= bound, &format!("no request waited longer than {seconds} s"));
    stage.report.claim(
        before.failed() + after.failed() == 0,
        "no request failed before the cut, nor after the replacement",
    );
    Ok(())
}

fn show_loss(stage: &Stage<'_>, tally: &Tally, took: f64) {
    stage.report.said(&format!("replaced after {took:.1} s"));
    stage.report.said(&format!(
        "load: {} answered, {} failed; longest wait for a connection {:.2} s, for an answer {:.2} s",
        tally.answered(),
        tally.failed(),
        tally.longest_connect.as_secs_f64(),
        tally.longest.as_secs_f64()
    ));
    for (failure, times) in &tally.failures {
        stage.report.said(&format!("{times:>5}  {failure}"));
    }
}

/// `service rm`.
pub async fn remove_service(stage: &mut Stage<'_>) -> Result<()> {
    stage.report.step("the end", &format!("docker service rm {SERVICE} {CLIENTS}"));
    let began = Instant::now();
    stage.manager()?.delete(&format!("/services/{SERVICE}")).await?;
    stage.manager()?.delete(&format!("/services/{CLIENTS}")).await?;
    let apis = &stage.apis;
    let gone = eventually("the containers to go", || async {
        let mut left = 0;
        for api in apis {
            left += array(&api.get("/containers/json?all=1").await?).count();
        }
        Ok((left == 0).then_some(()))
    });
    gone.await?;
    let took = began.elapsed().as_secs_f64();
    stage.report.claim(true, &format!("every container of theirs is gone after {took:.1} s"));
    Ok(())
}

fn published(stage: &Stage<'_>) -> Result<SocketAddr> {
    let (_, address) = stage.nodes()?.into_iter().next().context("there is no node")?;
    format!("{address}:{PORT}").parse().context("make an address")
}

fn say_answers(
    stage: &Stage<'_>,
    answers: &BTreeMap<String, u32>,
    failures: &BTreeMap<String, u32>,
) {
    for (answer, times) in answers {
        stage.report.said(&format!("{times:>5}  {answer}"));
    }
    for (failure, times) in failures {
        stage.report.said(&format!("{times:>5}  failed: {failure}"));
    }
}

/// How many different tasks answered: an answer begins with the task's host name.
fn who_answered(answers: &BTreeMap<String, u32>) -> usize {
    let names = answers.keys().filter_map(|answer| answer.split_whitespace().next());
    names.collect::<std::collections::BTreeSet<_>>().len()
}

async fn set_replicas(api: &Api, replicas: u64) -> Result<()> {
    let service = api.get(&format!("/services/{SERVICE}?insertDefaults=false")).await?;
    let mut spec = service["Spec"].clone();
    spec["Mode"] = json!({"Replicated": {"Replicas": replicas}});
    let version = &service["Version"]["Index"];
    api.post(&format!("/services/{SERVICE}/update?version={version}"), &spec).await.map(drop)
}

/// The container of the client task on a node.
async fn client_on(api: &Api) -> Result<String> {
    let filters = json!({"label": [format!("com.docker.swarm.service.name={CLIENTS}")]});
    let path = format!(
        "/containers/json?filters={}",
        utf8_percent_encode(&filters.to_string(), NON_ALPHANUMERIC)
    );
    let list = api.get(&path).await?;
    let first = array(&list).next().context("no client runs on this node")?;
    Ok(first["Id"].as_str().unwrap_or_default().to_owned())
}

async fn running_now(api: &Api, service: &str) -> Result<Vec<Value>> {
    let filters = json!({"service": [service], "desired-state": ["running"]});
    let path =
        format!("/tasks?filters={}", utf8_percent_encode(&filters.to_string(), NON_ALPHANUMERIC));
    let list = api.get(&path).await?;
    Ok(array(&list).filter(|t| t["Status"]["State"] == "running").cloned().collect())
}

async fn running(api: &Api, service: &str, count: usize) -> Result<Vec<Value>> {
    let what = format!("{count} tasks of '{service}' to run");
    eventually(&what, || async {
        let list = running_now(api, service).await?;
        Ok((list.len() >= count).then_some(list))
    })
    .await
    .map_err(|error| error.context(format!("see `docker service ps --no-trunc {service}`")))
}

async fn node_names(api: &Api) -> Result<BTreeMap<String, String>> {
    let list = api.get("/nodes").await?;
    let pair = |node: &Value| {
        let id = node["ID"].as_str()?.to_owned();
        Some((id, node["Description"]["Hostname"].as_str()?.to_owned()))
    };
    Ok(array(&list).filter_map(pair).collect())
}

/// Prints tasks; gives how many run on each node.
async fn show_tasks(stage: &Stage<'_>, tasks: &[Value]) -> Result<BTreeMap<String, u32>> {
    let names = node_names(stage.manager()?).await?;
    let mut nodes: BTreeMap<String, u32> = BTreeMap::new();
    for task in tasks {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let node = names.get(&text(&task["NodeID"])).cloned().unwrap_or_default();
        let state = text(&task["Status"]["State"]);
        stage.report.said(&format!(
            "{} slot {} {state} on {node}",
            text(&task["ID"]),
            task["Slot"]
        ));
        *nodes.entry(node).or_default() += 1;
    }
    Ok(nodes)
}

async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if began.elapsed() > CONVERGE_DEADLINE {
            bail!("waited {} s for {what}", CONVERGE_DEADLINE.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
