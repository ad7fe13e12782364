//! Query strings, read as Docker's server reads them.

use shoal_model::filter::Filters;
use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::error::{ApiError, ApiResult};

/// A decoded query string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: BTreeMap<String, Vec<String>>,
}

impl Query {
    /// Decodes `raw`, the part after the question mark.
    #[must_use]
    pub fn parse(raw: &str) -> Self {
        let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.entry(percent_decode(key, true)).or_default().push(percent_decode(value, true));
        }
        Self { pairs }
    }

    /// The first value of `key`, if it was given at all.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).and_then(|values| values.first()).map(String::as_str)
    }

    /// The first value of `key`, if it was given and is not empty.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// Every value of `key`.
    #[must_use]
    pub fn all(&self, key: &str) -> &[String] {
        self.pairs.get(key).map_or(&[], Vec::as_slice)
    }

    /// Docker's idea of a flag: anything but empty, `0`, `no`, `false`, `none` is true.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// As [`Self::flag`], with `default` if the key is absent.
    #[must_use]
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.get(key).map_or(default, |value| {
            let value = value.trim().to_ascii_lowercase();
            !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
        })
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn int(&self, key: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            ApiError::invalid(format!("parameter '{key}': '{text}' is not a whole number"))
        })
    }

    /// The object version that an update must carry.
    ///
    /// # Errors
    /// 400 in Docker's words, naming the number.
    pub fn version(&self) -> ApiResult<u64> {
        let text = self.get("version").unwrap_or("");
        text.parse().map_err(|_| {
            ApiError::invalid(format!(
                "invalid version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax"
            ))
        })
    }

    /// The `filters` parameter.
    ///
    /// # Errors
    /// 400 for malformed filters.
    pub fn filters(&self) -> ApiResult<Filters> {
        Ok(Filters::parse(self.get("filters").unwrap_or(""))?)
    }

    /// The `filters` parameter of a route that knows these names.
    ///
    /// # Errors
    /// 400 for malformed filters and other names.
    pub fn filters_of(&self, known: &[&str]) -> ApiResult<Filters> {
        let filters = self.filters()?;
        filters.only(known)?;
        Ok(filters)
    }
}

/// Decodes `%41`; also `+` as space where `plus` says so. Broken escapes stay as they are.
#[must_use]
pub fn percent_decode(text: &str, plus: bool) -> String {
    let text = if plus { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flags_follow_docker() {
        let query = Query::parse("a=1&b=0&c=False&d&e=yes&f=none");
        let seen: Vec<bool> =
            ["a", "b", "c", "d", "e", "f", "g"].iter().map(|k| query.flag(k)).collect();
        assert_eq!(seen, [true, false, false, false, true, false, false]);
    }

    #[test]
    fn escapes_are_decoded() {
        let query = Query::parse("q=a%2Fb+c&names=x&names=y%");
        assert_eq!(query.get("q"), Some("a/b c"));
        assert_eq!(query.all("names"), ["x", "y%"]);
    }

    #[test]
    fn numbers_are_checked() {
        let query = Query::parse("t=abc&version=7");
        assert!(query.int("t").is_err());
        assert_eq!(query.version().unwrap(), 7);
        assert!(Query::parse("").version().is_err());
    }
}
