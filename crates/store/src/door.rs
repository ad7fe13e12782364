//! What other managers ask of this one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use shoal_model::id::NodeId;
use tokio::sync::watch;

use crate::core::Core;
use crate::error::StoreError;
use crate::peer::{Lane, Member};

/// Answers what other managers ask. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    current: Arc<Mutex<Core>>,
    trouble: watch::Receiver<Option<StoreError>>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn new(
        current: Arc<Mutex<Core>>,
        trouble: watch::Receiver<Option<StoreError>>,
    ) -> Self {
        Self(Arc::new(Inner { current, trouble }))
    }

    /// Answers `body`, which the node `from` sent; who it is must be proven already.
    ///
    /// # Errors
    /// [`StoreError::Question`] if it cannot be understood or is meant for another member, and
    /// everything that keeps this member from answering.
    pub async fn call(
        &self,
        from: &NodeId,
        _lane: Lane,
        _body: &RawValue,
    ) -> Result<Box<RawValue>, StoreError> {
        if let Some(cause) = self.0.trouble.borrow().clone() {
            return Err(cause);
        }
        let _core = self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problem = "not implemented: answering other managers".to_owned();
        Err(StoreError::Question { from: from.to_string(), problem })
    }
}

impl Core {
    /// Asks whether `member` is there.
    pub(crate) async fn ping(&self, member: &Member, limit: Duration) {
        let body = RawValue::NULL.to_owned();
        // Ignored because: whoever answers is noted as heard.
        let _ = self.links.ask(member, Lane::Vote, body, limit).await;
    }
}
