//! Who carries a request out: this manager while it leads, and else the one that does.
//!
//! A request has one moment by which it is answered, wherever it is carried out. What was refused
//! before it began is asked again until then; so is what may have been carried out without an
//! answer, if asking twice is the same as asking once. Who is told that something is done reads it
//! here from then on.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shoal_model::fault::{Fault as _, FaultKind};
use shoal_model::id::{NodeId, Revision};
use shoal_model::spec::node::NodeRole;
use shoal_plan::validate::{self, SpecError};
use shoal_wire::fault::RemoteFault;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::control::Control;
use crate::error::{ControlError, Fate};
use crate::members;
use crate::requests::{ControlReply, ControlRequest};

/// How long a request may take altogether. Docker's clients wait longer, and a machine that stands
/// still for seconds loses nothing. A store without a majority refuses much earlier.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Pause before the leader is asked again; a change of who leads ends it.
const PAUSE: Duration = Duration::from_millis(50);

/// Who asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The manager that the client speaks to, as its certificate proves.
    pub node: NodeId,
    /// The client's own name, from its certificate, if that manager asks for one.
    pub user: Option<String>,
}

/// How a manager that does not lead reaches the one that does.
#[async_trait]
pub trait Leader: Send + Sync + 'static {
    /// Asks it. The revision is one that has what was done.
    ///
    /// # Errors
    /// What the leader says ([`ControlError::Remote`]), or why it could not be asked
    /// ([`ControlError::passing_on`], [`ControlError::NotLeading`] while nobody leads).
    async fn call(
        &self,
        caller: Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError>;
}

/// A request on its way to the leader.
#[derive(Serialize, Deserialize)]
struct Passed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Clocks differ, spans do not.
    within_ms: u64,
    request: ControlRequest,
}

/// Its answer on the way back.
#[derive(Serialize, Deserialize)]
struct Answer {
    reply: ControlReply,
    revision: Revision,
}

/// A request as it goes to the leader, which reads it with [`Control::answer`].
///
/// # Errors
/// [`ControlError::Malformed`]; none of ours is.
pub fn pass(
    caller: &Caller,
    request: ControlRequest,
    by: Instant,
) -> Result<Box<RawValue>, ControlError> {
    let within = by.saturating_duration_since(Instant::now());
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let passed = Passed { user: caller.user.clone(), within_ms, request };
    to_raw_value(&passed).map_err(|e| malformed("write a request", &e))
}

/// What [`Control::answer`] of the leader wrote.
///
/// # Errors
/// [`ControlError::Malformed`] when it makes no sense.
pub fn read(answer: &RawValue) -> Result<(ControlReply, Revision), ControlError> {
    let Answer { reply, revision } = serde_json::from_str(answer.get())
        .map_err(|e| malformed("read the leader's answer (the change is made)", &e))?;
    Ok((reply, revision))
}

fn malformed(action: &'static str, error: &serde_json::Error) -> ControlError {
    ControlError::Malformed { action, problem: error.to_string() }
}

impl Control {
    /// Asks on behalf of a client of this manager.
    pub(crate) async fn ask(&self, request: ControlRequest) -> Result<ControlReply, ControlError> {
        let caller = Caller { node: self.shared.own.clone(), user: None };
        self.call(caller, request, Instant::now() + ANSWER_WITHIN).await
    }

    /// Has `request` carried out, here or by the manager that leads, and returns when what it
    /// changed can be read here.
    ///
    /// # Errors
    /// The same wherever it is carried out, as far as a client can tell;
    /// [`ControlError::PassOn`] and [`ControlError::Late`] when the leader could not be asked.
    pub async fn call(
        &self,
        caller: Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<ControlReply, ControlError> {
        // What a client sees here is old, and what it would read afterwards too.
        if let Some(error) = self.shared.store.needs_upgrade().filter(|_| !request.only_reads()) {
            return Err(error.into());
        }
        let mut lead = self.lead.clone();
        // Why it is not known whether an earlier try was carried out.
        let mut doubt = None;
        loop {
            let leads = *lead.borrow_and_update();
            let error = match self.attempt(leads, &caller, &request, by).await {
                Ok((reply, revision)) => {
                    self.reads(revision, by).await;
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let gone = error.kind() == FaultKind::NotFound && request.removes();
            if gone && doubt.is_some() {
                return Ok(ControlReply::Done {});
            }
            let fate = error.fate();
            let again = match fate {
                Fate::Refused => false,
                Fate::NotBegun => true,
                Fate::Open => request.is_repeatable(),
            };
            let next = Instant::now() + PAUSE;
            if !again || self.leader.is_none() || next >= by {
                // That the last try was not begun says nothing of the one before.
                let said = doubt.filter(|_| fate == Fate::NotBegun).unwrap_or(error);
                return Err(self.shared.named(said));
            }
            if fate == Fate::Open {
                doubt = Some(error);
            }
            if let Ok(Err(_)) = timeout_at(next, lead.changed()).await {
                // The store has stopped: nothing changes any more.
                sleep_until(next).await;
            }
        }
    }

    async fn attempt(
        &self,
        leads: bool,
        caller: &Caller,
        request: &ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError> {
        let (Some(leader), false) = (&self.leader, leads) else {
            return self.carry_out(caller, request.clone(), by).await;
        };
        let asked = Instant::now();
        let answer = leader.call(caller.clone(), request.clone(), by);
        let late = |_| ControlError::Late { after: by.saturating_duration_since(asked) };
        timeout_at(by, answer).await.map_err(late)?
    }

    /// Waits until this manager has `revision`.
    async fn reads(&self, revision: Revision, by: Instant) {
        let mut here = self.shared.store.watch();
        let waited = timeout_at(by, here.wait_for(|here| *here >= revision)).await;
        if !matches!(waited, Ok(Ok(_))) {
            // It is done, and saying anything else would be wrong.
            tracing::warn!(revision = revision.0, "a change is made, but not heard of here");
        }
    }

    /// Carries `request` out on behalf of another manager's client, if this manager leads. The
    /// revision is one that has what was done.
    ///
    /// # Errors
    /// [`ControlError::NotLeading`]: nothing was begun. Everything else is the request's own.
    pub async fn execute(
        &self,
        caller: &Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError> {
        if !*self.lead.borrow() {
            return Err(ControlError::NotLeading);
        }
        self.carry_out(caller, request, by).await
    }

    async fn carry_out(
        &self,
        caller: &Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError> {
        let Caller { node, user } = caller;
        if !request.only_reads() {
            tracing::info!(%node, user, request = request.name(), "a client asks for a change");
        }
        let shared = &self.shared;
        let of = std::sync::Arc::clone(shared);
        let asked = Instant::now();
        let late = |_| ControlError::Late { after: by.saturating_duration_since(asked) };
        let reply = match request {
            ControlRequest::Join { id, request, remote } => {
                // Done to its end: a node that was entered is watched, whoever still listens.
                let joined = async move { of.join(id, *request, remote).await };
                let reply = timeout_at(by, shared.see_through(joined)).await.map_err(late)??;
                ControlReply::Certificate { reply }
            }
            ControlRequest::Renew { id, request } => {
                let reply = timeout_at(by, shared.renew(&id, request)).await.map_err(late)??;
                ControlReply::Certificate { reply }
            }
            ControlRequest::OpenLog { selector, query } => {
                shared.leading().await?.open_log(node, selector, query)?
            }
            ControlRequest::ReadLog { number } => {
                shared.leading().await?.read_log(node, number).await?
            }
            ControlRequest::CloseLog { number } => shared.leading().await?.close_log(node, number),
            ControlRequest::OpenStream { node: to, number } => {
                tracing::debug!(manager = %node, %to, "a manager asks for a stream to a node");
                shared.leading().await?.tell_to_open(node, &to, number, by).await?
            }
            ControlRequest::Unknown { name } => {
                return Err(ControlError::UnknownRequest { name });
            }
            change => {
                if let ControlRequest::UpdateCluster { spec, .. } = &change {
                    validate::cert_expiry(spec, shared.cert_expiry_min)?;
                    timeout_at(by, shared.try_external(spec)).await.map_err(late)??;
                }
                if change.demotes(&shared.state()) {
                    members::hear_all(&shared.store).await;
                }
                match self.change(&change, by).await {
                    // Perhaps only something else of it has changed, and that is not noted yet.
                    Err(ControlError::OutOfSequence) => {
                        shared.sequence.noted(shared.state().revision).await;
                        self.change(&change, by).await?
                    }
                    done => done?,
                }
            }
        };
        Ok((reply, shared.state().revision))
    }

    async fn change(
        &self,
        change: &ControlRequest,
        by: Instant,
    ) -> Result<ControlReply, ControlError> {
        let (of, change) = (std::sync::Arc::clone(&self.shared), change.clone());
        let changes = move |state: &_, now| {
            let change = of.sequence.brought_up(&change, state);
            change.changes(state, now, &members::group_of(&of.store))
        };
        self.shared.writer.write_by(by, changes).await
    }

    /// The leader's end of [`pass`] and [`read`]: carries out what the manager `from` passed on.
    ///
    /// # Errors
    /// Whatever [`Self::execute`] says, as it crosses the wire.
    pub async fn answer(
        &self,
        from: &NodeId,
        body: &RawValue,
    ) -> Result<Box<RawValue>, RemoteFault> {
        self.answered(from, body).await.map_err(|e| RemoteFault::of(&e))
    }

    async fn answered(
        &self,
        from: &NodeId,
        body: &RawValue,
    ) -> Result<Box<RawValue>, ControlError> {
        self.check_manager(from)?;
        let Passed { user, within_ms, request } = serde_json::from_str(body.get())
            .map_err(|e| malformed("read a request of another manager", &e))?;
        let by = Instant::now() + Duration::from_millis(within_ms).min(ANSWER_WITHIN);
        let caller = Caller { node: from.clone(), user };
        let (reply, revision) = self.execute(&caller, request, by).await?;
        to_raw_value(&Answer { reply, revision }).map_err(|e| malformed("write an answer", &e))
    }

    /// Whether `node` is a manager now: its certificate only says that it was.
    fn check_manager(&self, node: &NodeId) -> Result<(), ControlError> {
        let state = self.shared.state();
        let gone = || ControlError::Removed { node: node.clone() };
        let known = state.nodes.get(node).ok_or_else(gone)?;
        if known.manager.is_some() || known.spec.role == NodeRole::Manager {
            return Ok(());
        }
        let message = format!("node {node} is not a manager: it may not ask for changes");
        Err(SpecError::Forbidden { message }.into())
    }
}
