//! Failures that cross the wire: class, id, text and remedy survive, so that a worker's user reads
//! the manager's own words.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use shoal_model::fault::{Fault, FaultId, FaultKind, chain, remedy};

/// Most different fault ids that a process keeps from its peers. Far above the number that exist;
/// a hostile peer must not fill our memory.
const REMOTE_IDS_MAX: usize = 1024;

/// A failure on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(default)]
#[error("{text}")]
pub struct RemoteFault {
    /// The class: `not_found`, `invalid`, `conflict`…
    pub kind: String,
    /// The stable id, `SH-…`; empty if there is none.
    pub id: String,
    /// The whole chain of causes.
    pub text: String,
    /// What to do; empty if nobody knows.
    pub remedy: String,
}

impl Default for RemoteFault {
    fn default() -> Self {
        Self::new(FaultKind::Internal, "the peer gave no reason")
    }
}

impl RemoteFault {
    /// A failure without id and remedy.
    #[must_use]
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        Self {
            kind: kind_name(kind).to_owned(),
            id: String::new(),
            text: text.into(),
            remedy: String::new(),
        }
    }

    /// Everything that `fault` has to say.
    #[must_use]
    pub fn of(fault: &dyn Fault) -> Self {
        let mut text = fault.to_string();
        if let Some(cause) = fault.source() {
            let rest = chain(cause);
            if !text.ends_with(&rest) {
                text.push_str(": ");
                text.push_str(&rest);
            }
        }
        Self {
            kind: kind_name(fault.kind()).to_owned(),
            id: fault.id().map(|FaultId(id)| id.to_owned()).unwrap_or_default(),
            text,
            remedy: remedy(fault).unwrap_or_default(),
        }
    }
}

impl Fault for RemoteFault {
    fn kind(&self) -> FaultKind {
        kind_of(&self.kind)
    }

    fn id(&self) -> Option<FaultId> {
        intern(&self.id).map(FaultId)
    }

    fn remedy(&self) -> Option<String> {
        (!self.remedy.is_empty()).then(|| self.remedy.clone())
    }
}

const KINDS: [(FaultKind, &str); 9] = [
    (FaultKind::NotFound, "not_found"),
    (FaultKind::Invalid, "invalid"),
    (FaultKind::Conflict, "conflict"),
    (FaultKind::Forbidden, "forbidden"),
    (FaultKind::Unauthorized, "unauthorized"),
    (FaultKind::Unavailable, "unavailable"),
    (FaultKind::NotModified, "not_modified"),
    (FaultKind::NotImplemented, "not_implemented"),
    (FaultKind::Internal, "internal"),
];

pub(crate) fn kind_name(kind: FaultKind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).map_or("internal", |(_, name)| name)
}

fn kind_of(name: &str) -> FaultKind {
    KINDS.iter().find(|(_, n)| *n == name).map_or(FaultKind::Internal, |(kind, _)| *kind)
}

/// Gives `id` a static life if it looks like one of ours: `SH-`, three letters, three digits.
fn intern(id: &str) -> Option<&'static str> {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let fits = match id.as_bytes() {
        [b'S', b'H', b'-', a, b, c, b'-', x, y, z] => {
            [a, b, c].iter().all(|l| l.is_ascii_uppercase())
                && [x, y, z].iter().all(|d| d.is_ascii_digit())
        }
        _ => false,
    };
    if !fits {
        return None;
    }
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(same) = known.get(id) {
        return Some(same);
    }
    if known.len() >= REMOTE_IDS_MAX {
        return None;
    }
    let text: &'static str = Box::leak(id.to_owned().into_boxed_str());
    known.insert(text);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_keeps_kind_id_and_remedy_over_json() {
        let fault = RemoteFault {
            kind: "conflict".into(),
            id: "SH-MGR-004".into(),
            text: "name 'x' is in use".into(),
            remedy: "choose another".into(),
        };
        let json = serde_json::to_string(&fault).unwrap_or_default();
        let back: RemoteFault = serde_json::from_str(&json).unwrap_or_default();
        assert_eq!(back, fault);
        assert_eq!(back.kind(), FaultKind::Conflict);
        assert_eq!(back.id(), Some(FaultId("SH-MGR-004")));
        assert_eq!(RemoteFault::of(&back), fault);
    }

    #[test]
    fn strange_ids_and_kinds_are_not_believed() {
        let fault =
            RemoteFault { kind: "?".into(), id: "<script>".into(), ..RemoteFault::default() };
        assert_eq!(fault.id(), None);
        assert_eq!(fault.kind(), FaultKind::Internal);
    }
}
