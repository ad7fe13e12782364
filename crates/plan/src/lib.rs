//! The leader's control loops as pure functions: `(snapshot, now) → changes`.
//!
//! [`reconcile()`] compares what services ask for with the tasks that exist and returns the changes
//! that bring them nearer, as one transaction. It is level-triggered: it looks only at the
//! snapshot, keeps no memory between calls, and may be called at any time by any leader. A caller
//! repeats it until it returns no change, and again after every change of the state and at
//! `wake_at`. [`assignment`] computes what one node must know; [`validate`] says whether a spec can
//! be right; [`network`] gives a new network its subnets and VXLAN number; [`attachment`] gives
//! hand-made containers their places; [`roles`] says how the group of managers changes, [`level`]
//! when a form of the data may be written that not every version can read.
//!
//! **Invariants**: no I/O, no clock, no randomness (time and ids come in as arguments); the same
//! snapshot, time and ids give the same plan; desired states only grow; a plan never has more than
//! [`CHANGES_MAX`](shoal_model::change::CHANGES_MAX) changes.
//!
//! Begin reading at [`reconcile()`], which calls the parts in order.

#![forbid(unsafe_code)]

mod addresses;
pub mod allocation;
pub mod assignment;
pub mod attachment;
pub mod constraint;
mod filter;
mod generic;
mod jobs;
pub mod level;
pub mod network;
#[cfg(feature = "next-level")]
mod next_level;
mod nodes;
mod orchestrate;
mod reap;
pub mod rebalance;
pub mod reconcile;
mod restart;
pub mod roles;
pub mod schedule;
mod slots;
mod surplus;
pub mod trust;
mod update;
mod vacate;
pub mod validate;
mod work;

pub use reconcile::{Plan, reconcile};
