//! `/secrets` and `/configs`: the same routes over two kinds of object.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::filter::Filters;
use shoal_model::id::Revision;
use shoal_model::object::{Config, Secret};
use shoal_model::spec::payload::PayloadSpec;

use super::find;
use crate::decode::payloads::PAYLOAD_SPEC;
use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;

const FILTERS: &[&str] = &["id", "label", "name", "names"];

fn matches(filters: &Filters, id: &str, spec: &PayloadSpec) -> bool {
    filters.prefix("id", id)
        && filters.prefix("name", &spec.name)
        && filters.exact("names", &spec.name)
        && filters.labels("label", &spec.labels)
}

fn find_secret(state: &ClusterState, word: &str) -> ApiResult<Arc<Secret>> {
    let items = state.secrets.values().map(|s| (s.id.as_str(), s.spec.name.as_str(), s.clone()));
    find("secret", word, items)
}

fn find_config(state: &ClusterState, word: &str) -> ApiResult<Arc<Config>> {
    let items = state.configs.values().map(|c| (c.id.as_str(), c.spec.name.as_str(), c.clone()));
    find("config", word, items)
}

/// `GET /secrets`.
///
/// # Errors
/// 503 if this node is no manager, 400 for unknown filters.
pub async fn secrets(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let filters = call.query.filters_of(FILTERS)?;
    let state = control.state();
    let wanted = state.secrets.values().filter(|s| matches(&filters, s.id.as_str(), &s.spec));
    let list: Vec<Value> = wanted.map(|secret| render::payload::secret(secret)).collect();
    answer::json(&list)
}

/// `GET /configs`.
///
/// # Errors
/// As [`secrets`].
pub async fn configs(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let filters = call.query.filters_of(FILTERS)?;
    let state = control.state();
    let wanted = state.configs.values().filter(|c| matches(&filters, c.id.as_str(), &c.spec));
    let list: Vec<Value> = wanted.map(|config| render::payload::config(config)).collect();
    answer::json(&list)
}

/// `GET /secrets/{id}`: never with its data.
///
/// # Errors
/// 503 if this node is no manager, 404, 400 if several ids begin so.
pub async fn secret(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let secret = find_secret(&state, call.param("id"))?;
    answer::json(&render::payload::secret(&secret))
}

/// `GET /configs/{id}`.
///
/// # Errors
/// As [`secret`].
pub async fn config(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let config = find_config(&state, call.param("id"))?;
    answer::json(&render::payload::config(&config))
}

/// `POST /secrets/create`.
///
/// # Errors
/// 503 if this node is no manager, 400 for names and sizes that cannot be, 409 for a name in use,
/// 501 for drivers.
pub async fn create_secret(mut call: Call) -> ApiResult<Answer> {
    let spec: PayloadSpec = call.json(&PAYLOAD_SPEC).await?;
    let id = call.state.control()?.create_secret(spec).await?;
    answer::json_status(StatusCode::CREATED, &json!({ "ID": id }))
}

/// `POST /configs/create`.
///
/// # Errors
/// As [`create_secret`].
pub async fn create_config(mut call: Call) -> ApiResult<Answer> {
    let spec: PayloadSpec = call.json(&PAYLOAD_SPEC).await?;
    let id = call.state.control()?.create_config(spec).await?;
    answer::json_status(StatusCode::CREATED, &json!({ "ID": id }))
}

/// `POST /secrets/{id}/update`: labels only.
///
/// # Errors
/// 503 if this node is no manager, 404, `update out of sequence`, 400 if anything else differs.
pub async fn update_secret(mut call: Call) -> ApiResult<Answer> {
    let version = Revision(call.query.version()?);
    let spec: PayloadSpec = call.json(&PAYLOAD_SPEC).await?;
    let control = call.state.control()?;
    let secret = find_secret(&control.state(), call.param("id"))?;
    control.update_secret(&secret.id, version, spec).await?;
    answer::ok()
}

/// `POST /configs/{id}/update`: labels only.
///
/// # Errors
/// As [`update_secret`].
pub async fn update_config(mut call: Call) -> ApiResult<Answer> {
    let version = Revision(call.query.version()?);
    let spec: PayloadSpec = call.json(&PAYLOAD_SPEC).await?;
    let control = call.state.control()?;
    let config = find_config(&control.state(), call.param("id"))?;
    control.update_config(&config.id, version, spec).await?;
    answer::ok()
}

/// `DELETE /secrets/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404, 400 naming the services that use it.
pub async fn remove_secret(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let secret = find_secret(&control.state(), call.param("id"))?;
    control.remove_secret(&secret.id).await?;
    answer::no_content()
}

/// `DELETE /configs/{id}`.
///
/// # Errors
/// As [`remove_secret`].
pub async fn remove_config(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let config = find_config(&control.state(), call.param("id"))?;
    control.remove_config(&config.id).await?;
    answer::no_content()
}
