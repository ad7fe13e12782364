//! Lets nodes in: root certificate, certificates, renewal.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shoal_identity::authority::NODE_VALIDITY;
use shoal_identity::external::Wanted;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::token::JoinToken;
use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::net::NodeIndex;
use shoal_model::object::{
    Cluster, ManagerStatus, Meta, Node, NodeDescription, NodeState, NodeStatus,
};
use shoal_model::spec::Extra;
use shoal_model::spec::node::{NodeRole, NodeSpec};
use shoal_model::time::{Nanos, Timestamp};
use shoal_model::trust::NodeTls;
use shoal_plan::level;
use shoal_plan::roles::MANAGERS_MAX;
use shoal_plan::validate::too_many_managers;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{
    CertificateReply, IssueCertificate, NodeFacts, PROTOCOL_VERSION, RenewCertificate, RootCaReply,
};
use shoal_wire::server::JoinHandler;

use crate::control::Control;
use crate::error::ControlError;
use crate::membership::{JOINED, SILENT, give_up};
use crate::requests::{ControlReply, ControlRequest};
use crate::shared::{RandomIds, Shared, cluster, managers};

/// Where managers listen unless they say otherwise: Docker's port.
const MANAGER_PORT: u16 = 2377;

/// Answers joining and renewing nodes, with what the manager that leads says.
#[derive(Clone)]
pub(crate) struct Doorkeeper(pub Control);

#[async_trait]
impl JoinHandler for Doorkeeper {
    async fn root_ca(&self) -> Result<RootCaReply, RemoteFault> {
        let state = self.0.shared.state();
        let cluster = cluster(&state).map_err(|e| RemoteFault::of(&e))?;
        // What the join tokens of now name.
        let root_pem = cluster.root_ca.cert_pem.clone();
        Ok(RootCaReply { version: PROTOCOL_VERSION, root_pem })
    }

    async fn issue_certificate(
        &self,
        remote: SocketAddr,
        request: IssueCertificate,
    ) -> Result<CertificateReply, RemoteFault> {
        let (id, request) = (NodeId::generate(&mut RandomIds), Box::new(request));
        self.issue(ControlRequest::Join { id, request, remote }).await
    }

    async fn renew_certificate(
        &self,
        peer: PeerIdentity,
        request: RenewCertificate,
    ) -> Result<CertificateReply, RemoteFault> {
        self.0.shared.check_known(&peer).map_err(|e| RemoteFault::of(&e))?;
        self.issue(ControlRequest::Renew { id: peer.node_id, request }).await
    }
}

impl Doorkeeper {
    async fn issue(&self, request: ControlRequest) -> Result<CertificateReply, RemoteFault> {
        let issued = self.0.ask(request).await.and_then(ControlReply::certificate);
        issued.map_err(|e| RemoteFault::of(&e))
    }
}

impl Shared {
    /// Enters a node, unless it is there from an earlier try, and gives it a certificate.
    pub(crate) async fn join(
        self: &Arc<Self>,
        node_id: NodeId,
        request: IssueCertificate,
        remote: SocketAddr,
    ) -> Result<CertificateReply, ControlError> {
        let tenure = self.leading().await?;
        let state = self.state();
        let known = cluster(&state)?;
        check_reads(&state, &request.facts.description)?;
        let role = JoinToken::parse(&request.token)?.role_in(&known.join_tokens)?;
        let reply = self.certify(known, &node_id, role, request.csr_pem).await?;
        let given = key_of(&reply)?;
        let facts = request.facts;
        let addr = facts.advertise_addr.unwrap_or_else(|| remote.ip());
        let id = node_id.clone();
        let raft_id = self
            .writer
            .write(move |state, now| {
                if let Some(node) = state.nodes.get(&id) {
                    return Ok((Vec::new(), node.manager.as_ref().map(|m| m.raft_id)));
                }
                let mut node = new_node(state, &id, &facts, addr, now)?;
                node.tls.given.clone_from(&given);
                if role == NodeRole::Manager {
                    node.spec.role = role;
                    let fallback = || SocketAddr::new(addr, MANAGER_PORT);
                    let at = facts.manager_addr.unwrap_or_else(fallback);
                    node.manager = Some(new_manager(state, at)?);
                }
                let raft_id = node.manager.as_ref().map(|m| m.raft_id);
                let object = Object::Node(Box::new(node));
                Ok((vec![Change::Put { object, expect: Expect::Absent }], raft_id))
            })
            .await?;
        tracing::info!(node = %node_id, %addr, role = role.as_str(), "a node joined");
        give_up(&tenure, &node_id, self.welcome_patience(), SILENT);
        Ok(CertificateReply { raft_id, ..reply })
    }

    /// Gives a member its next certificate: of the role that it has by now. Who was told to become
    /// a manager, and is ready to, gets its number with it.
    pub(crate) async fn renew(
        &self,
        node_id: &NodeId,
        request: RenewCertificate,
    ) -> Result<CertificateReply, ControlError> {
        // By its certificate a manager ends and gives up its store: only what a majority confirms
        // may say so.
        if !self.is_sure().await {
            return Err(ControlError::NotLeading);
        }
        let id = node_id.clone();
        let raft_id = match request.manager_addr {
            Some(addr) => self.writer.write(move |state, _| appoint(state, &id, addr)).await?,
            None => number_of(member(&self.state(), node_id)?),
        };
        let role = if raft_id.is_some() { NodeRole::Manager } else { NodeRole::Worker };
        let state = self.state();
        let reply = self.certify(cluster(&state)?, node_id, role, request.csr_pem).await?;
        // Before the node has it: it proves itself by this key once the root is another one.
        let (id, given) = (node_id.clone(), key_of(&reply)?);
        let note = move |state: &ClusterState, _| {
            let known = member(state, &id)?;
            let mut node = (**known).clone();
            node.tls.given.clone_from(&given);
            let expect = Expect::Version(known.meta.version);
            Ok((vec![Change::Put { object: Object::Node(Box::new(node)), expect }], ()))
        };
        self.writer.write(note).await?;
        Ok(CertificateReply { raft_id, ..reply })
    }

    async fn certify(
        &self,
        cluster: &Arc<Cluster>,
        node_id: &NodeId,
        role: NodeRole,
        csr_pem: String,
    ) -> Result<CertificateReply, ControlError> {
        let expiry = cluster.spec.ca_config.node_cert_expiry.map(Nanos::duration);
        let validity: Duration = expiry.filter(|e| !e.is_zero()).unwrap_or(NODE_VALIDITY);
        let (id, cluster_id) = (node_id.clone(), cluster.id.clone());
        let wanted = Wanted { node_id: id, role, cluster_id, csr_pem };
        let cert_pem = self.issue(cluster, wanted, validity).await?;
        Ok(CertificateReply {
            version: PROTOCOL_VERSION,
            node_id: node_id.clone(),
            role,
            cluster_id: cluster.id.clone(),
            cert_pem,
            managers: managers(&self.state()),
            raft_id: None,
        })
    }
}

/// The digest of the key that a certificate is for.
fn key_of(reply: &CertificateReply) -> Result<String, ControlError> {
    Ok(PeerIdentity::from_pem(&reply.cert_pem)?.key)
}

/// Whether a node that describes itself so can read what the cluster writes.
pub(crate) fn check_reads(
    state: &ClusterState,
    description: &NodeDescription,
) -> Result<(), ControlError> {
    if level::fits(state, description) {
        return Ok(());
    }
    Err(too_old(state, description))
}

/// That a node has to be upgraded that describes itself so.
pub(crate) fn too_old(state: &ClusterState, description: &NodeDescription) -> ControlError {
    ControlError::TooOld {
        program: description.engine_version.clone(),
        reads: description.reads(),
        level: state.level(),
    }
}

fn member<'s>(state: &'s ClusterState, id: &NodeId) -> Result<&'s Arc<Node>, ControlError> {
    state.nodes.get(id).ok_or_else(|| ControlError::Removed { node: id.clone() })
}

fn number_of(node: &Node) -> Option<u64> {
    node.manager.as_ref().map(|manager| manager.raft_id)
}

/// Makes a node a manager that was told to become one, and is reached at `addr`. Its number, if it
/// is one then.
fn appoint(
    state: &ClusterState,
    id: &NodeId,
    addr: SocketAddr,
) -> Result<(Vec<Change>, Option<u64>), ControlError> {
    let known = member(state, id)?;
    if known.spec.role != NodeRole::Manager {
        return Ok((Vec::new(), number_of(known)));
    }
    let manager = match &known.manager {
        Some(manager) => ManagerStatus { addr: addr.to_string(), ..manager.clone() },
        None => new_manager(state, addr)?,
    };
    let raft_id = Some(manager.raft_id);
    if known.manager.as_ref() == Some(&manager) {
        return Ok((Vec::new(), raft_id));
    }
    let node = Node { manager: Some(manager), ..(**known).clone() };
    let expect = Expect::Version(known.meta.version);
    Ok((vec![Change::Put { object: Object::Node(Box::new(node)), expect }], raft_id))
}

fn new_node(
    state: &ClusterState,
    id: &NodeId,
    facts: &NodeFacts,
    addr: IpAddr,
    now: Timestamp,
) -> Result<Node, ControlError> {
    Ok(Node {
        id: id.clone(),
        meta: Meta::default(),
        spec: NodeSpec {
            labels: facts.labels.clone(),
            role: NodeRole::Worker,
            availability: facts.availability,
            ..NodeSpec::default()
        },
        description: facts.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown,
            message: JOINED.to_owned(),
            addr: addr.to_string(),
            since: now,
            back_by: None,
        },
        index: free_index(state)?,
        data_path_addr: Some(facts.data_path_addr.unwrap_or(addr)),
        manager: None,
        tls: NodeTls::default(),
        extra: Extra::new(),
    })
}

/// What a node gets that becomes a manager. Its number is the revision in which it is written, or
/// an earlier one that nobody had: none is ever given twice.
fn new_manager(state: &ClusterState, addr: SocketAddr) -> Result<ManagerStatus, ControlError> {
    let known = state.nodes.values().filter(|node| node.manager.is_some()).count();
    if known >= MANAGERS_MAX {
        return Err(too_many_managers().into());
    }
    let raft_id = state.revision.0 + 1;
    Ok(ManagerStatus { raft_id, addr: addr.to_string(), reachable: false, leader: false })
}

/// The index behind the highest one; once those are used up, the lowest free one. (A number that
/// was just freed may still be in other nodes' connection marks.)
fn free_index(state: &ClusterState) -> Result<NodeIndex, ControlError> {
    let used: BTreeSet<u16> = state.nodes.values().map(|n| n.index.0).collect();
    let next = used.iter().next_back().map_or(1, |highest| highest + 1);
    let mut candidates = (next..=NodeIndex::MAX.0).chain(1..next);
    candidates.find(|index| !used.contains(index)).map(NodeIndex).ok_or_else(|| {
        ControlError::Precondition {
            message: format!("the cluster is full: it has {} nodes", used.len()),
        }
    })
}
