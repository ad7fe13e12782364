//! An authoritative DNS server: zone files in, messages out. Pure: no I/O, no clock.
//!
//! [`parser`] reads zone files (RFC 1035, section 5), [`database`] compiles the zones into a hash
//! table of names whose answers are already encoded, and [`respond`] turns one request into one
//! response: usually by copying such an encoded answer and moving its compression pointers.
//! [`transfer`] hands out whole zones (AXFR). What is malformed is answered with FORMERR where an
//! identifier and the flags could be read, and ignored otherwise.
//!
//! The program around it (`main.rs`) owns the sockets; [`settings`] reads what it was told.
//!
//! Not here: DNSSEC signing, zone updates, being a secondary, TSIG.
//!
//! Begin reading at [`respond`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod builder;
pub mod database;
mod lexer;
pub mod message;
pub mod name;
pub mod parser;
mod rdata;
pub mod respond;
pub mod settings;
pub mod transfer;
pub mod zone;
