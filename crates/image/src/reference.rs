//! Names of images: parsing, Docker's normal form, familiar form.
//!
//! `busybox` means `docker.io/library/busybox:latest`; a first component with a dot, a colon, an
//! upper-case letter, or `localhost`, is a registry's host. Errors have Docker's words.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::Digest;
use crate::error::ImageError;

/// The registry of names without a host.
const DEFAULT_HOST: &str = "docker.io";
/// The old name of the same registry.
const LEGACY_HOST: &str = "index.docker.io";
/// Where names of one component live in the default registry.
const OFFICIAL: &str = "library/";
/// The longest repository name, host included (as the registry protocol has it).
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// A named image: host, path, and a tag, a digest, both or neither.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as users write it and brings it into normal form. Adds no tag.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] in Docker's words.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let invalid = |reason: String| ImageError::InvalidReference { reason };
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let malformed = || invalid("invalid reference format".into());
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; before it, a port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest.get(slash..).and_then(|last| last.split_once(':')) {
            Some((last, tag)) => (rest.get(..slash + last.len()).unwrap_or(rest), Some(tag)),
            None => (rest, None),
        };
        let (host, path) = split_host(name);
        if path.bytes().any(|b| b.is_ascii_uppercase()) && is_path(&path.to_ascii_lowercase()) {
            return Err(invalid(format!(
                "invalid reference format: repository name ({path}) must be lowercase"
            )));
        }
        if !is_host(&host) || !is_path(&path) || !tag.is_none_or(is_tag) {
            return Err(malformed());
        }
        if path.len() > MAX_NAME {
            return Err(invalid(format!(
                "invalid reference format: repository name must not be more than {MAX_NAME} \
                 characters"
            )));
        }
        Ok(Self { host, path, tag: tag.map(str::to_owned), digest })
    }

    /// Adds the tag `latest` if there is neither a tag nor a digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The registry's host with its port: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within its registry: `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and path: `docker.io/library/busybox`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Host and path as users write them: `busybox`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.host != DEFAULT_HOST {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name.into(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as users write it: `busybox:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.familiar_name() + &self.suffix()
    }

    /// The same repository with exactly this tag and no digest.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] if `tag` is no tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ImageError> {
        if !is_tag(tag) {
            return Err(ImageError::InvalidReference { reason: "invalid tag format".into() });
        }
        Ok(Self { tag: Some(tag.into()), digest: None, ..self.clone() })
    }

    /// The same repository with exactly this digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

/// The normal form: `docker.io/library/busybox:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.path, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

fn parse_digest(text: &str) -> Result<Digest, ImageError> {
    Digest::parse(text).ok_or_else(|| {
        let algorithm = text.split(':').next().unwrap_or_default();
        let reason = if text.contains(':') && algorithm != "sha256" {
            "unsupported digest algorithm"
        } else {
            "invalid reference format"
        };
        ImageError::InvalidReference { reason: reason.into() }
    })
}

/// Host and path of a name without tag and digest.
fn split_host(name: &str) -> (String, String) {
    let is_host_like = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host_like(first) => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == LEGACY_HOST { DEFAULT_HOST } else { host };
    if host == DEFAULT_HOST && !path.contains('/') {
        return (host.into(), format!("{OFFICIAL}{path}"));
    }
    (host.into(), path.into())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            let fine =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            if !fine {
                return false;
            }
            return after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_component)
}

/// Lower-case letters and digits, with one dot, one or two underscores, or any number of dashes
/// between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric)
        .filter(|between| !between.is_empty())
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(text: &str, normal: &str, familiar: &str) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!(
            (reference.to_string().as_str(), reference.familiar().as_str()),
            (normal, familiar)
        );
        assert_eq!(Reference::parse(normal).unwrap(), reference);
        assert_eq!(Reference::parse(familiar).unwrap(), reference);
    }

    #[test]
    fn names_have_a_normal_and_a_familiar_form() {
        check("busybox", "docker.io/library/busybox", "busybox");
        check("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36");
        check("index.docker.io/busybox", "docker.io/library/busybox", "busybox");
        check("library/busybox", "docker.io/library/busybox", "busybox");
        check("user/app:v1", "docker.io/user/app:v1", "user/app:v1");
        check("localhost/app", "localhost/app", "localhost/app");
        check("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t");
        check("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a");
        check("ghcr.io/a/b__c-d.e", "ghcr.io/a/b__c-d.e", "ghcr.io/a/b__c-d.e");
        check("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b");
        let digest = Digest::of(b"");
        check(
            &format!("busybox:1@{digest}"),
            &format!("docker.io/library/busybox:1@{digest}"),
            &format!("busybox:1@{digest}"),
        );
    }

    #[test]
    fn mistakes_are_told_in_dockers_words() {
        let says = |text: &str| Reference::parse(text).unwrap_err().to_string();
        for text in
            ["", ":", "a:", "a b", "-a", "a-", "a//b", "a:t:u", "a@sha256:12", "a___b", "a/"]
        {
            assert_eq!(says(text), "invalid reference format", "{text}");
        }
        assert_eq!(
            says("BusyBox"),
            "invalid reference format: repository name (library/BusyBox) must be lowercase"
        );
        assert!(says(&"a".repeat(256)).contains("must not be more than 255 characters"));
        assert!(says(&"f".repeat(64)).contains("cannot specify 64-byte hexadecimal strings"));
        assert_eq!(says("a@md5:12"), "unsupported digest algorithm");
        assert_eq!(says(&format!("a:{}", "t".repeat(129))), "invalid reference format");
    }

    #[test]
    fn latest_is_added_only_where_nothing_was_said() {
        let full = |text: &str| Reference::parse(text).unwrap().or_latest().familiar();
        assert_eq!(full("a"), "a:latest");
        assert_eq!(full("a:b"), "a:b");
        let digest = format!("a@{}", Digest::of(b""));
        assert_eq!(full(&digest), digest);
    }
}
