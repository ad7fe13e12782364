//! Clients that ask for something while a test goes on, each request with a connection of its own.

use std::process::{Child, Command, Stdio};

use crate::Cluster;

/// Requests from a host until it is told to stop, to one node after the other; a line for each that
/// failed, and at last how many there were.
#[derive(Debug)]
pub struct Load(Child);

impl Load {
    /// One client on host `from` that asks every node's `port`.
    #[must_use]
    pub fn start(cluster: &Cluster, from: usize, port: u16) -> Self {
        let urls: Vec<String> = (1..=cluster.nodes)
            .map(|index| format!("http://{}:{port}/", cluster.node(index).address()))
            .collect();
        let line = format!(
            "count=0; while [ ! -e stop ]; do for url in {}; do \
             said=$(curl -s -m 10 -o /dev/null -w '%{{http_code}} %{{errormsg}}' $url); \
             case \"$said\" in 200*) ;; *) echo \"$(date +%T.%N) $url $said\";; esac; \
             count=$((count+1)); sleep 0.01; done; done; echo total $count",
            urls.join(" ")
        );
        let mut command = cluster.lab.host(from).command("sh");
        command.args(["-c", &line]);
        Self::of(command, cluster, from)
    }

    /// Clients of another kind on host `from`: they end once there is a file `stop`, and print what
    /// this says.
    #[must_use]
    pub fn of(mut command: Command, cluster: &Cluster, from: usize) -> Self {
        command.current_dir(cluster.lab.host(from).dir()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Ends it: there were more than `least` requests, and none may have failed.
    ///
    /// # Panics
    /// If one has.
    pub fn finish(self, cluster: &Cluster, from: usize, least: u32) {
        std::fs::write(cluster.lab.host(from).dir().join("stop"), "").unwrap();
        let text = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("total ")).unwrap();
        assert!(total.parse::<u32>().unwrap() > least, "{text}");
        assert_eq!(text.lines().count(), 1, "requests failed:\n{text}");
    }
}
