//! From what a user types to a running unikernel on this node.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::client::Api;

/// Where daemons listen if nobody says.
const SOCKET: &str = "/run/shoal.sock";
/// The label of unikernels' containers, as a filter of the Engine API, percent-encoded:
/// `{"label":["shoal.workload=unikernel"]}`.
const FILTER: &str = "%7B%22label%22%3A%5B%22shoal.workload%3Dunikernel%22%5D%7D";

/// Which daemon to ask.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Where this node's daemon listens, unix://PATH.
    #[arg(short = 'H', long, value_name = "URL", env = "DOCKER_HOST")]
    host: Option<String>,
}

/// A unikernel that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its container's name.
    pub name: String,
    /// Its container's id.
    pub id: String,
    /// Its tender on the host.
    pub pid: u32,
    /// Its counters.
    pub stats_file: PathBuf,
}

impl HostArgs {
    /// The daemon's API.
    pub fn api(&self) -> Result<Api> {
        let url = self.host.as_deref().filter(|url| !url.is_empty());
        let path = match url {
            None => SOCKET,
            Some(url) => url.strip_prefix("unix://").with_context(|| {
                format!("not implemented: '{url}': this is done on the node itself, unix://PATH")
            })?,
        };
        Ok(Api::new(Path::new(path)))
    }

    /// The unikernel that `word` means: a container, or a task of the cluster on this node.
    pub async fn find(&self, word: &str) -> Result<Target> {
        let api = self.api()?;
        let container = match api.get(&format!("/containers/{word}/json")).await {
            Ok(found) => found,
            Err(error) => match container_of_task(&api, word).await? {
                Some(id) => api
                    .get(&format!("/containers/{id}/json"))
                    .await
                    .with_context(|| format!("task '{word}' runs on another node; ask there"))?,
                None => return Err(error.context(format!("find '{word}'"))),
            },
        };
        target(&container).with_context(|| format!("look into '{word}'"))
    }

    /// All unikernels that run on this node.
    pub async fn all(&self) -> Result<Vec<Target>> {
        let api = self.api()?;
        let list = api.get(&format!("/containers/json?filters={FILTER}")).await?;
        let mut found = Vec::new();
        for one in list.as_array().into_iter().flatten() {
            let id = one["Id"].as_str().unwrap_or_default();
            // One that has ended since is not there any more.
            if let Ok(container) = api.get(&format!("/containers/{id}/json")).await
                && let Ok(target) = target(&container)
            {
                found.push(target);
            }
        }
        Ok(found)
    }
}

async fn container_of_task(api: &Api, word: &str) -> Result<Option<String>> {
    // Ignored because: outside a cluster, and for other words, there is no such task; the first
    // error says what is missing.
    let Ok(task) = api.get(&format!("/tasks/{word}")).await else { return Ok(None) };
    let id = task["Status"]["ContainerStatus"]["ContainerID"].as_str().unwrap_or_default();
    if id.is_empty() {
        bail!("task '{word}' has no container: {}", task["Status"]["State"]);
    }
    Ok(Some(id.to_owned()))
}

fn target(container: &Value) -> Result<Target> {
    let unikernel = &container["Unikernel"];
    if unikernel.is_null() {
        bail!("it is a container; use 'docker stats' and 'docker top'");
    }
    let pid = container["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let (Some(pid), Some(file)) = (pid.filter(|p| *p != 0), unikernel["StatsFile"].as_str()) else {
        bail!("it does not run: {}", container["State"]["Status"]);
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(Target {
        name: text(&container["Name"]).trim_start_matches('/').to_owned(),
        id: text(&container["Id"]),
        pid,
        stats_file: file.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_running_unikernel_is_told_from_everything_else() {
        let mut container = json!({
            "Id": "abc", "Name": "/web.1.x", "State": {"Pid": 7, "Status": "running"},
            "Unikernel": {"UID": 1, "StatsFile": "/run/s"},
        });
        let found = target(&container).unwrap();
        assert_eq!((found.name.as_str(), found.pid), ("web.1.x", 7));
        container["State"] = json!({"Pid": 0, "Status": "exited"});
        assert!(target(&container).unwrap_err().to_string().contains("exited"));
        container["Unikernel"] = Value::Null;
        assert!(target(&container).unwrap_err().to_string().contains("docker stats"));
    }

    #[test]
    fn only_this_nodes_socket_is_asked() {
        let of = |url: &str| HostArgs { host: Some(url.to_owned()) }.api();
        assert!(of("unix:///run/x.sock").is_ok());
        assert!(of("tcp://192.0.2.1:2375").unwrap_err().to_string().contains("not implemented"));
    }
}
