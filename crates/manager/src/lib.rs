//! The manager's part of a node: joins nodes, runs their sessions, runs the control loops of
//! `shoal-plan` while it leads, and is the one door through which the cluster's state changes.
//!
//! It touches no kernel and runs no container.
//!
//! **Invariants**: every write goes through one writer task, in order, and is computed from the
//! state that it is applied to; a status of a task is written only on behalf of the task's own
//! node; all times in the state are this manager's clock, never a node's; nobody waits for a slow
//! node.
//!
//! Begin reading at [`manager`] (what runs), [`control`] (what the API calls), [`forward`] (who
//! carries it out) and `writer` (how anything is written).

#![forbid(unsafe_code)]

mod assigner;
mod attach;
mod clock;
pub mod control;
mod dispatcher;
pub mod error;
mod events;
pub mod external;
pub mod forward;
mod gather;
mod join;
pub mod manager;
mod members;
mod membership;
pub mod open;
mod payloads;
pub mod peers;
mod planner;
pub mod reach;
mod relay;
pub mod requests;
mod sequence;
mod services;
mod sessions;
mod settings;
mod shared;
mod shut_out;
mod standing;
mod statuses;
mod tenure;
mod trust;
mod writer;
