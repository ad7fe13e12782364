//! The way to the other members, and who was heard on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use shoal_model::id::NodeId;

use crate::epoch::Epoch;
use crate::peer::{Lane, Member, PeerError, Peers};

/// How often a member was heard since this member's start. Who counts silence compares two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Answers to anything.
    pub(crate) answers: u64,
    /// Answers of its consensus to this one's: an append, a vote.
    pub(crate) acks: u64,
    /// What it asked as leader.
    pub(crate) led: u64,
}

/// The way to the other members.
pub(crate) struct Links {
    /// This member.
    pub(crate) own: Member,
    peers: Arc<dyn Peers>,
    heard: Mutex<BTreeMap<u64, Heard>>,
    /// Ours, once it is known.
    epoch: Mutex<Option<Epoch>>,
    /// What the last member said that takes this one for a stranger.
    stranger: Mutex<Option<String>>,
}

impl Links {
    pub(crate) fn new(own: Member, peers: Arc<dyn Peers>, epoch: Option<Epoch>) -> Self {
        let epoch = Mutex::new(epoch);
        Self { own, peers, heard: Mutex::default(), epoch, stranger: Mutex::default() }
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
        self.note(to.raft_id, |heard| heard.answers += 1);
        Ok(answer)
    }

    /// Notes that the consensus of `raft_id` answered.
    pub(crate) fn acknowledged(&self, raft_id: u64) {
        self.note(raft_id, |heard| heard.acks += 1);
    }

    /// Notes that the leader `raft_id` spoke.
    pub(crate) fn led(&self, raft_id: u64) {
        self.note(raft_id, |heard| heard.led += 1);
    }

    /// Who was heard how often.
    pub(crate) fn heard(&self) -> BTreeMap<u64, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, raft_id: u64, what: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        what(heard.entry(raft_id).or_default());
    }
}
