//! Which places of a replicated service are given up when it has too many.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::id::NodeId;

use crate::slots::{Slot, SlotKey};

/// How little a place serves: nobody at all first, and of those the ones without a task.
type Idle = (bool, bool);

/// What is looked at of a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    idle: Idle,
    /// Absent while it is on no node.
    node: Option<NodeId>,
    key: SlotKey,
}

/// The places to give up: those that serve nobody first, then from the nodes that are then the most
/// crowded, then the highest number. Takes about `n log n` steps for `n` places.
pub(crate) fn choose(filled: &[(&SlotKey, &Slot)], surplus: usize) -> BTreeSet<SlotKey> {
    let place = |(key, slot): &(&SlotKey, &Slot)| {
        let primary = slot.primary();
        Place {
            idle: (!slot.is_serving(), primary.is_none()),
            node: primary.and_then(|task| task.node_id.clone()),
            key: (*key).clone(),
        }
    };
    pick(filled.iter().map(place).collect(), surplus)
}

fn pick(places: Vec<Place>, surplus: usize) -> BTreeSet<SlotKey> {
    let mut crowd: BTreeMap<Option<NodeId>, usize> = BTreeMap::new();
    // The places of a node that serve alike, the highest number last.
    let mut groups: BTreeMap<(Option<NodeId>, Idle), BTreeSet<SlotKey>> = BTreeMap::new();
    for Place { idle, node, key } in places {
        *crowd.entry(node.clone()).or_default() += 1;
        groups.entry((node, idle)).or_default().insert(key);
    }
    let mut ranks: BTreeSet<(Idle, usize, SlotKey, Option<NodeId>)> = BTreeSet::new();
    let rank = |groups: &BTreeMap<_, BTreeSet<SlotKey>>, count, group: &(Option<NodeId>, Idle)| {
        let top = groups.get(group)?.last()?.clone();
        Some((group.1, count, top, group.0.clone()))
    };
    for group in groups.keys() {
        let count = crowd.get(&group.0).copied().unwrap_or(0);
        ranks.extend(rank(&groups, count, group));
    }
    let mut chosen = BTreeSet::new();
    while chosen.len() < surplus {
        let Some((idle, count, key, node)) = ranks.pop_last() else { break };
        // One place less on this node: all its groups rank lower.
        let all = [(false, false), (false, true), (true, false), (true, true)];
        let of_node = all.map(|idle| (node.clone(), idle));
        for group in &of_node {
            if let Some(old) = rank(&groups, count, group) {
                ranks.remove(&old);
            }
        }
        if let Some(group) = groups.get_mut(&(node, idle)) {
            group.remove(&key);
        }
        for group in &of_node {
            ranks.extend(rank(&groups, count.saturating_sub(1), group));
        }
        chosen.insert(key);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, as it is said: one after the other, each the first of what is left.
    fn plainly(mut places: Vec<Place>, surplus: usize) -> BTreeSet<SlotKey> {
        let mut chosen = BTreeSet::new();
        for _ in 0..surplus {
            let crowd = |node: &Option<NodeId>| places.iter().filter(|p| p.node == *node).count();
            let best = places.iter().max_by_key(|p| (p.idle, crowd(&p.node), p.key.clone()));
            let Some(best) = best.cloned() else { break };
            places.retain(|p| *p != best);
            chosen.insert(best.key);
        }
        chosen
    }

    #[test]
    fn it_chooses_as_said() {
        let mut random = 1_u64;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % n
        };
        for _ in 0..300 {
            let count = below(40);
            let places: Vec<Place> = (1..=count)
                .map(|number| Place {
                    idle: (below(4) == 0, below(8) == 0),
                    node: (below(6) > 0).then(|| NodeId::new(format!("n{}", below(5)))),
                    key: SlotKey::Number(u32::try_from(number).unwrap_or(0)),
                })
                .collect();
            for surplus in [0, 1, 3, 17, 50] {
                assert_eq!(pick(places.clone(), surplus), plainly(places.clone(), surplus));
            }
        }
    }
}
