//! Secrets and configs: what clients store, and how the tasks of a service refer to it.
//!
//! Both are one thing, data with a name that never changes, and differ in who may read it: a
//! config is shown to whoever asks, a secret only to the tasks that refer to it.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::task::Driver;
use super::{Extra, StringMap};
use crate::spec::service::null_as_default;

/// Where a secret whose reference says a relative name appears.
pub const SECRETS_DIR: &str = "/run/secrets";

/// The body of `POST /secrets/create` and `/configs/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PayloadSpec {
    /// Unique among secrets, or among configs.
    pub name: String,
    /// Labels; the only part that can change.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: StringMap,
    /// The data itself.
    #[serde(skip_serializing_if = "PayloadData::is_empty")]
    pub data: PayloadData,
    /// Who else keeps the data, of secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// What fills in placeholders of the data, for each task anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Driver>,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The data of a secret or a config. Shared, not copied; base64 in JSON; never printed.
#[derive(Clone, Default, Eq)]
pub struct PayloadData(Arc<[u8]>);

impl PayloadData {
    /// From bytes.
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for PayloadData {
    fn eq(&self, other: &Self) -> bool {
        // Assignments are compared again and again, and mostly hold the very same bytes.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl fmt::Debug for PayloadData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may be a secret.
        write!(f, "PayloadData({} bytes)", self.len())
    }
}

impl Serialize for PayloadData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for PayloadData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Go writes `null` for no bytes.
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        let bytes = STANDARD.decode(text);
        bytes.map(Self::new).map_err(|e| de::Error::custom(format!("data is not base64: {e}")))
    }
}

/// A secret that a service's tasks get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecretReference {
    /// As which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// The secret's id.
    #[serde(rename = "SecretID")]
    pub secret_id: String,
    /// Its name, which must be that of the id.
    pub secret_name: String,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A config that a service's tasks get.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigReference {
    /// As which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// Set when it is not a file but a credential spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<serde_json::Value>,
    /// The config's id.
    #[serde(rename = "ConfigID")]
    pub config_id: String,
    /// Its name, which must be that of the id.
    pub config_name: String,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The file as which a secret or a config appears in a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FileTarget {
    /// Its path; relative to [`SECRETS_DIR`] for secrets, to the root for configs.
    pub name: String,
    /// Its owner, a number; empty means 0.
    #[serde(rename = "UID")]
    pub uid: String,
    /// Its group, a number; empty means 0.
    #[serde(rename = "GID")]
    pub gid: String,
    /// Its permission bits.
    pub mode: u32,
}

impl FileTarget {
    /// The owner's and the group's number; `None` if one of them is no number.
    #[must_use]
    pub fn owner(&self) -> Option<(u32, u32)> {
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse().ok() };
        Some((number(&self.uid)?, number(&self.gid)?))
    }

    /// Its absolute path below `dir`, where relative names begin.
    #[must_use]
    pub fn path(&self, dir: &str) -> String {
        if self.name.starts_with('/') {
            return self.name.clone();
        }
        format!("{}/{}", dir.trim_end_matches('/'), self.name)
    }
}

impl SecretReference {
    /// The absolute path of its file.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        self.file.as_ref().map(|file| file.path(SECRETS_DIR))
    }
}

impl ConfigReference {
    /// The absolute path of its file.
    #[must_use]
    pub fn path(&self) -> Option<String> {
        self.file.as_ref().map(|file| file.path("/"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn data_travels_as_base64_and_is_never_printed() {
        let sent = json!({"Name": "a", "Labels": null, "Data": "aHVudGVyMg=="});
        let spec: PayloadSpec = serde_json::from_value(sent).unwrap();
        assert_eq!(spec.data.bytes(), b"hunter2");
        assert!(!format!("{spec:?}").contains("hunter2"), "{spec:?}");
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(written, json!({"Name": "a", "Labels": {}, "Data": "aHVudGVyMg=="}));
        let none: PayloadSpec = serde_json::from_value(json!({"Data": null})).unwrap();
        assert!(none.data.is_empty());
        let bad = serde_json::from_value::<PayloadSpec>(json!({"Data": "%"})).unwrap_err();
        assert!(bad.to_string().contains("not base64"), "{bad}");
    }

    #[test]
    fn relative_names_begin_where_docker_puts_them() {
        let file = |name: &str| Some(FileTarget { name: name.into(), ..FileTarget::default() });
        let secret = |name| SecretReference { file: file(name), ..SecretReference::default() };
        let config = |name| ConfigReference { file: file(name), ..ConfigReference::default() };
        assert_eq!(secret("key").path().unwrap(), "/run/secrets/key");
        assert_eq!(secret("/etc/key").path().unwrap(), "/etc/key");
        assert_eq!(config("zone").path().unwrap(), "/zone");
        assert_eq!(config("etc/zone").path().unwrap(), "/etc/zone");
        assert_eq!(ConfigReference::default().path(), None);
    }

    #[test]
    fn owners_are_numbers() {
        let owner = |uid: &str, gid: &str| {
            FileTarget { uid: uid.into(), gid: gid.into(), ..FileTarget::default() }.owner()
        };
        assert_eq!(owner("", ""), Some((0, 0)));
        assert_eq!(owner("1000", "50"), Some((1000, 50)));
        assert_eq!(owner("root", "0"), None);
        assert_eq!(owner("-1", "0"), None);
    }
}
