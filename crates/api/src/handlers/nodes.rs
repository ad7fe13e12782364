//! `/nodes`.

use std::sync::Arc;

use serde_json::Value;
use shoal_model::cluster_state::ClusterState;
use shoal_model::filter::Filters;
use shoal_model::id::Revision;
use shoal_model::object::Node;
use shoal_model::spec::node::NodeSpec;

use super::find;
use crate::decode::swarm::NODE_SPEC;
use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;

const FILTERS: &[&str] =
    &["id", "label", "engine.label", "membership", "name", "node.label", "role"];

/// `GET /nodes`.
///
/// # Errors
/// 503 if this node is no manager, 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let filters = call.query.filters_of(FILTERS)?;
    let state = control.state();
    let wanted = state.nodes.values().filter(|node| matches(&filters, node));
    let nodes: Vec<Value> = wanted.map(|node| render::node::node(&state, node)).collect();
    answer::json(&nodes)
}

fn matches(filters: &Filters, node: &Node) -> bool {
    let name = node.spec.name.as_deref().unwrap_or("");
    filters.prefix("id", node.id.as_str())
        && filters.any("name", |wanted| {
            node.description.hostname.starts_with(wanted)
                || (!name.is_empty() && name.starts_with(wanted))
        })
        && filters.exact("role", node.spec.role.as_str())
        && filters.exact("membership", "accepted")
        && filters.labels("node.label", &node.spec.labels)
        && filters.labels("engine.label", &node.description.engine_labels)
        && filters.labels("label", &node.description.engine_labels)
}

/// The node that a user's word means.
///
/// # Errors
/// 404, or 400 if several do.
pub(crate) fn resolve(state: &ClusterState, word: &str) -> ApiResult<Arc<Node>> {
    let items = state.nodes.values().map(|node| {
        let name = node.spec.name.as_deref().filter(|name| !name.is_empty());
        (node.id.as_str(), name.unwrap_or(&node.description.hostname), node.clone())
    });
    find("node", word, items)
}

/// `GET /nodes/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let node = resolve(&state, call.param("id"))?;
    answer::json(&render::node::node(&state, &node))
}

/// `POST /nodes/{id}/update`.
///
/// # Errors
/// 503 if this node is no manager, 404, 400 for settings that make no sense.
pub async fn update(mut call: Call) -> ApiResult<Answer> {
    let version = Revision(call.query.version()?);
    let spec: NodeSpec = call.json(&NODE_SPEC).await?;
    let control = call.state.control()?;
    let node = resolve(&control.state(), call.param("id"))?;
    control.update_node(&node.id, version, spec).await?;
    answer::ok()
}

/// `DELETE /nodes/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404, 400 if the node is up and `force` is not given.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let node = resolve(&control.state(), call.param("id"))?;
    control.remove_node(&node.id, call.query.flag("force")).await?;
    answer::ok()
}
