//! The other managers: how the store reaches them, and what they ask of this one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::peer::PeerIdentity;
use shoal_model::fault::{Fault as _, report};
use shoal_model::id::{NodeId, Revision};
use shoal_store::{Group, Lane, Lead, PeerError, Peers, Store};
use shoal_wire::error::{Evidence, WireError};
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::ManagerAddr;
use shoal_wire::peers::PeerPool;
use shoal_wire::server::ManagerHandler;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::Control;
use crate::error::{ControlError, REMOVED};
use crate::forward::{Caller, Leader, pass, read};
use crate::requests::{ControlReply, ControlRequest};
use crate::shared::{Shared, managers};

/// How long a manager that stops waits for another to lead. More than the store takes to say that
/// nobody does.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(3);
/// What is said to one that is no manager of this cluster: it goes back to another beginning, or
/// was removed.
const STRANGER: [&str; 2] = ["SH-STO-030", REMOVED];

/// Connections to the other managers. Cheap to clone.
#[derive(Clone)]
pub struct OtherManagers {
    pool: PeerPool,
    identity: Arc<watch::Sender<NodeIdentity>>,
}

impl std::fmt::Debug for OtherManagers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OtherManagers").finish_non_exhaustive()
    }
}

impl OtherManagers {
    /// None are known yet. `identity` is this node's, a manager's.
    #[must_use]
    pub fn new(identity: NodeIdentity) -> Self {
        let (identity, current) = watch::channel(identity);
        Self { pool: PeerPool::new(current), identity: Arc::new(identity) }
    }

    /// Uses a renewed certificate for new connections.
    pub fn set_identity(&self, identity: NodeIdentity) {
        self.identity.send_replace(identity);
    }

    /// This node's identity, as it was set last.
    pub(crate) fn identity(&self) -> NodeIdentity {
        self.identity.borrow().clone()
    }

    /// Where they are: a manager's id, and its addresses (`host:port`).
    pub fn set_directory(&self, addresses: BTreeMap<NodeId, Vec<String>>) {
        self.pool.set_directory(addresses);
    }
}

#[async_trait]
impl Peers for OtherManagers {
    async fn call(
        &self,
        to: &NodeId,
        lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, PeerError> {
        let answer = self.pool.raft(to, lane_on_wire(lane), body, limit).await;
        answer.map_err(|error| why(&error))
    }

    async fn lost(&self, to: &NodeId, lane: Lane) -> PeerError {
        why(&self.pool.lost(to, lane_on_wire(lane)).await)
    }
}

/// Gives the lead to another manager before this one stops: nobody has to notice its end then.
pub(crate) async fn hand_over(store: &Store) {
    let leads = matches!(*store.lead().borrow(), Lead::Leading { .. });
    if !leads || store.group().borrow().voters.len() < 2 {
        return;
    }
    match store.hand_over(None, Instant::now() + HAND_OVER_WITHIN).await {
        Ok(leader) => tracing::info!(%leader, "another manager leads from here on"),
        Err(error) => {
            tracing::warn!(cause = report(&error), "this manager stops without a successor");
        }
    }
}

/// Keeps the directory, and what nodes are told, as the state has it.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut revision = shared.store.watch();
    loop {
        revision.mark_unchanged();
        let next = managers(&shared.state());
        // A store that learns has no state yet: what was known of others stays.
        if !next.is_empty() && *shared.managers.borrow() != next {
            let address = |m: &ManagerAddr| (m.node_id.clone(), vec![m.addr.clone()]);
            shared.others.set_directory(next.iter().map(address).collect());
            shared.managers.send_replace(next);
        }
        if revision.changed().await.is_err() {
            return;
        }
    }
}

/// Passes on to the manager that leads what this one is asked for.
pub(crate) struct ToLeader(pub Arc<Shared>);

#[async_trait]
impl Leader for ToLeader {
    async fn call(
        &self,
        caller: Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError> {
        let lead = self.0.store.lead().borrow().clone();
        let leader = match lead {
            Lead::Following { leader, .. } => NodeId::new(leader.node),
            Lead::Leading { .. } => return Err(ControlError::NotLeading),
            Lead::Nobody { since, missing } => return Err(self.0.nobody_leads(since, &missing)),
            Lead::Closed => return Err(ControlError::Stopping),
        };
        let body = pass(&caller, request, by)?;
        let limit = by.saturating_duration_since(Instant::now());
        let answer = self.0.others.pool.control(&leader, body, limit).await;
        read(&answer.map_err(ControlError::passing_on)?)
    }
}

/// What other managers ask.
pub(crate) struct ManagerDoor(pub Control);

#[async_trait]
impl ManagerHandler for ManagerDoor {
    async fn raft(
        &self,
        from: PeerIdentity,
        _lane: shoal_wire::peers::Lane,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        let door = self.0.shared.store.door();
        if let Err(removed) = self.check(&from) {
            // One that was left behind by a recovery has to do something else than one removed.
            let stranger = door.stranger(&from.node_id, &body);
            return Err(stranger.map_or(removed, |error| RemoteFault::of(&error)));
        }
        let answer = door.call(&from.node_id, &body).await;
        answer.map_err(|error| RemoteFault::of(&error))
    }

    async fn control(
        &self,
        from: PeerIdentity,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        self.0.answer(&from.node_id, &body).await
    }
}

impl ManagerDoor {
    /// Whoever was removed keeps a certificate that is valid for months. While this manager knows
    /// of no leader, or of one that is not in its group, it is behind: somebody it has not heard of
    /// yet may lead, and is let in. A node of which it knows that it is none is not.
    fn check(&self, from: &PeerIdentity) -> Result<(), RemoteFault> {
        let Shared { store, .. } = &*self.0.shared;
        let state = store.state();
        let group = store.group().borrow().clone();
        let known = match state.nodes.get(&from.node_id) {
            Some(node) => node.manager.is_some() || is_in(&group, &from.node_id),
            None => {
                let behind = match &*store.lead().borrow() {
                    Lead::Nobody { .. } => true,
                    Lead::Following { leader, .. } => {
                        leader.node.is_empty() || !is_in(&group, &NodeId::new(&*leader.node))
                    }
                    Lead::Leading { .. } | Lead::Closed => false,
                };
                state.cluster.is_none() || is_in(&group, &from.node_id) || behind
            }
        };
        if !known {
            let node = from.node_id.clone();
            return Err(RemoteFault::of(&ControlError::Removed { node }));
        }
        Ok(())
    }
}

fn is_in(group: &Group, node: &NodeId) -> bool {
    group.voters.iter().chain(&group.learners).any(|member| member.node == node.as_str())
}

fn lane_on_wire(lane: Lane) -> shoal_wire::peers::Lane {
    match lane {
        Lane::Log => shoal_wire::peers::Lane::Log,
        Lane::Vote => shoal_wire::peers::Lane::Vote,
        Lane::Bulk => shoal_wire::peers::Lane::Bulk,
    }
}

fn why(error: &WireError) -> PeerError {
    match error.evidence() {
        Evidence::Refused => PeerError::Refused,
        Evidence::Closed => PeerError::Closed,
        Evidence::Late { after } => PeerError::Late { after },
        Evidence::NotThatNode { found } => PeerError::NotThatNode { found: found.to_string() },
        Evidence::Answered if error.id().is_some_and(|id| STRANGER.contains(&id.0)) => {
            PeerError::Stranger { text: report(error) }
        }
        Evidence::Answered | Evidence::Nothing => PeerError::Other(report(error)),
    }
}
