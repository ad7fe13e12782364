//! Secrets and configs on their way to a node: those that its tasks use, and no others.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{ConfigId, SecretId};
use crate::spec::payload::{PayloadData, PayloadSpec};

/// A secret or a config, as far as a node cares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The data.
    pub data: PayloadData,
    /// Whether placeholders in it are filled in for each task.
    #[serde(default)]
    pub template: bool,
}

impl Payload {
    /// From what the cluster stores.
    #[must_use]
    pub fn of(spec: &PayloadSpec) -> Self {
        Self { data: spec.data.clone(), template: spec.templating.is_some() }
    }
}

/// Secrets and configs by id. `None`: the cluster has it no more. One that is not in the table is
/// still on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Payloads {
    /// Secrets.
    pub secrets: BTreeMap<SecretId, Option<Payload>>,
    /// Configs.
    pub configs: BTreeMap<ConfigId, Option<Payload>>,
}

/// A change of [`Payloads`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadChange {
    /// New and changed ones.
    pub set: Payloads,
    /// Secrets that no task needs any more.
    pub secrets_removed: BTreeSet<SecretId>,
    /// Configs that no task needs any more.
    pub configs_removed: BTreeSet<ConfigId>,
}

impl Payloads {
    /// Carries out a change.
    pub fn apply(&mut self, change: PayloadChange) {
        self.secrets.retain(|id, _| !change.secrets_removed.contains(id));
        self.configs.retain(|id, _| !change.configs_removed.contains(id));
        self.extend(change.set);
    }

    /// The smallest change that turns `self` into `next`.
    #[must_use]
    pub fn change_to(&self, next: &Self) -> PayloadChange {
        PayloadChange {
            set: Self {
                secrets: changed(&self.secrets, &next.secrets),
                configs: changed(&self.configs, &next.configs),
            },
            secrets_removed: gone(&self.secrets, &next.secrets),
            configs_removed: gone(&self.configs, &next.configs),
        }
    }

    /// Takes in what `more` has.
    pub fn extend(&mut self, more: Self) {
        self.secrets.extend(more.secrets);
        self.configs.extend(more.configs);
    }

    /// How many bytes of data there are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.secrets.values().chain(self.configs.values()).map(bytes).sum()
    }

    /// The same in pieces of at most `bytes_max` bytes; what is larger by itself goes alone.
    #[must_use]
    pub fn split(self, bytes_max: usize) -> Vec<Self> {
        let mut pieces = vec![Self::default()];
        let mut used = 0;
        let mut room = |pieces: &mut Vec<Self>, bytes: usize| {
            if used > 0 && used + bytes > bytes_max {
                pieces.push(Self::default());
                used = 0;
            }
            used += bytes;
        };
        for (id, payload) in self.secrets {
            room(&mut pieces, bytes(&payload));
            if let Some(last) = pieces.last_mut() {
                last.secrets.insert(id, payload);
            }
        }
        for (id, payload) in self.configs {
            room(&mut pieces, bytes(&payload));
            if let Some(last) = pieces.last_mut() {
                last.configs.insert(id, payload);
            }
        }
        pieces
    }
}

fn bytes(payload: &Option<Payload>) -> usize {
    payload.as_ref().map_or(0, |payload| payload.data.len())
}

fn changed<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    let differs = |(key, value): &(&K, &V)| old.get(*key) != Some(*value);
    new.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn gone<K: Ord + Clone, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
    old.keys().filter(|key| !new.contains_key(key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignment::{Assignment, KnownChanges};
    use crate::id::Revision;

    fn payload(len: usize) -> Option<Payload> {
        Some(Payload { data: PayloadData::new(vec![7; len]), template: false })
    }

    fn payloads(secrets: &[(&str, usize)], configs: &[(&str, usize)]) -> Payloads {
        Payloads {
            secrets: secrets.iter().map(|(id, len)| ((*id).into(), payload(*len))).collect(),
            configs: configs.iter().map(|(id, len)| ((*id).into(), payload(*len))).collect(),
        }
    }

    #[test]
    fn a_change_leads_from_one_table_to_the_other() {
        let old = payloads(&[("a", 1), ("b", 2)], &[("c", 3)]);
        let mut new = payloads(&[("b", 2)], &[("c", 4), ("d", 5)]);
        new.configs.insert("e".into(), None);
        let change = old.change_to(&new);
        assert_eq!(change.set.secrets.len(), 0, "what stays is not sent again");
        assert_eq!(change.set.configs.len(), 3);
        let mut reached = old.clone();
        reached.apply(change);
        assert_eq!(reached, new);
        assert_eq!(new.change_to(&new), PayloadChange::default());
    }

    #[test]
    fn what_is_too_large_for_one_message_comes_in_several() {
        let next = Assignment {
            revision: Revision(9),
            payloads: payloads(&[("a", 40), ("b", 40)], &[("c", 40), ("d", 200), ("e", 1)]),
            ..Assignment::default()
        };
        let old = Assignment { revision: Revision(8), ..Assignment::default() };
        for update in [next.full(), old.delta_to(&next, &KnownChanges::default())] {
            assert_eq!(update.clone().parts(2000), std::slice::from_ref(&update));
            let parts = update.parts(200);
            assert_eq!(parts.len(), 3, "{parts:?}");
            let mut node = old.clone();
            for part in parts {
                assert!(node.apply(part));
            }
            assert_eq!(node, next);
        }
        assert_eq!(next.durable().payloads, Payloads::default());
    }
}
