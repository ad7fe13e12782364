//! An image's configuration blob, and platforms.

use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_model::spec::container::ContainerConfig;
use shoal_model::spec::{Extra, StringMap};

use crate::digest::DiffId;

/// The configuration blob (OCI image spec, `application/vnd.oci.image.config.v1+json`). The blob
/// itself is kept byte for byte, since its digest is the image's id; this is for reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Machine, in Go's words: `amd64`, `arm64`…
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Variant of the machine, for example `v8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Defaults of containers made from it.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub config: ContainerConfig,
    /// Its layers.
    pub rootfs: RootFs,
    /// How it came about.
    #[serde(
        deserialize_with = "shoal_model::spec::service::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<HistoryEntry>,
    /// What is not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, bottom first.
    #[serde(default, deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// When, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it added no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// A machine that an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Machine, in Go's words: `amd64`, `arm64`…
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Version of the system, for Windows.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the system.
    #[serde(rename = "os.features", skip_serializing_if = "Option::is_none")]
    pub os_features: Option<Vec<String>>,
    /// Variant of the machine, for example `v8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was built for.
    #[must_use]
    pub fn host() -> Self {
        Self {
            architecture: machine(std::env::consts::ARCH).into(),
            os: "linux".into(),
            ..Self::default()
        }
    }

    /// Reads `linux/arm64/v8`, `arm64`, or the JSON that API 1.49 and later send; `None` if it is
    /// neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with('{') {
            return serde_json::from_str(text).ok();
        }
        let words: Vec<&str> = text.split('/').collect();
        let fine = |word: &&str| {
            !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !words.iter().all(fine) {
            return None;
        }
        let (os, architecture, variant) = match words.as_slice() {
            ["linux"] => ("linux", std::env::consts::ARCH, None),
            [architecture] => ("linux", *architecture, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => return None,
        };
        Some(Self {
            architecture: machine(architecture).into(),
            os: os.into(),
            variant,
            ..Self::default()
        })
    }

    /// Whether an image for `self` may be given to somebody who asked for `wanted`.
    #[must_use]
    pub fn serves(&self, wanted: &Self) -> bool {
        let variant = |platform: &Self| match (machine(&platform.architecture), &platform.variant) {
            ("arm64", None) => Some("v8".to_owned()),
            (_, variant) => variant.clone().filter(|v| !v.is_empty()),
        };
        self.os == wanted.os
            && machine(&self.architecture) == machine(&wanted.architecture)
            && (wanted.variant.is_none() || variant(self) == variant(wanted))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// A machine's name in Go's words.
fn machine(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i386" => "386",
        "powerpc64le" => "ppc64le",
        other => other,
    }
}

/// Labels of a configuration, never absent.
pub(crate) fn labels(config: &ImageConfig) -> StringMap {
    config.config.labels.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms_are_read_in_every_form() {
        let shown = |text: &str| Platform::parse(text).map(|p| p.to_string());
        assert_eq!(shown("linux/x86_64").as_deref(), Some("linux/amd64"));
        assert_eq!(shown("arm64").as_deref(), Some("linux/arm64"));
        assert_eq!(shown("linux/arm/v7").as_deref(), Some("linux/arm/v7"));
        assert_eq!(
            shown(r#"{"architecture":"arm64","os":"linux"}"#).as_deref(),
            Some("linux/arm64")
        );
        assert_eq!(shown("a/b/c/d"), None);
        assert_eq!(shown("lin ux"), None);
    }

    #[test]
    fn arm64_without_variant_is_v8() {
        let offered = Platform::parse("linux/arm64").unwrap();
        assert!(offered.serves(&Platform::parse("linux/arm64/v8").unwrap()));
        assert!(!offered.serves(&Platform::parse("linux/amd64").unwrap()));
    }

    #[test]
    fn docker_configs_with_nulls_are_read() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"]},
            "history":null,"rootfs":{"type":"layers","diff_ids":null},"container":"x"}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config.cmd.unwrap().list(), ["sh"]);
        assert_eq!(config.extra["container"], "x");
    }
}
