//! API versions: the `/v1.NN` prefix, and the texts that clients match.

use std::fmt;

use crate::error::{ApiError, ApiResult};

/// A version of the Engine API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Before the dot.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

/// The newest version whose behaviour Shoal has; announced on every answer.
pub const VERSION_MAX: ApiVersion = ApiVersion::new(1, 50);
/// The oldest version that is accepted.
pub const VERSION_MIN: ApiVersion = ApiVersion::new(1, 24);

impl ApiVersion {
    /// `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether the client speaks at least `1.minor`.
    #[must_use]
    pub fn at_least(self, minor: u32) -> bool {
        self >= Self::new(1, minor)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self::new(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Splits the version prefix off `path`. Without one the newest version is meant.
///
/// # Errors
/// 400 for versions that are too new or too old, in Docker's words.
pub fn split(path: &str) -> ApiResult<(ApiVersion, &str)> {
    let Some((text, rest)) = prefix(path) else {
        return Ok((VERSION_MAX, path));
    };
    let Some(version) = ApiVersion::parse(text) else {
        return Err(ApiError::invalid(format!("invalid API version '{text}'")));
    };
    if version > VERSION_MAX {
        return Err(ApiError::invalid(format!(
            "client version {text} is too new. Maximum supported API version is {VERSION_MAX}"
        )));
    }
    if version < VERSION_MIN {
        return Err(ApiError::invalid(format!(
            "client version {text} is too old. Minimum supported API version is {VERSION_MIN}, \
             please upgrade your client to a newer version"
        )));
    }
    Ok((version, rest))
}

fn prefix(path: &str) -> Option<(&str, &str)> {
    let tail = path.strip_prefix("/v")?;
    let end = tail.find('/').unwrap_or(tail.len());
    let (text, rest) = tail.split_at(end);
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    digits.then_some((text, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn prefixes_are_split_off() {
        assert_eq!(split("/v1.41/info").unwrap(), (ApiVersion::new(1, 41), "/info"));
        assert_eq!(split("/info").unwrap(), (VERSION_MAX, "/info"));
        assert_eq!(split("/volumes").unwrap(), (VERSION_MAX, "/volumes"));
        assert_eq!(split("/version").unwrap(), (VERSION_MAX, "/version"));
    }

    #[test]
    fn unsupported_versions_are_refused_in_dockers_words() {
        let new = split("/v1.99/info").unwrap_err();
        assert_eq!(
            new.message,
            "client version 1.99 is too new. Maximum supported API version is 1.50"
        );
        let old = split("/v1.12/info").unwrap_err();
        assert_eq!(
            old.message,
            "client version 1.12 is too old. Minimum supported API version is 1.24, please \
             upgrade your client to a newer version"
        );
        assert!(split("/v1./info").is_err());
    }
}
