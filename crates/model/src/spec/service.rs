//! What a service should be.

use serde::{Deserialize, Serialize};

use super::task::{NetworkAttachmentConfig, TaskSpec};
use super::{Extra, StringMap};
use crate::net::{Port, Protocol};
use crate::time::Nanos;

/// `ServiceSpec` of the Engine API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    /// Unique name; also its DNS name.
    pub name: String,
    /// Labels of the service itself.
    #[serde(deserialize_with = "crate::spec::service::null_as_default")]
    pub labels: StringMap,
    /// What each task is.
    pub task_template: TaskSpec,
    /// How many tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ServiceMode>,
    /// How a new spec replaces an old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// How a failed update is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    /// Networks as clients before API 1.44 send them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkAttachmentConfig>>,
    /// Names, virtual addresses and published ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Reads JSON `null` as the type's default: Go clients send `null` for empty maps and lists.
///
/// # Errors
/// Whatever the inner type's decoder says.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ServiceSpec {
    /// The networks of the tasks, wherever the client put them.
    #[must_use]
    pub fn networks(&self) -> &[NetworkAttachmentConfig] {
        match (&self.task_template.networks, &self.networks) {
            (Some(list), _) if !list.is_empty() => list,
            (_, Some(list)) => list,
            (Some(list), None) => list,
            (None, None) => &[],
        }
    }

    /// The number of tasks of a replicated service (1 if unsaid); `None` for other modes.
    #[must_use]
    pub fn replicas(&self) -> Option<u64> {
        match &self.mode {
            None => Some(1),
            Some(mode) => mode.replicated.as_ref().map(|r| r.replicas.unwrap_or(1)),
        }
    }

    /// Whether one task runs on every suitable node.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.mode.as_ref().is_some_and(|mode| mode.global.is_some())
    }

    /// Whether its tasks run to completion.
    #[must_use]
    pub fn is_job(&self) -> bool {
        let is = |mode: &ServiceMode| mode.replicated_job.is_some() || mode.global_job.is_some();
        self.mode.as_ref().is_some_and(is)
    }

    /// How often a replicated job is to be completed, and how many of its tasks may run at a time.
    #[must_use]
    pub fn replicated_job(&self) -> Option<&ReplicatedJob> {
        self.mode.as_ref()?.replicated_job.as_ref()
    }

    /// The name of its mode, as users write it.
    #[must_use]
    pub fn mode_name(&self) -> &'static str {
        match &self.mode {
            Some(mode) if mode.global.is_some() => "global",
            Some(mode) if mode.replicated_job.is_some() => "replicated-job",
            Some(mode) if mode.global_job.is_some() => "global-job",
            _ => "replicated",
        }
    }

    /// The published ports.
    #[must_use]
    pub fn ports(&self) -> &[PortConfig] {
        self.endpoint_spec.as_ref().and_then(|e| e.ports.as_deref()).unwrap_or(&[])
    }

    /// How the service's name resolves.
    #[must_use]
    pub fn endpoint_mode(&self) -> EndpointMode {
        self.endpoint_spec.as_ref().and_then(|e| e.mode).unwrap_or_default()
    }
}

/// `ServiceSpec.Mode`: exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    /// A number of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
    /// One task on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<Extra>,
    /// A number of tasks that run to completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated_job: Option<ReplicatedJob>,
    /// One task on each node that runs to completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_job: Option<Extra>,
}

/// `ServiceSpec.Mode.Replicated`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Replicated {
    /// How many tasks; 1 if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

/// `ServiceSpec.Mode.ReplicatedJob`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedJob {
    /// How many tasks run at a time; 1 if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// How many tasks must end well; as many as run at a time if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_completions: Option<u64>,
}

impl ReplicatedJob {
    /// How many tasks run at a time.
    #[must_use]
    pub fn max_concurrent(&self) -> u64 {
        self.max_concurrent.unwrap_or(1)
    }

    /// How many tasks must end well.
    #[must_use]
    pub fn total_completions(&self) -> u64 {
        self.total_completions.unwrap_or_else(|| self.max_concurrent())
    }
}

/// `UpdateConfig` and `RollbackConfig`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    /// Tasks replaced at a time; 0 means all at once.
    pub parallelism: u64,
    /// Pause between batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// What a failure does: `pause`, `continue` or `rollback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_action: Option<String>,
    /// How long a new task is watched for failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Nanos>,
    /// Share of failing tasks that is still fine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failure_ratio: Option<f64>,
    /// `stop-first` or `start-first`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How a service's name resolves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// To one virtual address that is balanced.
    #[default]
    Vip,
    /// To the addresses of its tasks.
    Dnsrr,
}

/// `EndpointSpec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSpec {
    /// How the name resolves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<EndpointMode>,
    /// Published ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortConfig>>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a published port is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, balanced over all tasks.
    #[default]
    Ingress,
    /// Only on the nodes that run a task, straight to it.
    Host,
}

/// One published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortConfig {
    /// A name, for the reader only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The port inside the task.
    pub target_port: u16,
    /// The port on the node; absent or 0: the manager chooses one from 30000 to 32767.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_port: Option<u16>,
    /// On which nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_mode: Option<PublishMode>,
}

impl PortConfig {
    /// The protocol, TCP if unsaid.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_default()
    }

    /// The mode, ingress if unsaid.
    #[must_use]
    pub fn mode(&self) -> PublishMode {
        self.publish_mode.unwrap_or_default()
    }

    /// The published port, if one is chosen.
    #[must_use]
    pub fn published(&self) -> Option<Port> {
        let number = self.published_port.filter(|n| *n != 0)?;
        Some(Port { protocol: self.protocol(), number })
    }
}
