//! `/tasks`.

use std::sync::Arc;

use serde_json::Value;
use shoal_model::cluster_state::ClusterState;
use shoal_model::filter::Filters;
use shoal_model::object::Task;
use shoal_model::task_state::TaskState;

use super::{find, nodes, services};
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;
use crate::render::task::desired_state;

/// `_up-to-date` and `runtime` are sent by the CLI only.
const FILTERS: &[&str] =
    &["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

/// `GET /tasks`.
///
/// # Errors
/// 503 if this node is no manager, 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let filters = call.query.filters_of(FILTERS)?;
    let wanted = Wanted::of(&filters)?;
    let state = control.state();
    let tasks: Vec<Value> = state
        .tasks
        .values()
        .filter(|task| wanted.matches(&state, task))
        .map(|task| render::task::task(&state, task))
        .collect();
    answer::json(&tasks)
}

struct Wanted<'a> {
    filters: &'a Filters,
    up_to_date: Option<bool>,
}

impl<'a> Wanted<'a> {
    fn of(filters: &'a Filters) -> ApiResult<Self> {
        for state in filters.values("desired-state") {
            if !TaskState::ALL.iter().any(|known| known.as_str() == state) {
                return Err(ApiError::invalid(format!("invalid desired-state filter '{state}'")));
            }
        }
        Ok(Self { filters, up_to_date: filters.flag("_up-to-date")? })
    }

    fn matches(&self, state: &ClusterState, task: &Task) -> bool {
        let filters = self.filters;
        // Tasks of hand-made containers show up only for those who ask for that runtime.
        let runtime = if task.service_id.is_some() { "container" } else { "attachment" };
        let asked = filters.has("runtime") || task.service_id.is_some();
        asked
            && filters.exact("runtime", runtime)
            && filters.prefix("id", task.id.as_str())
            && filters.prefix("name", &task.name())
            && filters.any("desired-state", |wanted| desired_state(task).as_str() == wanted)
            && filters.any("service", |word| of_service(state, task, word))
            && filters.any("node", |word| on_node(state, task, word))
            && filters.labels("label", &labels(task))
            && self.up_to_date.is_none_or(|wanted| wanted == is_up_to_date(state, task))
    }
}

fn of_service(state: &ClusterState, task: &Task, word: &str) -> bool {
    let Some(id) = &task.service_id else { return false };
    services::resolve(state, word).map_or(id.as_str() == word, |service| service.id == *id)
}

fn on_node(state: &ClusterState, task: &Task, word: &str) -> bool {
    let Some(id) = &task.node_id else { return false };
    nodes::resolve(state, word).map_or(id.as_str() == word, |node| node.id == *id)
}

fn labels(task: &Task) -> shoal_model::spec::StringMap {
    let container = task.spec.container_spec.as_ref();
    container.and_then(|c| c.labels.clone()).unwrap_or_default()
}

/// Whether the task was made for the service's spec as it is now.
fn is_up_to_date(state: &ClusterState, task: &Task) -> bool {
    let service = task.service_id.as_ref().and_then(|id| state.services.get(id));
    service.is_some_and(|service| service.spec_version == task.spec_version)
}

/// The task that a user's word means.
///
/// # Errors
/// 404, or 400 if several do.
pub(crate) fn resolve(state: &ClusterState, word: &str) -> ApiResult<Arc<Task>> {
    let named: Vec<(String, Arc<Task>)> =
        state.tasks.values().map(|task| (task.name(), task.clone())).collect();
    let items = named.iter().map(|(name, task)| (task.id.as_str(), name.as_str(), task.clone()));
    find("task", word, items)
}

/// `GET /tasks/{id}`.
///
/// # Errors
/// 503 if this node is no manager, 404.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let state = call.state.control()?.state();
    let task = resolve(&state, call.param("id"))?;
    answer::json(&render::task::task(&state, &task))
}
