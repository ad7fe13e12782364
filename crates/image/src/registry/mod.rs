//! The client side of registries (OCI distribution spec).
//!
//! On hyper-util's client with hyper-rustls; ours are the protocol, the authentication and the
//! look-up: every failure names the host and the cause, every wait has a deadline, and names are
//! looked up without the C library, which a static program cannot rely on.

pub mod auth;
mod challenge;
mod client;
mod connect;
mod lookup;
mod manifests;
mod pull;
mod push;
mod tls;
