//! The `filters` parameter of list and prune routes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shoal_model::spec::StringMap;

use crate::error::{ApiError, ApiResult};

/// Filters by key: each key with its wanted values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    map: BTreeMap<String, BTreeSet<String>>,
}

impl Filters {
    /// Reads `{"key":{"value":true}}` or the older `{"key":["value"]}`.
    ///
    /// # Errors
    /// 400 if it is neither.
    pub fn parse(text: &str) -> ApiResult<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bad = || ApiError::invalid(format!("invalid filter: '{text}' is not a filter object"));
        let Value::Object(fields) = serde_json::from_str(text).map_err(|_| bad())? else {
            return Err(bad());
        };
        let mut map: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, values) in fields {
            let wanted = map.entry(key).or_default();
            match values {
                Value::Null => {}
                Value::Object(flags) => {
                    wanted.extend(flags.into_iter().filter(|(_, on)| is_on(on)).map(|(v, _)| v));
                }
                Value::Array(list) => {
                    for item in list {
                        wanted.insert(item.as_str().ok_or_else(bad)?.to_owned());
                    }
                }
                _ => return Err(bad()),
            }
        }
        map.retain(|_, wanted| !wanted.is_empty());
        Ok(Self { map })
    }

    /// Refuses keys that are not in `known`.
    ///
    /// # Errors
    /// 400 in Docker's words: `invalid filter 'x'`.
    pub fn only(self, known: &[&str]) -> ApiResult<Self> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(self),
            Some(key) => Err(ApiError::invalid(format!("invalid filter '{key}'"))),
        }
    }

    /// Whether there is any filter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether `key` filters.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The values of `key`.
    pub fn values<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.map.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Everything, for backends that filter themselves.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.map
    }

    /// True if `key` is absent or `test` holds for one of its values.
    pub fn any(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        self.map.get(key).is_none_or(|wanted| wanted.iter().any(|value| test(value)))
    }

    /// True if `key` is absent or has exactly `value`.
    #[must_use]
    pub fn exact(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// True if `key` is absent or one of its values begins `value`, as swarm lists do it.
    #[must_use]
    pub fn prefix(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| value.starts_with(wanted))
    }

    /// True if `key` is absent or one of its values occurs in `value`, as node-local lists do it.
    /// `^` and `$` at the ends anchor, the rest is taken literally.
    #[must_use]
    pub fn infix(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| {
            let (from_start, wanted) =
                wanted.strip_prefix('^').map_or((false, wanted), |rest| (true, rest));
            let (to_end, wanted) =
                wanted.strip_suffix('$').map_or((false, wanted), |rest| (true, rest));
            match (from_start, to_end) {
                (true, true) => value == wanted,
                (true, false) => value.starts_with(wanted),
                (false, true) => value.ends_with(wanted),
                (false, false) => value.contains(wanted),
            }
        })
    }

    /// True if every wanted label (`name` or `name=value`) is among `labels`.
    #[must_use]
    pub fn labels(&self, key: &str, labels: &StringMap) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            None => labels.contains_key(wanted),
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
        })
    }

    /// A boolean filter such as `dangling`.
    ///
    /// # Errors
    /// 400 if its value is no boolean.
    pub fn flag(&self, key: &str) -> ApiResult<Option<bool>> {
        let mut values = self.values(key);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some("1" | "true" | "True" | "t"), None) => Ok(Some(true)),
            (Some("0" | "false" | "False" | "f"), None) => Ok(Some(false)),
            (Some(value), _) => Err(ApiError::invalid(format!("invalid filter '{key}={value}'"))),
        }
    }
}

fn is_on(value: &Value) -> bool {
    !matches!(value, Value::Bool(false))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let new = Filters::parse(r#"{"name":{"a":true,"b":false}}"#).unwrap();
        let old = Filters::parse(r#"{"name":["a"]}"#).unwrap();
        assert_eq!(new, old);
        for bad in ["[", "[]", "7", r#"{"a":1}"#, r#"{"a":[1]}"#] {
            assert!(Filters::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let filters = Filters::parse(r#"{"colour":["red"]}"#).unwrap();
        let error = filters.only(&["name"]).unwrap_err();
        assert_eq!(error.message, "invalid filter 'colour'");
    }

    #[test]
    fn labels_must_all_match() {
        let labels = StringMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        let matches = |text: &str| Filters::parse(text).unwrap().labels("label", &labels);
        assert!(matches(r#"{"label":["a","b=2"]}"#));
        assert!(!matches(r#"{"label":["a","b=3"]}"#));
    }

    #[test]
    fn infix_knows_anchors() {
        let matches = |w: &str| {
            Filters::parse(&format!(r#"{{"name":["{w}"]}}"#)).unwrap().infix("name", "web-1")
        };
        assert!(matches("eb") && matches("^web") && matches("1$") && matches("^web-1$"));
        assert!(!matches("^eb") && !matches("web$"));
    }
}
