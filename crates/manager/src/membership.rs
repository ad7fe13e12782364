//! What the state says of a node as its sessions come and go.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object};
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::object::{Node, NodeDescription, NodeState, NodeStatus};
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;
use shoal_wire::message::Hello;

use crate::attach;
use crate::error::ControlError;
use crate::tenure::Tenure;

/// What `node inspect` says of a node that was lost.
pub(crate) const SILENT: &str = "heartbeat failure: the node has been silent for three heartbeats";

/// What it says of a node that has joined and had no session yet.
pub(crate) const JOINED: &str = "joined; its first session is awaited";

/// What it says of one whose first session did not come in time.
pub(crate) const NEVER_CAME: &str = "the node joined and has not been heard of since";

/// What it says of a node that left on purpose.
pub(crate) const LEFT: &str = "the node left the cluster";

/// What it says of a node whose daemon has not come back in time.
pub(crate) const AWAY: &str = "the node's daemon stopped for a moment and did not come back";

/// Marks a node as down after `patience`, unless it has had a session since: when that ends, it is
/// waited for anew.
pub(crate) fn give_up(tenure: &Arc<Tenure>, node: &NodeId, patience: Duration, why: &'static str) {
    let (of, node) = (Arc::downgrade(tenure), node.clone());
    let sessions = tenure.sessions.count(&node);
    tenure.help(async move {
        tokio::time::sleep(patience).await;
        if let Some(tenure) = of.upgrade().filter(|t| t.sessions.count(&node) == sessions) {
            tenure.mark_down(&node, why).await;
        }
    });
}

impl Tenure {
    /// Notes that a node has a session, and what it says about itself.
    pub(crate) async fn mark_ready(
        &self,
        node: &NodeId,
        hello: Hello,
        remote: &str,
    ) -> Result<(), ControlError> {
        let (node, remote) = (node.clone(), remote.to_owned());
        self.shared
            .writer
            .write(move |state, now| {
                let gone = || ControlError::Removed { node: node.clone() };
                let known = state.nodes.get(&node).ok_or_else(gone)?;
                let mut next = (**known).clone();
                let addr = hello.advertise_addr.map_or_else(|| remote.clone(), |a| a.to_string());
                let ready = NodeStatus {
                    state: NodeState::Ready,
                    message: String::new(),
                    addr: addr.clone(),
                    since: now,
                    back_by: None,
                };
                if known.status.state == NodeState::Ready {
                    next.status.message.clear();
                    next.status.addr = addr.clone();
                    next.status.back_by = None;
                } else {
                    next.status = ready;
                }
                next.description = hello.description.clone();
                next.data_path_addr = hello.data_path_addr.or_else(|| addr.parse().ok());
                Ok((put_if_changed(known, next), ()))
            })
            .await
    }

    /// Notes that a node leaves: it gets no more tasks, its tasks are replaced at once, and what is
    /// connected to them may finish while it stops.
    pub(crate) async fn mark_left(&self, node: &NodeId) {
        self.move_to(node, (NodeState::Disconnected, None), LEFT, |_| true).await;
    }

    /// Notes that a node's daemon stops for a moment, unless it has a session (again): it gets no
    /// more tasks, and those that it has stay. Until when is written down: another manager may lead
    /// by then.
    pub(crate) async fn mark_away(self: &Arc<Self>, node: &NodeId, within: Duration) {
        let why = "its daemon stopped and said that it comes back; its tasks run on";
        let to = (NodeState::Unknown, Some(within));
        self.move_to(node, to, why, self.has_no_session()).await;
    }

    /// Notes that a node is gone, unless it has a session (again).
    pub(crate) async fn mark_down(self: &Arc<Self>, node: &NodeId, why: &str) {
        self.move_to(node, (NodeState::Down, None), why, self.has_no_session()).await;
    }

    /// Whether a node has no session, which says nothing once this leadership ends.
    fn has_no_session(self: &Arc<Self>) -> impl Fn(&NodeId) -> bool + Send + 'static {
        let tenure = Arc::downgrade(self);
        move |node| {
            tenure.upgrade().is_some_and(|tenure| {
                let ends = *tenure.over.borrow() || *tenure.shared.stopping.borrow();
                !ends && !tenure.sessions.is_connected(node)
            })
        }
    }

    async fn move_to(
        &self,
        node: &NodeId,
        (to, back_within): (NodeState, Option<Duration>),
        why: &str,
        still: impl Fn(&NodeId) -> bool + Send + 'static,
    ) {
        let (id, message) = (node.clone(), why.to_owned());
        let write = self
            .shared
            .writer
            .write(move |state, now| {
                let Some(known) = state.nodes.get(&id) else { return Ok((Vec::new(), ())) };
                if known.status.state == NodeState::Down || known.status.state == to || !still(&id)
                {
                    return Ok((Vec::new(), ()));
                }
                let mut next = (**known).clone();
                next.status.state = to;
                next.status.message.clone_from(&message);
                next.status.since = now;
                next.status.back_by = back_within.map(|within| now.plus(within));
                // Who never came is told apart: nobody may know that it exists.
                if to == NodeState::Down && known.status.message == JOINED {
                    next.status.message = NEVER_CAME.to_owned();
                }
                let mut changes = put_if_changed(known, next);
                if message == LEFT {
                    changes.extend(attach::end_all(state, &id, now));
                }
                Ok((changes, ()))
            })
            .await;
        if let Err(error) = write {
            tracing::warn!(node = %node, cause = report(&error), "a lost node was not noted");
        }
    }

    /// Notes what a node says of its certificate. What was given to it is known here only.
    pub(crate) async fn certified(&self, node: &NodeId, said: NodeTls) {
        let amend = move |known: &mut Node, _| {
            let given = known.tls.given.clone();
            known.tls = NodeTls { given, ..said.clone() };
        };
        self.note(node, "a certificate", |_| true, amend).await;
    }

    /// Notes that a node came whose program is too old, and how it describes itself. Its last
    /// session, if it has one, ends by itself.
    pub(crate) async fn mark_too_old(
        self: &Arc<Self>,
        node: &NodeId,
        description: NodeDescription,
        why: &str,
    ) {
        let why = why.to_owned();
        let amend = move |known: &mut Node, now| {
            known.description = description.clone();
            if known.status.state != NodeState::Down {
                known.status.since = now;
            }
            known.status.state = NodeState::Down;
            known.status.message.clone_from(&why);
            known.status.back_by = None;
        };
        self.note(node, "a node too old", self.has_no_session(), amend).await;
    }

    pub(crate) async fn describe(&self, node: &NodeId, description: NodeDescription) {
        let amend = move |known: &mut Node, _| known.description = description.clone();
        self.note(node, "a description", |_| true, amend).await;
    }

    /// Writes what `amend` makes of a node, if it is known and `still` says so when it is written.
    async fn note(
        &self,
        node: &NodeId,
        what: &'static str,
        still: impl Fn(&NodeId) -> bool + Send + 'static,
        amend: impl Fn(&mut Node, Timestamp) + Send + 'static,
    ) {
        let id = node.clone();
        let write = self
            .shared
            .writer
            .write(move |state, now| {
                let Some(known) = state.nodes.get(&id).filter(|_| still(&id)) else {
                    return Ok((Vec::new(), ()));
                };
                let mut next = (**known).clone();
                amend(&mut next, now);
                Ok((put_if_changed(known, next), ()))
            })
            .await;
        if let Err(error) = write {
            tracing::warn!(node = %node, cause = report(&error), "{what} was not noted");
        }
    }
}

/// The change that writes `next`, if it differs.
fn put_if_changed(known: &Node, next: Node) -> Vec<Change> {
    if *known == next {
        return Vec::new();
    }
    let expect = Expect::Version(known.meta.version);
    vec![Change::Put { object: Object::Node(Box::new(next)), expect }]
}
