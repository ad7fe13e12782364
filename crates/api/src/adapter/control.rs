//! [`SwarmControl`] by the manager.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use shoal_manager::control::{Control, Rotation, ServiceUpdate as ManagerUpdate};
use shoal_model::cluster_state::ClusterState;
use shoal_model::event::Event;
use shoal_model::id::{ConfigId, NetworkId, NodeId, Revision, SecretId, ServiceId};
use shoal_model::log::{LogSelection, LogsOf, TaskLog};
use shoal_model::object::Service;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::NodeSpec;
use shoal_model::spec::payload::PayloadSpec;
use shoal_model::spec::service::{EndpointMode, PortConfig, PublishMode, ServiceSpec};
use tokio::sync::broadcast::error::RecvError;

use crate::backend::swarm::{NodeStream, Rotations, ServiceUpdate, ServiceWritten, SwarmControl};
use crate::error::ApiResult;

/// The manager's control as the routes see it.
#[derive(Clone)]
pub struct ManagerControl(Control);

impl ManagerControl {
    /// Wraps the manager's handle.
    #[must_use]
    pub fn new(control: Control) -> Self {
        Self(control)
    }

    /// Waits until the service has its addresses and ports. Giving them is a write of its own: a
    /// client that reads the service right after its creation would read a version that is about to
    /// pass, and its next update would be out of sequence.
    async fn settled(&self, id: &ServiceId) {
        let mut revisions = self.0.watch();
        let done = async {
            loop {
                let state = self.0.state();
                if state.services.get(id).is_none_or(|service| is_settled(&state, service)) {
                    return;
                }
                if revisions.changed().await.is_err() {
                    return;
                }
            }
        };
        // Ignored because: the service is stored; why it has no addresses is shown on its tasks.
        let _ = tokio::time::timeout(SETTLE_MAX, done).await;
    }
}

/// How long an answer waits for addresses; usually a millisecond.
const SETTLE_MAX: Duration = Duration::from_secs(1);

fn is_settled(state: &ClusterState, service: &Service) -> bool {
    // `host` and the like are not the cluster's networks and get no address.
    let known =
        |word: &str| state.networks.values().any(|n| n.id.as_str() == word || n.spec.name == word);
    let networks = match service.spec.endpoint_mode() {
        EndpointMode::Vip => {
            service.spec.networks().iter().filter(|network| known(&network.target)).count()
        }
        EndpointMode::Dnsrr => 0,
    };
    let ingress = |port: &&PortConfig| port.mode() == PublishMode::Ingress;
    let ports = service.spec.ports().iter().filter(ingress).count();
    let published = service.endpoint.ports.iter().filter(ingress);
    let published = published.filter(|port| port.published().is_some()).count();
    service.allocation_error.is_some()
        || (service.endpoint.vips.len() >= networks && published >= ports)
}

#[async_trait]
impl SwarmControl for ManagerControl {
    fn state(&self) -> Arc<ClusterState> {
        self.0.state()
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let receiver = self.0.events();
        stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(event) => return Some((event, receiver)),
                    // What was missed is gone; what comes is still worth telling.
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events of the cluster came too fast");
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    async fn create_service(
        &self,
        spec: ServiceSpec,
        auth: Option<String>,
    ) -> ApiResult<ServiceWritten> {
        let created = self.0.create_service(spec, auth).await?;
        self.settled(&created.id).await;
        Ok(ServiceWritten { id: created.id, warnings: created.warnings })
    }

    async fn update_service(
        &self,
        id: &ServiceId,
        version: Revision,
        update: ServiceUpdate,
    ) -> ApiResult<ServiceWritten> {
        let change = if update.rollback {
            ManagerUpdate::Rollback
        } else {
            ManagerUpdate::Spec(Box::new(update.spec))
        };
        let warnings = self.0.update_service(id, version, change, update.auth).await?;
        self.settled(id).await;
        Ok(ServiceWritten { id: id.clone(), warnings })
    }

    async fn remove_service(&self, id: &ServiceId) -> ApiResult<()> {
        Ok(self.0.remove_service(id).await?)
    }

    async fn create_network(&self, spec: NetworkSpec) -> ApiResult<NetworkId> {
        Ok(self.0.create_network(spec).await?)
    }

    async fn remove_network(&self, id: &NetworkId) -> ApiResult<()> {
        Ok(self.0.remove_network(id).await?)
    }

    async fn create_secret(&self, spec: PayloadSpec) -> ApiResult<SecretId> {
        Ok(self.0.create_secret(spec).await?)
    }

    async fn update_secret(
        &self,
        id: &SecretId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()> {
        Ok(self.0.update_secret(id, version, spec).await?)
    }

    async fn remove_secret(&self, id: &SecretId) -> ApiResult<()> {
        Ok(self.0.remove_secret(id).await?)
    }

    async fn create_config(&self, spec: PayloadSpec) -> ApiResult<ConfigId> {
        Ok(self.0.create_config(spec).await?)
    }

    async fn update_config(
        &self,
        id: &ConfigId,
        version: Revision,
        spec: PayloadSpec,
    ) -> ApiResult<()> {
        Ok(self.0.update_config(id, version, spec).await?)
    }

    async fn remove_config(&self, id: &ConfigId) -> ApiResult<()> {
        Ok(self.0.remove_config(id).await?)
    }

    async fn update_node(&self, id: &NodeId, version: Revision, spec: NodeSpec) -> ApiResult<()> {
        Ok(self.0.update_node(id, version, spec).await?)
    }

    async fn remove_node(&self, id: &NodeId, force: bool) -> ApiResult<()> {
        Ok(self.0.remove_node(id, force).await?)
    }

    async fn update_cluster(
        &self,
        version: Revision,
        spec: ClusterSpec,
        rotate: Rotations,
    ) -> ApiResult<()> {
        let rotation = Rotation {
            worker_token: rotate.worker_token,
            manager_token: rotate.manager_token,
            unlock_key: rotate.unlock_key,
        };
        Ok(self.0.update_cluster(version, spec, rotation).await?)
    }

    async fn open_stream(&self, node: &NodeId) -> ApiResult<NodeStream> {
        Ok(Box::new(self.0.open_stream(node).await?))
    }

    async fn logs(
        &self,
        of: LogsOf,
        query: LogSelection,
    ) -> ApiResult<BoxStream<'static, TaskLog>> {
        let items = self.0.service_logs(of, query).await?;
        let items = stream::unfold(items, |mut items| async move {
            items.recv().await.map(|item| (item, items))
        });
        Ok(items.boxed())
    }
}
