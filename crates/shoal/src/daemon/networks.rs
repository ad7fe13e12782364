//! This node's own networks and its data plane as the API asks for them.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use shoal_agent::agent::Agent;
use shoal_api::backend::network::{LocalNetwork, NetworkBackend};
use shoal_api::backend::system::Diagnostics;
use shoal_api::error::{ApiError, ApiResult};
use shoal_model::assignment::NetworkTable;
use shoal_model::check::CheckResult;
use shoal_model::id::NetworkId;
use shoal_model::net::Mac;
use shoal_model::spec::network::NetworkSpec;

use crate::doctor::Checkup;

/// How long `docker info` waits for the network's own part of it.
const NETWORK_PATIENCE: Duration = Duration::from_secs(1);

/// Networks without addresses that every engine has.
const PLAIN: [(&str, &str); 2] = [("host", "host"), ("none", "null")];

/// The agent behind the API.
pub struct Networks {
    pub agent: Agent,
    pub instance: shoal_model::id::InstanceId,
    pub checkup: Checkup,
    pub health: super::health::Health,
}

impl Networks {
    /// `host` and `none` have ids of their own on each engine.
    fn plain_id(&self, name: &str) -> String {
        // Users see the first twelve digits: the name comes first, so that they differ.
        let seed = format!("{name}{}", self.instance);
        let hex: String = seed.bytes().map(|b| format!("{b:02x}")).collect();
        format!("{hex:0<64}").chars().take(64).collect()
    }
}

impl Networks {
    /// The cluster's networks that this node has, as Docker's workers show them.
    fn overlays(&self) -> Vec<LocalNetwork> {
        let assignment = self.agent.assignment();
        let overlay = |table: &NetworkTable| {
            let network = &table.network;
            let subnets = network.subnets.iter();
            LocalNetwork {
                id: network.id.to_string(),
                driver: "overlay".to_owned(),
                subnets: subnets.map(|s| (s.subnet.to_string(), s.gateway.to_string())).collect(),
                spec: NetworkSpec {
                    name: network.name.clone(),
                    internal: Some(network.internal),
                    ingress: Some(network.ingress),
                    ..NetworkSpec::default()
                },
                ..LocalNetwork::default()
            }
        };
        assignment.networks.values().map(|table| overlay(table)).collect()
    }
}

#[async_trait]
impl NetworkBackend for Networks {
    fn list(&self) -> Vec<LocalNetwork> {
        let bridges = self.agent.local().list().into_iter().map(|network| LocalNetwork {
            id: network.id.to_string(),
            created: network.created_at,
            driver: "bridge".to_owned(),
            predefined: network.name() == shoal_agent::local::DEFAULT_NETWORK,
            subnets: network
                .subnets
                .iter()
                .map(|s| (s.subnet.to_string(), s.gateway.to_string()))
                .collect(),
            spec: network.spec,
        });
        let plain = PLAIN.iter().map(|(name, driver)| LocalNetwork {
            id: self.plain_id(name),
            driver: (*driver).to_owned(),
            predefined: true,
            spec: NetworkSpec { name: (*name).to_owned(), ..NetworkSpec::default() },
            ..LocalNetwork::default()
        });
        bridges.chain(plain).chain(self.overlays()).collect()
    }

    async fn create(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        if PLAIN.iter().any(|(name, _)| *name == spec.name) {
            let text = format!("operation is not permitted on predefined {} network", spec.name);
            return Err(ApiError::forbidden(text));
        }
        let agent = self.agent.clone();
        let made = tokio::task::spawn_blocking(move || agent.create_network(spec)).await;
        let made = made.map_err(|error| ApiError::internal(error.to_string()))?;
        made.map(|network| network.id).map_err(ApiError::from)
    }

    async fn remove(&self, id: &NetworkId) -> ApiResult<()> {
        if let Some((name, _)) = PLAIN.iter().find(|(name, _)| self.plain_id(name) == id.as_str()) {
            let text = format!("{name} is a pre-defined network and cannot be removed");
            return Err(ApiError::forbidden(text));
        }
        let (agent, id) = (self.agent.clone(), id.clone());
        let removed = tokio::task::spawn_blocking(move || agent.remove_network(&id)).await;
        let removed = removed.map_err(|error| ApiError::internal(error.to_string()))?;
        removed.map_err(ApiError::from)
    }

    fn members(&self, id: &NetworkId) -> Map<String, Value> {
        let member = |(attached, place): (
            shoal_agent::desired::Attached,
            shoal_agent::desired::Place,
        )| {
            let first = place.addresses.first();
            let v4 = place.addresses.iter().find(|a| a.addr().is_ipv4());
            let v6 = place.addresses.iter().find(|a| a.addr().is_ipv6());
            let text = |a: Option<&ipnet::IpNet>| a.map(ToString::to_string).unwrap_or_default();
            let value = json!({
                "Name": attached.name,
                "EndpointID": attached.container_id,
                "MacAddress": first.map(|a| Mac::of_port(a.addr()).to_string()).unwrap_or_default(),
                "IPv4Address": text(v4),
                "IPv6Address": text(v6),
            });
            (attached.container_id.to_string(), value)
        };
        self.agent.on_network(id).into_iter().map(member).collect()
    }
}

#[async_trait]
impl Diagnostics for Networks {
    async fn checks(&self) -> ApiResult<Vec<CheckResult>> {
        let checkup = self.checkup.clone();
        let found = tokio::task::spawn_blocking(move || checkup.run()).await;
        found.map_err(|error| ApiError::internal(error.to_string()))
    }

    async fn warnings(&self) -> Vec<String> {
        let mut found = self.health.warnings();
        // It answers between two changes; whoever wants to know the rest does not wait for long.
        let status = tokio::time::timeout(NETWORK_PATIENCE, self.agent.network_status()).await;
        found.extend(status.iter().flat_map(|status| status.applied.failures()));
        found
    }

    async fn network(&self) -> ApiResult<Value> {
        let status = self.agent.network_status().await;
        serde_json::to_value(&status).map_err(|error| ApiError::internal(error.to_string()))
    }

    fn load(&self) -> (u64, u64) {
        let count = |dir: &str| std::fs::read_dir(dir).map_or(0, |entries| entries.count() as u64);
        (count("/proc/self/fd"), count("/proc/self/task"))
    }
}
