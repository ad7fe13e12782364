//! The library operating system: what an application links to be a unikernel.
//!
//! The same source of an application becomes an ordinary Linux program, a process without rights,
//! or a virtual machine. In an *image* (`--cfg shoal_image`, set by `shoal unikernel build`) this
//! crate is `no_std` and brings entry point, allocator and panic handler. Otherwise (*hosted*) it
//! is an ordinary library, the program is its own monitor, and gdb and strace work. All above
//! the platform (executor, timers, network stack, files, block devices) is the same code in both.
//!
//! An application is one `async` function and [`main!`]; begin reading there, then [`net`].
//! Everything runs on one thread: tasks take turns at `await`, and when none can go on, one call
//! (`wait`) moves frames and sleeps. Nothing that an application does not name is linked.
//!
//! **Must not**: know which monitor runs it; call the host except through [`call`]; grow without a
//! bound because of what a peer sends.

#![cfg_attr(shoal_image, no_std)]

extern crate alloc;

#[macro_use]
mod local;
#[macro_use]
mod macros;

pub mod block;
pub mod boot;
pub mod call;
pub mod env;
pub mod fs;
pub mod http;
pub mod log;
pub mod manifest;
pub mod net;
pub mod random;
pub mod ring;
pub mod time;

mod clock;
mod executor;
mod main_;
mod tar;
mod wheel;

#[cfg(not(shoal_image))]
pub mod hosted;
#[cfg(shoal_image)]
pub mod image;

pub use executor::{exit, spawn, stop_requested, yield_now};
pub use main_::Outcome;

/// What [`main!`] expands to needs these; not for applications.
#[doc(hidden)]
pub mod __private {
    pub use crate::main_::run_main;
    pub use shoal_unikernel_abi as abi;
}
