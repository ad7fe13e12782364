//! The node's handle.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use shoal_agent::agent::Agent;
use shoal_identity::external::HttpsPost;
use shoal_identity::node_identity::NodeIdentity;
use shoal_manager::control::Control;
use shoal_manager::manager::Manager;
use shoal_model::id::NodeId;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::node::{Availability, NodeRole};
pub use shoal_model::time::Clock;
use shoal_store::{Backup, Store, UnlockKey};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::error::NodeError;
use crate::owner::{Answer, Command, Owner};
use crate::record::Record;

/// Commands that wait for the owner at most. It answers within moments whatever is under way, so
/// more are clients that should wait at the door.
const COMMANDS_MAX: usize = 16;

/// What the composition root passes in.
#[derive(Clone)]
pub struct NodeConfig {
    /// Durable state: `swarm/` is made in it.
    pub data_root: PathBuf,
    /// What to advertise when a user does not say.
    pub default_advertise: Option<String>,
    /// The wall clock.
    pub clock: Clock,
    /// The way to external certificate authorities.
    pub https: Arc<dyn HttpsPost>,
    /// The shortest time that certificates may be set to last.
    pub cert_expiry_min: Duration,
}

/// Addresses as a user writes them.
#[derive(Clone, Debug, Default)]
pub struct AddressOptions {
    /// Where to listen as a manager; empty: everywhere on port 2377.
    pub listen: String,
    /// What to tell other nodes; empty: found out.
    pub advertise: String,
    /// Where VXLAN frames come from; empty: the advertised address.
    pub data_path: String,
}

/// What `swarm init` asks for.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Its addresses.
    pub addrs: AddressOptions,
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
    /// Begin an existing swarm again from this manager alone; elsewhere a new one.
    pub force_new_cluster: bool,
}

/// What `swarm join` asks for.
#[derive(Clone, Debug, Default)]
pub struct JoinOptions {
    /// Its addresses.
    pub addrs: AddressOptions,
    /// Managers to try.
    pub remote_addrs: Vec<String>,
    /// `SWMTKN-1-…`
    pub join_token: String,
    /// Whether this node gets tasks.
    pub availability: Availability,
}

/// What `shoal restore` asks for.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// Its addresses.
    pub addrs: AddressOptions,
    /// The swarm.
    pub backup: Backup,
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
        /// Why it has no session with a manager, or cannot change its role; empty if all is well.
        error: String,
        /// Managers that it knows.
        managers: Vec<String>,
    },
    /// A manager by its files, which need the unlock key.
    Locked {
        /// Who it is.
        node_id: Option<NodeId>,
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

/// What the owner shows of the membership.
#[derive(Default)]
pub(crate) enum View {
    /// In no swarm.
    #[default]
    Out,
    /// On the way in or out.
    Pending,
    /// A member.
    In {
        node_id: NodeId,
        role: NodeRole,
        addr: IpAddr,
        control: Option<Control>,
        /// Why it is not what it is to be.
        trouble: String,
    },
    /// A manager by its files, which need the unlock key.
    Locked(Option<NodeId>),
    /// A member by its files, which cannot be used.
    Broken(String),
}

/// The node. Cheap to clone; all clones are the same.
///
/// The membership has one owner, a task of its own: every call here is a command to it. Whoever
/// stops waiting for the answer changes nothing.
#[derive(Clone)]
pub struct Node {
    agent: Agent,
    commands: mpsc::Sender<Command>,
    seen: Arc<Seen>,
    owner: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What is read of the membership, without asking its owner.
#[derive(Default)]
pub(crate) struct Seen {
    view: Mutex<View>,
    changes: watch::Sender<u64>,
    /// Why this node's certificate is not renewed; empty if it is, or need not be yet.
    renewal: Mutex<String>,
}

impl Seen {
    pub(crate) fn renewal_fails(&self, why: String) {
        *lock(&self.renewal) = why;
    }

    pub(crate) fn show(&self, view: View) {
        *lock(&self.view) = view;
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Node {
    /// Opens the node; a member goes on being one. Files that cannot be used leave the node running
    /// outside its swarm, with the reason in [`Node::standing`], and are tried again.
    ///
    /// # Errors
    /// None today.
    pub async fn open(config: NodeConfig, agent: Agent) -> Result<Self, NodeError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let seen = Arc::new(Seen::default());
        let (opened, settled) = oneshot::channel();
        let owner = Owner::new(config, agent.clone(), Arc::clone(&seen), inbox);
        let owner = tokio::spawn(owner.run(opened));
        // Ignored because: an owner that ended early has nothing to wait for, and answers nobody.
        let _ = settled.await;
        Ok(Self { agent, commands, seen, owner: Arc::new(Mutex::new(Some(owner))) })
    }

    /// Where this node stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &*lock(&self.seen.view) {
            View::Out => Standing::Inactive,
            View::Pending => Standing::Pending,
            View::Locked(node_id) => Standing::Locked { node_id: node_id.clone() },
            View::Broken(error) => Standing::Broken { error: error.clone() },
            View::In { node_id, role, addr, trouble, .. } => Standing::Active {
                node_id: node_id.clone(),
                role: *role,
                addr: *addr,
                error: Some(self.agent.session_error())
                    .filter(|error| !error.is_empty())
                    .unwrap_or_else(|| trouble.clone()),
                managers: self.agent.managers(),
            },
        }
    }

    /// Counts the changes of [`Self::standing`].
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.seen.changes.subscribe()
    }

    /// What is wrong with this node's membership, a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let renewal = lock(&self.seen.renewal).clone();
        Some(renewal).filter(|text| !text.is_empty()).into_iter().collect()
    }

    /// The cluster's control, on managers.
    #[must_use]
    pub fn control(&self) -> Option<Control> {
        match &*lock(&self.seen.view) {
            View::In { control, .. } => control.clone(),
            _ => None,
        }
    }

    /// Makes a new swarm, or begins this manager's again without the others.
    ///
    /// # Errors
    /// The node is a member; nothing has to be recovered, or another manager is the one to go on
    /// from; an address makes no sense; the store or the manager fails.
    pub async fn init(&self, options: InitOptions) -> Result<NodeId, NodeError> {
        // Nothing is added to the others' logs meanwhile: the owner looks once more whether
        // somebody leads.
        if options.force_new_cluster
            && let Some(control) = self.control()
            && let Some(farther) = control.farther().await
        {
            return Err(NodeError::Behind { farther });
        }
        let id = self.ask(|answer| Command::Init(Box::new(options), answer)).await?;
        id.ok_or(NodeError::NotMember)
    }

    /// Joins a swarm.
    ///
    /// # Errors
    /// The node is a member; the token is broken; else the step that failed.
    pub async fn join(&self, options: JoinOptions) -> Result<(), NodeError> {
        self.ask(|answer| Command::Join(Box::new(options), answer)).await.map(|_| ())
    }

    /// Begins a swarm from a backup.
    ///
    /// # Errors
    /// The node is a member; an address makes no sense; the backup cannot be used.
    pub async fn restore(&self, options: RestoreOptions) -> Result<NodeId, NodeError> {
        let id = self.ask(|answer| Command::Restore(Box::new(options), answer)).await?;
        id.ok_or(NodeError::NotMember)
    }

    /// Unlocks this manager.
    ///
    /// # Errors
    /// The node is not locked, or another key is the one.
    pub async fn unlock(&self, key: UnlockKey) -> Result<(), NodeError> {
        self.ask(|answer| Command::Unlock(key, answer)).await.map(|_| ())
    }

    /// Leaves the swarm.
    ///
    /// # Errors
    /// The node is no member, or a manager and `force` is not set.
    pub async fn leave(&self, force: bool) -> Result<(), NodeError> {
        self.ask(|answer| Command::Leave { force, answer }).await.map(|_| ())
    }

    /// Stops the node's own parts, in order, once nothing is under way; the membership stays.
    pub async fn shutdown(&self) {
        let owner = lock(&self.owner).take();
        let Some(owner) = owner else { return };
        // Ignored because: an owner that has ended needs no command to.
        let _ = self.commands.send(Command::Close).await;
        if let Err(error) = owner.await {
            tracing::error!(cause = %error, "the owner of the membership ended early");
        }
    }

    async fn ask(
        &self,
        command: impl FnOnce(Answer) -> Command,
    ) -> Result<Option<NodeId>, NodeError> {
        let (answer, hear) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| NodeError::Stopping)?;
        hear.await.map_err(|_| NodeError::Stopping)?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
