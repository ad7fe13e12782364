//! JSON bodies as Go reads them: names of fields match in any case, types are checked, unknown
//! fields stay.
//!
//! A [`Shape`] says which fields a request type knows. One pass over the parsed JSON renames fields
//! to their canonical spelling and checks types, so that an error names the field's path; maps
//! whose keys belong to the user (labels, options, sysctls, port bindings…) are left alone.

pub mod containers;
pub mod networks;
pub mod payloads;
pub mod services;
pub mod swarm;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult, RequestFault};

/// What a JSON value must be. `null` is always allowed: Go writes it for everything empty.
#[derive(Debug)]
pub enum Shape {
    /// Anything; left alone.
    Any,
    /// A text.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Int(i64, i64),
    /// Any number.
    Number,
    /// A text or a list of texts.
    Words,
    /// One of these texts, in any case; empty counts as absent.
    Choice(&'static [&'static str]),
    /// A list.
    List(&'static Shape),
    /// An object whose keys belong to the user.
    Map(&'static Shape),
    /// An object with known fields.
    Object(Fields),
    /// An object with the known fields of several.
    Merged(&'static [Fields]),
}

/// Known fields: canonical spelling, and what belongs there.
pub type Fields = &'static [(&'static str, Shape)];

/// Any whole number of 64 bits.
pub const INT: Shape = Shape::Int(i64::MIN, i64::MAX);
/// A whole number from 0; above 63 bits nothing makes sense.
pub const UINT: Shape = Shape::Int(0, i64::MAX);
/// A port.
pub const PORT: Shape = Shape::Int(0, 65_535);
/// A list of texts.
pub const TEXTS: Shape = Shape::List(&Shape::Text);
/// Text to text.
pub const TEXT_MAP: Shape = Shape::Map(&Shape::Text);
/// Text to anything.
pub const ANY_MAP: Shape = Shape::Map(&Shape::Any);

/// Deepest nesting of a request; serde_json stops at 128 by itself.
const DEPTH_MAX: usize = 64;

/// Parses `bytes` as a `T` of the given shape.
///
/// # Errors
/// 400 naming the line and column, or the field and what was expected.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], shape: &Shape) -> ApiResult<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        let problem = "got EOF while reading request body".to_owned();
        return Err(RequestFault::MalformedJson { problem }.into());
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::from(RequestFault::MalformedJson { problem: error.to_string() })
    })?;
    let value = canonical(value, shape)?;
    serde_json::from_value(value)
        .map_err(|error| RequestFault::MalformedJson { problem: error.to_string() }.into())
}

/// `value` with every known field spelled canonically.
///
/// # Errors
/// 400 naming the field and what was expected.
pub fn canonical(value: Value, shape: &Shape) -> ApiResult<Value> {
    let value = walk(value, shape, &mut Vec::new())?;
    if matches!(shape, Shape::Object(_) | Shape::Merged(_)) && value.is_null() {
        return Ok(Value::Object(Map::new()));
    }
    Ok(value)
}

fn walk(value: Value, shape: &Shape, path: &mut Vec<String>) -> ApiResult<Value> {
    if path.len() > DEPTH_MAX {
        return Err(wrong(path, "fewer levels", &value));
    }
    match (shape, value) {
        (Shape::Any, value) => Ok(value),
        (_, Value::Null) => Ok(Value::Null),
        (Shape::Text, value @ Value::String(_)) | (Shape::Bool, value @ Value::Bool(_)) => {
            Ok(value)
        }
        (Shape::Number, value @ Value::Number(_)) | (Shape::Words, value @ Value::String(_)) => {
            Ok(value)
        }
        (Shape::Words, value @ Value::Array(_)) => walk(value, &TEXTS, path),
        (Shape::Choice(_), Value::String(text)) if text.is_empty() => Ok(Value::Null),
        (Shape::Choice(choices), Value::String(text)) => {
            match choices.iter().find(|choice| choice.eq_ignore_ascii_case(&text)) {
                Some(choice) => Ok(Value::from(*choice)),
                None => Err(wrong_choice(path, choices, &text)),
            }
        }
        (Shape::Int(low, high), Value::Number(number)) => int(number, *low, *high, path),
        (Shape::List(inner), Value::Array(items)) => {
            let each = items.into_iter().enumerate();
            let list = each.map(|(i, item)| within(path, i.to_string(), item, inner));
            let list = list.map(|item| item.map(|item| zero(item, inner)));
            list.collect::<ApiResult<Vec<Value>>>().map(Value::Array)
        }
        (Shape::Map(inner), Value::Object(members)) => {
            let each = members.into_iter();
            let map = each.map(|(k, v)| Ok((k.clone(), zero(within(path, k, v, inner)?, inner))));
            map.collect::<ApiResult<Map<String, Value>>>().map(Value::Object)
        }
        (Shape::Object(fields), Value::Object(members)) => object(members, &[fields], path),
        (Shape::Merged(groups), Value::Object(members)) => object(members, groups, path),
        (shape, other) => Err(wrong(path, &shape.in_words(), &other)),
    }
}

/// Go reads `null` among texts as the empty text.
fn zero(value: Value, shape: &Shape) -> Value {
    if value.is_null() && matches!(shape, Shape::Text) { Value::from("") } else { value }
}

fn object(
    members: Map<String, Value>,
    groups: &[Fields],
    path: &mut Vec<String>,
) -> ApiResult<Value> {
    let mut out = Map::with_capacity(members.len());
    for (key, value) in members {
        let known = groups.iter().flat_map(|fields| fields.iter());
        let found = known.clone().find(|(name, _)| *name == key);
        let found =
            found.or_else(|| known.clone().find(|(name, _)| name.eq_ignore_ascii_case(&key)));
        match found {
            Some((name, shape)) => {
                let value = within(path, (*name).to_owned(), value, shape)?;
                // Go leaves a field as it is when it meets `null`: absent means the same to us.
                if !value.is_null() || !out.contains_key(*name) {
                    out.insert((*name).to_owned(), value);
                }
            }
            None => {
                out.insert(key, value);
            }
        }
    }
    drop_nulls(&mut out, groups);
    Ok(Value::Object(out))
}

/// A known field that is `null` counts as absent, so that request types need no special care.
fn drop_nulls(out: &mut Map<String, Value>, groups: &[Fields]) {
    let known = |key: &str| groups.iter().flat_map(|f| f.iter()).any(|(name, _)| *name == key);
    out.retain(|key, value| !(value.is_null() && known(key)));
}

fn within(path: &mut Vec<String>, step: String, value: Value, shape: &Shape) -> ApiResult<Value> {
    path.push(step);
    let result = walk(value, shape, path);
    path.pop();
    result
}

fn int(number: serde_json::Number, low: i64, high: i64, path: &[String]) -> ApiResult<Value> {
    let fits = number.as_i64().is_some_and(|n| (low..=high).contains(&n));
    // Clients that only know floating point write 3.0.
    let whole = number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15);
    match (fits, whole) {
        (true, _) => Ok(Value::Number(number)),
        (false, Some(f)) if number.is_f64() && (low..=high).contains(&(f as i64)) => {
            Ok(Value::from(f as i64))
        }
        _ => Err(wrong(path, &Shape::Int(low, high).in_words(), &Value::Number(number))),
    }
}

fn wrong(path: &[String], expected: &str, found: &Value) -> ApiError {
    let path = if path.is_empty() { "(the whole body)".to_owned() } else { path.join(".") };
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    RequestFault::WrongType { path, expected: expected.to_owned(), found }.into()
}

fn wrong_choice(path: &[String], choices: &[&str], found: &str) -> ApiError {
    let expected = format!("one of '{}'", choices.join("', '"));
    let found = format!("'{found}'");
    RequestFault::WrongType { path: path.join("."), expected, found }.into()
}

impl Shape {
    fn in_words(&self) -> String {
        match self {
            Self::Any => "anything".into(),
            Self::Text => "a text".into(),
            Self::Bool => "true or false".into(),
            Self::Int(low, high) => match (*low, *high) {
                (i64::MIN, i64::MAX) => "a whole number".into(),
                (0, i64::MAX) => "a whole number, 0 or more".into(),
                (low, high) => format!("a whole number from {low} to {high}"),
            },
            Self::Number => "a number".into(),
            Self::Words => "a text or a list of texts".into(),
            Self::Choice(choices) => format!("one of '{}'", choices.join("', '")),
            Self::List(_) => "a list".into(),
            Self::Map(_) | Self::Object(_) | Self::Merged(_) => "an object".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const INNER: Shape = Shape::Object(&[("DNSConfig", TEXTS), ("TTY", Shape::Bool)]);
    const OUTER: Shape = Shape::Object(&[
        ("Name", Shape::Text),
        ("Labels", TEXT_MAP),
        ("Port", PORT),
        ("Spec", INNER),
    ]);

    #[test]
    fn names_match_in_any_case_but_keys_of_users_stay() {
        let given = json!({"NAME": "a", "labels": {"NAME": "x"}, "spec": {"tty": true, "Zz": 1}});
        let wanted = json!({"Name": "a", "Labels": {"NAME": "x"}, "Spec": {"TTY": true, "Zz": 1}});
        assert_eq!(canonical(given, &OUTER).unwrap(), wanted);
    }

    #[test]
    fn wrong_types_name_their_path() {
        let cases = [
            (json!({"Spec": {"dnsconfig": ["a", 7]}}), "'Spec.DNSConfig.1'"),
            (json!({"Port": 70000}), "from 0 to 65535"),
            (json!({"Port": 1.5}), "'Port'"),
            (json!([]), "an object"),
            (json!({"Labels": {"a": {}}}), "'Labels.a'"),
        ];
        for (given, part) in cases {
            let error = canonical(given.clone(), &OUTER).unwrap_err();
            assert!(error.message.contains(part), "{given}: {}", error.message);
        }
    }

    #[test]
    fn nulls_count_as_absent() {
        assert_eq!(
            canonical(json!({"Name": null, "Q": null}), &OUTER).unwrap(),
            json!({"Q": null})
        );
        assert_eq!(canonical(json!(null), &OUTER).unwrap(), json!({}));
        assert_eq!(canonical(json!({"Port": 3.0}), &OUTER).unwrap(), json!({"Port": 3}));
    }

    #[test]
    fn malformed_json_says_where() {
        let error = parse::<Value>(b"{\"a\": ", &OUTER).unwrap_err();
        assert!(error.message.contains("line 1"), "{}", error.message);
        assert!(parse::<Value>(b"", &OUTER).unwrap_err().message.contains("EOF"));
        assert!(parse::<Value>(b"{} {}", &OUTER).is_err());
    }
}
