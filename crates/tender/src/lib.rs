//! The monitor that runs one unikernel: it checks the image, draws the address space, attaches the
//! devices that the image declares, locks itself in, and enters the guest.
//!
//! One process runs one instance, on one thread. The guest runs either in ring 3 of a virtual
//! machine ([`kvm`]) or as a seccomp-locked process (`process`); everything else is the same for
//! both: the image's rules ([`elf`], [`manifest`]), the layout of its memory ([`layout`],
//! [`memory`]), what it finds at start ([`bootinfo`]), and the calls it can make ([`guest`]).
//!
//! The contract with the guest is the crate `shoal-unikernel-abi`. Every word that a guest can
//! write is read once and checked; a guest that breaks the rules is ended with a crash record
//! ([`crash`]), and nothing that it does makes the tender panic.
//!
//! This crate knows nothing of networks beyond one frame in and one out, of registries, or of the
//! cluster. Begin reading at [`run`].

pub mod bootinfo;
pub mod clock;
pub mod config;
pub mod crash;
pub mod devices;
pub mod elf;
pub mod error;
pub mod filter;
pub mod guest;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod manifest;
pub mod memory;
pub mod mounts;
mod process;
pub mod root;
mod run;
mod signals;
pub mod stats;
mod sys;

pub use config::Config;
pub use error::TenderError;
pub use run::{main, run};
