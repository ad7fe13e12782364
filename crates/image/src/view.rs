//! What the store tells about images, in Docker's JSON shapes.

use serde::{Deserialize, Serialize};
use shoal_model::spec::StringMap;
use shoal_model::spec::container::ContainerConfig;
use shoal_model::time::Timestamp;

use crate::config::Platform;
use crate::digest::{Digest, ImageId};

/// `GET /images/{name}/json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageInspect {
    /// The image's id.
    pub id: ImageId,
    /// Its names with tags, familiar form.
    pub repo_tags: Vec<String>,
    /// Its names with digests, familiar form.
    pub repo_digests: Vec<String>,
    /// Always empty: images here have no parents.
    pub parent: String,
    /// Why it was made.
    pub comment: String,
    /// When it was made, RFC 3339, as its configuration says.
    pub created: String,
    /// Always empty.
    pub docker_version: String,
    /// Who made it.
    pub author: String,
    /// Defaults of its containers.
    pub config: ContainerConfig,
    /// Machine.
    pub architecture: String,
    /// Variant of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// `linux`.
    pub os: String,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// Where its layers are.
    pub graph_driver: GraphDriver,
    /// Its layers.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFsView,
    /// What this node knows beyond the configuration.
    pub metadata: ImageMetadata,
}

/// Where layers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GraphDriver {
    /// `overlay2`.
    pub name: String,
    /// `LowerDir` and `UpperDir`: the layers' directories.
    pub data: StringMap,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RootFsView {
    /// `layers`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Digests of the uncompressed layers, bottom first.
    pub layers: Vec<Digest>,
}

/// What a node knows about an image beyond its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageMetadata {
    /// When a name was last given to it here.
    pub last_tag_time: Timestamp,
}

/// One element of `GET /images/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageSummary {
    /// The image's id.
    pub id: ImageId,
    /// Always empty.
    pub parent_id: String,
    /// Names with tags, familiar form.
    pub repo_tags: Vec<String>,
    /// Names with digests, familiar form.
    pub repo_digests: Vec<String>,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// Bytes shared with other images; -1: not counted.
    pub shared_size: i64,
    /// Its labels.
    pub labels: StringMap,
    /// Containers that hold it.
    pub containers: i64,
}

/// One element of `GET /images/{name}/history`, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryItem {
    /// The image's id for the newest, `<missing>` for the others.
    pub id: String,
    /// When, seconds since 1970.
    pub created: i64,
    /// The command.
    pub created_by: String,
    /// Names of the image, for the newest.
    pub tags: Option<Vec<String>>,
    /// Bytes it added.
    pub size: u64,
    /// Why.
    pub comment: String,
}

/// One element of the answer to `DELETE /images/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deleted {
    /// A name that was taken away.
    Untagged(String),
    /// An image or a chain of layers that was deleted.
    Deleted(String),
}

/// The answer to `POST /images/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pruned {
    /// What was removed; `null` if nothing.
    pub images_deleted: Option<Vec<Deleted>>,
    /// Bytes freed.
    pub space_reclaimed: u64,
}

/// `GET /distribution/{name}/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DistributionInspect {
    /// What the registry has under the name.
    pub descriptor: Descriptor,
    /// For which machines.
    pub platforms: Vec<Platform>,
}

/// A pointer to content (OCI image spec).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// For an entry of an index: its platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<StringMap>,
    /// Other places to get it from; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
}
