//! `GET /containers/json`, and the small answers of other container routes.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_model::spec::StringMap;

use super::container::{EndpointView, MountPoint};

/// A container as `docker ps` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerSummary {
    /// 64 hex digits.
    pub id: String,
    /// With a leading slash.
    pub names: Vec<String>,
    /// The reference that the client used; the image's id if that name is gone.
    pub image: String,
    /// The image's id.
    #[serde(rename = "ImageID")]
    pub image_id: String,
    /// Program and arguments in one line.
    pub command: String,
    /// Unix time, in seconds.
    pub created: i64,
    /// Ports.
    pub ports: Vec<PortSummary>,
    /// Bytes that it wrote, with `size=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<i64>,
    /// Those and its image's, with `size=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<i64>,
    /// Labels.
    pub labels: StringMap,
    /// `running`…
    pub state: String,
    /// `Up 3 minutes (healthy)`.
    pub status: String,
    /// The network mode.
    pub host_config: SummaryHostConfig,
    /// Its networks.
    pub network_settings: SummaryNetworks,
    /// Its mounts.
    pub mounts: Vec<MountPoint>,
}

/// The part of `HostConfig` in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SummaryHostConfig {
    /// `bridge`, a network…
    pub network_mode: String,
}

/// The part of `NetworkSettings` in a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SummaryNetworks {
    /// By network name.
    pub networks: BTreeMap<String, EndpointView>,
}

/// One port in a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PortSummary {
    /// The address on the host.
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The port inside.
    #[serde(rename = "PrivatePort")]
    pub private_port: u16,
    /// The port on the host.
    #[serde(rename = "PublicPort", skip_serializing_if = "Option::is_none")]
    pub public_port: Option<u16>,
    /// `tcp`…
    #[serde(rename = "Type")]
    pub protocol: String,
}

/// The answer to `POST /containers/create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    /// The new container.
    pub id: String,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// The answer to `GET /containers/{id}/top`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Top {
    /// Column heads.
    pub titles: Vec<String>,
    /// One row for each process.
    pub processes: Vec<Vec<String>>,
}

/// One row of `GET /containers/{id}/changes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FsChange {
    /// The path inside.
    pub path: String,
    /// 0 changed, 1 added, 2 deleted.
    pub kind: u8,
}

/// The header `X-Docker-Container-Path-Stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStat {
    /// The last part of the path.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Go's `os.FileMode`.
    pub mode: u32,
    /// RFC 3339.
    pub mtime: String,
    /// Where a symbolic link leads, as an absolute path inside.
    pub link_target: String,
}

/// The answer to `POST …/prune` of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainersPruned {
    /// Ids that are gone.
    pub containers_deleted: Vec<String>,
    /// Bytes freed.
    pub space_reclaimed: u64,
}
