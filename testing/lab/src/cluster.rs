//! A cluster of the lab: hosts with daemons that have joined one swarm.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::topology::Lab;
use crate::{DaemonOptions, Host, eventually, import_shoal};

/// How long the cluster may take to do what it was told; generous, because machines are slow.
pub const CONVERGE: Duration = Duration::from_secs(30);

/// A lab whose first hosts form a swarm; the first of them is its manager.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts.
    pub lab: Lab,
    /// How many of them are nodes.
    pub nodes: usize,
}

impl Cluster {
    /// Starts `nodes` nodes, with the image `shoal:lab` on each, and `others` hosts besides.
    #[must_use]
    pub fn start(name: &str, nodes: u8, others: u8) -> Self {
        Self::start_with(name, nodes, others, &DaemonOptions::default())
    }

    /// The same, with options for the nodes' daemons.
    #[must_use]
    pub fn start_with(name: &str, nodes: u8, others: u8, options: &DaemonOptions) -> Self {
        Self::joined(name, nodes, others, options, "worker")
    }

    /// A lab of `count` managers, the first of which leads in the beginning, and `others` hosts
    /// besides.
    #[must_use]
    pub fn managers(name: &str, count: u8, others: u8) -> Self {
        Self::managers_with(name, count, others, &DaemonOptions::default())
    }

    /// The same, with options for the managers' daemons.
    #[must_use]
    pub fn managers_with(name: &str, count: u8, others: u8, options: &DaemonOptions) -> Self {
        Self::joined(name, count, others, options, "manager")
    }

    fn joined(name: &str, nodes: u8, others: u8, options: &DaemonOptions, role: &str) -> Self {
        let lab = Lab::start(name, nodes + others);
        let nodes = usize::from(nodes);
        for index in 1..=nodes {
            lab.host(index).daemon_with(options);
            import_shoal(lab.host(index));
        }
        let cluster = Self { lab, nodes };
        let manager = cluster.manager();
        manager.docker(&format!("swarm init --advertise-addr {}", manager.address()));
        let token = manager.docker(&format!("swarm join-token -q {role}"));
        for index in 2..=nodes {
            let join = format!("swarm join --token {token} {}:2377", manager.address());
            cluster.node(index).docker(&join);
        }
        cluster.wait_ready(nodes);
        cluster
    }

    /// The first node.
    #[must_use]
    pub fn manager(&self) -> &Host {
        self.lab.host(1)
    }

    /// Node number `index`, from 1.
    #[must_use]
    pub fn node(&self, index: usize) -> &Host {
        self.lab.host(index)
    }

    /// Waits until exactly `count` nodes are ready.
    pub fn wait_ready(&self, count: usize) {
        eventually("nodes to be ready", CONVERGE, || {
            let list = self.manager().docker("node ls --format {{.Status}}");
            let ready = list.lines().filter(|l| *l == "Ready").count();
            if ready == count { Ok(()) } else { Err(list) }
        });
    }

    /// The running tasks of a service: task name to node name.
    #[must_use]
    pub fn tasks(&self, service: &str) -> BTreeMap<String, String> {
        let format = "--format {{.ID}}|{{.Node}}|{{.CurrentState}}";
        let line = format!("service ps {service} --no-trunc -f desired-state=running {format}");
        let list = self.manager().docker(&line);
        list.lines()
            .filter_map(|line| {
                let mut parts = line.split('|');
                let (id, node, state) = (parts.next()?, parts.next()?, parts.next()?);
                state.starts_with("Running").then(|| (id.to_owned(), node.to_owned()))
            })
            .collect()
    }

    /// Waits until exactly `count` tasks of a service run.
    pub fn wait_tasks(&self, service: &str, count: usize) -> BTreeMap<String, String> {
        eventually(&format!("{count} tasks of '{service}'"), CONVERGE, || {
            let tasks = self.tasks(service);
            if tasks.len() == count {
                return Ok(tasks);
            }
            Err(self.manager().docker(&format!("service ps --no-trunc {service}")))
        })
    }

    /// Waits until a published port answers on every node. A task runs a moment before the last
    /// node has heard of it.
    pub fn wait_port(&self, from: usize, port: u16) {
        for index in 1..=self.nodes {
            let url = format!("http://{}:{port}/", self.node(index).address());
            eventually("the published port to answer", CONVERGE, || {
                let out = self.lab.host(from).try_sh(&format!("curl -sS -m 3 {url}"));
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                if out.status.success() { Ok(()) } else { Err(said) }
            });
        }
    }

    /// The container of a service's task on a node.
    #[must_use]
    pub fn container(&self, index: usize, service: &str) -> String {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let list = self.node(index).docker(&format!("ps -q --no-trunc -f {filter}"));
        let first = list.lines().next();
        first.unwrap_or_else(|| panic!("node {index} has no container of '{service}'")).to_owned()
    }

    /// Starts a service whose tasks do nothing but wait, one on each node: `docker exec` targets.
    pub fn clients(&self, network: &str) {
        self.manager().docker(&format!(
            "service create -d --mode global --name client --network {network} shoal:lab \
             shoal try pause"
        ));
        self.wait_tasks("client", self.nodes);
    }

    /// Requests from the client task of a node; the answers, sorted.
    #[must_use]
    pub fn ask_from_task(&self, index: usize, url: &str, count: u32) -> Vec<String> {
        let client = self.container(index, "client");
        let line = format!("exec {client} shoal try get {url} -n {count}");
        let text = self.node(index).docker(&line);
        spread(&text)
    }

    /// Requests with curl from a host, `count` of them; the answers, sorted.
    #[must_use]
    pub fn ask_from_host(&self, index: usize, url: &str, count: u32) -> Vec<String> {
        let line = format!("for i in $(seq {count}); do curl -sS -m 3 {url} || echo FAILED; done");
        let mut answers: Vec<String> =
            self.lab.host(index).sh(&line).lines().map(str::to_owned).collect();
        answers.sort();
        answers
    }

    /// See [`Lab::finish`].
    pub fn finish(self) {
        self.lab.finish();
    }
}

/// Which node leads as the manager `host` sees it, by its number, once that one sees `managers` of
/// them, all of them ready and reached.
pub fn leader(host: &Host, managers: usize, deadline: Duration) -> usize {
    eventually(&format!("{managers} managers on {}", host.name()), deadline, || {
        let out = host.try_docker("node ls --format {{.Hostname}}/{{.Status}}/{{.ManagerStatus}}");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let up = |line: &&str| line.ends_with("/Leader") || line.ends_with("/Reachable");
        let all = said.lines().filter(up).count() == managers;
        let ready = said.lines().filter(up).all(|line| line.contains("/Ready/"));
        let leads = said.lines().find_map(|line| line.strip_suffix("/Ready/Leader"));
        let number = leads.and_then(|name| name.rsplit('-').next()?.parse().ok());
        number.filter(|_| all && ready).ok_or(said)
    })
}

/// Undoes the counting of `shoal try get`: `    3  answer` is three answers.
fn spread(text: &str) -> Vec<String> {
    let mut answers = Vec::new();
    for line in text.lines() {
        if let Some((times, answer)) = line.trim().split_once("  ") {
            let times: usize = times.trim().parse().unwrap_or(1);
            answers.extend(std::iter::repeat_n(answer.to_owned(), times));
        }
    }
    answers.sort();
    answers
}

/// How many different tasks are in answers of the form `NAME at ADDRESS sees CLIENT`.
#[must_use]
pub fn backends(answers: &[String]) -> usize {
    let mut names: Vec<&str> = answers.iter().filter_map(|a| a.split_whitespace().next()).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}
