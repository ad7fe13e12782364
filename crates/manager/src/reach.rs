//! Which manager is the one to go on from, when the majority is gone for good.

use std::time::Duration;

use shoal_store::{Lead, LogEnd, Member};

use crate::control::Control;

/// How long another manager may take to say where its log ends.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// A manager whose log reaches farther than this one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farther {
    /// Its host's name and address.
    pub name: String,
    /// Where its log ends.
    pub there: LogEnd,
    /// Where this manager's log ends.
    pub here: LogEnd,
}

impl Control {
    /// The manager whose log reaches farthest, if that is another one than this and answers.
    /// Nobody is asked while somebody leads.
    pub async fn farther(&self) -> Option<Farther> {
        let store = &self.shared.store;
        if !matches!(*store.lead().borrow(), Lead::Nobody { .. }) {
            return None;
        }
        let found = store.reach(ANSWER_WITHIN).await;
        let (_, here) = found.first().cloned()?;
        let (member, there) = found.into_iter().max_by_key(|(_, end)| *end)?;
        let name = self.shared.name_of(&member);
        (there > here).then_some(Farther { name, there, here })
    }
}

impl crate::shared::Shared {
    /// A manager as users know it.
    pub(crate) fn name_of(&self, member: &Member) -> String {
        let state = self.state();
        let known = state.nodes.values().find(|node| node.id.as_str() == member.node);
        match known.and_then(|node| Some((node, node.manager.as_ref()?))) {
            Some((node, manager)) => format!("{} ({})", node.description.hostname, manager.addr),
            None => member.to_string(),
        }
    }
}
