//! Who is who: root CA, join tokens, certificates, this node's identity on disk, TLS settings.
//!
//! A cluster has one root certificate. A member's certificate says CN = node id, OU = role
//! (`swarm-manager` or `swarm-worker`), O = cluster id. Nobody trusts host names; everybody trusts
//! the root, and a join token carries the root's digest, so that the first contact is safe too.
//!
//! A root can take the place of another: [`roots`] makes and checks them, and what is trusted
//! meanwhile is in the cluster's state. Where the root's key is somebody else's, [`external`] asks.
//!
//! Nothing here talks to the network or reads a clock: times come in as arguments (the TLS library
//! brings its own). The cryptography provider is chosen in [`tls::provider`] and nowhere else.
//!
//! Begin reading at [`token`] and [`authority`].

#![forbid(unsafe_code)]

pub mod authority;
mod der;
pub mod error;
pub mod external;
pub mod node_identity;
pub mod peer;
pub mod roots;
pub mod tls;
pub mod token;
