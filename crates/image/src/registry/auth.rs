//! Credentials as Docker's clients send them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::error::ImageError;

/// The longest header that is read; Docker's clients send about a kilobyte.
const MAX_HEADER: usize = 64 * 1024;

/// The content of the header `X-Registry-Auth`. Its `Debug` form hides the secrets.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `username:password` in base64, from old clients.
    pub auth: String,
    /// The registry they are for.
    pub serveraddress: String,
    /// A refresh token instead of a password.
    pub identitytoken: String,
    /// A bearer token, used as it is.
    pub registrytoken: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

impl RegistryAuth {
    /// Reads the header's value: JSON in base64, of either alphabet, padded or not. An empty value
    /// or an empty object gives `None`.
    ///
    /// # Errors
    /// [`ImageError::InvalidAuth`] if it is neither.
    pub fn from_header(value: &str) -> Result<Option<Self>, ImageError> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(None);
        }
        let invalid = |reason: &str| ImageError::InvalidAuth { reason: reason.into() };
        if value.len() > MAX_HEADER {
            return Err(invalid("the header is too long"));
        }
        let json = [URL_SAFE, STANDARD, URL_SAFE_NO_PAD, STANDARD_NO_PAD]
            .iter()
            .find_map(|alphabet| alphabet.decode(value).ok())
            .ok_or_else(|| invalid("not base64"))?;
        let mut auth: Self =
            serde_json::from_slice(&json).map_err(|_| invalid("not the JSON of credentials"))?;
        if auth.username.is_empty() && !auth.auth.is_empty() {
            let pair = STANDARD.decode(&auth.auth).map_err(|_| invalid("'auth' is not base64"))?;
            let pair = String::from_utf8(pair).map_err(|_| invalid("'auth' is not UTF-8"))?;
            let (user, password) =
                pair.split_once(':').ok_or_else(|| invalid("'auth' has no colon"))?;
            auth.username = user.into();
            auth.password = password.trim_end_matches('\0').into();
        }
        Ok((!auth.is_empty()).then_some(auth))
    }

    fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identitytoken.is_empty() && self.registrytoken.is_empty()
    }

    /// The value of `Authorization` for basic authentication, if there is a user.
    pub(crate) fn basic(&self) -> Option<String> {
        if self.username.is_empty() {
            return None;
        }
        Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn headers_of_every_client_are_read() {
        assert_eq!(RegistryAuth::from_header("").unwrap(), None);
        assert_eq!(RegistryAuth::from_header("e30=").unwrap(), None);
        let header = URL_SAFE.encode(r#"{"username":"ann","password":"p?>"}"#);
        let auth = RegistryAuth::from_header(&header).unwrap().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("ann", "p?>"));
        assert!(!format!("{auth:?}").contains("p?>"));
        let old = STANDARD.encode(format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("ann:pw")));
        let auth = RegistryAuth::from_header(&old).unwrap().unwrap();
        assert_eq!(auth.basic().unwrap(), format!("Basic {}", STANDARD.encode("ann:pw")));
    }

    #[test]
    fn garbage_is_refused() {
        for header in ["%%%", &STANDARD.encode("7"), &STANDARD.encode("no")] {
            assert!(RegistryAuth::from_header(header).is_err(), "{header}");
        }
    }
}
