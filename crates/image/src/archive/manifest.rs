//! The documents of image archives and registries.

use serde::{Deserialize, Serialize};

use crate::config::Platform;
use crate::error::ImageError;
use crate::view::Descriptor;

/// OCI's index of several manifests.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's manifest of one image.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker's index of several manifests.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest of one image.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// OCI's configuration.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The most manifests that an index may name; real ones have below fifty.
const MAX_MANIFESTS: usize = 1000;

/// One element of `manifest.json` in an archive of `docker save`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SavedImage {
    /// The configuration's file.
    pub config: String,
    /// Names with tags.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub repo_tags: Vec<String>,
    /// The layers' files, bottom first.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub layers: Vec<String>,
}

/// A manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// An index of several manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ManifestIndex {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

/// What a registry or an OCI layout has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Image(Box<Manifest>),
    Index(ManifestIndex),
}

impl Document {
    /// Reads one; its own `mediaType` wins, then what the carrier said, then its shape.
    pub(crate) fn parse(bytes: &[u8], said: &str, what: &str) -> Result<Self, ImageError> {
        let invalid = |reason: String| ImageError::InvalidDocument { what: what.into(), reason };
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
            return Err(invalid("manifests of schema version 1 are not supported".into()));
        }
        let kind = value.get("mediaType").and_then(|m| m.as_str()).unwrap_or(said);
        let is_index = match kind {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            _ => value.get("manifests").is_some(),
        };
        if !is_index {
            let manifest = serde_json::from_value(value);
            return manifest
                .map(Box::new)
                .map(Self::Image)
                .map_err(|error| invalid(error.to_string()));
        }
        let index: ManifestIndex =
            serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
        if index.manifests.len() > MAX_MANIFESTS {
            return Err(invalid(format!("it has more than {MAX_MANIFESTS} entries")));
        }
        Ok(Self::Index(index))
    }
}

impl ManifestIndex {
    /// The manifest for a platform.
    pub(crate) fn choose(
        &self,
        wanted: &Platform,
        reference: &str,
    ) -> Result<&Descriptor, ImageError> {
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|p| p.serves(wanted));
        if let Some(entry) = self.images().find(fits) {
            return Ok(entry);
        }
        // An index of one image that says nothing about its platform is for everybody.
        let mut images = self.images();
        if let (Some(only), None) = (images.next(), images.next())
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let offered: Vec<String> =
            self.images().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
        Err(ImageError::NoPlatform {
            reference: reference.into(),
            wanted: wanted.to_string(),
            offered: if offered.is_empty() { "none".into() } else { offered.join(", ") },
        })
    }

    /// The entries that are images, not attestations about them.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests
            .iter()
            .filter(|entry| entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;

    fn index(platforms: &[Option<&str>]) -> ManifestIndex {
        let entry = |platform: &Option<&str>| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(format!("{platform:?}").as_bytes()),
            size: 1,
            platform: platform.map(|p| Platform::parse(p).unwrap()),
            annotations: None,
            urls: None,
        };
        ManifestIndex {
            schema_version: 2,
            media_type: None,
            manifests: platforms.iter().map(entry).collect(),
        }
    }

    #[test]
    fn the_platform_decides() {
        let wanted = Platform::parse("linux/arm64").unwrap();
        let many = index(&[Some("linux/amd64"), Some("linux/arm64/v8"), Some("unknown/unknown")]);
        let chosen = many.choose(&wanted, "a").unwrap();
        assert_eq!(chosen.platform.as_ref().unwrap().to_string(), "linux/arm64/v8");
        let none = index(&[Some("linux/amd64"), Some("linux/s390x")]);
        let error = none.choose(&wanted, "a:1").unwrap_err().to_string();
        assert!(error.contains("no matching manifest for linux/arm64"), "{error}");
        assert!(error.contains("linux/amd64, linux/s390x"), "{error}");
        assert!(index(&[None]).choose(&wanted, "a").is_ok());
    }

    #[test]
    fn old_manifests_are_refused_by_name() {
        let error = Document::parse(br#"{"schemaVersion":1}"#, "", "x").unwrap_err();
        assert!(error.to_string().contains("schema version 1"));
    }
}
