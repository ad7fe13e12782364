//! The session with a manager: one at a time, opened again whenever it ends.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_model::assignment::AssignmentUpdate;
use shoal_model::fault::report;
use shoal_model::id::{Revision, SessionId};
use shoal_model::trust::NodeTls;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    AckRevision, AttachOutcome, AttachReply, AttachRequest, AttachmentSet, BackSoon, ByeReason,
    Detach, Leave, ManagerAddr, ManagerMessage, NeedFull, NodeMessage, RoleWish, TaskStatuses,
    TrustWish,
};
use shoal_wire::session::SessionSender;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::agent::{Agent, Membership, lock};
use crate::assigned::Taken;
use crate::logs;
use crate::opened::{Opened, attend};
use crate::report::batches;

/// First pause before a session is opened again; doubled after each failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause: a manager that comes back finds its nodes within this time.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Pause before the whole set of this node's places is stated again, so that its cost is bounded
/// however many change.
const RESTATE_PAUSE: Duration = Duration::from_secs(1);
/// How often it is stated when nothing is known to differ: a place that somebody who has gone
/// asked for in an earlier session is found so.
const RESTATE_EVERY: Duration = Duration::from_secs(60);
/// How long the first assignment of a session may take to say which places this node has.
const KNOWN_DEADLINE: Duration = Duration::from_secs(10);
/// How long saying good-bye may take.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);

/// What the rest of the agent says to, and asks of, the manager of the moment.
#[derive(Debug, Default)]
pub struct SessionHub {
    sender: Mutex<Option<SessionSender<NodeMessage>>>,
    asked: Mutex<BTreeMap<u64, oneshot::Sender<AttachOutcome>>>,
    next: AtomicU64,
    managers: watch::Sender<Vec<String>>,
    error: Mutex<String>,
    previous: Mutex<Option<SessionId>>,
    /// By how much this node's clock differs from that of the manager; empty if by little.
    skew: Mutex<String>,
    removed: watch::Sender<bool>,
    /// What the leader last said that this node is to be.
    role: watch::Sender<Option<RoleWish>>,
    /// Whom the leader last said that this node is to trust.
    trust: watch::Sender<Option<TrustWish>>,
    /// Counts how often a manager refused this node's certificate as of a root that was replaced.
    outdated: watch::Sender<u64>,
    /// What this node's certificate is by.
    tls: watch::Sender<NodeTls>,
    /// How far a node that leaves has got.
    leaving: watch::Sender<Leaving>,
    /// The revision that the kernels of all nodes have, as the manager last said.
    converged: watch::Sender<Revision>,
    /// Counts how often this node has become able to do other things than before.
    described: watch::Sender<u64>,
}

/// How far a node that leaves has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leaving {
    /// It does not leave.
    #[default]
    No,
    /// It has said so, and hands its tasks over. No other session is opened.
    Said,
    /// The session in which it said so has ended.
    Ended,
}

impl SessionHub {
    /// Asks for a place on a network; `None` if there is no session or it ends before the answer.
    pub(crate) async fn ask_attach(&self, mut request: AttachRequest) -> Option<AttachOutcome> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        request.request = number;
        let (answer, hear) = oneshot::channel();
        lock(&self.asked).insert(number, answer);
        // Whoever gives up asking leaves nothing here.
        let _asked = Asked { hub: self, number };
        if !self.tell(NodeMessage::Attach(request)).await {
            return None;
        }
        hear.await.ok()
    }

    /// Hears a manager's answer: `false` if nobody waits for it any more.
    fn answered(&self, number: u64, outcome: AttachOutcome) -> bool {
        let asked = lock(&self.asked).remove(&number);
        asked.is_some_and(|asked| asked.send(outcome).is_ok())
    }

    /// Sends `message` if there is a session; what matters is told again in the next one.
    pub(crate) async fn tell(&self, message: NodeMessage) -> bool {
        let sender = lock(&self.sender).clone();
        match sender {
            Some(sender) => sender.send(message).await.is_ok(),
            None => false,
        }
    }

    /// Tells the manager that this node leaves; says whether there was one to tell.
    pub(crate) async fn leave(&self) -> bool {
        self.say_goodbye(NodeMessage::Leave(Leave {})).await
    }

    /// Tells the manager that this node's daemon stops for a moment; says whether there was one to
    /// tell. It ends the session when it has heard.
    pub(crate) async fn back_soon(&self, within: Duration) -> bool {
        let within_s = u32::try_from(within.as_secs()).unwrap_or(u32::MAX);
        self.say_goodbye(NodeMessage::BackSoon(BackSoon { within_s })).await
    }

    async fn say_goodbye(&self, message: NodeMessage) -> bool {
        self.leaving.send_replace(Leaving::Said);
        let said = self.tell(message);
        // A manager that cannot be told finds out by missing heartbeats.
        tokio::time::timeout(LEAVE_DEADLINE, said).await.unwrap_or(false)
    }

    /// Waits until the session in which this node said that it leaves has ended.
    pub(crate) async fn left(&self) {
        let mut leaving = self.leaving.subscribe();
        // Ignored because: the sender is part of `self`.
        let _ = leaving.wait_for(|stage| *stage == Leaving::Ended).await;
    }

    /// Waits until every node's kernel has `revision`, but at most `limit`: a node that is slow or
    /// dead must not keep others from going on. Whether it has.
    pub(crate) async fn converged(&self, revision: Revision, limit: Duration) -> bool {
        let mut converged = self.converged.subscribe();
        let reached = converged.wait_for(|known| *known >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Managers that this node knows of.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        self.managers.borrow().clone()
    }

    /// Follows [`Self::managers`].
    #[must_use]
    pub fn follow_managers(&self) -> watch::Receiver<Vec<String>> {
        self.managers.subscribe()
    }

    /// Why there is no session; empty if there is one.
    #[must_use]
    pub fn error(&self) -> String {
        lock(&self.error).clone()
    }

    /// By how much this node's clock differs from that of the manager that it has a session with;
    /// empty if by little.
    #[must_use]
    pub fn skew(&self) -> String {
        lock(&self.skew).clone()
    }

    pub(crate) fn set_skew(&self, text: String) {
        *lock(&self.skew) = text;
    }

    /// This node's certificate was refused as of a root that was replaced, or as expired.
    pub(crate) fn note_outdated(&self) {
        self.outdated.send_modify(|count| *count += 1);
    }

    /// Follows what this node's certificate is by.
    pub(crate) fn follow_tls(&self) -> watch::Receiver<NodeTls> {
        self.tls.subscribe()
    }

    /// Whether this node has said that it leaves.
    pub(crate) fn leaves(&self) -> bool {
        *self.leaving.borrow() != Leaving::No
    }

    /// Counts how often this node's description has become another one.
    pub(crate) fn follow_described(&self) -> watch::Receiver<u64> {
        self.described.subscribe()
    }

    /// The last session that stood.
    pub(crate) fn previous(&self) -> Option<SessionId> {
        lock(&self.previous).clone()
    }

    pub(crate) fn set_error(&self, error: String) {
        *lock(&self.error) = error;
    }

    /// Turns true when a manager says that this node is no member any more.
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    /// What the leader last said that this node is to be; said again in each session.
    pub(crate) fn role(&self) -> watch::Receiver<Option<RoleWish>> {
        self.role.subscribe()
    }

    /// Whom the leader last said that this node is to trust; said again in each session.
    pub(crate) fn trust(&self) -> watch::Receiver<Option<TrustWish>> {
        self.trust.subscribe()
    }

    /// Counts how often this node's certificate was refused as of a root that was replaced.
    pub(crate) fn outdated(&self) -> watch::Receiver<u64> {
        self.outdated.subscribe()
    }

    /// What this node's certificate is by now: managers are told.
    pub(crate) fn set_tls(&self, next: NodeTls) {
        self.tls.send_if_modified(|known| {
            let new = *known != next;
            *known = next;
            new
        });
    }

    /// Another membership begins, or none: nothing was said of it.
    pub(crate) fn forget_wishes(&self) {
        self.role.send_replace(None);
        self.trust.send_replace(None);
    }

    /// This node's description is another one now: the manager is told.
    pub(crate) fn describe_again(&self) {
        self.described.send_modify(|count| *count += 1);
    }

    fn set_managers(&self, managers: &[ManagerAddr]) {
        if !managers.is_empty() {
            let next: Vec<String> = managers.iter().map(|m| m.addr.clone()).collect();
            self.managers.send_if_modified(|known| {
                let new = *known != next;
                *known = next;
                new
            });
        }
    }

    fn close(&self, why: String) {
        self.pause();
        self.set_error(why);
    }

    /// The session is over, and another one follows at once.
    pub(crate) fn pause(&self) {
        *lock(&self.sender) = None;
        lock(&self.asked).clear();
    }
}

/// A question to the manager, for as long as somebody waits for its answer.
struct Asked<'a> {
    hub: &'a SessionHub,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.hub.asked).remove(&self.number);
    }
}

/// Why a session is over.
pub(crate) enum End {
    /// Open another.
    Again(String),
    /// Open another, with the manager that leads.
    At(String),
    /// Do not come back.
    Final(String),
}

/// Keeps a session open for as long as this node is a member.
pub(crate) async fn run(agent: &Agent) {
    let mut membership = agent.inner.membership.subscribe();
    loop {
        let current = membership.borrow_and_update().clone();
        let Some(member) = current else {
            agent.inner.hub.close(String::new());
            if membership.changed().await.is_err() {
                return;
            }
            continue;
        };
        agent.inner.hub.removed.send_replace(false);
        agent.inner.hub.leaving.send_replace(Leaving::No);
        tokio::select! {
            biased;
            changed = membership.changed() => if changed.is_err() { return },
            () = member_loop(agent, &member) => {
                // Removed or leaving: wait until somebody makes this node a member again.
                if membership.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn member_loop(agent: &Agent, member: &Membership) {
    let mut pause = RETRY_FIRST;
    let mut turn = 0_usize;
    // Who leads, by the word of a manager that does not; tried next, once.
    let mut leader: Option<String> = None;
    let mut sent_on = false;
    let mut lost: Option<String> = None;
    agent.inner.hub.managers.send_replace(member.managers.clone());
    loop {
        let managers = agent.inner.hub.managers();
        // Not where the last session was just lost: a host without power answers nobody for long.
        if managers.len() > 1 && managers.get(turn % managers.len()) == lost.as_ref() {
            turn += 1;
        }
        let next = managers.get(turn % managers.len().max(1)).cloned();
        let Some(addr) = leader.take().or(next) else {
            agent.inner.hub.set_error("no manager is known".to_owned());
            return;
        };
        let (end, stood) = attend(agent, member, &addr).await;
        if stood {
            pause = RETRY_FIRST;
        }
        lost = Some(addr.clone());
        let said = |stage: &mut Leaving| match stage {
            Leaving::Said => {
                *stage = Leaving::Ended;
                true
            }
            Leaving::No | Leaving::Ended => false,
        };
        let leaves = agent.inner.hub.leaving.send_if_modified(said);
        match end {
            End::Again(why) if leaves => {
                agent.inner.hub.close(why);
                return;
            }
            End::At(addr) if leaves => {
                agent.inner.hub.close(format!("{addr} leads now"));
                return;
            }
            // The word of one that leads no more may be wrong: it is taken without a pause once.
            End::At(at) if at != addr && !sent_on => {
                tracing::info!(manager = addr, leader = at, "sent on to the leader");
                agent.inner.hub.close(format!("manager {addr} does not lead: {at} does"));
                leader = Some(at);
                sent_on = true;
                continue;
            }
            End::At(at) => {
                agent.inner.hub.close(format!("manager {addr} does not lead: {at} does, it says"));
                leader = Some(at);
            }
            End::Again(why) => {
                tracing::info!(manager = addr, why, "no session");
                agent.inner.hub.close(why);
            }
            End::Final(why) => {
                tracing::warn!(manager = addr, why, "this node is no member any more");
                agent.inner.hub.close(why);
                agent.inner.hub.removed.send_replace(true);
                return;
            }
        }
        sent_on = false;
        turn += 1;
        tokio::time::sleep(pause).await;
        if !stood {
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

/// Runs a session to its end; `None` if another one is to follow, because this node or the manager
/// has newer certificates than this one.
pub(crate) async fn serve(agent: &Agent, opened: &mut Opened) -> Option<End> {
    let hub = &agent.inner.hub;
    let mut outlived = pin!(opened.outlived(agent));
    let described = opened.described.clone();
    let session = &mut opened.session;
    let welcome = session.welcome().clone();
    hub.set_managers(&welcome.managers);
    *lock(&hub.previous) = Some(welcome.session.clone());
    let sender = session.sender();
    *lock(&hub.sender) = Some(sender.clone());
    hub.set_error(String::new());
    tracing::info!(session = %welcome.session, "session with the manager");
    let mut logs = logs::Streams::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(send_statuses(agent.clone(), sender.clone()));
    tasks.spawn(send_acks(agent.clone(), sender.clone()));
    tasks.spawn(send_tls(agent.clone(), sender.clone()));
    tasks.spawn(send_attachments(agent.clone(), sender.clone()));
    tasks.spawn(send_descriptions(agent.clone(), sender.clone(), described));
    loop {
        let message = tokio::select! {
            biased;
            message = session.next() => match message {
                Ok(message) => message,
                Err(error) => return Some(End::Again(report(&error))),
            },
            () = &mut outlived => return None,
            Some(ended) = tasks.join_next() => match ended {
                Ok(Err(error @ WireError::Stuck { .. })) => return Some(End::Again(report(&error))),
                // A session that is over says why by itself.
                Ok(_) => continue,
                Err(error) => {
                    return Some(End::Again(format!("a part of the session broke off: {error}")));
                }
            },
        };
        let mut sent = Ok(());
        match message {
            ManagerMessage::Assignment(update) => sent = take(agent, *update, &sender).await,
            ManagerMessage::AttachReply(reply) => sent = attached(agent, *reply, &sender).await,
            ManagerMessage::OpenLogs(open) => logs.open(agent, open, sender.clone()),
            ManagerMessage::CloseLogs(close) => logs.close(close.stream),
            ManagerMessage::OpenStream(open) => agent.inner.streams.open(agent, open),
            ManagerMessage::Managers(list) => hub.set_managers(&list.managers),
            ManagerMessage::Role(wish) => {
                hub.role.send_replace(Some(wish));
            }
            ManagerMessage::Trust(wish) => {
                hub.trust.send_replace(Some(*wish));
            }
            ManagerMessage::Converged(all) => {
                hub.converged.send_replace(all.revision);
            }
            ManagerMessage::Bye(bye) => {
                let why = format!("{:?}: {}", bye.reason, bye.message);
                return Some(match (bye.reason, bye.leader) {
                    (ByeReason::Removed, _) => End::Final(why),
                    (ByeReason::NotLeader, Some(leader)) => End::At(leader.addr),
                    _ => End::Again(why),
                });
            }
            ManagerMessage::Welcome(_) | ManagerMessage::Heartbeat(_) | ManagerMessage::Unknown => {
            }
        }
        // What it lost, the next session begins with. One that is over says why by itself.
        if let Err(error @ WireError::Stuck { .. }) = sent {
            return Some(End::Again(report(&error)));
        }
    }
}

async fn take(
    agent: &Agent,
    update: AssignmentUpdate,
    sender: &SessionSender<NodeMessage>,
) -> Result<(), WireError> {
    match agent.inner.assigned.take(update) {
        Ok(Taken::Whole) => {
            agent.changed();
            Ok(())
        }
        Ok(Taken::APart) => Ok(()),
        Err(have) => sender.send(NodeMessage::NeedFull(NeedFull { have })).await,
    }
}

/// A manager's answer about a place: it counts as this node's before anything else is said.
async fn attached(
    agent: &Agent,
    reply: AttachReply,
    sender: &SessionSender<NodeMessage>,
) -> Result<(), WireError> {
    let attachments = &agent.inner.attachments;
    let id = match &reply.outcome {
        AttachOutcome::Attached { task, .. } => Some(task.id.clone()),
        AttachOutcome::Refused(_) => None,
    };
    if let Some(id) = &id {
        attachments.given(id.clone());
    }
    if !agent.inner.hub.answered(reply.request, reply.outcome)
        && let Some(id) = id
    {
        // Whoever asked has given up. A set spares what its own session gave, so it is named.
        attachments.given_up(&id);
        return sender.send(NodeMessage::Detach(Detach { task_id: id })).await;
    }
    Ok(())
}

/// States the whole set of places that hand-made containers of this node hold: what else a manager
/// has of it is a ghost, of a container that died with its daemon, or of a message that was lost.
async fn send_attachments(
    agent: Agent,
    sender: SessionSender<NodeMessage>,
) -> Result<(), WireError> {
    let attachments = &agent.inner.attachments;
    let mut changes = attachments.follow();
    let mut assignment = agent.inner.assigned.follow();
    // Without one, it is not known which places the running containers have.
    if assignment.wait_for(|known| known.revision != Revision(0)).await.is_err() {
        return Ok(());
    }
    // The file that an earlier daemon left may be older than its containers: then this session's
    // first assignment says which places those have.
    let known = async {
        while attachments.held(&agent.remembered_tasks()).has_unknown() {
            if assignment.changed().await.is_err() {
                return;
            }
        }
    };
    // Ignored because: what no assignment knows by then is no place of this node any more.
    let _ = tokio::time::timeout(KNOWN_DEADLINE, known).await;
    loop {
        changes.borrow_and_update();
        let tasks = attachments.held(&agent.remembered_tasks()).tasks.into_iter().collect();
        let set = NodeMessage::AttachmentSet(AttachmentSet { tasks });
        sender.send(set).await?;
        tokio::time::sleep(RESTATE_PAUSE).await;
        if let Ok(Err(_)) = tokio::time::timeout(RESTATE_EVERY, changes.changed()).await {
            return Ok(());
        }
    }
}

/// Sends every status that the manager has not heard in this session.
async fn send_statuses(agent: Agent, sender: SessionSender<NodeMessage>) -> Result<(), WireError> {
    let mut pending = agent.inner.reporter.follow();
    loop {
        for statuses in batches(pending.next().await) {
            let statuses = TaskStatuses { statuses };
            sender.send(NodeMessage::TaskStatuses(statuses)).await?;
        }
    }
}

/// Tells the manager what this node has become able to do, or unable.
async fn send_descriptions(
    agent: Agent,
    sender: SessionSender<NodeMessage>,
    mut described: watch::Receiver<u64>,
) -> Result<(), WireError> {
    while described.changed().await.is_ok() {
        let description = Box::new(agent.description().await);
        sender.send(NodeMessage::Description(description)).await?;
    }
    Ok(())
}

/// Tells the manager what this node's certificate is by.
async fn send_tls(agent: Agent, sender: SessionSender<NodeMessage>) -> Result<(), WireError> {
    let mut tls = agent.inner.hub.tls.subscribe();
    loop {
        let now = tls.borrow_and_update().clone();
        if !now.is_empty() {
            sender.send(NodeMessage::Tls(Box::new(now))).await?;
        }
        if tls.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Tells the manager which revision this node's kernel has.
async fn send_acks(agent: Agent, sender: SessionSender<NodeMessage>) -> Result<(), WireError> {
    let mut outcomes = agent.inner.applier.outcomes();
    let mut told = Revision(0);
    loop {
        let outcome = outcomes.borrow_and_update().clone();
        if let Ok(applied) = &outcome.applied
            && applied.is_complete()
            && applied.revision > told
        {
            told = applied.revision;
            let ack = AckRevision { revision: told };
            sender.send(NodeMessage::AckRevision(ack)).await?;
        }
        if outcomes.changed().await.is_err() {
            return Ok(());
        }
    }
}
