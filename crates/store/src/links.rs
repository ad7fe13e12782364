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
    /// What the last member said that takes this one for a stranger.
    stranger: Mutex<Option<String>>,
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

    /// What the last member said that takes this one for a stranger, if one did.
    pub(crate) fn stranger(&self) -> Option<String> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        if let Err(PeerError::Stranger { text }) = &answer {
            *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
        }
        let answer = answer?;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard.entry(to.raft_id).or_default() += 1;
        Ok(answer)
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
