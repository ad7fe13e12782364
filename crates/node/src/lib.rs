//! This node's life in a cluster: init, join, leave, and everything again after a restart.
//!
//! [`node::Node`] owns what a membership consists of (identity, and on managers the store and the
//! manager), keeps it on disk, and tells the agent. It decides nothing about tasks.
//!
//! Begin reading at [`node`]; [`address`] finds out what to advertise, [`record`] is what is kept.

#![forbid(unsafe_code)]

pub mod address;
pub mod error;
pub mod node;
pub mod record;
mod start;
