//! The node's life as the API asks for it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ipnet::IpNet;
use shoal_api::backend::swarm::{
    InitRequest, JoinRequest, LocalState, RestoreRequest, SwarmControl, SwarmMembership,
    SwarmStatus,
};
use shoal_api::error::{ApiError, ApiResult};
use shoal_model::id::NodeId;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Clock;
use shoal_node::node::{AddressOptions, InitOptions, JoinOptions, Node, RestoreOptions, Standing};
use shoal_store::{Backup, UnlockKey};

/// UDP port of VXLAN (RFC 7348) if nobody says another.
const DATA_PATH_PORT: u16 = 4789;
/// Overlay subnets are cut from here if nobody says otherwise.
const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Prefix length of each cut if nobody says otherwise.
const SUBNET_PREFIX_LEN: u8 = 24;

/// The node behind the API.
pub struct Membership {
    pub node: Node,
    pub clock: Clock,
}

#[async_trait]
impl SwarmMembership for Membership {
    fn status(&self) -> SwarmStatus {
        match self.node.standing() {
            Standing::Inactive => SwarmStatus::default(),
            Standing::Pending => {
                SwarmStatus { state: LocalState::Pending, ..SwarmStatus::default() }
            }
            Standing::Locked { node_id } => {
                SwarmStatus { state: LocalState::Locked, node_id, ..SwarmStatus::default() }
            }
            Standing::Broken { error } => {
                SwarmStatus { state: LocalState::Error, error, ..SwarmStatus::default() }
            }
            Standing::Active { node_id, role, addr, error, managers } => SwarmStatus {
                state: LocalState::Active,
                node_id: Some(node_id.clone()),
                node_addr: addr.to_string(),
                control_available: role == NodeRole::Manager && self.node.control().is_some(),
                error,
                remote_managers: self.known_managers(managers),
            },
        }
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.node.changes()
    }

    fn control(&self) -> Option<Arc<dyn SwarmControl>> {
        let control = self.node.control()?;
        Some(Arc::new(shoal_api::adapter::control::ManagerControl::new(control)))
    }

    async fn init(&self, request: InitRequest) -> ApiResult<NodeId> {
        let options = init_options(request)?;
        self.node.init(options).await.map_err(ApiError::from)
    }

    async fn join(&self, request: JoinRequest) -> ApiResult<()> {
        let options = JoinOptions {
            addrs: AddressOptions {
                listen: request.listen_addr,
                advertise: request.advertise_addr,
                data_path: request.data_path_addr,
            },
            remote_addrs: request.remote_addrs,
            join_token: request.join_token,
            availability: request.availability,
        };
        self.node.join(options).await.map_err(ApiError::from)
    }

    async fn backup(&self) -> ApiResult<Bytes> {
        let not_here = || ApiError::unavailable(self.status().not_a_manager());
        let state = self.node.control().ok_or_else(not_here)?.state();
        let taken = (self.clock)();
        let made = tokio::task::spawn_blocking(move || Backup::of(&state, taken)?.encode(None));
        let made = made.await.map_err(|_| ApiError::unavailable("the daemon is stopping"))?;
        Ok(Bytes::from(made?))
    }

    async fn restore(&self, request: RestoreRequest) -> ApiResult<NodeId> {
        let RestoreRequest { listen_addr, advertise_addr, data_path_addr, file } = request;
        let addrs = AddressOptions {
            listen: listen_addr,
            advertise: advertise_addr,
            data_path: data_path_addr,
        };
        let read = tokio::task::spawn_blocking(move || Backup::decode(&file, None)).await;
        let backup = read.map_err(|_| ApiError::unavailable("the daemon is stopping"))??;
        self.node.restore(RestoreOptions { addrs, backup }).await.map_err(ApiError::from)
    }

    async fn unlock(&self, text: &str) -> ApiResult<()> {
        let key = UnlockKey::parse(text)?;
        self.node.unlock(key).await.map_err(ApiError::from)
    }

    async fn leave(&self, force: bool) -> ApiResult<()> {
        self.node.leave(force).await.map_err(ApiError::from)
    }
}

impl Membership {
    /// Ids are known on managers only; a worker knows addresses.
    fn known_managers(&self, addrs: Vec<String>) -> Vec<(NodeId, String)> {
        let Some(control) = self.node.control() else {
            return addrs.into_iter().map(|addr| (NodeId::new(""), addr)).collect();
        };
        let state = control.state();
        let managers = state.nodes.values().filter_map(|node| {
            node.manager.as_ref().map(|manager| (node.id.clone(), manager.addr.clone()))
        });
        managers.collect()
    }
}

fn init_options(request: InitRequest) -> ApiResult<InitOptions> {
    let invalid = |text: String| ApiError::invalid(text);
    let mut pools: Vec<IpNet> = Vec::new();
    for text in &request.default_addr_pool {
        let pool = text.parse::<IpNet>();
        pools.push(pool.map_err(|_| invalid(format!("invalid default address pool '{text}'")))?);
    }
    if pools.is_empty() {
        pools.extend(DEFAULT_POOL.parse::<IpNet>().ok());
    }
    let data_path_port = match request.data_path_port {
        0 => DATA_PATH_PORT,
        // The range that Docker allows: below are well-known ports, above are ephemeral ones.
        port @ 1024..=49151 => u16::try_from(port).unwrap_or(DATA_PATH_PORT),
        port => {
            let text = format!("Datapath port number is not in valid range (1024-49151) : {port}");
            return Err(invalid(text));
        }
    };
    let subnet_prefix_len = match request.subnet_size {
        0 => SUBNET_PREFIX_LEN,
        size @ 1..=29 => u8::try_from(size).unwrap_or(SUBNET_PREFIX_LEN),
        size => return Err(invalid(format!("invalid subnet size {size}: it must be 1 to 29"))),
    };
    let mut spec = request.spec;
    spec.encryption_config.auto_lock_managers |= request.auto_lock_managers;
    Ok(InitOptions {
        addrs: AddressOptions {
            listen: request.listen_addr,
            advertise: request.advertise_addr,
            data_path: request.data_path_addr,
        },
        data_path_port,
        default_address_pools: pools,
        subnet_prefix_len,
        spec,
        availability: request.availability,
        force_new_cluster: request.force_new_cluster,
    })
}
