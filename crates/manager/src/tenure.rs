//! What belongs to one leadership: sessions, reports, what nodes have reached. It is made when this
//! manager begins to lead and dropped whole when another one may: nothing of it outlives the right
//! to decide.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::object::NodeState;
use shoal_store::Lead;
use shoal_wire::message::{Bye, ByeReason, ManagerAddr};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::latest;
use crate::error::ControlError;
use crate::gather::Router;
use crate::membership::{AWAY, SILENT, give_up};
use crate::relay::Relays;
use crate::sessions::Sessions;
use crate::shared::{Shared, managers};
use crate::statuses::Reports;
use crate::{assigner, members, planner, relay, statuses, trust};

/// How long a session that comes while nobody leads waits for a leadership to begin here. A manager
/// that was taken out of the group while it was off waits for one in vain, and its own node with
/// it: well below the silence after which that node counts as down.
const BEGIN_PATIENCE: Duration = Duration::from_millis(750);

/// How long a majority may take to confirm that this manager leads.
const SURE_WITHIN: Duration = Duration::from_secs(5);

/// One leadership.
pub(crate) struct Tenure {
    pub shared: Arc<Shared>,
    pub sessions: Sessions,
    pub logs: Router,
    /// Statuses on their way to the store.
    pub reports: Reports,
    /// Logs that other managers' clients read.
    pub relays: Relays,
    /// Asks for a round of assignments.
    pub wanted: Notify,
    /// True once it is over.
    pub over: watch::Sender<bool>,
    /// Short-lived tasks; all of them end with it.
    helpers: Mutex<JoinSet<()>>,
}

impl Tenure {
    fn new(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            sessions: Sessions::new(),
            logs: Router::default(),
            reports: Reports::default(),
            relays: Relays::default(),
            wanted: Notify::new(),
            over: watch::channel(false).0,
            helpers: Mutex::default(),
        })
    }

    /// Runs a short-lived task that ends with this leadership.
    pub fn help(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        while helpers.try_join_next().is_some() {}
        if !*self.over.borrow() {
            helpers.spawn(task);
        }
    }

    /// Nodes that the state does not call down are awaited for a while: who does not come is down.
    /// (The last leader may have ended before it said so of one that left.)
    fn await_nodes(self: &Arc<Self>) {
        let up = |state: NodeState| state != NodeState::Down;
        let (state, now) = (self.shared.state(), self.shared.now());
        let patience = self.shared.welcome_patience();
        for node in state.nodes.values().filter(|n| up(n.status.state)) {
            // What a node told the last leader counts here too.
            match node.status.back_by {
                Some(by) => give_up(self, &node.id, by.since(now).max(patience), AWAY),
                None => give_up(self, &node.id, patience, SILENT),
            }
        }
    }

    /// Ends what is done for it; its sessions learn who leads.
    pub fn end(&self) {
        let mut helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.send_replace(true);
        helpers.abort_all();
    }
}

/// Has a tenure for as long as this manager leads. Ends with the store.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut lead = shared.store.lead();
    loop {
        let began = lead.wait_for(|lead| matches!(lead, Lead::Leading { .. })).await;
        let Ok(Lead::Leading { term }) = began.map(|lead| lead.clone()) else { return };
        let state = shared.state();
        shared.clock.not_before(latest(&state));
        let tenure = Tenure::new(&shared);
        tenure.await_nodes();
        let mut loops = JoinSet::new();
        loops.spawn(planner::run(Arc::clone(&shared)));
        loops.spawn(assigner::run(Arc::clone(&tenure)));
        loops.spawn(statuses::run(Arc::clone(&tenure)));
        loops.spawn(members::run(Arc::clone(&tenure)));
        loops.spawn(relay::run(Arc::clone(&tenure)));
        loops.spawn(trust::run(Arc::clone(&tenure)));
        if *shared.stopping.borrow() {
            return;
        }
        shared.tenure.send_replace(Some(Arc::clone(&tenure)));
        shared.leads.send_replace(true);
        tracing::info!("this manager leads");
        let ended = lead.wait_for(|lead| is_over(lead, term, &shared)).await.is_err();
        shared.leads.send_replace(false);
        shared.tenure.send_replace(None);
        tenure.end();
        loops.shutdown().await;
        tracing::info!("this manager does not lead any more");
        if ended {
            return;
        }
    }
}

/// Whether somebody else may decide now. A group of one that cannot write at the moment (a full
/// disk) has nobody else: its sessions stay.
fn is_over(lead: &Lead, term: u64, shared: &Shared) -> bool {
    let others = || shared.store.group().borrow().voters.len() > 1;
    match lead {
        // Somebody else may have led between the two.
        Lead::Leading { term: now } => *now != term && others(),
        Lead::Following { .. } | Lead::Closed => true,
        Lead::Nobody { .. } => others(),
    }
}

impl Shared {
    /// This leadership, if this manager leads.
    pub fn tenure(&self) -> Option<Arc<Tenure>> {
        self.tenure.borrow().clone()
    }

    /// This leadership; where nobody is known to lead, one that begins within a moment.
    ///
    /// # Errors
    /// [`ControlError::Store`] with the leader's name.
    pub async fn leading(&self) -> Result<Arc<Tenure>, ControlError> {
        let mut tenure = self.tenure.subscribe();
        let begun = async {
            loop {
                if let Some(tenure) = tenure.borrow_and_update().clone() {
                    return Some(tenure);
                }
                if matches!(*self.store.lead().borrow(), Lead::Following { .. } | Lead::Closed) {
                    return None;
                }
                tenure.changed().await.ok()?;
            }
        };
        // Late means the same as none.
        let found = tokio::time::timeout(BEGIN_PATIENCE, begun).await.ok().flatten();
        found.ok_or_else(|| shoal_store::StoreError::NotLeader { leader: self.leader() }.into())
    }

    /// The member that leads, if one is known.
    pub fn leader(&self) -> Option<shoal_store::Member> {
        match &*self.store.lead().borrow() {
            Lead::Following { leader, .. } => Some(leader.clone()),
            _ => None,
        }
    }

    /// Whether a majority says that this manager leads, and it knows everything: what is final may
    /// be said then.
    pub async fn is_sure(&self) -> bool {
        let by = Instant::now() + SURE_WITHIN;
        match self.store.read_index(by).await {
            Ok(revision) => self.store.applied(revision, by).await.is_ok(),
            Err(_) => false,
        }
    }

    /// What a node is told that came to a manager which does not lead.
    pub fn not_leader(&self) -> Bye {
        let known = self.leader();
        let of = |m: &ManagerAddr| known.as_ref().is_some_and(|k| k.node == m.node_id.as_str());
        let leader = managers(&self.state()).into_iter().find(of);
        let message = match &leader {
            Some(leader) => format!("this manager does not lead: {} does", leader.addr),
            None => "this manager does not lead, and knows of none that does".to_owned(),
        };
        Bye { reason: ByeReason::NotLeader, message, leader }
    }
}
