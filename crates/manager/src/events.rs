//! Swarm-scoped events, derived from what changed in the store, with Docker's attributes.

use std::sync::Arc;

use shoal_model::change::{Changed, Object};
use shoal_model::event::{Event, Scope};
use shoal_model::object::{Network, Node, Service, UpdateState};
use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;
use shoal_store::{ChangeEvent, Changes};

use crate::shared::Shared;

/// Events that a slow reader may be behind.
pub(crate) const BACKLOG: usize = 1024;

/// Tells events until the store stops, and notes which versions clients may go by.
pub(crate) async fn run(shared: Arc<Shared>, mut changes: Changes) {
    while let Some(event) = changes.next().await {
        match event {
            ChangeEvent::Applied { revision, changes } => {
                shared.sequence.note(revision, &changes);
                let now = shared.now();
                for event in changes.iter().filter_map(|change| event_of(change, now)) {
                    // Ignored because: nobody listens right now.
                    let _ = shared.events.send(event);
                }
            }
            ChangeEvent::Missed { count } => {
                shared.sequence.forget();
                tracing::warn!(count, "events of the cluster were missed");
            }
        }
    }
}

/// The event that a change means, if it means one.
pub(crate) fn event_of(change: &Changed, time: Timestamp) -> Option<Event> {
    let (kind, id, action, attributes) = match (&change.before, &change.after) {
        (None, Some(Object::Service(s))) => {
            ("service", s.id.to_string(), "create", named(service_name(s)))
        }
        (Some(Object::Service(s)), None) => {
            ("service", s.id.to_string(), "remove", named(service_name(s)))
        }
        (Some(Object::Service(old)), Some(Object::Service(new))) => {
            ("service", new.id.to_string(), "update", service_update(old, new)?)
        }
        (None, Some(Object::Node(n))) => ("node", n.id.to_string(), "create", named(node_name(n))),
        (Some(Object::Node(n)), None) => ("node", n.id.to_string(), "remove", named(node_name(n))),
        (Some(Object::Node(old)), Some(Object::Node(new))) => {
            ("node", new.id.to_string(), "update", node_update(old, new)?)
        }
        (None, Some(Object::Network(n))) => ("network", n.id.to_string(), "create", network(n)),
        (Some(Object::Network(n)), None) => ("network", n.id.to_string(), "remove", network(n)),
        (before, after) => payload(before.as_ref(), after.as_ref())?,
    };
    Some(Event {
        kind: kind.to_owned(),
        action: action.to_owned(),
        id,
        attributes,
        scope: Scope::Swarm,
        time,
    })
}

/// Kind, id, action and attributes of a change of a secret or config.
fn payload(
    before: Option<&Object>,
    after: Option<&Object>,
) -> Option<(&'static str, String, &'static str, StringMap)> {
    let action = match (before, after) {
        (None, Some(_)) => "create",
        (Some(_), None) => "remove",
        _ => "update",
    };
    match after.or(before)? {
        Object::Secret(s) => Some(("secret", s.id.to_string(), action, named(&s.spec.name))),
        Object::Config(c) => Some(("config", c.id.to_string(), action, named(&c.spec.name))),
        _ => None,
    }
}

fn named(name: &str) -> StringMap {
    StringMap::from([("name".to_owned(), name.to_owned())])
}

fn service_name(service: &Service) -> &str {
    &service.spec.name
}

fn node_name(node: &Node) -> &str {
    let given = node.spec.name.as_deref().filter(|name| !name.is_empty());
    given.unwrap_or(&node.description.hostname)
}

fn network(network: &Network) -> StringMap {
    let mut attributes = named(&network.spec.name);
    attributes.insert("type".to_owned(), "overlay".to_owned());
    attributes
}

fn differ(attributes: &mut StringMap, key: &str, old: &str, new: &str) {
    if old != new {
        attributes.insert(format!("{key}.old"), old.to_owned());
        attributes.insert(format!("{key}.new"), new.to_owned());
    }
}

/// `None` when nothing changed that a user said or waits for.
fn service_update(old: &Service, new: &Service) -> Option<StringMap> {
    let state = |s: &Service| s.update_status.as_ref().map(|status| status.state);
    if old.spec == new.spec && state(old) == state(new) {
        return None;
    }
    let mut attributes = named(service_name(new));
    if let (Some(before), Some(after)) = (old.spec.replicas(), new.spec.replicas()) {
        differ(&mut attributes, "replicas", &before.to_string(), &after.to_string());
    }
    differ(&mut attributes, "updatestate", update_name(state(old)), update_name(state(new)));
    Some(attributes)
}

fn update_name(state: Option<UpdateState>) -> &'static str {
    state.map_or("", UpdateState::as_str)
}

fn node_update(old: &Node, new: &Node) -> Option<StringMap> {
    let same =
        old.spec == new.spec && old.status.state == new.status.state && old.manager == new.manager;
    if same {
        return None;
    }
    let mut attributes = named(node_name(new));
    differ(&mut attributes, "state", old.status.state.as_str(), new.status.state.as_str());
    let availability = |node: &Node| node.spec.availability.as_str();
    differ(&mut attributes, "availability", availability(old), availability(new));
    differ(&mut attributes, "role", old.spec.role.as_str(), new.spec.role.as_str());
    let leads = |node: &Node| node.manager.as_ref().is_some_and(|m| m.leader).to_string();
    differ(&mut attributes, "leader", &leads(old), &leads(new));
    Some(attributes)
}
