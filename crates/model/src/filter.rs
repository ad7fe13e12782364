//! Docker's `filters` parameter of list and prune routes, and how its values match.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::fault::{Fault, FaultKind};
use crate::spec::StringMap;
use crate::time::Timestamp;

/// Filters by name: each with its wanted values, never none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

/// Why filters cannot be used, in Docker's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not in the form of filters.
    #[error("invalid filter: '{text}' is not a filter object")]
    Malformed {
        /// What came.
        text: String,
    },
    /// This list has no such filter.
    #[error("invalid filter '{name}'")]
    Unknown {
        /// Its name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// The filter cannot have this value.
    #[error("invalid filter '{name}=[{value}]'")]
    Value {
        /// Its name.
        name: String,
        /// Its values, with spaces between.
        value: String,
        /// What belongs there, in words.
        expected: &'static str,
    },
}

impl Fault for FilterError {
    fn kind(&self) -> FaultKind {
        FaultKind::Invalid
    }

    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Malformed { .. } => "write filters as {\"name\":{\"value\":true}}".to_owned(),
            Self::Unknown { known, .. } => format!("use one of {}", known.join(", ")),
            Self::Value { expected, .. } => format!("give it {expected}"),
        })
    }
}

impl Filters {
    /// Reads `{"name":{"value":true}}` or the older `{"name":["value"]}`. Empty text and `null`
    /// are no filters.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let bad = || FilterError::Malformed { text: text.to_owned() };
        let fields = match serde_json::from_str(text).map_err(|_| bad())? {
            Value::Object(fields) => fields,
            Value::Null => return Ok(Self::default()),
            _ => return Err(bad()),
        };
        let mut filters = Self::default();
        for (name, values) in fields {
            let wanted = filters.0.entry(name).or_default();
            match values {
                Value::Null => {}
                Value::Object(flags) => {
                    for (value, on) in flags {
                        if on.as_bool().ok_or_else(bad)? {
                            wanted.insert(value);
                        }
                    }
                }
                Value::Array(list) => {
                    for item in list {
                        wanted.insert(item.as_str().ok_or_else(bad)?.to_owned());
                    }
                }
                _ => return Err(bad()),
            }
        }
        filters.0.retain(|_, wanted| !wanted.is_empty());
        Ok(filters)
    }

    /// Adds one wanted value.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.entry(name.to_owned()).or_default().insert(value.to_owned());
        self
    }

    /// Refuses names that are not in `known`.
    ///
    /// # Errors
    /// The first of them.
    pub fn only(&self, known: &[&str]) -> Result<(), FilterError> {
        let strange = self.0.keys().find(|name| !known.contains(&name.as_str()));
        strange.map_or(Ok(()), |name| {
            let known = known.iter().filter(|name| !name.starts_with('_'));
            let known = known.map(|name| (*name).to_owned()).collect();
            Err(FilterError::Unknown { name: name.clone(), known })
        })
    }

    /// Whether there is a filter of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The wanted values of one name, in order.
    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Whether the name is absent, or `test` holds for one of its values.
    pub fn any(&self, name: &str, test: impl Fn(&str) -> bool) -> bool {
        !self.has(name) || self.values(name).any(test)
    }

    /// Whether the name is absent, or one of its values is `value`.
    #[must_use]
    pub fn exact(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| wanted == value)
    }

    /// Whether the name is absent, or one of its values begins `value`, as swarm lists do it.
    #[must_use]
    pub fn prefix(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| value.starts_with(wanted))
    }

    /// Whether the name is absent, or one of its values occurs in `value`, as node-local lists do
    /// it. `^` and `$` at the ends anchor, the rest is taken literally.
    #[must_use]
    pub fn infix(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| {
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

    /// Whether every wanted label (`key` or `key=value`) is among `labels`.
    #[must_use]
    pub fn labels(&self, name: &str, labels: &StringMap) -> bool {
        self.values(name).all(|wanted| match wanted.split_once('=') {
            None => labels.contains_key(wanted),
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
        })
    }

    /// Whether `label` and `label!`, the filters of prunes, leave an object with these labels in.
    #[must_use]
    pub fn prunes(&self, labels: &StringMap) -> bool {
        self.labels("label", labels) && (!self.has("label!") || !self.labels("label!", labels))
    }

    /// A yes-or-no filter.
    ///
    /// # Errors
    /// Its value is neither, or there are two.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, FilterError> {
        let Some(word) = self.one(name, "true or false")? else { return Ok(None) };
        match word.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => Ok(Some(true)),
            "0" | "f" | "false" => Ok(Some(false)),
            _ => Err(self.wrong(name, "true or false")),
        }
    }

    /// The filter `until` of prunes: RFC 3339, seconds since 1970, or a span like `10m` before
    /// `now`.
    ///
    /// # Errors
    /// Its value is no time, or there are two.
    pub fn until(&self, now: Timestamp) -> Result<Option<Timestamp>, FilterError> {
        const EXPECTED: &str = "one time, such as 10m or 2026-01-31T10:00:00Z";
        let Some(word) = self.one("until", EXPECTED)? else { return Ok(None) };
        let before = || Some(Timestamp(now.0.saturating_sub(parse_span(word)?)));
        let at = Timestamp::parse_docker(word).or_else(before);
        at.map(Some).ok_or_else(|| self.wrong("until", EXPECTED))
    }

    fn one(&self, name: &str, expected: &'static str) -> Result<Option<&str>, FilterError> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (one, None) => Ok(one),
            (_, Some(_)) => Err(self.wrong(name, expected)),
        }
    }

    fn wrong(&self, name: &str, expected: &'static str) -> FilterError {
        let value = self.values(name).collect::<Vec<_>>().join(" ");
        FilterError::Value { name: name.to_owned(), value, expected }
    }
}

/// Reads Go's `1h30m`, in nanoseconds.
fn parse_span(word: &str) -> Option<i64> {
    let mut total = 0_f64;
    let mut rest = word;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let nanos = match unit {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3_600e9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * nanos;
        rest = tail;
    }
    // Go's own spans end at 292 years; beyond that the cast saturates.
    (!word.is_empty()).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fault::report;

    fn labels(pairs: &[(&str, &str)]) -> StringMap {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn both_forms_are_read() {
        let new = Filters::parse(r#"{"name":{"a":true,"b":false},"x":{}}"#).unwrap();
        let old = Filters::parse(r#"{"name":["a"]}"#).unwrap();
        assert_eq!(new, old);
        for bad in ["[", "[]", "7", r#"{"a":1}"#, r#"{"a":[1]}"#, r#"{"a":{"b":2}}"#] {
            assert!(Filters::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Filters::parse("").unwrap(), Filters::default());
        assert_eq!(Filters::parse("null").unwrap(), Filters::default());
    }

    #[test]
    fn unknown_names_are_refused_with_those_that_there_are() {
        let filters = Filters::parse(r#"{"colour":["red"]}"#).unwrap();
        let error = filters.only(&["id", "name", "_hidden"]).unwrap_err();
        assert_eq!(report(&error), "invalid filter 'colour'; use one of id, name");
        assert!(filters.only(&["colour"]).is_ok());
    }

    #[test]
    fn labels_must_all_hold_and_values_any() {
        let filters = Filters::default().with("label", "a").with("label", "b=c").with("n", "x");
        assert!(filters.labels("label", &labels(&[("a", "1"), ("b", "c")])));
        assert!(!filters.labels("label", &labels(&[("a", "1"), ("b", "d")])));
        assert!(filters.exact("n", "x") && !filters.exact("n", "y") && filters.exact("m", "z"));
        let but = Filters::default().with("label!", "keep");
        assert!(but.prunes(&labels(&[("a", "1")])) && !but.prunes(&labels(&[("keep", "")])));
    }

    #[test]
    fn infix_knows_anchors() {
        let matches = |w: &str| Filters::default().with("name", w).infix("name", "web-1");
        assert!(matches("eb") && matches("^web") && matches("1$") && matches("^web-1$"));
        assert!(!matches("^eb") && !matches("web$"));
    }

    #[test]
    fn flags_are_one_word() {
        let flag = |word: &str| Filters::default().with("d", word).flag("d");
        assert_eq!(flag("True").unwrap(), Some(true));
        assert_eq!(flag("0").unwrap(), Some(false));
        assert_eq!(flag("maybe").unwrap_err().to_string(), "invalid filter 'd=[maybe]'");
        assert!(Filters::default().with("d", "1").with("d", "0").flag("d").is_err());
    }

    #[test]
    fn until_is_read_in_all_three_forms() {
        let now = Timestamp::from_secs(10_000);
        let read = |word: &str| Filters::default().with("until", word).until(now).ok().flatten();
        assert_eq!(read("1970-01-01T00:00:05Z"), Some(Timestamp::from_secs(5)));
        assert_eq!(read("7.5"), Some(Timestamp(7_500_000_000)));
        assert_eq!(read("1h30m"), Some(Timestamp::from_secs(4_600)));
        assert_eq!(read("soon"), None);
    }
}
