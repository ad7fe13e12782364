//! What a task template comes to: two templates that say the same in different words are equal
//! here.
//!
//! Clients read a spec with defaults filled in, change one member and send the whole back. That
//! must not replace tasks: "absent" and "the default, written out" are the same wish.

use serde_json::{Map, Value, json};
use shoal_model::spec::task::TaskSpec;

/// A template with every default written out and everything empty left out.
#[must_use]
pub fn effective(template: &TaskSpec) -> Value {
    // Cannot fail: a spec came from JSON and holds only what JSON can hold; were it to fail, both
    // sides of a comparison would be null, and tasks would stay as they are.
    let mut value = serde_json::to_value(template).unwrap_or_default();
    if let Value::Object(members) = &mut value {
        default(members, "Runtime", json!("container"));
        if let Some(Value::Object(container)) = members.get_mut("ContainerSpec") {
            default(container, "StopGracePeriod", json!(10_000_000_000_i64));
            default(container, "Isolation", json!("default"));
        }
        let restart = members.entry("RestartPolicy").or_insert_with(|| json!({}));
        if restart.is_null() {
            *restart = json!({});
        }
        if let Value::Object(restart) = restart {
            default(restart, "Condition", json!("any"));
            default(restart, "Delay", json!(5_000_000_000_i64));
        }
    }
    without_empty(value).unwrap_or_default()
}

fn default(members: &mut Map<String, Value>, name: &str, value: Value) {
    let slot = members.entry(name).or_insert(Value::Null);
    if slot.is_null() || *slot == json!("") {
        *slot = value;
    }
}

/// Leaves out what says nothing: null, empty texts, lists and objects, zero, false. `Init: false`
/// says something: no init process even where the engine's default is one.
fn without_empty(value: Value) -> Option<Value> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(items) => {
            // Items of a list keep their places: an empty argument is an argument.
            (!items.is_empty()).then_some(Value::Array(items))
        }
        Value::Object(members) => {
            let kept: Map<String, Value> = members
                .into_iter()
                .filter_map(|(name, value)| {
                    let value = if name == "Init" { Some(value) } else { without_empty(value) };
                    Some((name, value.filter(|v| !v.is_null())?))
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Value {
        effective(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn defaults_written_out_change_nothing() {
        let short = r#"{"ContainerSpec":{"Image":"a"}}"#;
        let long = r#"{"ContainerSpec":{"Image":"a","DNSConfig":{},"Isolation":"default",
            "StopGracePeriod":10000000000,"TTY":false,"Env":[]},"ForceUpdate":0,"Placement":{},
            "Resources":{"Limits":{},"Reservations":{}},"Runtime":"container",
            "RestartPolicy":{"Condition":"any","Delay":5000000000,"MaxAttempts":0}}"#;
        assert_eq!(read(short), read(long));
    }

    #[test]
    fn other_wishes_are_different() {
        let base = read(r#"{"ContainerSpec":{"Image":"a"}}"#);
        for other in [
            r#"{"ContainerSpec":{"Image":"b"}}"#,
            r#"{"ContainerSpec":{"Image":"a","Init":false}}"#,
            r#"{"ContainerSpec":{"Image":"a","Args":[""]}}"#,
            r#"{"ContainerSpec":{"Image":"a"},"ForceUpdate":1}"#,
            r#"{"ContainerSpec":{"Image":"a"},"RestartPolicy":{"Delay":0}}"#,
        ] {
            assert_ne!(read(other), base, "{other}");
        }
    }
}
