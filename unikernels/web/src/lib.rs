//! A web server for static files: which file a target means, whether the client has it already,
//! which part of it is wanted. Pure but for the answer itself, which goes through
//! [`unikernel::http`].
//!
//! [`path`] turns a target into the path of a file, [`site`] holds the files with their fields
//! already written, [`conditions`] and [`range`] decide what is sent (RFC 9110, sections 13 and
//! 14), and [`pages`] puts it together. [`settings`] reads what the program was told.
//!
//! Not here: TLS, compression, directory listings, anything that changes files.
//!
//! Begin reading at [`pages`].

#![cfg_attr(shoal_image, no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod conditions;
pub mod pages;
pub mod path;
pub mod range;
pub mod settings;
pub mod site;
