//! Sessions: what a node says is passed on, what it should have is sent, and what becomes of it
//! when it falls silent.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shoal_model::assignment::{Assignment, AssignmentUpdate};
use shoal_model::fault::report;
use shoal_model::id::{NodeId, Revision, SessionId};
use shoal_model::object::{NodeDescription, Task};
use shoal_model::task_state::TaskState;
use shoal_plan::validate::SpecError;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{
    AckRevision, Bye, ByeReason, ManagerMessage, Managers, NodeMessage, PROTOCOL_VERSION, Welcome,
};
use shoal_wire::server::SessionHandler;
use shoal_wire::session::{ServerSession, SessionSender};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::attach::Caller;
use crate::error::ControlError;
use crate::join::{check_reads, too_old};
use crate::membership::{AWAY, LEFT, SILENT, give_up};
use crate::sessions::{Given, Session, Wishes};
use crate::shared::{RandomIds, Shared, managers};
use crate::tenure::Tenure;

/// Runs the sessions of nodes. Whoever does not lead sends them on to the leader.
pub(crate) struct Dispatcher(pub Arc<Shared>);

/// Bytes of an update in one message at most: room for the largest config. It is far below the
/// bound of messages (`shoal_wire::SESSION_MESSAGE_MAX`), because one entry may be larger by
/// itself, and lets heartbeats through in between on slow links.
const UPDATE_BYTES_MAX: usize = 1 << 20;

/// What is done for one node at the same time, beside its session.
const WORKS_MAX: usize = 64;
/// How long a node may have to wait for its turn.
const WORK_PATIENCE: Duration = Duration::from_secs(30);
/// Largest description of a node, as JSON: as large as a join may be.
const DESCRIPTION_BYTES_MAX: usize = shoal_wire::JOIN_MESSAGE_MAX;

/// Longest that a node whose daemon stops for a moment is waited for.
const BACK_SOON_MAX: Duration = Duration::from_secs(120);

/// Longer than any session.
const FAR_AWAY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How a session ended.
enum End {
    /// The connection is gone; the node may come back.
    Lost,
    /// The node said nothing for three heartbeats.
    Silent,
    /// The node said that it leaves.
    Left,
    /// The node said that it will be back within this time.
    BackSoon(Duration),
    /// This manager does not lead any more.
    NotLeader,
    /// This side ends it.
    Bye(ByeReason, String),
}

#[async_trait]
impl SessionHandler for Dispatcher {
    async fn session(&self, mut session: ServerSession) {
        let hello = session.hello().clone();
        let node = session.peer().node_id.clone();
        let Ok(tenure) = self.0.leading().await else {
            session.end(self.0.not_leader()).await;
            return;
        };
        let shared = &tenure.shared;
        // Whoever was removed keeps a certificate that is valid for months.
        let state = shared.state();
        let ahead = hello.revision.is_some_and(|known| known > state.revision);
        if (ahead || !state.nodes.contains_key(&node)) && !shared.is_sure().await {
            // Another manager leads by now, or will: this one is behind. (A majority that confirms
            // the lead and knows less than the node has lost something; the node follows it.)
            session.end(shared.not_leader()).await;
            return;
        }
        if !shared.state().nodes.contains_key(&node) {
            let fault = ControlError::Removed { node };
            tracing::warn!(remote = %session.remote(), cause = report(&fault), "no session");
            session.refuse(RemoteFault::of(&fault)).await;
            return;
        }
        if let Err(fault) = check_reads(&shared.state(), &hello.description) {
            tracing::warn!(%node, cause = report(&fault), "no session");
            session.refuse(RemoteFault::of(&fault)).await;
            tenure.mark_too_old(&node, hello.description, &fault.to_string()).await;
            return;
        }
        if let Err(error) = check_description(&hello.description) {
            tracing::warn!(%node, cause = report(&error), "no session");
            session.refuse(RemoteFault::of(&error)).await;
            return;
        }
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            session: SessionId::generate(&mut RandomIds),
            heartbeat_period_ms: u64::try_from(shared.heartbeat().as_millis()).unwrap_or(1000),
            managers: managers(&shared.state()),
            now: Some((shared.wall)()),
        };
        let id = welcome.session.clone();
        let remote = session.remote().ip().to_string();
        // Ready only when the session stands, so a node that cannot hear us gets no tasks.
        if session.accept(welcome).await.is_err() {
            return;
        }
        // In the table first: whoever gives up on the node's last session looks there.
        let (assignment, assigned) = watch::channel(None);
        let (end, ended) = watch::channel(None);
        let (wishes, told) = watch::channel(Wishes::default());
        let sender = session.sender();
        let given = BTreeSet::new();
        let entry = Session { id: id.clone(), sender, assignment, wishes, end, given };
        if tenure.sessions.enter(&node, entry) {
            tenure.logs.node_again(&node);
        }
        if let Err(error) = tenure.mark_ready(&node, hello, &remote).await {
            tenure.sessions.leave(&node, &id);
            let reason = match error {
                ControlError::Removed { .. } => ByeReason::Removed,
                _ => ByeReason::Stopping,
            };
            session.end(Bye { reason, message: report(&error), leader: None }).await;
            return;
        }
        tenure.wanted.notify_one();
        tracing::info!(node = %node, session = %id, remote, "session begins");
        let mut run = Run {
            tenure: &tenure,
            sender: session.sender(),
            node: node.clone(),
            id: id.clone(),
            sent: None,
            told: Wishes::default(),
            works: Arc::new(Semaphore::new(WORKS_MAX)),
        };
        let outcome = run.serve(&mut session, assigned, told, ended).await;
        tenure.finish(session, &node, &id, outcome).await;
    }
}

impl Tenure {
    async fn finish(
        self: &Arc<Self>,
        session: ServerSession,
        node: &NodeId,
        id: &SessionId,
        outcome: End,
    ) {
        let current = self.sessions.leave(node, id);
        if current {
            self.logs.node_lost(node, "its session ended");
        }
        match outcome {
            End::NotLeader => session.end(self.shared.not_leader()).await,
            End::Bye(reason, message) => {
                if current && reason == ByeReason::Refused {
                    self.mark_down(node, &message).await;
                }
                session.end(Bye { reason, message, leader: None }).await;
            }
            End::Left => {
                drop(session);
                if self.shared.state().tasks.values().any(|task| is_busy(task, node)) {
                    // What is connected to its tasks may finish while they stop.
                    give_up(self, node, self.shared.patience(), LEFT);
                } else {
                    self.mark_down(node, LEFT).await;
                }
            }
            End::BackSoon(within) => {
                if current {
                    self.mark_away(node, within).await;
                    give_up(self, node, within, AWAY);
                }
                // The node waits for it: only then is it sure that it was heard.
                let message = "this node said that it will be back".to_owned();
                session.end(Bye { reason: ByeReason::Stopping, message, leader: None }).await;
            }
            End::Silent => {
                drop(session);
                self.mark_down(node, SILENT).await;
            }
            End::Lost => {
                drop(session);
                if current {
                    give_up(self, node, self.shared.patience(), SILENT);
                }
            }
        }
    }
}

/// One session on its way.
struct Run<'t> {
    tenure: &'t Arc<Tenure>,
    sender: SessionSender<ManagerMessage>,
    node: NodeId,
    id: SessionId,
    /// What the node has.
    sent: Option<Assignment>,
    /// What else it was told.
    told: Wishes,
    /// Places for what is done for the node beside the session.
    works: Arc<Semaphore>,
}

impl Run<'_> {
    async fn serve(
        &mut self,
        session: &mut ServerSession,
        mut assigned: watch::Receiver<Option<Arc<Given>>>,
        mut told: watch::Receiver<Wishes>,
        mut ended: watch::Receiver<Option<ByeReason>>,
    ) -> End {
        let tenure = self.tenure;
        let shared = &tenure.shared;
        let mut stopping = shared.stopping.subscribe();
        let mut over = tenure.over.subscribe();
        let mut converged = tenure.sessions.converged();
        converged.mark_changed();
        // The welcome had those of that moment.
        let mut managers = shared.managers.subscribe();
        managers.mark_changed();
        let mut left = false;
        // Who leaves ends the session soon; if not, we do.
        let mut left_for_long = pin!(tokio::time::sleep(FAR_AWAY));
        loop {
            let step = tokio::select! {
                biased;
                () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
                    let reason = ByeReason::Stopping;
                    return End::Bye(reason, reason_text(reason).to_owned());
                }
                // Ignored because: the sender is in the tenure, which is held here.
                () = async { drop(over.wait_for(|over| *over).await) } => return End::NotLeader,
                Ok(()) = ended.changed() => {
                    let reason = *ended.borrow_and_update();
                    if let Some(reason) = reason {
                        return End::Bye(reason, self.reason(reason));
                    }
                    Ok(())
                }
                () = &mut left_for_long => return End::Left,
                // What this node is told is made of the newest state, however much it says itself.
                Ok(()) = assigned.changed() => {
                    let next = assigned.borrow_and_update().clone();
                    match next {
                        Some(next) => self.send_assignment(next).await,
                        None => Ok(()),
                    }
                }
                Ok(()) = converged.changed() => {
                    let revision = *converged.borrow_and_update();
                    self.tell(ManagerMessage::Converged(AckRevision { revision })).await
                }
                Ok(()) = managers.changed() => {
                    let managers = managers.borrow_and_update().clone();
                    self.tell(ManagerMessage::Managers(Managers { managers })).await
                }
                Ok(()) = told.changed() => {
                    let wishes = told.borrow_and_update().clone();
                    self.tell_wishes(wishes).await
                }
                message = session.next() => match message {
                    Ok(NodeMessage::Leave(_)) => {
                        left = true;
                        let until = Instant::now() + shared.patience();
                        left_for_long.as_mut().reset(until);
                        tenure.mark_left(&self.node).await;
                        Ok(())
                    }
                    Ok(NodeMessage::BackSoon(soon)) => {
                        let within = Duration::from_secs(soon.within_s.into());
                        return End::BackSoon(within.min(BACK_SOON_MAX));
                    }
                    Ok(message) => self.hear(message).await,
                    Err(error) => {
                        tracing::info!(node = %self.node, cause = report(&error), "session ends");
                        return match error {
                            _ if left => End::Left,
                            WireError::Silent { .. } => End::Silent,
                            _ => End::Lost,
                        };
                    }
                },
            };
            if let Err(error) = step {
                tracing::info!(node = %self.node, cause = report(&error), "session ends");
                return if left { End::Left } else { End::Lost };
            }
        }
    }

    /// Why the session ends, in words.
    fn reason(&self, reason: ByeReason) -> String {
        let state = self.tenure.shared.state();
        match (reason, state.nodes.get(&self.node)) {
            (ByeReason::Refused, Some(node)) => too_old(&state, &node.description).to_string(),
            _ => reason_text(reason).to_owned(),
        }
    }

    async fn tell(&self, message: ManagerMessage) -> Result<(), WireError> {
        self.sender.send(message).await
    }

    async fn tell_wishes(&mut self, next: Wishes) -> Result<(), WireError> {
        let before = std::mem::replace(&mut self.told, next.clone());
        if let Some(role) = next.role.filter(|_| next.role != before.role) {
            self.tell(ManagerMessage::Role(role)).await?;
        }
        match next.trust {
            Some(trust) if before.trust.as_ref() != Some(&trust) => {
                self.tell(ManagerMessage::Trust(Box::new((*trust).clone()))).await
            }
            _ => Ok(()),
        }
    }

    /// Sends what has changed since the last assignment, or notes that nothing has.
    async fn send_assignment(&mut self, next: Arc<Given>) -> Result<(), WireError> {
        let sessions = &self.tenure.sessions;
        let revision = next.assignment.revision;
        let update = match &self.sent {
            Some(known) if known.same_content(&next.assignment) => {
                sessions.note(&self.node, &self.id, |p| p.current = p.current.max(revision));
                self.tenure.after_progress();
                return Ok(());
            }
            Some(known) => known.delta_to(&next.assignment, &next.changes),
            None => next.assignment.full(),
        };
        self.sent = Some(next.assignment.clone());
        sessions.note(&self.node, &self.id, |p| {
            p.sent = revision;
            p.current = revision;
        });
        self.send_update(update).await
    }

    async fn send_update(&self, update: AssignmentUpdate) -> Result<(), WireError> {
        for part in update.parts(UPDATE_BYTES_MAX) {
            self.tell(ManagerMessage::Assignment(Box::new(part))).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: NodeMessage) -> Result<(), WireError> {
        let tenure = self.tenure;
        match message {
            NodeMessage::TaskStatuses(list) => {
                tenure.reports.say(&tenure.shared.state(), &self.node, list.statuses);
            }
            NodeMessage::AckRevision(ack) => {
                self.acked(ack.revision);
            }
            NodeMessage::NeedFull(_) => {
                if let Some(known) = &self.sent {
                    self.send_update(known.full()).await?;
                }
            }
            NodeMessage::Attach(request) => {
                self.work(|caller| caller.attach(request)).await?;
            }
            NodeMessage::Detach(detach) => {
                self.work(|caller| caller.detach(detach.task_id)).await?;
            }
            NodeMessage::AttachmentSet(set) => {
                let tasks: BTreeSet<_> = set.tasks.into_iter().collect();
                self.work(|caller| caller.keep_only(tasks)).await?;
            }
            NodeMessage::LogChunk(chunk) => tenure.logs.chunk(&self.node, chunk).await,
            NodeMessage::LogEnd(end) => tenure.logs.end(&self.node, end).await,
            NodeMessage::Description(description) => match check_description(&description) {
                Ok(()) => self.work(|c| async move { c.describe(*description).await }).await?,
                Err(error) => {
                    let cause = report(&error);
                    tracing::warn!(node = %self.node, cause, "a description was not noted");
                }
            },
            NodeMessage::Tls(tls) => self.work(|c| async move { c.certified(*tls).await }).await?,
            NodeMessage::Hello(_)
            | NodeMessage::Heartbeat(_)
            | NodeMessage::Leave(_)
            | NodeMessage::BackSoon(_)
            | NodeMessage::Unknown => {}
        }
        Ok(())
    }

    /// Does something for the node beside the session. Few such works at a time: a node that asks
    /// for more waits, and its session ends if that takes too long.
    async fn work<F>(&self, work: impl FnOnce(Caller) -> F) -> Result<(), WireError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let place = timeout(WORK_PATIENCE, Arc::clone(&self.works).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let addr = self.node.to_string();
            return Err(WireError::Stuck { addr, after: WORK_PATIENCE });
        };
        let work = work(Caller {
            tenure: Arc::clone(self.tenure),
            node: self.node.clone(),
            session: self.id.clone(),
            sender: self.sender.clone(),
        });
        self.tenure.help(async move {
            work.await;
            drop(place);
        });
        Ok(())
    }

    fn acked(&self, revision: Revision) {
        let sessions = &self.tenure.sessions;
        sessions.note(&self.node, &self.id, |p| p.acked = p.acked.max(revision.min(p.sent)));
        self.tenure.after_progress();
    }
}

impl Tenure {
    fn after_progress(&self) {
        self.sessions.update_converged(&self.shared.state());
    }
}

/// Whether the node has still to report the end of this service task.
fn is_busy(task: &Task, node: &NodeId) -> bool {
    task.service_id.is_some()
        && task.node_id.as_ref() == Some(node)
        && task.status.state >= TaskState::Assigned
        && !task.status.state.is_terminal()
}

fn check_description(description: &NodeDescription) -> Result<(), SpecError> {
    // Cannot fail: maps with text keys and plain values always serialise.
    let bytes = shoal_model::size::json_len(description).unwrap_or(usize::MAX);
    if bytes <= DESCRIPTION_BYTES_MAX {
        return Ok(());
    }
    Err(SpecError::invalid(format!(
        "the node's description has {bytes} bytes, at most {DESCRIPTION_BYTES_MAX} are allowed"
    )))
}

fn reason_text(reason: ByeReason) -> &'static str {
    match reason {
        ByeReason::Stopping => "the manager stops",
        ByeReason::Replaced => "another session of this node took over",
        ByeReason::NotLeader => "this manager does not lead",
        ByeReason::Removed => "this node was removed from the cluster",
        ByeReason::Refused => "the session was refused",
        ByeReason::Unknown => "the session ends",
    }
}
