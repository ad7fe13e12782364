//! Who votes, and what is a majority of them.

use std::collections::BTreeSet;

use crate::leadership::event::RaftId;

/// The voters of a configuration: one set, or two while the group is changed from one to the other
/// (a *joint* configuration), of which each needs its own majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters(Vec<BTreeSet<RaftId>>);

impl Voters {
    /// The voters of `sets`.
    pub fn new(sets: impl IntoIterator<Item = BTreeSet<RaftId>>) -> Self {
        Self(sets.into_iter().collect())
    }

    /// Every voter of any set, in order.
    #[must_use]
    pub fn all(&self) -> BTreeSet<RaftId> {
        self.0.iter().flatten().copied().collect()
    }

    /// Whether `member` is one.
    #[must_use]
    pub fn contains(&self, member: RaftId) -> bool {
        self.0.iter().any(|set| set.contains(&member))
    }

    /// Whether those for whom `counts` holds are a majority of every set. Of no set at all there is
    /// none.
    pub fn majority(&self, counts: impl Fn(RaftId) -> bool) -> bool {
        let of = |set: &BTreeSet<RaftId>| set.iter().filter(|member| counts(**member)).count();
        !self.0.is_empty() && self.0.iter().all(|set| of(set) * 2 > set.len())
    }
}
