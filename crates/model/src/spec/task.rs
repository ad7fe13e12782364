//! What a task should be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::container::{HealthConfig, Mount, Ulimit};
use super::payload::{ConfigReference, SecretReference};
use super::{Extra, StringMap};
use crate::time::Nanos;

/// `TaskSpec` of the Engine API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskSpec {
    /// The container, for ordinary tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_spec: Option<ContainerSpec>,
    /// Set instead for a container that was started by hand and joined a swarm network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_attachment_spec: Option<NetworkAttachmentSpec>,
    /// Limits and reservations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// When an ended task is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Which nodes are suitable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Counted up to replace tasks that are otherwise unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_update: Option<u64>,
    /// `container` if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Networks to join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkAttachmentConfig>>,
    /// Where output goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<Driver>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `NetworkAttachmentSpec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentSpec {
    /// The container that joined.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
}

/// A name with options: log drivers, mount drivers, IPAM drivers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Driver {
    /// The driver's name.
    pub name: String,
    /// Its options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<StringMap>,
}

/// One network that a task joins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentConfig {
    /// The network's id or name as the client sent it.
    pub target: String,
    /// Further DNS names on that network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aliases: Option<Vec<String>>,
    /// Driver options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_opts: Option<StringMap>,
}

/// A network that every node has for itself, under the same name everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeNetwork {
    /// The node's own network namespace.
    Host,
    /// The bridge that containers without a network are on.
    Bridge,
    /// A namespace with nothing but loopback.
    None,
}

impl NodeNetwork {
    /// The one that `word` names.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::Host, Self::Bridge, Self::None].into_iter().find(|one| one.name() == word)
    }

    /// Its name, which is its id in the cluster, too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Bridge => "bridge",
            Self::None => "none",
        }
    }

    /// The one among `networks`.
    #[must_use]
    pub fn among(networks: &[NetworkAttachmentConfig]) -> Option<Self> {
        networks.iter().find_map(|attachment| Self::named(&attachment.target))
    }
}

/// `ContainerSpec` of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    /// Image reference, with digest if the client resolved it.
    pub image: String,
    /// Labels of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<StringMap>,
    /// Replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Host name inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// `user[:group]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Additional groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Security settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileges: Option<serde_json::Value>,
    /// Whether it gets a terminal.
    #[serde(rename = "TTY", skip_serializing_if = "Option::is_none")]
    pub tty: Option<bool>,
    /// Whether its standard input stays open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_stdin: Option<bool>,
    /// Whether its root is read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<Mount>>,
    /// Signal that asks it to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How long it may take to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Nanos>,
    /// How its health is found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// `address name…` lines for its hosts file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Name servers, search domains, options.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// Secrets to mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Vec<SecretReference>>,
    /// Configs to mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configs: Option<Vec<ConfigReference>>,
    /// Windows only; kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Whether a small init process is PID 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Kernel settings of its namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<StringMap>,
    /// Capabilities beyond the default ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability_add: Option<Vec<String>>,
    /// Capabilities taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability_drop: Option<Vec<String>>,
    /// Process limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ulimits: Option<Vec<Ulimit>>,
    /// Added to the kernel's out-of-memory score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i64>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a container spec keeps the client's registry credentials (`X-Registry-Auth`) on their way
/// to the nodes. Never shown to clients: see [`ContainerSpec::set_registry_auth`].
pub const REGISTRY_AUTH: &str = "shoal.registryAuth";

impl ContainerSpec {
    /// The registry credentials for pulling the image, as the client sent them.
    #[must_use]
    pub fn registry_auth(&self) -> Option<&str> {
        self.extra.get(REGISTRY_AUTH).and_then(|value| value.as_str())
    }

    /// Sets or removes the registry credentials. Remove them before a spec is shown to a client.
    pub fn set_registry_auth(&mut self, auth: Option<String>) {
        match auth {
            Some(auth) => {
                self.extra.insert(REGISTRY_AUTH.to_owned(), serde_json::Value::String(auth));
            }
            None => {
                self.extra.remove(REGISTRY_AUTH);
            }
        }
    }

    /// How long a task may take to stop, 10 s if unsaid.
    #[must_use]
    pub fn stop_grace_period(&self) -> Duration {
        self.stop_grace_period.map_or(Duration::from_secs(10), Nanos::duration)
    }
}

/// `DNSConfig`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Name servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nameservers: Option<Vec<String>>,
    /// Search domains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Vec<String>>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
}

/// Limits and reservations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceRequirements {
    /// Never more than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// A node needs this much free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<Resources>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Amounts of CPU, memory and processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Billionths of a CPU.
    #[serde(rename = "NanoCPUs", default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<i64>,
    /// Bytes of memory.
    #[serde(rename = "MemoryBytes", default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Number of processes.
    #[serde(rename = "Pids", default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<i64>,
    /// Named and counted devices.
    #[serde(rename = "GenericResources", default, skip_serializing_if = "Option::is_none")]
    pub generic_resources: Option<Vec<serde_json::Value>>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// When an ended task is replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `none`, `on-failure` or `any` (the default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Pause before the replacement starts, 5 s if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// How often; 0 or unsaid: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// The span in which attempts are counted; 0 or unsaid: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Nanos>,
}

/// Which nodes are suitable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    /// `node.role == manager` and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Vec<String>>,
    /// Spread over the values of a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<Vec<serde_json::Value>>,
    /// At most this many tasks of the service on one node; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u64>,
    /// Platforms that the image exists for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platforms: Option<Vec<Platform>>,
}

/// An operating system and a machine architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// For example `x86_64`.
    #[serde(rename = "Architecture")]
    pub architecture: String,
    /// For example `linux`.
    #[serde(rename = "OS")]
    pub os: String,
}
