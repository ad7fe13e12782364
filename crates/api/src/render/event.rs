//! Events, in the shape of `GET /events`.

use serde_json::{Map, Value, json};
use shoal_model::event::{Event, Scope};

/// One event; containers and images also have the members that old clients read.
#[must_use]
pub fn event(event: &Event) -> Value {
    let mut out = Map::new();
    if event.kind == "container" || event.kind == "image" {
        out.insert("status".into(), json!(event.action));
        out.insert("id".into(), json!(event.id));
        if let Some(image) = event.attributes.get("image") {
            out.insert("from".into(), json!(image));
        }
    }
    out.insert("Type".into(), json!(event.kind));
    out.insert("Action".into(), json!(event.action));
    out.insert("Actor".into(), json!({ "ID": event.id, "Attributes": event.attributes }));
    let scope = match event.scope {
        Scope::Local => "local",
        Scope::Swarm => "swarm",
    };
    out.insert("scope".into(), json!(scope));
    out.insert("time".into(), json!(event.time.secs()));
    out.insert("timeNano".into(), json!(event.time.0));
    Value::Object(out)
}
