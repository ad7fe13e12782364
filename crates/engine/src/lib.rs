//! What this node has: containers, volumes, execs, logs, health verdicts and events.
//!
//! [`engine::Engine`] keeps the containers of one node over an image store and shims. It decides
//! nothing about the cluster and touches no network: [`attacher::Attacher`], which `agent`
//! implements, gives a container its network when the engine starts it.
//!
//! Every container has one durable record; a daemon that starts reads them all, finds the shims
//! that still run and goes on where the one before stopped.
//!
//! A container's life is one owner's, which runs a pure machine: `shoal_life::container` decides,
//! `owner` listens and answers, `work` carries out. Callers send a command and wait; one that goes
//! away changes nothing.
//!
//! Begin reading at [`engine`], then `create`, `owner` and `work`.

#![forbid(unsafe_code)]

mod admission;
mod archive;
mod attach;
pub mod attacher;
pub mod change;
pub mod config;
mod container;
mod create;
mod detach_keys;
pub mod engine;
pub mod error;
pub mod events;
mod exec;
mod exit;
mod files;
mod fs_changes;
mod health;
mod inspect;
mod list;
mod logs;
mod memory;
mod merge;
mod mount_points;
mod mounts;
pub mod names;
mod networks;
mod notes;
mod owner;
mod populate;
mod ports;
mod record;
mod recover;
mod remove;
pub mod request;
mod root;
mod session;
mod signal;
mod start;
mod stats;
mod stop;
pub mod stream;
mod top;
mod tree;
mod unikernel;
mod update;
pub mod view;
mod volume_api;
mod volumes;
mod work;
mod workload_plan;
