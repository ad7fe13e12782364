//! `/networks`: this node's own and the cluster's, in one list.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value, json};
use shoal_model::cluster_state::ClusterState;
use shoal_model::filter::Filters;
use shoal_model::id::NetworkId;
use shoal_model::name::{Lookup, resolve};
use shoal_model::spec::container::EndpointSettings;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::task::NodeNetwork;
use shoal_model::time::Timestamp;

use crate::backend::ApiState;
use crate::backend::swarm::LocalState;
use crate::decode::networks::{CONNECT, DISCONNECT, NETWORK};
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::render;

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];
const PRUNE_FILTERS: &[&str] = &["label", "label!", "until"];

/// A network of either kind.
#[derive(Clone)]
struct Found {
    id: NetworkId,
    name: String,
    swarm: bool,
    predefined: bool,
    labels: shoal_model::spec::StringMap,
    json: Map<String, Value>,
}

/// Every network that this node knows, the cluster's first.
struct Known {
    cluster: Option<Arc<ClusterState>>,
    all: Vec<Found>,
}

impl Known {
    fn of(state: &ApiState) -> Self {
        let cluster = state.swarm.control().map(|control| control.state());
        let mut all: Vec<Found> = Vec::new();
        for network in cluster.iter().flat_map(|cluster| cluster.networks.values()) {
            all.push(Found {
                id: network.id.clone(),
                name: network.spec.name.clone(),
                swarm: true,
                predefined: false,
                labels: network.spec.labels.clone(),
                json: render::network::swarm(network),
            });
        }
        for network in state.networks.list() {
            let id = NetworkId::new(network.id.clone());
            // On managers the agent may show the cluster's networks, too.
            if all.iter().any(|known| known.id == id) {
                continue;
            }
            all.push(Found {
                id,
                name: network.spec.name.clone(),
                swarm: network.driver == "overlay",
                predefined: network.predefined,
                labels: network.spec.labels.clone(),
                json: render::network::local(&network),
            });
        }
        Self { cluster, all }
    }

    /// A network that each node has for itself, as services name it.
    fn of_each_node(&self, word: &str) -> Option<Found> {
        let name = NodeNetwork::named(word)?.name();
        self.cluster.as_ref()?;
        let mut found = self.all.iter().find(|f| f.predefined && f.name == name)?.clone();
        found.json.insert("Id".into(), name.into());
        found.json.insert("Scope".into(), "swarm".into());
        Some(found)
    }

    fn find(&self, word: &str, scope: Option<&str>) -> ApiResult<Found> {
        if scope == Some("swarm")
            && let Some(found) = self.of_each_node(word)
        {
            return Ok(found);
        }
        let fits = |found: &&Found| match scope {
            None | Some("") => true,
            Some(scope) => (scope == "swarm") == found.swarm,
        };
        let items = self.all.iter().filter(fits);
        match resolve(word, items.map(|f| (f.id.as_str(), f.name.as_str(), f))) {
            Lookup::Found(found) => Ok(found.clone()),
            Lookup::Missing => Err(ApiError::not_found(format!("network {word} not found"))),
            Lookup::Ambiguous { matches } => Err(ApiError::invalid(format!(
                "network {word} is ambiguous ({matches} matches found based on ID prefix)"
            ))),
        }
    }
}

/// `GET /networks`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters_of(FILTERS)?;
    if let Some(kind) = filters.values("type").find(|kind| !matches!(*kind, "builtin" | "custom")) {
        return Err(ApiError::invalid(format!("invalid filter: 'type'='{kind}'")));
    }
    let dangling = filters.flag("dangling")?;
    let known = Known::of(&call.state);
    let list = known.all.into_iter().filter(|found| matches(&filters, found)).filter(|found| {
        dangling.is_none_or(|wanted| {
            let unused = !found.predefined && call.state.networks.members(&found.id).is_empty();
            wanted == unused
        })
    });
    let list: Vec<Value> = list.map(|found| Value::Object(found.json)).collect();
    answer::json(&list)
}

fn matches(filters: &Filters, found: &Found) -> bool {
    let text = |key: &str| found.json.get(key).and_then(Value::as_str).unwrap_or("");
    let kind = if found.predefined { "builtin" } else { "custom" };
    filters.infix("name", &found.name)
        && filters.prefix("id", found.id.as_str())
        && filters.exact("driver", text("Driver"))
        && filters.exact("scope", text("Scope"))
        && filters.exact("type", kind)
        && filters.labels("label", &found.labels)
}

/// `GET /networks/{id}`.
///
/// # Errors
/// 404, or 400 if several ids begin so.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    let known = Known::of(&call.state);
    let found = known.find(call.param("id"), call.query.get("scope"))?;
    let mut json = found.json;
    let members = call.state.networks.members(&found.id);
    json.insert("Containers".into(), Value::Object(members));
    if let (true, Some(cluster)) = (found.swarm, &known.cluster) {
        json.insert("Peers".into(), render::network::peers(cluster));
        if let (true, Some(network)) = (call.query.flag("verbose"), cluster.networks.get(&found.id))
        {
            json.insert("Services".into(), render::network::services(cluster, network));
        }
    }
    answer::json(&json)
}

/// `POST /networks/create`.
///
/// # Errors
/// 409 for a name in use, 403 for a predefined one, 400 for settings that make no sense, 503 for a
/// swarm network where there is no manager.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let mut spec: NetworkSpec = call.json(&NETWORK).await?;
    // Old clients ask for a check that is always done.
    spec.extra.remove("CheckDuplicate");
    // Docker's clients write `false` whenever the user said nothing, so it cannot mean no.
    spec.attachable = spec.attachable.filter(|attachable| *attachable);
    let driver = spec.driver.clone().unwrap_or_default();
    let swarm = driver == "overlay" || spec.scope.as_deref() == Some("swarm");
    if matches!(spec.name.as_str(), "bridge" | "host" | "none") {
        let name = &spec.name;
        return Err(ApiError::forbidden(format!(
            "operation is not permitted on predefined {name} network"
        )));
    }
    if spec.name.trim().is_empty() {
        return Err(ApiError::invalid("network name must not be empty"));
    }
    if spec.config_only.unwrap_or(false) || says_config_from(&spec) {
        return Err(ApiError::missing("config-only networks"));
    }
    let control = if swarm { Some(call.state.control()?) } else { None };
    let known = Known::of(&call.state);
    if known.all.iter().any(|found| found.name == spec.name && found.swarm == swarm) {
        let name = &spec.name;
        return Err(ApiError::conflict(format!("network with name {name} already exists")));
    }
    let id = match control {
        Some(control) => {
            if !matches!(driver.as_str(), "" | "overlay") {
                return Err(ApiError::missing(&format!("swarm networks of driver '{driver}'")));
            }
            control.create_network(spec).await?
        }
        None => call.state.networks.create(spec).await?,
    };
    answer::json_status(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" }))
}

fn says_config_from(spec: &NetworkSpec) -> bool {
    let network = spec.extra.get("ConfigFrom").and_then(|from| from.get("Network"));
    network.and_then(Value::as_str).is_some_and(|name| !name.is_empty())
}

/// `DELETE /networks/{id}`.
///
/// # Errors
/// 404, 403 if it is predefined, 400 or 403 if it is in use.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    let found = Known::of(&call.state).find(call.param("id"), None)?;
    remove_found(&call.state, &found).await?;
    answer::no_content()
}

async fn remove_found(state: &ApiState, found: &Found) -> ApiResult<()> {
    if found.predefined {
        let name = &found.name;
        return Err(ApiError::forbidden(format!(
            "{name} is a pre-defined network and cannot be removed"
        )));
    }
    if found.swarm {
        return state.control()?.remove_network(&found.id).await;
    }
    if let Some(name) = first_member(&state.networks.members(&found.id)) {
        return Err(ApiError::forbidden(format!(
            "error while removing network: network {} has active endpoints (name:\"{name}\")",
            found.name
        )));
    }
    state.networks.remove(&found.id).await
}

fn first_member(members: &Map<String, Value>) -> Option<String> {
    let (id, member) = members.iter().next()?;
    Some(member.get("Name").and_then(Value::as_str).unwrap_or(id).to_owned())
}

/// Whether a network was made before this time.
fn older(found: &Found, at: Timestamp) -> bool {
    let made = found.json.get("Created").and_then(Value::as_str).and_then(Timestamp::parse);
    made.is_some_and(|made| made < at)
}

/// `POST /networks/prune`: removes what nothing uses.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters_of(PRUNE_FILTERS)?;
    let until = filters.until((call.state.clock)())?;
    let known = Known::of(&call.state);
    let mut deleted = Vec::new();
    for found in known.all.iter().filter(|found| !found.predefined) {
        let ingress = found.json.get("Ingress") == Some(&json!(true));
        let used = !call.state.networks.members(&found.id).is_empty();
        if ingress
            || used
            || !filters.prunes(&found.labels)
            || until.is_some_and(|at| !older(found, at))
        {
            continue;
        }
        match remove_found(&call.state, found).await {
            Ok(()) => deleted.push(found.name.clone()),
            // It is in use, or gone by now: pruning passes over it.
            Err(error) if error.status.is_client_error() => {}
            Err(error) => tracing::warn!(network = %found.name, error = %error.message,
                "a network could not be pruned"),
        }
    }
    answer::json(&json!({ "NetworksDeleted": deleted }))
}

/// The body of `POST /networks/{id}/connect` and `/disconnect`.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connection {
    container: String,
    endpoint_config: EndpointSettings,
    force: bool,
}

/// `POST /networks/{id}/connect`.
///
/// # Errors
/// 404, or 501 if that is not possible yet.
pub async fn connect(mut call: Call) -> ApiResult<Answer> {
    let body: Connection = call.json(&CONNECT).await?;
    let word = call.param("id");
    let found = Known::of(&call.state).find(word, None);
    // A worker does not know every network of the cluster: its manager answers for the others.
    let asks = call.state.swarm.status().state == LocalState::Active
        && call.state.swarm.control().is_none();
    let id = match found {
        Err(error) if asks && error.status == StatusCode::NOT_FOUND => word.to_owned(),
        found => found?.id.to_string(),
    };
    call.state.containers.connect(&body.container, &id, body.endpoint_config).await?;
    answer::ok()
}

/// `POST /networks/{id}/disconnect`.
///
/// # Errors
/// 404, or 501 if that is not possible yet.
pub async fn disconnect(mut call: Call) -> ApiResult<Answer> {
    let body: Connection = call.json(&DISCONNECT).await?;
    let found = Known::of(&call.state).find(call.param("id"), None)?;
    let backend = &call.state.containers;
    backend.disconnect(&body.container, found.id.as_str(), body.force).await?;
    answer::ok()
}
