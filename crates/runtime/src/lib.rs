//! Runs containers: one small, single-threaded shim process for each, which owns the workload's
//! standard streams, log file and exit status, so that the daemon can crash, restart or be upgraded
//! without stopping anything.
//!
//! The daemon's side is [`ContainerRuntime`] and [`Shim`] (asynchronous, begin reading there). What
//! a container is, completely resolved, is a [`ContainerPlan`]. The helper's side is
//! [`shim::main`], which the program calls when it is started as `shoal shim <dir>`; it makes the
//! namespaces, mounts, limits and filters with the code in `process`, the only module that may
//! use `unsafe`.
//! What both sides say to each other is in [`protocol`].
//!
//! This crate knows nothing of images, networks (it joins a namespace by path), restart policies or
//! the cluster.

#![deny(unsafe_code)]

pub mod caps;
pub mod cgroup;
pub mod checks;
mod client;
mod client_io;
pub mod container_plan;
mod crush;
pub mod error;
mod json_log;
pub mod memory;
mod process;
pub mod protocol;
mod runtime;
mod seccomp;
pub mod shim;
pub mod stats;
mod syscalls;
pub mod unikernel;

pub use client::Shim;
pub use client_io::{ExecHandle, Input, Output, OutputChunk, Streams};
pub use container_plan::ContainerPlan;
pub use error::RuntimeError;
pub use runtime::{ContainerRuntime, Damage, Leftover, RuntimeConfig, Swept};
