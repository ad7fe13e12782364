//! Volumes, as `GET /volumes` shows them.

use serde::{Deserialize, Serialize};
use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// When it was made.
    pub created_at: Timestamp,
    /// `local`.
    pub driver: String,
    /// Labels; anonymous ones have `com.docker.volume.anonymous`.
    pub labels: StringMap,
    /// Its directory on the host.
    pub mountpoint: String,
    /// Its name.
    pub name: String,
    /// Options as given.
    pub options: Option<StringMap>,
    /// `local`.
    pub scope: String,
    /// Who uses it and how big it is, with `system df`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_data: Option<VolumeUsage>,
}

/// Use of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeUsage {
    /// Bytes.
    pub size: i64,
    /// Containers.
    pub ref_count: i64,
}

/// The body of `POST /volumes/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeCreate {
    /// Empty: a random one.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub name: String,
    /// `local` or empty.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub driver: String,
    /// Options of the driver.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub driver_opts: StringMap,
    /// Labels.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub labels: StringMap,
    /// Only for cluster volumes, which Shoal does not have yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_volume_spec: Option<serde_json::Value>,
}

/// The answer to `POST /volumes/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumesPruned {
    /// Names that are gone.
    pub volumes_deleted: Vec<String>,
    /// Bytes freed.
    pub space_reclaimed: u64,
}
