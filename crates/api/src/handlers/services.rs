//! `/services`.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::filter::Filters;
use shoal_model::id::Revision;
use shoal_model::object::Service;
use shoal_model::spec::service::ServiceSpec;

use super::find;
use crate::backend::swarm::{AuthFrom, ServiceUpdate};
use crate::decode::services::SERVICE_SPEC;
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;
use crate::render::service::ServiceView;

const FILTERS: &[&str] = &["id", "label", "mode", "name", "runtime"];

/// `GET /services`.
///
/// # Errors
/// 503 if this node is no manager, 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let filters = call.query.filters_of(FILTERS)?;
    let view = ServiceView {
        insert_defaults: false,
        status: call.query.flag("status") && call.version.at_least(41),
        old_networks: !call.version.at_least(44),
    };
    let state = control.state();
    let wanted = state.services.values().filter(|service| matches(&filters, service));
    let list: Vec<Value> =
        wanted.map(|service| render::service::service(&state, service, view)).collect();
    answer::json(&list)
}

fn matches(filters: &Filters, service: &Service) -> bool {
    let runtime = service.spec.task_template.runtime.as_deref().filter(|r| !r.is_empty());
    filters.prefix("id", service.id.as_str())
        && filters.prefix("name", &service.spec.name)
        && filters.exact("mode", service.spec.mode_name())
        && filters.exact("runtime", runtime.unwrap_or("container"))
        && filters.labels("label", &service.spec.labels)
}

/// The service that a user's word means.
///
/// # Errors
/// 404, or 400 if several do.
pub(crate) fn resolve(state: &ClusterState, word: &str) -> ApiResult<Arc<Service>> {
    let items = state.services.values().map(|s| (s.id.as_str(), s.spec.name.as_str(), s.clone()));
    find("service", word, items)
}

/// `GET /services/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let service = resolve(&state, call.param("id"))?;
    let view = ServiceView {
        insert_defaults: call.query.flag("insertDefaults"),
        status: false,
        old_networks: !call.version.at_least(44),
    };
    answer::json(&render::service::service(&state, &service, view))
}

/// `POST /services/create`.
///
/// # Errors
/// 503 if this node is no manager, 400 for specs that make no sense, 409 for a name in use.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let mut spec = read_spec(&mut call).await?;
    let auth = registry_auth(&call);
    let control = call.state.control()?;
    refuse_unsupported(&spec)?;
    if spec.name.is_empty() {
        spec.name = fresh_name(&call, &control.state());
    }
    let written = control.create_service(spec, auth).await?;
    let warnings = if written.warnings.is_empty() { Value::Null } else { json!(written.warnings) };
    let reply = json!({ "ID": written.id, "Warnings": warnings });
    answer::json_status(StatusCode::CREATED, &reply)
}

/// `POST /services/{id}/update`: the whole new spec, or back to the one before.
///
/// # Errors
/// 503 if this node is no manager, 404, `update out of sequence`, 400 for specs that make no sense.
pub async fn update(mut call: Call) -> ApiResult<Answer> {
    let version = Revision(call.query.version()?);
    let rollback = match call.query.get("rollback").unwrap_or("") {
        "" | "none" => false,
        "previous" => true,
        other => {
            return Err(ApiError::invalid(format!("unrecognized rollback option {other}")));
        }
    };
    let auth_from = match call.query.get("registryAuthFrom").unwrap_or("") {
        "" | "spec" => AuthFrom::Spec,
        "previous-spec" => AuthFrom::PreviousSpec,
        other => {
            return Err(ApiError::invalid(format!("unsupported registryAuthFrom value '{other}'")));
        }
    };
    let spec = read_spec(&mut call).await?;
    let auth = registry_auth(&call);
    let control = call.state.control()?;
    let service = resolve(&control.state(), call.param("id"))?;
    refuse_unsupported(&spec)?;
    let update = ServiceUpdate { spec, auth, auth_from, rollback };
    let written = control.update_service(&service.id, version, update).await?;
    let warnings = if written.warnings.is_empty() { Value::Null } else { json!(written.warnings) };
    answer::json(&json!({ "Warnings": warnings }))
}

/// `DELETE /services/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let service = resolve(&control.state(), call.param("id"))?;
    control.remove_service(&service.id).await?;
    answer::ok()
}

/// Names tried for a service without one; after so many, the next one is taken as it is, and the
/// store refuses it if it is in use.
const NAME_ATTEMPTS: u32 = 10;

/// A service that the client did not name gets a name that nobody has.
fn fresh_name(call: &Call, state: &ClusterState) -> String {
    let taken = |name: &String| state.services.values().any(|s| s.spec.name == *name);
    let mut names = (0..NAME_ATTEMPTS).map(|attempt| call.state.containers.fresh_name(attempt));
    let free = names.find(|name| !taken(name));
    free.unwrap_or_else(|| call.state.containers.fresh_name(NAME_ATTEMPTS))
}

async fn read_spec(call: &mut Call) -> ApiResult<ServiceSpec> {
    let mut spec: ServiceSpec = call.json(&SERVICE_SPEC).await?;
    let template = &mut spec.task_template;
    // Networks moved from the top of the spec into the template with API 1.25; both are accepted.
    if template.networks.as_ref().is_none_or(Vec::is_empty)
        && let Some(networks) = spec.networks.take()
    {
        template.networks = Some(networks);
    }
    Ok(spec)
}

/// The client's credentials; an empty object means none.
fn registry_auth(call: &Call) -> Option<String> {
    let auth = call.header("x-registry-auth")?;
    (!matches!(auth, "" | "e30=" | "e30")).then(|| auth.to_owned())
}

/// What a spec may ask for that Shoal does not have: said before anything is stored.
fn refuse_unsupported(spec: &ServiceSpec) -> ApiResult<()> {
    let template = &spec.task_template;
    let runtime = template.runtime.as_deref().unwrap_or("");
    if template.extra.contains_key("PluginSpec") || !matches!(runtime, "" | "container") {
        return Err(ApiError::missing(&format!("services with the runtime '{runtime}'")));
    }
    let Some(container) = &template.container_spec else { return Ok(()) };
    let cluster = container.mounts.iter().flatten().any(|mount| mount.kind == "cluster");
    if cluster {
        return Err(ApiError::missing("cluster volumes"));
    }
    Ok(())
}
