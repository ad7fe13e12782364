//! Who is connected, and how far each node's kernel has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use shoal_model::assignment::{Assignment, KnownChanges};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NodeId, Revision, SessionId, TaskId};
use shoal_model::object::NodeState;
use shoal_plan::level;
use shoal_plan::roles::wish_of;
use shoal_wire::message::{ByeReason, ManagerMessage, RoleWish, TrustWish};
use shoal_wire::session::SessionSender;
use tokio::sync::watch;

use crate::trust;

/// What a node should have, and what has changed of what all nodes share.
pub(crate) struct Given {
    pub assignment: Assignment,
    pub changes: Arc<KnownChanges>,
}

/// One connected node.
pub(crate) struct Session {
    pub id: SessionId,
    pub sender: SessionSender<ManagerMessage>,
    /// What the node should have; its session sends it.
    pub assignment: watch::Sender<Option<Arc<Given>>>,
    /// What else the node is to do; its session says so.
    pub wishes: watch::Sender<Wishes>,
    /// Set to end the session.
    pub end: watch::Sender<Option<ByeReason>>,
    /// Places of hand-made containers that were given in this session.
    pub given: BTreeSet<TaskId>,
}

/// What a node is to be, and whom to trust, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wishes {
    pub role: Option<RoleWish>,
    pub trust: Option<Arc<TrustWish>>,
}

/// How far a node's kernel has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The revision of the last assignment that was sent.
    pub sent: Revision,
    /// The last revision that the node confirmed.
    pub acked: Revision,
    /// The newest revision of the state at which the node's assignment is still the one sent.
    pub current: Revision,
}

impl Progress {
    /// The newest revision that the node's kernel corresponds to.
    fn reached(self) -> Revision {
        if self.acked >= self.sent && self.sent > Revision(0) { self.current } else { self.acked }
    }
}

#[derive(Default)]
struct Tables {
    sessions: BTreeMap<NodeId, Session>,
    progress: BTreeMap<NodeId, Progress>,
    /// How many sessions each node has had.
    counts: BTreeMap<NodeId, u64>,
    /// What nodes are to trust, as it was at a version of the cluster.
    trust: (Revision, Option<Arc<TrustWish>>),
}

/// Who is connected.
pub(crate) struct Sessions {
    tables: Mutex<Tables>,
    converged: watch::Sender<Revision>,
}

impl Sessions {
    pub fn new() -> Self {
        Self { tables: Mutex::default(), converged: watch::channel(Revision(0)).0 }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Tables) -> T) -> T {
        act(&mut self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Enters a session; an older one of the same node ends. Whether there was one.
    pub fn enter(&self, node: &NodeId, session: Session) -> bool {
        self.with(|tables| {
            tables.progress.insert(node.clone(), Progress::default());
            *tables.counts.entry(node.clone()).or_default() += 1;
            let old = tables.sessions.insert(node.clone(), session);
            if let Some(old) = &old {
                old.end.send_replace(Some(ByeReason::Replaced));
            }
            old.is_some()
        })
    }

    /// How many sessions the node has had with this manager.
    pub fn count(&self, node: &NodeId) -> u64 {
        self.with(|tables| tables.counts.get(node).copied().unwrap_or(0))
    }

    /// Takes a session out; `false` if another one of the node has taken its place.
    pub fn leave(&self, node: &NodeId, id: &SessionId) -> bool {
        self.with(|tables| {
            let own = tables.sessions.get(node).is_some_and(|s| s.id == *id);
            if own {
                tables.sessions.remove(node);
            }
            own
        })
    }

    /// Notes that a place was given; `false` if the session is over.
    pub fn note_given(&self, node: &NodeId, id: &SessionId, task: &TaskId) -> bool {
        self.with(|tables| match tables.sessions.get_mut(node).filter(|s| s.id == *id) {
            Some(session) => {
                session.given.insert(task.clone());
                true
            }
            None => false,
        })
    }

    /// Whether this is still the node's session.
    pub fn is_current(&self, node: &NodeId, id: &SessionId) -> bool {
        self.with(|tables| tables.sessions.get(node).is_some_and(|s| s.id == *id))
    }

    /// A place that was given has been taken back: no set need spare it any more.
    pub fn note_taken(&self, node: &NodeId, id: &SessionId, task: &TaskId) {
        self.with(|tables| {
            if let Some(session) = tables.sessions.get_mut(node).filter(|s| s.id == *id) {
                session.given.remove(task);
            }
        });
    }

    /// The places that were given in this session; `None` once it is over.
    pub fn given(&self, node: &NodeId, id: &SessionId) -> Option<BTreeSet<TaskId>> {
        self.with(|tables| {
            tables.sessions.get(node).filter(|s| s.id == *id).map(|s| s.given.clone())
        })
    }

    /// Ends the sessions of nodes that are no members any more.
    pub fn end_strangers(&self, state: &ClusterState) {
        self.with(|tables| {
            tables.counts.retain(|id, _| state.nodes.contains_key(id));
            let strangers = tables.sessions.iter().filter(|(id, _)| !state.nodes.contains_key(id));
            for (_, session) in strangers {
                session.end.send_if_modified(|end| {
                    let first = end.is_none();
                    end.get_or_insert(ByeReason::Removed);
                    first
                });
            }
        });
    }

    /// Ends the sessions of nodes that cannot read what the cluster writes.
    pub fn end_too_old(&self, state: &ClusterState) {
        let too_old: BTreeSet<&NodeId> = level::too_old(state).map(|node| &node.id).collect();
        if too_old.is_empty() {
            return;
        }
        self.with(|tables| {
            for (_, session) in tables.sessions.iter().filter(|(id, _)| too_old.contains(id)) {
                session.end.send_if_modified(|end| {
                    let first = end.is_none();
                    end.get_or_insert(ByeReason::Refused);
                    first
                });
            }
        });
    }

    /// Tells nodes what they are to be and whom to trust, as far as they have not been told.
    pub fn tell_wishes(&self, state: &ClusterState) {
        self.with(|tables| {
            let version = state.cluster.as_ref().map_or(Revision(0), |c| c.meta.version);
            if tables.trust.0 != version {
                tables.trust = (version, trust::wish_of(state).map(Arc::new));
            }
            let trust = &tables.trust.1;
            for (id, session) in &tables.sessions {
                let wish = state.nodes.get(id).and_then(|node| wish_of(node));
                let role = wish.map(|(role, raft_id)| RoleWish { role, raft_id });
                session.wishes.send_if_modified(|told| {
                    let known = told.trust.as_ref().map(Arc::as_ptr);
                    let news = (role.is_some() && told.role != role)
                        || known != trust.as_ref().map(Arc::as_ptr);
                    told.role = role.or(told.role);
                    told.trust.clone_from(trust);
                    news
                });
            }
        });
    }

    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.with(|tables| tables.sessions.contains_key(node))
    }

    pub fn sender(&self, node: &NodeId) -> Option<SessionSender<ManagerMessage>> {
        self.with(|tables| tables.sessions.get(node).map(|s| s.sender.clone()))
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.with(|tables| tables.sessions.keys().cloned().collect())
    }

    /// Says what a node should have.
    pub fn assign(&self, node: &NodeId, given: Arc<Given>) {
        self.with(|tables| {
            if let Some(session) = tables.sessions.get(node) {
                session.assignment.send_replace(Some(given));
            }
        });
    }

    /// Notes how far a node has come.
    pub fn note(&self, node: &NodeId, id: &SessionId, edit: impl FnOnce(&mut Progress)) {
        self.with(|tables| {
            if tables.sessions.get(node).is_some_and(|s| s.id == *id) {
                edit(tables.progress.entry(node.clone()).or_default());
            }
        });
    }

    /// The revision that each connected node's kernel corresponds to.
    pub fn reached(&self) -> BTreeMap<NodeId, Revision> {
        self.with(|tables| {
            tables.progress.iter().map(|(id, progress)| (id.clone(), progress.reached())).collect()
        })
    }

    /// Works out what the kernels of all ready nodes have, and tells it to the sessions.
    pub fn update_converged(&self, state: &ClusterState) {
        let ready = state.nodes.values().filter(|n| n.status.state == NodeState::Ready);
        let ready: BTreeSet<&NodeId> = ready.map(|n| &n.id).collect();
        let all = self.with(|tables| {
            tables.progress.retain(|id, _| ready.contains(id) || tables.sessions.contains_key(id));
            let reached = |id: &&NodeId| tables.progress.get(*id).map(|p| p.reached());
            ready.iter().map(|id| reached(id).unwrap_or_default()).min()
        });
        let Some(all) = all else { return };
        self.converged.send_if_modified(|known| {
            let newer = all > *known;
            *known = all.max(*known);
            newer
        });
    }

    /// The newest revision that every ready node's kernel has had.
    pub fn converged(&self) -> watch::Receiver<Revision> {
        self.converged.subscribe()
    }
}
