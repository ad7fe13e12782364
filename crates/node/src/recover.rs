//! A swarm that begins again from one of its managers: the majority is gone for good, or the state
//! comes from a backup.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use shoal_identity::authority::RootAuthority;
use shoal_identity::error::IdentityError;
use shoal_identity::node_identity::NodeIdentity;
use shoal_manager::peers::OtherManagers;
use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::net::NodeIndex;
use shoal_model::object::{ManagerStatus, Meta, Node, NodeDescription, NodeState, NodeStatus};
use shoal_model::spec::Extra;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;
use shoal_store::{BackupError, Lead, PROPOSE_DEADLINE, Store, UnlockKey, recover_alone};
use tokio::time::Instant;

use crate::address::{self, Addresses, LISTEN_DEFAULT, own_addresses};
use crate::error::NodeError;
use crate::node::{AddressOptions, InitOptions, Member, NodeConfig, RestoreOptions};
use crate::record::{Folder, Record};
use crate::start::{Own, RandomIds};
use crate::{start, steps};

/// Whether there is anything to recover: not while a majority of several managers answers.
///
/// # Errors
/// [`NodeError::HasMajority`], [`NodeError::NotManager`].
pub(crate) fn may_recover(member: &Member) -> Result<(), NodeError> {
    let Some((_, store)) = &member.manager else { return Err(NodeError::NotManager) };
    let several = store.group().borrow().voters.len() > 1;
    let led = matches!(*store.lead().borrow(), Lead::Leading { .. } | Lead::Following { .. });
    if several && led { Err(NodeError::HasMajority) } else { Ok(()) }
}

/// Begins the swarm again from this manager alone, whose parts are closed.
///
/// # Errors
/// The files cannot be used, or a new address makes no sense. Nothing was changed then.
pub(crate) async fn recover(
    config: &NodeConfig,
    folder: &Folder,
    options: &InitOptions,
) -> Result<Box<Member>, NodeError> {
    let record = folder.read()?.ok_or(NodeError::NotMember)?;
    if record.role != NodeRole::Manager {
        return Err(NodeError::NotManager);
    }
    let moved = moved(config, &record, options)?;
    let identity = folder.load_identity()?;
    let others = OtherManagers::new(identity.clone());
    let recovered = recover_alone(&start::store_config(folder, &identity, &others))
        .await
        .map_err(|source| NodeError::Store { action: "recover", source })?;
    if let Some(record) = moved {
        folder.write(&record)?;
    }
    let without: Vec<String> = recovered.without.iter().map(ToString::to_string).collect();
    tracing::warn!(?without, "the swarm begins again from this manager alone");
    steps::resume(config, folder).await?.ok_or(NodeError::NotMember)
}

/// The record with other addresses, if any were given.
fn moved(
    config: &NodeConfig,
    known: &Record,
    options: &InitOptions,
) -> Result<Option<Record>, NodeError> {
    let Some(wanted) = wanted(known, &options.addrs, &own_addresses())? else { return Ok(None) };
    let Addresses { listen, advertise, data_path } = Addresses::find(config, &wanted)?;
    let managers = known.managers.clone();
    Ok(Some(Record::new(NodeRole::Manager, listen, advertise, data_path, managers)))
}

/// What is said, with what is known in the place of what is not; nothing if nothing is said. The
/// `docker` CLI always says where to listen, so its default is no wish. `own` are the addresses of
/// this machine.
fn wanted(
    known: &Record,
    said: &AddressOptions,
    own: &[(String, IpAddr)],
) -> Result<Option<AddressOptions>, NodeError> {
    let AddressOptions { mut listen, mut advertise, mut data_path } = said.clone();
    let listens = !listen.is_empty() && listen != LISTEN_DEFAULT;
    if !listens && advertise.is_empty() && data_path.is_empty() {
        return Ok(None);
    }
    if !listens {
        listen = known.listen.to_string();
    }
    // Who only listens elsewhere on the same address is reached as before, but for the port. A
    // manager that moves to an address is reached there.
    let ip = address::listen(&listen, own)?.ip();
    if advertise.is_empty() && (ip.is_unspecified() || ip == known.listen.ip()) {
        advertise = known.advertise.ip().to_string();
    }
    // Frames go where the address goes, unless they had a way of their own that is still there.
    let apart = known.data_path != known.advertise.ip();
    if data_path.is_empty() && apart && own.iter().any(|(_, ip)| *ip == known.data_path) {
        data_path = known.data_path.to_string();
    }
    Ok(Some(AddressOptions { listen, advertise, data_path }))
}

/// Makes the state fit a store that began a new epoch: this node is its manager, and those of
/// earlier epochs are workers. Does nothing where that is so already, so that a crash in between
/// does no harm: others cannot join before.
///
/// # Errors
/// The store does not take it.
pub(crate) async fn settle(
    config: &NodeConfig,
    store: &Store,
    identity: &NodeIdentity,
    record: &Record,
) -> Result<(), NodeError> {
    let Some(since) = store.epoch().map(|epoch| epoch.since).filter(|since| *since > 0) else {
        return Ok(());
    };
    let own = store.raft_id();
    if store.group().borrow().voters.iter().any(|member| member.raft_id != own) {
        return Ok(());
    }
    let (state, now) = (store.state(), (config.clock)());
    let mut changes: Vec<Change> = state
        .nodes
        .values()
        .filter(|node| node.id != identity.node_id)
        .filter(|node| node.manager.as_ref().is_some_and(|it| it.raft_id <= since))
        .map(|node| changed(node, without_group(node)))
        .collect();
    match state.nodes.get(&identity.node_id) {
        Some(known) if is_manager(known, own) => {}
        Some(known) => changes.push(changed(known, with_group(known, own, record.advertise))),
        None => {
            let node = own_node(&state, identity, record, own, now);
            changes.push(Change::Put { object: object(node), expect: Expect::Absent });
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    let by = Instant::now() + PROPOSE_DEADLINE;
    let written = store.propose(Transaction { changes, at: now }, by).await;
    written.map_err(|source| NodeError::Store { action: "write to", source })?;
    Ok(())
}

fn object(node: Node) -> Object {
    Object::Node(Box::new(node))
}

fn changed(known: &Node, next: Node) -> Change {
    Change::Put { object: object(next), expect: Expect::Version(known.meta.version) }
}

fn without_group(node: &Arc<Node>) -> Node {
    let mut next = (**node).clone();
    next.manager = None;
    next.spec.role = NodeRole::Worker;
    "the swarm was recovered without this manager, which is a worker from here on"
        .clone_into(&mut next.status.message);
    next
}

fn is_manager(node: &Node, own: u64) -> bool {
    node.spec.role == NodeRole::Manager && node.manager.as_ref().is_some_and(|m| m.raft_id == own)
}

fn with_group(node: &Node, own: u64, addr: SocketAddr) -> Node {
    let mut next = node.clone();
    next.spec.role = NodeRole::Manager;
    next.manager = Some(status(own, addr));
    next
}

fn status(raft_id: u64, addr: SocketAddr) -> ManagerStatus {
    ManagerStatus { raft_id, addr: addr.to_string(), reachable: true, leader: true }
}

/// A node that was not in the state: of a machine that takes nobody's place.
fn own_node(
    state: &ClusterState,
    identity: &NodeIdentity,
    record: &Record,
    raft_id: u64,
    now: Timestamp,
) -> Node {
    let used: BTreeSet<u16> = state.nodes.values().map(|node| node.index.0).collect();
    let after = used.iter().next_back().map_or(1, |highest| highest + 1);
    let mut free = (after..=NodeIndex::MAX.0).chain(1..after).filter(|it| !used.contains(it));
    Node {
        id: identity.node_id.clone(),
        meta: Meta::default(),
        spec: NodeSpec { role: NodeRole::Manager, ..NodeSpec::default() },
        // Its agent says more in a moment.
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: String::new(),
            addr: record.advertise.ip().to_string(),
            since: now,
            back_by: None,
        },
        // None is free only among as many nodes as there can be: the store refuses it then.
        index: NodeIndex(free.next().unwrap_or(after)),
        data_path_addr: Some(record.data_path),
        manager: Some(status(raft_id, record.advertise)),
        tls: NodeTls::default(),
        extra: Extra::new(),
    }
}

/// Begins a swarm from a backup, with this node as its only manager. If a manager was where this
/// node is now, this node takes its place, with its id, labels and tasks.
///
/// # Errors
/// The backup cannot be used, or an address makes no sense.
pub(crate) async fn restore(
    config: &NodeConfig,
    folder: &Folder,
    options: RestoreOptions,
) -> Result<Member, NodeError> {
    let Addresses { listen, advertise, data_path } = Addresses::find(config, &options.addrs)?;
    folder.prepare()?;
    let now = (config.clock)();
    let state = options.backup.state().map_err(NodeError::Backup)?;
    let cluster = state.cluster.as_ref().ok_or(NodeError::Backup(BackupError::Empty))?;
    let failed = |action| move |source| NodeError::Identity { action, source };
    let authority = RootAuthority::of(cluster)
        .and_then(|authority| authority.ok_or(IdentityError::NoSigner))
        .map_err(failed("read the root's key"))?;
    let before = state.nodes.values().find(|node| {
        node.manager.as_ref().is_some_and(|manager| manager.addr == advertise.to_string())
    });
    let fresh = || NodeId::generate(&mut RandomIds);
    let id = before.map_or_else(fresh, |node| node.id.clone());
    let validity = start::validity(&cluster.spec);
    if let Some(secret) = &cluster.unlock {
        let failed = |source| NodeError::Store { action: "make the keys of", source };
        start::seal_first(folder, UnlockKey::parse(&secret.0).map_err(failed)?)?;
    }
    let own = Own { id: &id, cluster: &cluster.id, validity, now };
    let mut identity = own.issue(&authority, folder)?;
    let others = OtherManagers::new(identity.clone());
    shoal_store::restore(&start::store_config(folder, &identity, &others), &options.backup)
        .await
        .map_err(|source| NodeError::Store { action: "restore", source })?;
    let record =
        Record::new(NodeRole::Manager, listen, advertise, data_path, vec![advertise.to_string()]);
    let (manager, store) = start::reopen(config, folder, &mut identity, &record).await?;
    if let Err(error) = folder.write(&record) {
        manager.shutdown().await;
        store.shutdown().await;
        return Err(error);
    }
    let from = options.backup.head;
    tracing::warn!(cluster = from.cluster, revision = from.revision, "the swarm was restored");
    Ok(Member { identity, record, manager: Some((manager, store)) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn said(listen: &str, advertise: &str, data_path: &str) -> Option<[String; 3]> {
        let known = Record::new(
            NodeRole::Manager,
            "0.0.0.0:2377".parse().unwrap(),
            "10.0.0.1:2377".parse().unwrap(),
            "10.9.0.1".parse().unwrap(),
            Vec::new(),
        );
        let own = ["10.0.0.1", "10.9.0.1", "10.5.0.1"];
        let own = own.map(|ip| ("eth".to_owned(), ip.parse().unwrap()));
        let said = AddressOptions {
            listen: listen.to_owned(),
            advertise: advertise.to_owned(),
            data_path: data_path.to_owned(),
        };
        wanted(&known, &said, &own).unwrap().map(|it| [it.listen, it.advertise, it.data_path])
    }

    #[test]
    fn what_is_not_said_stays() {
        assert_eq!(said("", "", ""), None);
        assert_eq!(said(LISTEN_DEFAULT, "", ""), None, "what the CLI always sends is no wish");
        let three = |one: &str, two: &str, three: &str| Some([one, two, three].map(str::to_owned));
        assert_eq!(said("0.0.0.0:2400", "", ""), three("0.0.0.0:2400", "10.0.0.1", "10.9.0.1"));
        assert_eq!(said("10.5.0.1:2400", "", ""), three("10.5.0.1:2400", "", "10.9.0.1"));
        assert_eq!(said(LISTEN_DEFAULT, "", "eth"), three("0.0.0.0:2377", "10.0.0.1", "eth"));
        let moved = said(LISTEN_DEFAULT, "10.5.0.1", "");
        assert_eq!(moved, three("0.0.0.0:2377", "10.5.0.1", "10.9.0.1"));
    }
}
