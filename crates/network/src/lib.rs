//! Desired node network state → kernel: computed whole, diffed, applied, repaired.
//!
//! One network namespace per (node, network) holds the VXLAN device, the gateway and the only
//! balancer; workloads are routed /32 ports of it. The host's own namespace gets one link per
//! network and one nft table per daemon, never an overlay address.
//!
//! Pure parts decide, the applier only executes:
//! - [`desired`]: what the agent asks for;
//! - [`balancer`]: which backend each bucket of a service holds;
//! - [`claims`]: who gets a port of this host;
//! - [`layout`]: which links, addresses, routes, neighbours and nft contents a namespace must have,
//!   and the difference to what was observed;
//! - [`node_network`]: the handle that agents use; everything that touches a kernel is below it.
//!
//! This crate never decides what a service or task should be, and never touches a kernel object
//! that does not carry its daemon's instance id. Begin at [`desired`], then [`layout`].

#![forbid(unsafe_code)]

pub mod balancer;
pub mod checks;
pub mod claims;
pub mod desired;
pub mod error;
pub mod hostport;
pub mod layout;
pub mod node_network;
pub mod resolver;
pub mod status;
mod worker;
