//! The developer's tools for unikernels: `shoal unikernel new`, `build`, `run`, `inspect`, `bench`.
//!
//! An application is an ordinary Rust package. [`cargo`] builds it as a freestanding image,
//! [`seal`] takes everything out of the file that a running image does not need and puts the names
//! of its functions in, [`check`] refuses what must not be in an image, [`size`] says where the
//! bytes are, and [`archive`] wraps the result as an image for any registry. [`run`] starts the
//! tender with a user-mode network, so that no privileges are needed; [`mod@bench`] does it often.
//!
//! The command line ([`cli`]) is part of the program `shoal`; this crate also has it as a small
//! program of its own, `shoal-unikernel`, for those who only write applications.
//!
//! It must not know the cluster, and never starts anything but cargo and the tender.

#![forbid(unsafe_code)]

pub mod archive;
pub mod bench;
pub mod cargo;
pub mod check;
pub mod cli;
pub mod daemon;
pub mod elf;
pub mod error;
pub mod inspect;
pub mod project;
pub mod run;
pub mod seal;
pub mod size;
pub mod source;
pub mod symbols;
