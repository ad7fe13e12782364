//! Sessions: what a node says is passed on, what it should have is sent, and what becomes of it
//! when it falls silent.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shoal_model::assignment::{Assignment, AssignmentUpdate};
use shoal_model::fault::report;
use shoal_model::id::{NodeId, Revision, SessionId};
use shoal_model::object::Task;
use shoal_model::task_state::TaskState;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    AckRevision, Bye, ByeReason, ManagerMessage, NodeMessage, PROTOCOL_VERSION, Welcome,
};
use shoal_wire::server::SessionHandler;
use shoal_wire::session::{ServerSession, SessionSender};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::attach;
use crate::error::ControlError;
use crate::membership::{LEFT, SILENT, give_up};
use crate::sessions::Session;
use crate::shared::{RandomIds, Shared, managers};
use crate::statuses::Reported;

/// Runs the sessions of nodes.
pub(crate) struct Dispatcher {
    pub shared: Arc<Shared>,
    /// Asks for a round of assignments.
    pub wanted: Arc<Notify>,
}

/// Bytes of secrets and configs in one message at most: room for the largest config. It leaves the
/// bound of messages (`shoal_wire::SESSION_MESSAGE_MAX`) to tasks and tables, and lets heartbeats
/// through in between on slow links.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

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
    /// This side ends it.
    Bye(ByeReason, String),
}

#[async_trait]
impl SessionHandler for Dispatcher {
    async fn session(&self, mut session: ServerSession) {
        let hello = session.hello().clone();
        let node = session.peer().node_id.clone();
        if hello.version != PROTOCOL_VERSION {
            let message = format!(
                "this manager speaks protocol version {PROTOCOL_VERSION}, the node {}",
                hello.version
            );
            session.end(Bye { reason: ByeReason::Refused, message }).await;
            return;
        }
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            session: SessionId::generate(&mut RandomIds),
            heartbeat_period_ms: u64::try_from(self.shared.heartbeat().as_millis()).unwrap_or(1000),
            managers: managers(&self.shared.state()),
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
        let entry = Session { id: id.clone(), sender: session.sender(), assignment, end };
        self.shared.sessions.enter(&node, entry);
        if let Err(error) = self.shared.mark_ready(&node, hello, &remote).await {
            self.shared.sessions.leave(&node, &id);
            let reason = match error {
                ControlError::NotFound { .. } => ByeReason::Removed,
                _ => ByeReason::Stopping,
            };
            session.end(Bye { reason, message: report(&error) }).await;
            return;
        }
        self.wanted.notify_one();
        tracing::info!(node = %node, session = %id, remote, "session begins");
        let mut run = Run {
            dispatcher: self,
            sender: session.sender(),
            node: node.clone(),
            id: id.clone(),
            sent: None,
        };
        let outcome = run.serve(&mut session, assigned, ended).await;
        self.finish(session, &node, &id, outcome).await;
    }
}

impl Dispatcher {
    async fn finish(&self, session: ServerSession, node: &NodeId, id: &SessionId, outcome: End) {
        let current = self.shared.sessions.leave(node, id);
        if current {
            self.shared.logs.node_lost(node, "its session ended");
        }
        match outcome {
            End::Bye(reason, message) => {
                session.end(Bye { reason, message }).await;
            }
            End::Left => {
                drop(session);
                if self.shared.state().tasks.values().any(|task| is_busy(task, node)) {
                    // What is connected to its tasks may finish while they stop.
                    give_up(&self.shared, node, self.shared.patience(), LEFT);
                } else {
                    self.shared.mark_down(node, LEFT).await;
                }
            }
            End::Silent => {
                drop(session);
                self.shared.mark_down(node, SILENT).await;
            }
            End::Lost => {
                drop(session);
                if current {
                    give_up(&self.shared, node, self.shared.patience(), SILENT);
                }
            }
        }
    }
}

/// One session on its way.
struct Run<'d> {
    dispatcher: &'d Dispatcher,
    sender: SessionSender<ManagerMessage>,
    node: NodeId,
    id: SessionId,
    /// What the node has.
    sent: Option<Arc<Assignment>>,
}

impl Run<'_> {
    async fn serve(
        &mut self,
        session: &mut ServerSession,
        mut assigned: watch::Receiver<Option<Arc<Assignment>>>,
        mut ended: watch::Receiver<Option<ByeReason>>,
    ) -> End {
        let shared = &self.dispatcher.shared;
        let mut stopping = shared.stopping.subscribe();
        let mut converged = shared.sessions.converged();
        converged.mark_changed();
        let mut left = false;
        // Who leaves ends the session soon; if not, we do.
        let mut left_for_long = pin!(tokio::time::sleep(FAR_AWAY));
        loop {
            let step = tokio::select! {
                message = session.next() => match message {
                    Ok(NodeMessage::Leave(_)) => {
                        left = true;
                        let until = Instant::now() + shared.patience();
                        left_for_long.as_mut().reset(until);
                        shared.mark_left(&self.node).await;
                        Ok(())
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
                Ok(()) = ended.changed() => {
                    if let Some(reason) = *ended.borrow_and_update() {
                        return End::Bye(reason, reason_text(reason).to_owned());
                    }
                    Ok(())
                }
                () = &mut left_for_long => return End::Left,
                () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
                    let reason = ByeReason::Stopping;
                    return End::Bye(reason, reason_text(reason).to_owned());
                }
            };
            if let Err(error) = step {
                tracing::info!(node = %self.node, cause = report(&error), "session ends");
                return if left { End::Left } else { End::Lost };
            }
        }
    }

    async fn tell(&self, message: ManagerMessage) -> Result<(), WireError> {
        self.sender.send(message).await
    }

    /// Sends what has changed since the last assignment, or notes that nothing has.
    async fn send_assignment(&mut self, next: Arc<Assignment>) -> Result<(), WireError> {
        let sessions = &self.dispatcher.shared.sessions;
        let revision = next.revision;
        let update = match &self.sent {
            Some(known) if known.same_content(&next) => {
                sessions.note(&self.node, &self.id, |p| p.current = p.current.max(revision));
                self.dispatcher.after_progress();
                return Ok(());
            }
            Some(known) => known.delta_to(&next),
            None => AssignmentUpdate::Full((*next).clone()),
        };
        self.sent = Some(next);
        sessions.note(&self.node, &self.id, |p| {
            p.sent = revision;
            p.current = revision;
        });
        self.send_update(update).await
    }

    async fn send_update(&self, update: AssignmentUpdate) -> Result<(), WireError> {
        for part in update.parts(PAYLOAD_BYTES_MAX) {
            self.tell(ManagerMessage::Assignment(Box::new(part))).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: NodeMessage) -> Result<(), WireError> {
        let shared = &self.dispatcher.shared;
        match message {
            NodeMessage::TaskStatuses(list) => {
                for told in list.statuses {
                    let node = self.node.clone();
                    let reported = Reported { node, task: told.task_id, status: told.status };
                    // Ignored because: the queue closes only when the manager stops.
                    let _ = shared.reports.send(reported).await;
                }
            }
            NodeMessage::AckRevision(ack) => {
                self.acked(ack.revision);
            }
            NodeMessage::NeedFull(_) => {
                if let Some(known) = self.sent.clone() {
                    self.send_update(AssignmentUpdate::Full((*known).clone())).await?;
                }
            }
            NodeMessage::Attach(request) => {
                let (shared, node) = (Arc::clone(shared), self.node.clone());
                self.dispatcher
                    .shared
                    .help(async move { attach::serve(&shared, &node, request).await });
            }
            NodeMessage::Detach(detach) => {
                let (shared, node) = (Arc::clone(shared), self.node.clone());
                self.dispatcher.shared.help(async move {
                    attach::detach(&shared, &node, detach.task_id).await;
                });
            }
            NodeMessage::AttachmentSet(_) => {}
            NodeMessage::LogChunk(chunk) => shared.logs.chunk(&self.node, chunk).await,
            NodeMessage::LogEnd(end) => shared.logs.end(&self.node, end).await,
            NodeMessage::Description(description) => {
                let (shared, node) = (Arc::clone(shared), self.node.clone());
                self.dispatcher.shared.help(async move {
                    shared.describe(&node, *description).await;
                });
            }
            NodeMessage::Hello(_)
            | NodeMessage::Heartbeat(_)
            | NodeMessage::Leave(_)
            | NodeMessage::Unknown => {}
        }
        Ok(())
    }

    fn acked(&self, revision: Revision) {
        let sessions = &self.dispatcher.shared.sessions;
        sessions.note(&self.node, &self.id, |p| p.acked = p.acked.max(revision.min(p.sent)));
        self.dispatcher.after_progress();
    }
}

impl Dispatcher {
    fn after_progress(&self) {
        self.shared.sessions.update_converged(&self.shared.state());
    }
}

/// Whether the node has still to report the end of this service task.
fn is_busy(task: &Task, node: &NodeId) -> bool {
    task.service_id.is_some()
        && task.node_id.as_ref() == Some(node)
        && task.status.state >= TaskState::Assigned
        && !task.status.state.is_terminal()
}

fn reason_text(reason: ByeReason) -> &'static str {
    match reason {
        ByeReason::Stopping => "the manager stops",
        ByeReason::Replaced => "another session of this node took over",
        ByeReason::Removed => "this node was removed from the cluster",
        ByeReason::Refused => "the session was refused",
        ByeReason::Unknown => "the session ends",
    }
}
