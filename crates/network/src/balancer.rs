//! Which backend each bucket of a service holds. Pure.
//!
//! A new connection picks a bucket at random; the bucket names the backend. Enough buckets make
//! the shares nearly equal; a change of backends rewrites as few buckets as possible.

use std::collections::{BTreeMap, BTreeSet};

/// Fewest buckets of a network: small services get equal shares to within one part in sixteen.
pub const BUCKETS_MIN: u32 = 16;
/// Buckets per backend of the largest service: shares differ by at most one bucket in eight.
pub const BUCKETS_PER_BACKEND: u32 = 8;
/// Most buckets of a network; a service with more backends than a eighth of this gets uneven
/// shares rather than an unbounded map.
pub const BUCKETS_MAX: u32 = 8192;

/// How many buckets a network needs whose largest service has `largest` backends: a power of two.
#[must_use]
pub fn bucket_count(largest: usize) -> u32 {
    let largest = u32::try_from(largest).unwrap_or(u32::MAX);
    let wanted = largest.saturating_mul(BUCKETS_PER_BACKEND).clamp(BUCKETS_MIN, BUCKETS_MAX);
    wanted.next_power_of_two()
}

/// Gives each of `count` buckets one of `backends`, so that shares differ by at most one, keeping
/// what `previous` had where that is possible. No backends: no buckets.
#[must_use]
pub fn fill<B: Copy + Ord>(previous: &[B], backends: &BTreeSet<B>, count: u32) -> Vec<B> {
    let count = count as usize;
    if backends.is_empty() {
        return Vec::new();
    }
    let least = count / backends.len();
    let mut larger = count % backends.len();
    let mut room: BTreeMap<B, usize> = backends.iter().map(|b| (*b, least)).collect();
    let mut held: BTreeMap<B, usize> = BTreeMap::new();
    for old in previous {
        *held.entry(*old).or_insert(0) += 1;
    }
    let mut buckets: Vec<Option<B>> = vec![None; count];
    for (slot, old) in buckets.iter_mut().zip(previous) {
        let Some(left) = room.get_mut(old) else { continue };
        if *left > 0 {
            *left -= 1;
            *slot = Some(*old);
        } else if larger > 0 && held.get(old).is_some_and(|n| *n > least) {
            larger -= 1;
            *slot = Some(*old);
            room.remove(old);
        }
    }
    let taken: BTreeSet<B> = backends.iter().copied().filter(|b| !room.contains_key(b)).collect();
    let mut queue = waiting(&room, &taken, backends, larger);
    for slot in &mut buckets {
        if slot.is_none() {
            *slot = queue.pop();
        }
    }
    // Cannot fail: the rooms sum to exactly `count`; a hole would only make the map shorter.
    buckets.into_iter().flatten().collect()
}

/// The backends that still want buckets, interleaved, to be taken from the end.
fn waiting<B: Copy + Ord>(
    room: &BTreeMap<B, usize>,
    taken: &BTreeSet<B>,
    backends: &BTreeSet<B>,
    larger: usize,
) -> Vec<B> {
    let mut rest = room.clone();
    for backend in backends.iter().filter(|b| !taken.contains(b)).take(larger) {
        *rest.entry(*backend).or_insert(0) += 1;
    }
    let mut queue = Vec::new();
    while rest.values().any(|left| *left > 0) {
        for (backend, left) in &mut rest {
            if *left > 0 {
                *left -= 1;
                queue.push(*backend);
            }
        }
    }
    queue.reverse();
    queue
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(n: u32) -> BTreeSet<u32> {
        (0..n).collect()
    }

    fn shares(buckets: &[u32]) -> (usize, usize) {
        let mut by = BTreeMap::new();
        for b in buckets {
            *by.entry(b).or_insert(0usize) += 1;
        }
        (by.values().copied().min().unwrap_or(0), by.values().copied().max().unwrap_or(0))
    }

    #[test]
    fn counts_are_powers_of_two_and_bounded() {
        assert_eq!(bucket_count(0), 16);
        assert_eq!(bucket_count(2), 16);
        assert_eq!(bucket_count(3), 32);
        assert_eq!(bucket_count(100), 1024);
        assert_eq!(bucket_count(usize::MAX), BUCKETS_MAX);
    }

    #[test]
    fn every_backend_has_its_share() {
        for n in 1..=33 {
            let count = bucket_count(n as usize);
            let buckets = fill(&[], &set(n), count);
            assert_eq!(buckets.len(), count as usize, "{n}");
            let (least, most) = shares(&buckets);
            assert!(most - least <= 1, "{n}: {least}..{most}");
            assert_eq!(buckets.iter().collect::<BTreeSet<_>>().len(), n as usize);
        }
        assert!(fill::<u32>(&[], &set(0), 16).is_empty());
    }

    #[test]
    fn only_the_buckets_of_a_lost_backend_change() {
        for n in 2..=20 {
            let before = fill(&[], &set(n), 256);
            let mut left = set(n);
            left.remove(&1);
            let after = fill(&before, &left, 256);
            assert_eq!(after.len(), 256);
            for (old, new) in before.iter().zip(&after) {
                assert!(old == new || *old == 1, "{n}: bucket of {old} went to {new}");
            }
            let (least, most) = shares(&after);
            assert!(most - least <= 1, "{n}");
        }
    }

    #[test]
    fn a_new_backend_takes_only_its_share() {
        for n in 1..=20 {
            let before = fill(&[], &set(n), 256);
            let after = fill(&before, &set(n + 1), 256);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert!(moved <= 256 / (n as usize + 1) + 1, "{n}: {moved} moved");
            assert_eq!(after, fill(&after, &set(n + 1), 256), "stable");
        }
    }
}
