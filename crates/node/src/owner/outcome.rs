//! What comes of the effects that the owner carries out, and what is shown and answered of it.

use shoal_life::membership::{Effect, Event, Outcome, Refusal, Stage};
use shoal_model::fault::report;
use tokio::task::JoinError;

use super::{Came, Owner};
use crate::error::NodeError;
use crate::node::View;

impl Owner {
    /// Keeps what an effect brought, and says which event that is.
    pub(super) fn came(&mut self, came: Came) -> Event {
        match came {
            Came::Resumed(Ok(None)) => Event::NothingThere,
            Came::Resumed(Ok(Some(member))) => {
                self.member = Some(member);
                self.logged.clear();
                Event::Resumed
            }
            Came::Resumed(Err(error)) if error.is_locked() => {
                tracing::warn!("this manager is locked: it waits for 'docker swarm unlock'");
                self.logged.clear();
                Event::FoundLocked
            }
            Came::Unlocked(Ok(None)) => Event::NothingThere,
            Came::Unlocked(Ok(Some(member))) => {
                tracing::info!("this manager was unlocked");
                self.member = Some(member);
                Event::Resumed
            }
            Came::Unlocked(Err(error)) if error.is_locked() => {
                self.failure = Some(NodeError::WrongUnlockKey);
                Event::FoundLocked
            }
            Came::Unlocked(Err(error)) => {
                self.unusable(&error);
                self.failure = Some(error);
                Event::ResumeFailed
            }
            Came::Resumed(Err(error)) => {
                self.unusable(&error);
                Event::ResumeFailed
            }
            Came::Entered(Ok(member)) => {
                self.member = Some(member);
                Event::Entered
            }
            Came::Recovered(Ok(member)) => {
                self.member = Some(member);
                self.logged.clear();
                Event::Recovered
            }
            Came::Recovered(Err(error)) => {
                self.unusable(&error);
                self.failure = Some(error);
                Event::RecoverFailed
            }
            Came::Entered(Err(error)) => {
                self.failure = Some(error);
                Event::EnterFailed
            }
            Came::Forgotten(Ok(())) => Event::Forgotten,
            Came::Forgotten(Err(error)) => {
                self.failure = Some(error);
                Event::ForgetFailed
            }
            Came::Swept(Ok(())) => Event::Swept,
            Came::Swept(Err(error)) => {
                tracing::warn!(
                    cause = report(&error),
                    "leftovers of a membership cannot be removed; tried again every 5 seconds"
                );
                Event::SweepFailed
            }
            Came::Plain(event) => event,
        }
    }

    /// A step that broke off, by a fault in this program, has failed like any other.
    pub(super) fn broke_off(&mut self, error: &JoinError) -> Event {
        tracing::error!(cause = %error, step = ?self.about, "a step of the membership broke off");
        let failure = || NodeError::BrokeOff { problem: error.to_string() };
        match self.about {
            Some(Effect::Resume) => self.came(Came::Resumed(Err(failure()))),
            Some(Effect::Unlock) => self.came(Came::Unlocked(Err(failure()))),
            Some(Effect::Enter) => self.came(Came::Entered(Err(failure()))),
            Some(Effect::Recover) => self.came(Came::Recovered(Err(failure()))),
            Some(Effect::Forget) => self.came(Came::Forgotten(Err(failure()))),
            Some(Effect::Sweep) => self.came(Came::Swept(Err(failure()))),
            Some(Effect::Resign) => Event::Resigned,
            Some(Effect::Tell) => Event::Told,
            Some(Effect::Drain) => Event::Drained,
            Some(Effect::CloseManager) => Event::ManagerClosed,
            _ => Event::Retry,
        }
    }

    fn unusable(&mut self, error: &NodeError) {
        let text = report(error);
        if self.logged != text {
            tracing::error!(cause = text, "this node is a member whose files cannot be used");
            self.logged = text;
        }
    }

    pub(super) fn answer(&mut self, effect: Effect) {
        let failure = self.failure.take();
        let Some(waiting) = self.waiting.take() else { return };
        let id = self.member.as_ref().map(|member| member.identity.node_id.clone());
        let answer = match (effect, failure) {
            (Effect::Answer(Outcome::Failed), Some(error)) => Err(error),
            _ => Ok(id),
        };
        // Ignored because: a client that has gone needs no answer.
        let _ = waiting.send(answer);
    }

    pub(super) fn show(&self) {
        let view = match (self.life.stage(), &self.member) {
            (Stage::Out(_) | Stage::Closed, _) => View::Out,
            (Stage::In, Some(member)) => View::In {
                node_id: member.identity.node_id.clone(),
                role: member.record.role,
                addr: member.record.advertise.ip(),
                control: member.manager.as_ref().map(|(manager, _)| manager.control()),
                trouble: self.seat.as_ref().map_or_else(String::new, |s| s.trouble().to_owned()),
            },
            (Stage::Locked, _) => View::Locked(self.folder.kept_node()),
            (Stage::Unusable | Stage::Retrying, _) => View::Broken(self.logged.clone()),
            _ => View::Pending,
        };
        self.seen.show(view);
    }
}

pub(super) fn refused(command: Event, refusal: Refusal, others: usize) -> NodeError {
    match refusal {
        Refusal::AlreadyMember => NodeError::AlreadyMember,
        Refusal::NotMember => NodeError::NotMember,
        Refusal::Manager if others == 0 => NodeError::LastManager,
        Refusal::Manager => NodeError::OneOfManagers { rest: others, all: others + 1 },
        Refusal::Locked if matches!(command, Event::Leave(_)) => NodeError::LeaveLocked,
        Refusal::Locked => NodeError::Locked,
        Refusal::NotLocked => NodeError::NotLocked,
        Refusal::Busy => NodeError::Busy,
    }
}
