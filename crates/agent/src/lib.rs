//! Keeps one node like its assignment.
//!
//! The agent holds a session with a manager, drives the assigned tasks through the engine, gives
//! every container its network (it implements the engine's `Attacher`), and merges assignment and
//! hand-made containers into the one desired network state that `network` applies. It keeps working
//! without managers: the last assignment is on disk.
//!
//! It never decides what should run, and never imports the manager.
//!
//! Begin reading at [`agent`], then [`session`] (what managers say), `tasks` (one owner for each
//! task, over the machine of [`shoal_life::task`]) and [`desired`] (the merge).

#![forbid(unsafe_code)]

pub mod agent;
pub mod apply;
mod assigned;
mod attach;
mod damage;
pub mod desired;
pub mod error;
mod held;
pub mod local;
mod logs;
mod opened;
mod places;
mod report;
pub mod session;
pub mod streams;
mod tasks;
