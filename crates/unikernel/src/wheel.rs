//! A hierarchical timer wheel: any number of timers, each set, moved and removed in constant time.
//!
//! Six levels of 64 slots; a slot of the lowest is one tick wide, one of the next 64 ticks, and so
//! on. A timer lies in the level where its distance from now fits, and moves down as time passes.
//! A network program sets a timer for nearly every packet and lets almost none expire, which is
//! what a heap does badly: it keeps the removed ones until they would have expired.

use alloc::vec::Vec;

/// A tick is two to this power nanoseconds: 131 µs. Timers fire up to one tick late, never early.
const TICK_SHIFT: u32 = 17;
/// Slots of a level; a level's occupied slots are the bits of one word.
const SLOTS: usize = 64;
/// Two to this power is [`SLOTS`].
const SLOT_BITS: u32 = 6;
/// Levels. Together they reach 104 days; what is later is looked at again then.
const LEVELS: usize = 6;
/// No entry.
const NONE: u32 = u32::MAX;

/// One timer.
#[derive(Debug)]
struct Entry {
    /// Counts up with every use of the place, so that an old handle does not fit.
    generation: u32,
    /// When it fires, in ticks.
    tick: u64,
    /// What it is for.
    value: u64,
    /// Level and slot while it waits.
    place: (u8, u8),
    next: u32,
    previous: u32,
    waits: bool,
}

/// Names a timer until it fires or is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    index: u32,
    generation: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Wheel {
    entries: Vec<Entry>,
    free: Vec<u32>,
    heads: [[u32; SLOTS]; LEVELS],
    occupied: [u64; LEVELS],
    /// All timers up to this tick, inclusive, have fired.
    now: u64,
}

impl Wheel {
    /// A wheel without timers at time 0.
    pub(crate) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            now: 0,
        }
    }

    /// Sets a timer: `value` is given back when `deadline_ns` has passed.
    pub(crate) fn insert(&mut self, deadline_ns: u64, value: u64) -> Timer {
        // Rounded up: a timer must not fire early.
        let tick = deadline_ns.div_ceil(1 << TICK_SHIFT).max(self.now + 1);
        let index = if let Some(index) = self.free.pop() {
            index
        } else {
            self.entries.push(Entry {
                generation: 0,
                tick: 0,
                value: 0,
                place: (0, 0),
                next: NONE,
                previous: NONE,
                waits: false,
            });
            (self.entries.len() - 1) as u32
        };
        let entry = &mut self.entries[index as usize];
        entry.tick = tick;
        entry.value = value;
        entry.waits = true;
        let generation = entry.generation;
        self.link(index);
        Timer { index, generation }
    }

    /// Removes a timer. False if it has fired or was removed.
    pub(crate) fn remove(&mut self, timer: Timer) -> bool {
        let fits = self
            .entries
            .get(timer.index as usize)
            .is_some_and(|entry| entry.waits && entry.generation == timer.generation);
        if fits {
            self.unlink(timer.index);
            self.release(timer.index);
        }
        fits
    }

    /// Nanoseconds at which [`Wheel::expire`] should be called next: not later than the first
    /// timer, perhaps earlier. `u64::MAX` if there is none.
    pub(crate) fn next_ns(&self) -> u64 {
        let mut first = u64::MAX;
        for (level, occupied) in self.occupied.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            let shift = SLOT_BITS * level as u32;
            let position = self.now >> shift;
            let rotated = occupied.rotate_right((position % SLOTS as u64) as u32);
            let distance = u64::from(rotated.trailing_zeros());
            // The slot at the position itself can only hold timers one turn away.
            let distance = if distance == 0 {
                let rest = rotated & !1;
                if rest == 0 { SLOTS as u64 } else { u64::from(rest.trailing_zeros()) }
            } else {
                distance
            };
            first = first.min((position + distance) << shift);
        }
        if first == u64::MAX { first } else { first.saturating_mul(1 << TICK_SHIFT) }
    }

    /// Lets time pass up to `now_ns`; calls `fire` with the value of each timer that is due.
    pub(crate) fn expire(&mut self, now_ns: u64, mut fire: impl FnMut(u64)) {
        let target = now_ns >> TICK_SHIFT;
        while self.now < target {
            let next = self.next_ns() >> TICK_SHIFT;
            if next > target {
                self.now = target;
                return;
            }
            self.now = next;
            // From the top: what comes down may be due at this very tick.
            for level in (0..LEVELS).rev() {
                let shift = SLOT_BITS * level as u32;
                if self.now.trailing_zeros() >= shift {
                    self.empty(level, ((self.now >> shift) % SLOTS as u64) as usize, &mut fire);
                }
            }
        }
    }

    /// Takes all timers out of a slot: fires those that are due and places the others anew.
    fn empty(&mut self, level: usize, slot: usize, fire: &mut impl FnMut(u64)) {
        let mut index = core::mem::replace(&mut self.heads[level][slot], NONE);
        self.occupied[level] &= !(1 << slot);
        while index != NONE {
            let entry = &self.entries[index as usize];
            let (next, value, due) = (entry.next, entry.value, entry.tick <= self.now);
            if due {
                self.release(index);
                fire(value);
            } else {
                self.link(index);
            }
            index = next;
        }
    }

    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        let distance = tick.saturating_sub(self.now).max(1);
        let level = (distance.ilog2() / SLOT_BITS) as usize;
        let (level, tick) = if level < LEVELS {
            (level, tick)
        } else {
            // Too far: as far as the wheel reaches, and then placed again.
            (LEVELS - 1, self.now + (1 << (SLOT_BITS * LEVELS as u32)) - 1)
        };
        let slot = ((tick >> (SLOT_BITS * level as u32)) % SLOTS as u64) as usize;
        let head = self.heads[level][slot];
        let entry = &mut self.entries[index as usize];
        entry.place = (level as u8, slot as u8);
        entry.next = head;
        entry.previous = NONE;
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (next, previous) = (entry.next, entry.previous);
        let (level, slot) = (entry.place.0 as usize, entry.place.1 as usize);
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        }
    }

    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.waits = false;
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = 1 << TICK_SHIFT;

    fn fired(wheel: &mut Wheel, now_ns: u64) -> Vec<u64> {
        let mut values = Vec::new();
        wheel.expire(now_ns, |value| values.push(value));
        values.sort_unstable();
        values
    }

    #[test]
    fn timers_fire_once_and_not_early() {
        let mut wheel = Wheel::new();
        wheel.insert(10 * TICK + 1, 1);
        assert_eq!(fired(&mut wheel, 10 * TICK + 1), [] as [u64; 0]);
        assert_eq!(fired(&mut wheel, 11 * TICK), [1]);
        assert_eq!(fired(&mut wheel, 100 * TICK), [] as [u64; 0]);
        assert_eq!(wheel.next_ns(), u64::MAX);
    }

    #[test]
    fn an_old_handle_does_not_remove_a_new_timer() {
        let mut wheel = Wheel::new();
        let old = wheel.insert(TICK, 1);
        assert!(wheel.remove(old));
        let new = wheel.insert(TICK, 2);
        assert!(!wheel.remove(old));
        assert!(wheel.remove(new));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let far = prop_oneof![0..200_u64, 0..100_000_u64, 0..(1_u64 << 40)];
        let step = prop_oneof![
            far.clone().prop_map(Step::Insert),
            (0..64_usize).prop_map(Step::Remove),
            far.prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        /// The wheel does what a sorted map would do.
        #[test]
        fn it_agrees_with_a_sorted_map(steps in steps()) {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<u64, (u64, Timer)> = BTreeMap::new();
            let (mut now, mut value) = (0_u64, 0_u64);
            for step in steps {
                match step {
                    Step::Insert(ticks) => {
                        let tick = (now + ticks).max(now + 1);
                        let timer = wheel.insert((now + ticks) * TICK, value);
                        model.insert(value, (tick, timer));
                        value += 1;
                    }
                    Step::Remove(at) => {
                        let Some(key) = model.keys().nth(at).copied() else { continue };
                        let (_, timer) = model.remove(&key).unwrap();
                        prop_assert!(wheel.remove(timer));
                    }
                    Step::Pass(ticks) => {
                        now += ticks;
                        let due: Vec<u64> = model
                            .iter()
                            .filter(|(_, (tick, _))| *tick <= now)
                            .map(|(value, _)| *value)
                            .collect();
                        model.retain(|_, (tick, _)| *tick > now);
                        prop_assert_eq!(fired(&mut wheel, now * TICK), due);
                    }
                }
                let first = model.values().map(|(tick, _)| tick * TICK).min();
                prop_assert!(wheel.next_ns() <= first.unwrap_or(u64::MAX));
                prop_assert!(first.is_none() == (wheel.next_ns() == u64::MAX));
            }
        }
    }
}
