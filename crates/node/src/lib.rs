//! This node's life in a cluster: init, join, leave, and everything again after a restart.
//!
//! [`node::Node`] owns what a membership consists of (identity, and on managers the store and the
//! manager), keeps it on disk, and tells the agent. It decides nothing about tasks.
//!
//! Begin reading at [`node`], then `owner` (who alone changes the membership, by the machine of
//! [`shoal_life::membership`]) and `seat` (whether the node manages, by [`shoal_life::role`]);
//! `keep` has a manager's files sealed as the cluster wants them; [`address`] finds out what to
//! advertise, [`record`] is what is kept.

#![forbid(unsafe_code)]

pub mod address;
pub mod error;
mod keep;
pub mod node;
mod owner;
pub mod record;
mod recover;
mod renewal;
mod seat;
mod start;
mod steps;
