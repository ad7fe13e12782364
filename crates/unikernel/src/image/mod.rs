//! The image platform: what an image needs instead of an operating system.
//!
//! Entry point, allocator, the functions that compilers call, and the way to a crash record. All of
//! it runs on the one stack that the monitor gave.

mod allocator;
mod crash;
mod entry;
mod memory;
