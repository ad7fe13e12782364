//! Objects of the cluster in exactly Docker's JSON. Pure functions of the cluster's state.

pub mod cluster;
pub mod event;
pub mod network;
pub mod node;
pub mod payload;
pub mod service;
pub mod task;
pub mod tls;

use serde::Serialize;
use serde_json::{Map, Value, json};
use shoal_model::object::Meta;
use shoal_model::spec::task::REGISTRY_AUTH;

/// A spec as JSON. Specs are made of texts, numbers, lists and maps with text keys, which always
/// can be written; should one not, an empty object says less but nothing wrong.
pub(crate) fn spec_json<T: Serialize>(spec: &T) -> Value {
    let mut value = serde_json::to_value(spec).unwrap_or_else(|_| json!({}));
    // Registry credentials travel in the spec to the nodes; they are nobody's to read.
    for path in ["/ContainerSpec", "/TaskTemplate/ContainerSpec"] {
        if let Some(Value::Object(container)) = value.pointer_mut(path) {
            container.remove(REGISTRY_AUTH);
        }
    }
    value
}

/// The four members that begin every object of the cluster.
pub(crate) fn head(id: &str, meta: Meta) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("ID".into(), json!(id));
    out.insert("Version".into(), json!({ "Index": meta.version.0 }));
    out.insert("CreatedAt".into(), json!(meta.created_at));
    out.insert("UpdatedAt".into(), json!(meta.updated_at));
    out
}

/// Sets `key` if the text is not empty.
pub(crate) fn set_text(out: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        out.insert(key.into(), json!(text));
    }
}
