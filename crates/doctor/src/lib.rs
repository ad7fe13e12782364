//! What this machine can and cannot do, tried rather than guessed.
//!
//! Every crate exports its own checks ([`shoal_model::check::Check`]); this one adds the host's
//! ([`host::checks`]), runs them all at once with a deadline ([`run::run_all`]), and prints the
//! results ([`report`]). [`explain`] holds the page of every failure that a user can meet.
//!
//! A check leaves nothing behind and changes nothing that lasts; what one left that was killed goes
//! with the next run ([`leftovers`]). This crate repairs nothing.
//!
//! Begin reading at [`run`], then [`host`].

#![forbid(unsafe_code)]

pub mod damage;
pub mod explain;
pub mod host;
pub mod leftovers;
pub mod report;
pub mod run;
