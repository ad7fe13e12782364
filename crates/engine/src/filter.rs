//! Docker's `filters` query, and how its values match.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;

use crate::error::EngineError;

/// A parsed `filters` query: name to accepted values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads the query: `{"name":["a"]}`, or the older `{"name":{"a":true}}`. Empty text: none.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        let mut filters = Self::default();
        if text.is_empty() {
            return Ok(filters);
        }
        let invalid = || EngineError::invalid(format!("invalid filters: '{text}'"));
        let value: serde_json::Value = serde_json::from_str(text).map_err(|_| invalid())?;
        let serde_json::Value::Object(members) = value else {
            return if value.is_null() { Ok(filters) } else { Err(invalid()) };
        };
        for (name, values) in members {
            let slot = filters.0.entry(name).or_default();
            match values {
                serde_json::Value::Array(list) => {
                    for item in list {
                        slot.insert(item.as_str().ok_or_else(invalid)?.to_owned());
                    }
                }
                serde_json::Value::Object(map) => {
                    for (key, on) in map {
                        if on.as_bool().ok_or_else(invalid)? {
                            slot.insert(key);
                        }
                    }
                }
                serde_json::Value::Null => {}
                _ => return Err(invalid()),
            }
        }
        Ok(filters)
    }

    /// Adds one accepted value.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.entry(name.to_owned()).or_default().insert(value.to_owned());
        self
    }

    /// Refuses names that the route does not know.
    ///
    /// # Errors
    /// `invalid filter 'x'`.
    pub fn only(&self, known: &[&str]) -> Result<(), EngineError> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(EngineError::invalid(format!("invalid filter '{name}'"))),
            None => Ok(()),
        }
    }

    /// The accepted values of one name, in order.
    pub fn get(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Whether the name is there with at least one value.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|values| !values.is_empty())
    }

    /// Whether the name is absent, or one of its values is equal to `value`.
    #[must_use]
    pub fn exact(&self, name: &str, value: &str) -> bool {
        !self.has(name) || self.get(name).any(|want| want == value)
    }

    /// Whether the name is absent, or `test` holds for one of its values.
    pub fn any(&self, name: &str, test: impl Fn(&str) -> bool) -> bool {
        !self.has(name) || self.get(name).any(test)
    }

    /// Whether every value of the name (`key` or `key=value`) holds of `labels`.
    #[must_use]
    pub fn labels(&self, name: &str, labels: &StringMap) -> bool {
        self.get(name).all(|want| match want.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
            None => labels.contains_key(want),
        })
    }

    /// A yes-or-no filter.
    ///
    /// # Errors
    /// The value is neither.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, EngineError> {
        let mut values = self.get(name);
        let parse = |word: &str| match word.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => Ok(true),
            "0" | "f" | "false" => Ok(false),
            _ => Err(EngineError::invalid(format!("invalid filter '{name}=[{word}]'"))),
        };
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => parse(one).map(Some),
            (Some(_), Some(_)) => {
                Err(EngineError::invalid(format!("invalid filter '{name}': more than one value")))
            }
        }
    }
}

/// The time of the filter `until`: RFC 3339, seconds since 1970, or a span like `10m` before `now`.
pub(crate) fn until(filters: &Filters, now: Timestamp) -> Result<Option<Timestamp>, EngineError> {
    let mut values = filters.get("until");
    let Some(word) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(EngineError::invalid("more than one until filter specified"));
    }
    let bad = || EngineError::invalid(format!("invalid filter 'until': '{word}'"));
    if let Some(at) = parse_time(word) {
        return Ok(Some(at));
    }
    let span = parse_span(word).ok_or_else(bad)?;
    Ok(Some(Timestamp(now.0.saturating_sub(span))))
}

/// Reads RFC 3339 or seconds since 1970 with a fraction of up to nine digits.
#[must_use]
pub fn parse_time(word: &str) -> Option<Timestamp> {
    if let Some(at) = Timestamp::parse(word) {
        return Some(at);
    }
    let (secs, fraction) = word.split_once('.').unwrap_or((word, ""));
    let secs: i64 = secs.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    Some(Timestamp(secs.checked_mul(1_000_000_000)?.checked_add(nanos)?))
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

    #[test]
    fn both_forms_of_the_query_are_read() {
        let list = Filters::parse(r#"{"label":["a","b=c"],"name":["x"]}"#).unwrap();
        let map = Filters::parse(r#"{"label":{"a":true,"b=c":true},"name":{"x":true}}"#).unwrap();
        assert_eq!(list, map);
        assert!(list.only(&["label"]).is_err());
        for bad in ["x", "[]", r#"{"a":1}"#, r#"{"a":[1]}"#, r#"{"a":{"b":2}}"#] {
            assert!(Filters::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Filters::parse("").unwrap(), Filters::default());
    }

    #[test]
    fn labels_must_all_hold_and_values_any() {
        let filters = Filters::default().with("label", "a").with("label", "b=c").with("n", "x");
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<StringMap>()
        };
        assert!(filters.labels("label", &labels(&[("a", "1"), ("b", "c")])));
        assert!(!filters.labels("label", &labels(&[("a", "1"), ("b", "d")])));
        assert!(filters.exact("n", "x") && !filters.exact("n", "y") && filters.exact("m", "z"));
        assert_eq!(filters.clone().with("d", "true").flag("d").unwrap(), Some(true));
        assert!(filters.with("d", "maybe").flag("d").is_err());
    }

    #[test]
    fn times_are_read_in_all_three_forms() {
        let now = Timestamp::from_secs(10_000);
        let read = |word: &str| until(&Filters::default().with("until", word), now).ok().flatten();
        assert_eq!(read("1970-01-01T00:00:05Z"), Some(Timestamp::from_secs(5)));
        assert_eq!(read("7.5"), Some(Timestamp(7_500_000_000)));
        assert_eq!(read("1h30m"), Some(Timestamp::from_secs(4_600)));
        assert_eq!(read("soon"), None);
    }
}
