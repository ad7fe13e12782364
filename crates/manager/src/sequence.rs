//! Which versions of an object have the spec that it has now.
//!
//! A client says which version it has read when it changes a spec, so that nobody undoes what he
//! has not seen. Managers write into the same objects: who leads, that a node is ready, how far an
//! update is. Whoever read the spec as it is now has seen all that he replaces, however much of
//! that was written since.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shoal_model::change::{Changed, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::Revision;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::requests::ControlRequest;

/// How long what was applied may take to be noted here.
const NOTED_WITHIN: Duration = Duration::from_secs(1);

/// Versions of an object with one spec: from, to.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    since: Revision,
    until: Revision,
}

/// What this manager has seen change since it began. What it has not seen counts as changed.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    known: Mutex<BTreeMap<ObjectKey, Stretch>>,
    noted: watch::Sender<Revision>,
}

impl Sequence {
    /// Notes what was applied at `revision`.
    pub fn note(&self, revision: Revision, changes: &[Changed]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for Changed { key, before, after } in changes {
            let Some((until, same)) = after.as_ref().and_then(|it| step(before.as_ref(), it))
            else {
                known.remove(key);
                continue;
            };
            let since = match (same, known.get(key)) {
                (Some(before), Some(stretch)) if stretch.until == before => stretch.since,
                (Some(before), _) => before,
                (None, _) => until,
            };
            known.insert(key.clone(), Stretch { since, until });
        }
        drop(known);
        self.noted.send_replace(revision);
    }

    /// Something was applied that is not known here.
    pub fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns when what was applied at `revision` is noted, or is late.
    pub async fn noted(&self, revision: Revision) {
        let mut noted = self.noted.subscribe();
        // Ignored because: what is not noted counts as changed.
        drop(timeout(NOTED_WITHIN, noted.wait_for(|noted| *noted >= revision)).await);
    }

    /// `request` with the version of now in the place of one whose spec is that of now.
    pub fn brought_up(&self, request: &ControlRequest, state: &ClusterState) -> ControlRequest {
        let mut request = request.clone();
        let (key, version, now) = match &mut request {
            ControlRequest::UpdateNode { id, version, .. } => {
                let Some(known) = state.nodes.get(id) else { return request };
                (ObjectKey::Node(id.clone()), version, known.meta.version)
            }
            ControlRequest::UpdateService { id, version, .. } => {
                let Some(known) = state.services.get(id) else { return request };
                (ObjectKey::Service(id.clone()), version, known.meta.version)
            }
            // A cluster's tokens are replaced by an update that leaves the spec as it is.
            _ => return request,
        };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Stretch { since, until }) = known.get(&key)
            && *until == now
            && (*since..now).contains(version)
        {
            *version = now;
        }
        drop(known);
        request
    }
}

/// The version of `after`, and that of `before` if it has the same spec; `None` of what is not
/// followed.
fn step(before: Option<&Object>, after: &Object) -> Option<(Revision, Option<Revision>)> {
    match (before, after) {
        (Some(Object::Node(before)), Object::Node(after)) => {
            let same = (before.spec == after.spec).then_some(before.meta.version);
            Some((after.meta.version, same))
        }
        (Some(Object::Service(before)), Object::Service(after)) => {
            let same = (before.spec == after.spec).then_some(before.meta.version);
            Some((after.meta.version, same))
        }
        (None, Object::Node(after)) => Some((after.meta.version, None)),
        (None, Object::Service(after)) => Some((after.meta.version, None)),
        _ => None,
    }
}
