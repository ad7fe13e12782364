//! The steps of a membership that take time: what its owner carries out.

use std::time::Duration;

use shoal_agent::agent::Agent;
use shoal_identity::authority::KeyAndCsr;
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::token::JoinToken;
use shoal_manager::control::Control;
use shoal_manager::error::ControlError;
use shoal_manager::manager::Manager;
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::object::NodeDescription;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_store::Store;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::NodeFacts;
use tokio::time::timeout;

use crate::address::Addresses;
use crate::error::NodeError;
use crate::node::{JoinOptions, Member, NodeConfig};
use crate::record::{Folder, Record};
use crate::{address, start};

/// How long leaving waits for this node's tasks to end. A task's own grace period counts within it;
/// what is left is killed with the containers.
const LEAVE_DEADLINE: Duration = Duration::from_secs(30);

/// How long it may take until the others go on without a manager that leaves: two elections, and
/// some changes of the group.
const RESIGN_DEADLINE: Duration = Duration::from_secs(15);
/// Attempts at saying so while somebody else changes this node.
const RESIGN_TRIES_MAX: u32 = 10;

/// Starts what the files say; `None` if this node is no member.
///
/// # Errors
/// They cannot be used.
pub(crate) async fn resume(
    config: &NodeConfig,
    folder: &Folder,
) -> Result<Option<Box<Member>>, NodeError> {
    let Some(mut record) = folder.read()? else { return Ok(None) };
    let mut identity = folder.load_identity()?;
    // It was out of the group before the last daemon ended: only then a manager gets such a
    // certificate.
    if record.role == NodeRole::Manager && identity.role == NodeRole::Worker {
        let others = record.managers.iter().filter(|addr| !record.is_own(addr));
        record = record.as_worker(others.cloned().collect());
        folder.write(&record)?;
    }
    let manager = match (record.role, record.opening) {
        (NodeRole::Manager, None) => {
            Some(start::reopen(config, folder, &mut identity, &record).await?)
        }
        // Its store is made by whoever looks after its role.
        (NodeRole::Manager, Some(_)) | (NodeRole::Worker, _) => None,
    };
    Ok(Some(Box::new(Member { identity, record, manager })))
}

/// Joins a swarm: asks its managers for a certificate, and keeps it.
///
/// # Errors
/// The token is broken, an address makes no sense, no manager lets the node in, or a file cannot
/// be written.
pub(crate) async fn join(
    config: &NodeConfig,
    folder: &Folder,
    description: NodeDescription,
    options: JoinOptions,
) -> Result<Member, NodeError> {
    let failed = |action| move |source| NodeError::Identity { action, source };
    let token = JoinToken::parse(&options.join_token).map_err(failed("read the join token"))?;
    let Addresses { listen, advertise, data_path } = Addresses::find(config, &options.addrs)?;
    folder.prepare()?;
    let key = KeyAndCsr::generate().map_err(failed("make a key"))?;
    let facts = NodeFacts {
        description,
        advertise_addr: Some(advertise.ip()),
        manager_addr: Some(advertise),
        data_path_addr: Some(data_path),
        availability: options.availability,
        ..NodeFacts::default()
    };
    let joined = ask_all(&options.remote_addrs, &token, &key.csr_pem, &facts).await?;
    let identity = NodeIdentity::new(joined.reply.cert_pem, key.key_pem, joined.root_pem)
        .map_err(failed("use the certificate that the manager issued"))?;
    folder.save_identity(&identity)?;
    let known = joined.reply.managers;
    let mut managers: Vec<String> = known.iter().map(|m| m.addr.clone()).collect();
    if managers.is_empty() {
        managers = with_port(&options.remote_addrs);
    }
    let record = Record::new(identity.role, listen, advertise, data_path, managers);
    let manager = match (identity.role, joined.reply.raft_id) {
        (NodeRole::Worker, _) => None,
        (NodeRole::Manager, None) => {
            let what = "several managers, by the manager that let this node in".to_owned();
            return Err(NodeError::NotImplemented { what });
        }
        (NodeRole::Manager, Some(raft_id)) => {
            let known = known.into_iter().map(|m| (m.node_id, vec![m.addr])).collect();
            Some(start::join_group(config, folder, &identity, &record, raft_id, known).await?)
        }
    };
    match &manager {
        None => folder.write(&record)?,
        Some((_, store)) if !start::votes(store).await => {
            tracing::warn!("this manager does not vote yet; the leader goes on trying to reach it");
        }
        Some(_) => {}
    }
    Ok(Member { identity, record, manager })
}

/// Takes this manager out of the group, as far as the others allow it, and waits until it is.
pub(crate) async fn resign(control: &Control, node: &NodeId, agent: &Agent) {
    if let Err(error) = demote(control, node).await {
        let cause = report(&error);
        tracing::warn!(cause, "this manager leaves without the others' consent");
        return;
    }
    let mut role = agent.follow_role();
    let out = role.wait_for(|wish| wish.is_some_and(|wish| wish.role == NodeRole::Worker));
    if !matches!(timeout(RESIGN_DEADLINE, out).await, Ok(Ok(_))) {
        tracing::warn!("this manager leaves before it is known to be out of the group");
    }
}

async fn demote(control: &Control, node: &NodeId) -> Result<(), ControlError> {
    let mut tries = RESIGN_TRIES_MAX;
    loop {
        let state = control.state();
        let Some(known) = state.nodes.get(node).filter(|n| n.spec.role == NodeRole::Manager) else {
            return Ok(());
        };
        let spec = NodeSpec { role: NodeRole::Worker, ..known.spec.clone() };
        tries -= 1;
        match control.update_node(node, known.meta.version, spec).await {
            Err(error) if error.is_out_of_sequence() && tries > 0 => {}
            said => return said,
        }
    }
}

/// Waits for the tasks to end.
pub(crate) async fn drain(agent: &Agent) {
    if let Err(error) = agent.drained(LEAVE_DEADLINE).await {
        tracing::warn!(cause = report(&error), "left with tasks that had not ended");
    }
}

/// Ends the node's own manager, if it has one.
pub(crate) async fn close(manager: Option<(Manager, Store)>) {
    if let Some((manager, store)) = manager {
        manager.shutdown().await;
        store.shutdown().await;
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
