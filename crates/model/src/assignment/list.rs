//! Lists whose entries have keys, and what changes of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// An entry of a list that is sorted by its key.
pub trait Keyed: Clone + PartialEq {
    /// What tells it from the others.
    type Key: Ord + Clone + std::fmt::Debug + Serialize + DeserializeOwned;
    /// What is sent of it: itself, or what has changed inside.
    type Change: Clone + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned;

    /// Its key.
    fn key(&self) -> Self::Key;
    /// The key of what has changed.
    fn key_of(change: &Self::Change) -> Self::Key;
    /// What leads from `old`, or from nothing, to this.
    fn change_from(&self, old: Option<&Self>) -> Self::Change;
    /// The entry after `change`.
    fn changed(old: Option<Self>, change: Self::Change) -> Self;
    /// Roughly the bytes of `change` in a message; rather too many than too few.
    fn weight(change: &Self::Change) -> usize;
    /// The same change in several, each of which can be made after the one before; most are one.
    fn pieces(change: Self::Change) -> Vec<Self::Change> {
        vec![change]
    }
}

/// What changes of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct ListChange<T: Keyed> {
    /// New entries, and what has changed of others.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<T::Change>,
    /// Entries that are gone.
    #[serde(default = "BTreeSet::new", skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<T::Key>,
}

impl<T: Keyed> Default for ListChange<T> {
    fn default() -> Self {
        Self { set: Vec::new(), removed: BTreeSet::new() }
    }
}

impl<T: Keyed> ListChange<T> {
    /// What leads from `old` to `new`, both sorted by their keys.
    #[must_use]
    pub fn between(old: &[T], new: &[T]) -> Self {
        let mut change = Self::default();
        let mut before = old.iter().peekable();
        for entry in new {
            let key = entry.key();
            while let Some(gone) = before.next_if(|old| old.key() < key) {
                change.removed.insert(gone.key());
            }
            let same = before.next_if(|old| old.key() == key);
            if same != Some(entry) {
                change.set.push(entry.change_from(same));
            }
        }
        change.removed.extend(before.map(Keyed::key));
        change
    }

    /// Makes the change.
    pub fn apply(self, list: &mut Vec<T>) {
        if self.is_empty() {
            return;
        }
        let mut all: BTreeMap<T::Key, T> =
            std::mem::take(list).into_iter().map(|entry| (entry.key(), entry)).collect();
        all.retain(|key, _| !self.removed.contains(key));
        for change in self.set {
            let key = T::key_of(&change);
            let old = all.remove(&key);
            all.insert(key, T::changed(old, change));
        }
        list.extend(all.into_values());
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    /// Roughly its bytes in a message.
    pub(super) fn weight(&self) -> usize {
        self.set.iter().map(T::weight).sum::<usize>() + self.removed.len() * KEY_WEIGHT
    }
}

/// Rather more than the bytes of a key in a message.
pub(super) const KEY_WEIGHT: usize = 96;

/// Puts a list into the order of its keys, each of them once.
pub(super) fn sort<T: Keyed>(list: &mut Vec<T>) {
    list.sort_by_key(Keyed::key);
    list.dedup_by_key(|entry| entry.key());
}
