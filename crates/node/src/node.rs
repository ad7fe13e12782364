//! The node's handle.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use shoal_agent::agent::Agent;
use shoal_identity::authority::KeyAndCsr;
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::token::JoinToken;
use shoal_manager::control::Control;
use shoal_manager::manager::Manager;
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::object::NodeDescription;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::node::{Availability, NodeRole};
pub use shoal_model::time::Clock;
use shoal_store::Store;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::NodeFacts;
use tokio::sync::Mutex as AsyncMutex;

use crate::address;
use crate::error::NodeError;
use crate::record::{Folder, Record};
use crate::start;

/// How long leaving waits for this node's tasks to end. A task's own grace period counts within it;
/// what is left is killed with the containers.
const LEAVE_DEADLINE: Duration = Duration::from_secs(30);

/// What the composition root passes in.
#[derive(Clone)]
pub struct NodeConfig {
    /// Durable state: `swarm/` is made in it.
    pub data_root: PathBuf,
    /// What to advertise when a user does not say.
    pub default_advertise: Option<String>,
    /// The wall clock.
    pub clock: Clock,
    /// Describes this node.
    pub describe: Arc<dyn Fn() -> NodeDescription + Send + Sync>,
}

/// What `swarm init` asks for.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Where to listen; empty: everywhere on port 2377.
    pub listen_addr: String,
    /// What to tell other nodes; empty: found out.
    pub advertise_addr: String,
    /// Where VXLAN frames come from; empty: the advertised address.
    pub data_path_addr: String,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// Overlay subnets are cut from these.
    pub default_address_pools: Vec<IpNet>,
    /// Prefix length of each cut.
    pub subnet_prefix_len: u8,
    /// Settings.
    pub spec: ClusterSpec,
    /// Whether this node gets tasks.
    pub availability: Availability,
}

/// What `swarm join` asks for.
#[derive(Clone, Debug, Default)]
pub struct JoinOptions {
    /// Where it would listen as a manager.
    pub listen_addr: String,
    /// What to tell other nodes; empty: found out.
    pub advertise_addr: String,
    /// Where VXLAN frames come from; empty: the advertised address.
    pub data_path_addr: String,
    /// Managers to try.
    pub remote_addrs: Vec<String>,
    /// `SWMTKN-1-…`
    pub join_token: String,
    /// Whether this node gets tasks.
    pub availability: Availability,
}

/// Where this node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// In no swarm.
    #[default]
    Inactive,
    /// On its way in.
    Pending,
    /// A member.
    Active {
        /// Who it is.
        node_id: NodeId,
        /// What it does.
        role: NodeRole,
        /// What other nodes are told, without a port.
        addr: IpAddr,
        /// Why it has no session with a manager; empty if it has one.
        error: String,
        /// Managers that it knows.
        managers: Vec<String>,
    },
    /// A member by its files, but they cannot be used.
    Broken {
        /// Why.
        error: String,
    },
}

/// What a running membership consists of.
pub(crate) struct Member {
    pub(crate) identity: NodeIdentity,
    pub(crate) record: Record,
    pub(crate) manager: Option<(Manager, Store)>,
}

#[derive(Default)]
enum State {
    #[default]
    Out,
    Pending,
    In(Box<Member>),
    Broken(String),
}

/// The node. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    agent: Agent,
    folder: Folder,
    state: Mutex<State>,
    /// Held while the membership changes: one init, join or leave at a time.
    changing: AsyncMutex<()>,
}

impl Node {
    /// Opens the node; a member goes on being one. Files that cannot be used leave the node running
    /// outside its swarm, with the reason in [`Node::standing`].
    ///
    /// # Errors
    /// Leftovers of a half-finished join cannot be removed.
    pub async fn open(config: NodeConfig, agent: Agent) -> Result<Self, NodeError> {
        let folder = Folder::new(&config.data_root);
        let inner = Inner {
            config,
            agent,
            folder,
            state: Mutex::new(State::Out),
            changing: AsyncMutex::new(()),
        };
        let this = Self { inner: Arc::new(inner) };
        match this.inner.folder.read() {
            Ok(None) => this.inner.folder.sweep()?,
            Ok(Some(record)) => match this.resume(record).await {
                Ok(member) => this.enter(member),
                Err(error) => this.set(State::Broken(report(&error))),
            },
            Err(error) => this.set(State::Broken(report(&error))),
        }
        Ok(this)
    }

    async fn resume(&self, record: Record) -> Result<Member, NodeError> {
        let path = self.inner.folder.identity();
        let failed = |source| NodeError::Identity { action: "read this node's identity", source };
        let identity = NodeIdentity::load(&path).map_err(failed)?.ok_or_else(|| {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            NodeError::File { action: "read", path, source }
        })?;
        let manager = match record.role {
            NodeRole::Manager => Some(
                start::reopen(&self.inner.config, &self.inner.folder, &identity, &record).await?,
            ),
            NodeRole::Worker => None,
        };
        Ok(Member { identity, record, manager })
    }

    /// Where this node stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &*self.lock() {
            State::Out => Standing::Inactive,
            State::Pending => Standing::Pending,
            State::Broken(error) => Standing::Broken { error: error.clone() },
            State::In(member) => Standing::Active {
                node_id: member.identity.node_id.clone(),
                role: member.record.role,
                addr: member.record.advertise.ip(),
                error: self.inner.agent.session_error(),
                managers: self.inner.agent.managers(),
            },
        }
    }

    /// The cluster's control, on managers.
    #[must_use]
    pub fn control(&self) -> Option<Control> {
        match &*self.lock() {
            State::In(member) => member.manager.as_ref().map(|(manager, _)| manager.control()),
            _ => None,
        }
    }

    /// Makes a new swarm.
    ///
    /// # Errors
    /// The node is a member; an address makes no sense; the store or the manager fails.
    pub async fn init(&self, options: InitOptions) -> Result<NodeId, NodeError> {
        let _changing = self.inner.changing.try_lock().map_err(|_| NodeError::Busy)?;
        self.must_be_out()?;
        self.set(State::Pending);
        match start::init(&self.inner.config, &self.inner.folder, options).await {
            Ok(member) => {
                let node_id = member.identity.node_id.clone();
                self.enter(member);
                Ok(node_id)
            }
            Err(error) => Err(self.failed_to_enter(error)),
        }
    }

    /// Joins a swarm.
    ///
    /// # Errors
    /// The node is a member; the token is broken; else the step that failed.
    pub async fn join(&self, options: JoinOptions) -> Result<(), NodeError> {
        let _changing = self.inner.changing.try_lock().map_err(|_| NodeError::Busy)?;
        self.must_be_out()?;
        self.set(State::Pending);
        match self.try_join(options).await {
            Ok(member) => {
                self.enter(member);
                Ok(())
            }
            Err(error) => Err(self.failed_to_enter(error)),
        }
    }

    async fn try_join(&self, options: JoinOptions) -> Result<Member, NodeError> {
        let failed = |action| move |source| NodeError::Identity { action, source };
        let token = JoinToken::parse(&options.join_token).map_err(failed("read the join token"))?;
        let own = address::own_addresses();
        let listen = address::listen(&options.listen_addr, &own)?;
        let default = self.inner.config.default_advertise.as_deref();
        let advertise = address::advertise(&options.advertise_addr, default, listen, &own)?;
        let data_path = address::data_path(&options.data_path_addr, advertise.ip(), &own)?;
        self.inner.folder.prepare()?;
        let key = KeyAndCsr::generate().map_err(failed("make a key"))?;
        let describe = Arc::clone(&self.inner.config.describe);
        let description = tokio::task::spawn_blocking(move || describe()).await.unwrap_or_default();
        let facts = NodeFacts {
            description,
            advertise_addr: Some(advertise.ip()),
            data_path_addr: Some(data_path),
            availability: options.availability,
            ..NodeFacts::default()
        };
        let joined = ask_all(&options.remote_addrs, &token, &key.csr_pem, &facts).await?;
        let identity = NodeIdentity::new(joined.reply.cert_pem, key.key_pem, joined.root_pem)
            .map_err(failed("use the certificate that the manager issued"))?;
        identity.save(&self.inner.folder.identity()).map_err(failed("keep the certificate"))?;
        let mut managers: Vec<String> = joined.reply.managers.into_iter().map(|m| m.addr).collect();
        if managers.is_empty() {
            managers = with_port(&options.remote_addrs);
        }
        let record = Record::new(identity.role, listen, advertise, data_path, managers);
        self.inner.folder.write(&record)?;
        Ok(Member { identity, record, manager: None })
    }

    /// Leaves the swarm.
    ///
    /// # Errors
    /// The node is no member, or a manager and `force` is not set.
    pub async fn leave(&self, force: bool) -> Result<(), NodeError> {
        let _changing = self.inner.changing.try_lock().map_err(|_| NodeError::Busy)?;
        match &*self.lock() {
            State::Out | State::Pending => return Err(NodeError::NotMember),
            State::In(member) if member.manager.is_some() && !force => {
                return Err(NodeError::LastManager);
            }
            State::In(_) | State::Broken(_) => {}
        }
        let member = std::mem::replace(&mut *self.lock(), State::Pending);
        self.inner.agent.say_leave().await;
        self.inner.agent.set_membership(None);
        if let Err(error) = self.inner.agent.drained(LEAVE_DEADLINE).await {
            tracing::warn!(cause = report(&error), "left with tasks that had not ended");
        }
        if let State::In(member) = member
            && let Some((manager, store)) = member.manager
        {
            manager.shutdown().await;
            store.shutdown().await;
        }
        let swept = self.inner.folder.sweep();
        self.set(State::Out);
        swept
    }

    /// Stops the node's own parts, in order; the membership stays.
    pub async fn shutdown(&self) {
        let _changing = self.inner.changing.lock().await;
        let state = std::mem::take(&mut *self.lock());
        if let State::In(member) = state
            && let Some((manager, store)) = member.manager
        {
            manager.shutdown().await;
            store.shutdown().await;
        }
    }

    fn must_be_out(&self) -> Result<(), NodeError> {
        match &*self.lock() {
            State::Out => Ok(()),
            _ => Err(NodeError::AlreadyMember),
        }
    }

    fn enter(&self, member: Member) {
        self.inner.agent.set_membership(Some(start::membership(&member)));
        self.set(State::In(Box::new(member)));
    }

    /// A failed init or join leaves nothing.
    fn failed_to_enter(&self, error: NodeError) -> NodeError {
        self.set(State::Out);
        match self.inner.folder.sweep() {
            Ok(()) => error,
            Err(sweep) => {
                tracing::warn!(cause = report(&sweep), "leftovers of a failed join stay");
                error
            }
        }
    }

    fn set(&self, state: State) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_port(addrs: &[String]) -> Vec<String> {
    let full = |addr: &String| {
        let has_port = addr.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        if has_port { addr.clone() } else { format!("{addr}:{}", address::MANAGER_PORT) }
    };
    addrs.iter().map(full).collect()
}

/// Tries one manager after the other.
async fn ask_all(
    addrs: &[String],
    token: &JoinToken,
    csr_pem: &str,
    facts: &NodeFacts,
) -> Result<client::Joined, NodeError> {
    let mut last: Option<(String, WireError)> = None;
    for addr in with_port(addrs) {
        match client::join(&addr, token, csr_pem, facts.clone()).await {
            Ok(joined) => return Ok(joined),
            Err(error) => last = Some((addr, error)),
        }
    }
    Err(match last {
        Some((addr, source)) => NodeError::Join { addr, source },
        None => NodeError::Address {
            what: "manager",
            text: String::new(),
            problem: "at least one is needed to join".to_owned(),
        },
    })
}
