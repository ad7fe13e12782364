//! Typed requests to the kernel's network: links, addresses, routes, rules, neighbours, forwarding
//! entries, nftables, connection tracking and socket diagnosis, each inside a given network
//! namespace. No policy lives here: what the network should look like is `shoal-network`'s.
//!
//! All calls block (each for well under a millisecond as a rule): asynchronous callers use a
//! blocking thread. Begin reading at [`netns::NetnsHandle`], whose methods are the requests of
//! [`link`], [`address`], [`route`], [`rule`] and [`neighbour`]; then [`nft`].
//!
//! The encoding is our own (`attr`, `socket`): the requests are few, and one writer for rtnetlink,
//! nftables, conntrack and sock_diag is smaller than four libraries.

pub mod address;
mod attr;
pub mod checks;
pub mod conntrack;
pub mod error;
pub mod link;
pub mod neighbour;
pub mod netns;
pub mod nft;
pub mod route;
pub mod rule;
mod segment;
pub mod sockdiag;
mod socket;
pub mod sysctl;
pub mod tap;
pub mod traffic;
