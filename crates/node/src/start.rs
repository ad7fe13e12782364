//! How a manager begins: a new cluster, or one that is on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_agent::agent::Membership;
use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
use shoal_identity::error::IdentityError;
use shoal_identity::external::{Wanted, authorities_of};
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::token::generate_tokens;
use shoal_manager::control::check_new_cluster;
use shoal_manager::external;
use shoal_manager::manager::{Manager, ManagerConfig};
use shoal_manager::peers::OtherManagers;
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::fault::report;
use shoal_model::id::{ClusterId, IdSource, NodeId};
use shoal_model::level;
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, ManagerStatus, Meta, Node, NodeDescription, NodeState, NodeStatus, UnlockSecret,
};
use shoal_model::spec::Extra;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::time::Timestamp;
use shoal_model::trust::{NodeTls, Trust};
use shoal_store::{FIRST_RAFT_ID, Store, StoreConfig, UnlockKey};

use crate::address::Addresses;
use crate::error::NodeError;
use crate::node::{InitOptions, Member, NodeConfig};
use crate::record::{Folder, Record};
use crate::recover;

/// How long a join waits for its manager's vote. Docker's client waits 20 s.
const VOTE_PATIENCE: Duration = Duration::from_secs(10);

/// The system's random source.
pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn fresh(&mut self) -> [u8; 16] {
        rand::random()
    }
}

/// Makes a new cluster with this node as its first manager.
pub(crate) async fn init(
    config: &NodeConfig,
    folder: &Folder,
    description: NodeDescription,
    options: InitOptions,
) -> Result<Member, NodeError> {
    let Addresses { listen, advertise, data_path } = Addresses::find(config, &options.addrs)?;
    check_new_cluster(&options.spec, config.cert_expiry_min).map_err(NodeError::Settings)?;
    folder.prepare()?;
    let now = (config.clock)();
    let failed = |action| move |source| NodeError::Identity { action, source };
    let (authority, root_ca) =
        RootAuthority::create(now).map_err(failed("make the root certificate"))?;
    let cluster_id = ClusterId::generate(&mut RandomIds);
    let node_id = NodeId::generate(&mut RandomIds);
    let unlock = unlock_key(folder, &options.spec)?;
    let own = Own { id: &node_id, cluster: &cluster_id, validity: validity(&options.spec), now };
    let identity = own.issue(&authority, folder)?;
    let cluster = Cluster {
        id: cluster_id,
        meta: Meta::default(),
        join_tokens: generate_tokens(&authority.digest()),
        unlock,
        root_ca,
        trust: Trust { digest: authority.digest().to_string(), ..Trust::default() },
        default_address_pools: options.default_address_pools,
        subnet_prefix_len: options.subnet_prefix_len,
        data_path_port: options.data_path_port,
        spec: options.spec,
        level: level::WRITES,
        #[cfg(feature = "next-level")]
        note: None,
        extra: Extra::new(),
    };
    let record =
        Record::new(NodeRole::Manager, listen, advertise, data_path, vec![advertise.to_string()]);
    let spec = NodeSpec {
        role: NodeRole::Manager,
        availability: options.availability,
        ..NodeSpec::default()
    };
    let node = first_node(node_id, spec, description, &record, now);
    let first =
        Transaction { changes: vec![put(Object::Cluster(Box::new(cluster))), put(node)], at: now };
    let others = OtherManagers::new(identity.clone());
    let store = Store::bootstrap(store_config(folder, &identity, &others), first)
        .await
        .map_err(|source| NodeError::Store { action: "create", source })?;
    let begun = begin(config, &store, &identity, others, &record).await;
    let (manager, store) = or_close(begun, store).await?;
    let made = manager.control().create_network(ingress()).await;
    let finished = made.map_err(NodeError::Ingress).and_then(|_| folder.write(&record));
    if let Err(error) = finished {
        manager.shutdown().await;
        store.shutdown().await;
        return Err(error);
    }
    Ok(Member { identity, record, manager: Some((manager, store)) })
}

/// Opens the cluster that is on disk. A manager whose certificate has expired gives itself the next
/// one: nobody could ask it for theirs otherwise.
pub(crate) async fn reopen(
    config: &NodeConfig,
    folder: &Folder,
    identity: &mut NodeIdentity,
    record: &Record,
) -> Result<(Manager, Store), NodeError> {
    let others = OtherManagers::new(identity.clone());
    let store = Store::open(store_config(folder, identity, &others))
        .await
        .map_err(|source| NodeError::Store { action: "open", source })?;
    let settled = recover::settle(config, &store, identity, record).await;
    let begun = match settled {
        Ok(()) => {
            match self_issued(config, folder, &store, identity).await {
                Ok(Some(fresh)) => *identity = fresh,
                Ok(None) => {}
                // Tried again by whoever looks after the certificate. What needs none goes on.
                Err(error) => tracing::error!(
                    cause = report(&error),
                    "this manager's certificate has expired, and there is no next one; it is \
                     tried again"
                ),
            }
            others.set_identity(identity.clone());
            begin(config, &store, identity, others, record).await
        }
        Err(error) => Err(error),
    };
    or_close(begun, store).await
}

/// Begins as one manager of several: an empty store that learns. It votes once it has learned
/// enough and the leader has let it.
pub(crate) async fn join_group(
    config: &NodeConfig,
    folder: &Folder,
    identity: &NodeIdentity,
    record: &Record,
    raft_id: u64,
    known: BTreeMap<NodeId, Vec<String>>,
) -> Result<(Manager, Store), NodeError> {
    let others = OtherManagers::new(identity.clone());
    others.set_directory(known);
    let store = Store::join(store_config(folder, identity, &others), raft_id)
        .await
        .map_err(|source| NodeError::Store { action: "create", source })?;
    // Before anybody can reach it: whoever votes must be a member after a crash too.
    let begun = match folder.write(record) {
        Ok(()) => begin(config, &store, identity, others, record).await,
        Err(error) => Err(error),
    };
    or_close(begun, store).await
}

/// The manager with its store, which is closed if the manager did not begin.
async fn or_close(
    begun: Result<Manager, NodeError>,
    store: Store,
) -> Result<(Manager, Store), NodeError> {
    match begun {
        Ok(manager) => Ok((manager, store)),
        Err(error) => {
            store.shutdown().await;
            Err(error)
        }
    }
}

/// Waits until this manager votes; whether it does.
pub(crate) async fn votes(store: &Store) -> bool {
    let own = store.raft_id();
    let mut group = store.group();
    let votes = group.wait_for(|group| group.voters.iter().any(|m| m.raft_id == own));
    matches!(tokio::time::timeout(VOTE_PATIENCE, votes).await, Ok(Ok(_)))
}

pub(crate) fn store_config(
    folder: &Folder,
    identity: &NodeIdentity,
    others: &OtherManagers,
) -> StoreConfig {
    let peers = Arc::new(others.clone());
    let config = StoreConfig::new(folder.store(), identity.node_id.clone(), peers);
    StoreConfig { keyring: folder.keyring().clone(), ..config }
}

/// The unlock key of a swarm that begins with its managers locked. From now on nothing of this
/// manager is on its disk in clear.
fn unlock_key(folder: &Folder, spec: &ClusterSpec) -> Result<Option<UnlockSecret>, NodeError> {
    if !spec.encryption_config.auto_lock_managers {
        return Ok(None);
    }
    let key = UnlockKey::generate();
    let secret = UnlockSecret(key.to_string());
    seal_first(folder, key)?;
    Ok(Some(secret))
}

/// Has what is written of this manager from now on sealed, before there is anything.
pub(crate) fn seal_first(folder: &Folder, key: UnlockKey) -> Result<(), NodeError> {
    folder.keyring().offer(key);
    let failed = |source| NodeError::Store { action: "make the keys of", source };
    folder.keyring().prepare().map_err(failed)
}

/// Replaces a manager's certificate if it has expired: nobody takes it for one, so nobody could be
/// asked. By the root's key in the cluster's state, or by the external CA that has it.
///
/// # Errors
/// Nobody issues one, or it cannot be kept.
pub(crate) async fn self_issued(
    config: &NodeConfig,
    folder: &Folder,
    store: &Store,
    identity: &NodeIdentity,
) -> Result<Option<NodeIdentity>, NodeError> {
    let now = (config.clock)();
    let state = store.state();
    let Some(cluster) = state.cluster.as_ref().filter(|_| now > identity.not_after) else {
        return Ok(None);
    };
    let failed = |action| move |source| NodeError::Identity { action, source };
    let fresh = match RootAuthority::of(cluster).map_err(failed("read the root's key"))? {
        Some(authority) => {
            let validity = validity(&cluster.spec);
            let own = Own { id: &identity.node_id, cluster: &cluster.id, validity, now };
            own.issue(&authority, folder)?
        }
        None => {
            let asked = ask_external(config, cluster, identity).await;
            let fresh = asked.map_err(failed("renew this manager's expired certificate"))?;
            folder.keep_identity(fresh.clone()).await?;
            fresh
        }
    };
    tracing::warn!(expired = ?identity.not_after, "this manager's certificate had expired");
    Ok(Some(fresh))
}

/// A certificate for a new key of this manager's, from the first external CA that gives one.
async fn ask_external(
    config: &NodeConfig,
    cluster: &Cluster,
    identity: &NodeIdentity,
) -> Result<NodeIdentity, IdentityError> {
    let root = cluster.signing_root();
    let key = KeyAndCsr::generate()?;
    let wanted = Wanted {
        node_id: identity.node_id.clone(),
        role: NodeRole::Manager,
        cluster_id: cluster.id.clone(),
        csr_pem: key.csr_pem,
    };
    let listed = authorities_of(&cluster.spec.ca_config.external_cas, cluster, root)?;
    let urls = listed.iter().map(|ca| ca.url.as_str());
    let (way, now) = (&*config.https, (config.clock)());
    let leaf = external::ask(way, urls, root, identity, &wanted, now, |_| {}).await?;
    let chain = format!("{leaf}{}", cluster.chain_pem());
    NodeIdentity::new(chain, key.key_pem, cluster.trusted_pem())
}

/// What a manager's certificate for itself says.
pub(crate) struct Own<'a> {
    pub(crate) id: &'a NodeId,
    pub(crate) cluster: &'a ClusterId,
    pub(crate) validity: Duration,
    pub(crate) now: Timestamp,
}

impl Own<'_> {
    /// Issues it for a new key, and keeps both.
    pub(crate) fn issue(
        self,
        by: &RootAuthority,
        folder: &Folder,
    ) -> Result<NodeIdentity, NodeError> {
        let failed = |action| move |source| NodeError::Identity { action, source };
        let key = KeyAndCsr::generate().map_err(failed("make a key"))?;
        let Self { id, cluster, validity, now } = self;
        let cert_pem = by
            .issue(&key.csr_pem, id, NodeRole::Manager, cluster, now, validity)
            .map_err(failed("issue this node's certificate"))?;
        let identity = NodeIdentity::new(cert_pem, key.key_pem, by.trusted_pem().to_owned())
            .map_err(failed("use this node's certificate"))?;
        folder.save_identity(&identity)?;
        Ok(identity)
    }
}

/// How long certificates of a cluster last.
pub(crate) fn validity(spec: &ClusterSpec) -> Duration {
    let expiry = spec.ca_config.node_cert_expiry.map(|n| n.duration());
    expiry.filter(|v| !v.is_zero()).unwrap_or(NODE_VALIDITY)
}

async fn begin(
    config: &NodeConfig,
    store: &Store,
    identity: &NodeIdentity,
    others: OtherManagers,
    record: &Record,
) -> Result<Manager, NodeError> {
    let manager = ManagerConfig {
        store: store.clone(),
        identity: identity.clone(),
        others,
        https: Arc::clone(&config.https),
        listen: record.listen,
        advertise: record.advertise,
        clock: Arc::clone(&config.clock),
        cert_expiry_min: config.cert_expiry_min,
    };
    Manager::start(manager).await.map_err(NodeError::Manager)
}

/// What the agent must know.
pub(crate) fn membership(member: &Member) -> Membership {
    let record = &member.record;
    let mut managers = record.managers.clone();
    if let Some((_, store)) = &member.manager {
        // A manager's own agent talks to it where it certainly listens; it says who leads. If it
        // knows of nobody, others may: those of which its state says so.
        let own =
            if record.listen.ip().is_unspecified() { record.advertise } else { record.listen };
        let state = store.state();
        let known = state.nodes.values().filter_map(|node| node.manager.as_ref());
        managers.extend(known.map(|manager| manager.addr.clone()));
        managers.retain(|addr| *addr != record.advertise.to_string());
        managers.sort_unstable();
        managers.dedup();
        managers.insert(0, own.to_string());
    }
    Membership {
        identity: member.identity.clone(),
        managers,
        advertise_addr: Some(record.advertise.ip()),
        data_path_addr: Some(record.data_path),
    }
}

fn first_node(
    id: NodeId,
    spec: NodeSpec,
    description: NodeDescription,
    record: &Record,
    now: Timestamp,
) -> Object {
    Object::Node(Box::new(Node {
        id,
        meta: Meta::default(),
        spec,
        description,
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: record.advertise.ip().to_string(),
            since: now,
            back_by: None,
        },
        index: NodeIndex(1),
        data_path_addr: Some(record.data_path),
        tls: NodeTls::default(),
        manager: Some(ManagerStatus {
            raft_id: FIRST_RAFT_ID,
            addr: record.advertise.to_string(),
            reachable: true,
            leader: true,
        }),
        extra: Extra::new(),
    }))
}

fn put(object: Object) -> Change {
    Change::Put { object, expect: Expect::Absent }
}

fn ingress() -> NetworkSpec {
    NetworkSpec {
        name: "ingress".to_owned(),
        driver: Some("overlay".to_owned()),
        scope: Some("swarm".to_owned()),
        ingress: Some(true),
        ..NetworkSpec::default()
    }
}
