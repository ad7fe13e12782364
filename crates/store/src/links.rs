//! The way to the other members, and who was heard on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use shoal_model::id::NodeId;

use crate::epoch::Epoch;
use crate::peer::{Lane, Member, PeerError, Peers};

/// The way to the other members.
pub(crate) struct Links {
    /// This member.
    pub(crate) own: Member,
    peers: Arc<dyn Peers>,
    /// How often each member answered since this one's start. Who counts silence compares two
    /// looks.
    heard: Mutex<BTreeMap<u64, u64>>,
    /// Whether nothing that a leader says goes out.
    mute: AtomicBool,
    /// Ours, once it is known.
    epoch: Mutex<Option<Epoch>>,
    /// What members said that take this one for a stranger, for as long as they do.
    stranger: Mutex<BTreeMap<u64, String>>,
}

impl Links {
    pub(crate) fn new(own: Member, peers: Arc<dyn Peers>, epoch: Option<Epoch>) -> Self {
        let epoch = Mutex::new(epoch);
        let mute = AtomicBool::new(false);
        Self { own, peers, heard: Mutex::default(), mute, epoch, stranger: Mutex::default() }
    }

    /// Our epoch, once it is known.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
    }

    /// What a member says that takes this one for a stranger, if one does.
    pub(crate) fn stranger(&self) -> Option<String> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned()
    }

    /// Asks `to` and notes that it answered.
    pub(crate) async fn ask(
        &self,
        to: &Member,
        lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, PeerError> {
        if to.node.is_empty() {
            return Err(PeerError::Other("its node is not known".to_owned()));
        }
        let node = NodeId::new(to.node.clone());
        // Whatever carries it has the limit too: this one holds in any case.
        let call = self.peers.call(&node, lane, body, limit);
        let answer = tokio::time::timeout(limit, call)
            .await
            .map_err(|_| PeerError::Late { after: limit })?;
        self.note_stranger(to.raft_id, &answer);
        let answer = answer?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard.entry(to.raft_id).or_default() += 1;
        Ok(answer)
    }

    /// One that cannot be asked has not changed its mind.
    fn note_stranger(&self, of: u64, answer: &Result<Box<RawValue>, PeerError>) {
        let mut strangers = self.stranger.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(_) => _ = strangers.remove(&of),
            Err(PeerError::Stranger { text }) => _ = strangers.insert(of, text.clone()),
            Err(_) => {}
        }
    }

    /// Returns once there is no connection to `to`, with the reason.
    pub(crate) async fn lost(&self, to: &Member) -> PeerError {
        self.peers.lost(&NodeId::new(to.node.clone()), Lane::Vote).await
    }

    /// Who answered how often.
    pub(crate) fn heard(&self) -> BTreeMap<u64, u64> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing that a leader says goes out.
    pub(crate) fn is_mute(&self) -> bool {
        self.mute.load(Ordering::SeqCst)
    }

    pub(crate) fn set_mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Gives its answers one after the other.
    struct Says(Mutex<Vec<Result<Box<RawValue>, PeerError>>>);

    #[async_trait::async_trait]
    impl Peers for Says {
        async fn call(
            &self,
            _to: &NodeId,
            _lane: Lane,
            _body: Box<RawValue>,
            _limit: Duration,
        ) -> Result<Box<RawValue>, PeerError> {
            self.0.lock().unwrap().remove(0)
        }

        async fn lost(&self, _to: &NodeId, _lane: Lane) -> PeerError {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn it_is_a_stranger_to_whom_it_was_one_last() {
        let text = "removed".to_owned();
        let yes = || Ok(crate::question::raw(&()).unwrap());
        let says = vec![Err(PeerError::Stranger { text }), yes(), Err(PeerError::Refused), yes()];
        let member = |raft_id| Member { node: format!("m{raft_id}"), raft_id };
        let links = Links::new(member(1), Arc::new(Says(Mutex::new(says))), None);
        for (of, left) in [(2, true), (3, true), (2, true), (2, false)] {
            let (to, limit) = (member(of), Duration::from_secs(60));
            // Ignored because: what is noted of it is looked at.
            let _ = links.ask(&to, Lane::Vote, yes().unwrap(), limit).await;
            assert_eq!(links.stranger().is_some(), left);
        }
    }
}
