//! Every noun of Shoal: ids, specs, objects, task states, revisions, events, faults.
//!
//! This crate is pure: no I/O, no clock, no environment, no randomness. Time and fresh ids come in
//! as arguments. Specs ([`spec`]) are shaped exactly like the Docker Engine API's JSON, because
//! that API is the public contract and a client must read back what it sent; objects ([`object`])
//! are shaped for us.
//!
//! Begin reading at [`object`] (what the cluster stores), [`cluster_state::ClusterState::apply`]
//! (the only way it changes), and [`assignment`] (what a manager tells a node).

#![forbid(unsafe_code)]

pub mod assignment;
pub mod bytes_text;
pub mod change;
pub mod check;
mod claim;
pub mod cluster_state;
pub mod event;
pub mod fault;
pub mod filter;
pub mod id;
pub mod ipam;
pub mod level;
pub mod log;
pub mod name;
pub mod net;
pub mod object;
pub mod payload;
pub mod size;
pub mod spec;
pub mod sysctl;
pub mod task_state;
pub mod time;
pub mod trust;
pub mod word;
