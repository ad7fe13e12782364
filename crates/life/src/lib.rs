//! The lives that a node looks after, as pure machines: `step(state, event) → (state, effects)`.
//!
//! Each life has one owner, an actor in another crate: it takes commands and events one at a time,
//! runs the machine, and carries its effects out until they are done or the state says that they no
//! longer matter. What is owed is part of the state, so that a daemon that starts again goes on
//! where the one before stopped.
//!
//! No input or output, no clock, no randomness: times come in with the events. The machines are
//! tested over orders of events and failing effects, and a simulation can drive them.

#![forbid(unsafe_code)]

use std::time::Duration;

pub mod container;
pub mod leadership;
pub mod membership;
pub mod role;
pub mod task;

/// A pause that doubles with each failure, up to `last`.
fn pause(first: Duration, last: Duration, doublings: u32) -> Duration {
    // Sixteen doublings of any first pause here are over the longest one.
    first.saturating_mul(1 << doublings.min(16)).min(last)
}
