//! Peer RPC: what nodes say to each other, over mutual TLS.
//!
//! HTTP/2 with gRPC framing (tonic) and JSON bodies, but for the bytes of [`stream`]; services are
//! declared by hand in `build.rs`.
//! The crate moves messages and notices dead peers; it decides nothing. Handlers are traits that
//! `manager` implements, sessions are handles that `agent` drives. What managers say to each other
//! crosses as opaque JSON: consensus is none of this crate's business.
//!
//! **Invariants**: every connection is TLS 1.3; without a client certificate of the cluster only
//! `Join.GetRootCa` and `Join.IssueCertificate` answer; `Raft` and `Control` answer managers only;
//! every wait has a deadline; a peer that is silent for three heartbeats counts as gone on both
//! sides.
//!
//! Begin reading at [`message`], then [`session`], then [`server`], [`client`] and [`peers`].

#![forbid(unsafe_code)]

pub mod client;
mod codec;
mod envelope;
pub mod error;
pub mod fault;
pub mod message;
pub mod peers;
pub mod server;
pub mod session;
mod standing;
mod status;
pub mod stream;
mod transport;
mod watched;

/// What `build.rs` makes of the service declarations.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod rpc {
    include!(concat!(env!("OUT_DIR"), "/shoal.v1.Join.rs"));
    include!(concat!(env!("OUT_DIR"), "/shoal.v1.Dispatcher.rs"));
    include!(concat!(env!("OUT_DIR"), "/shoal.v1.Raft.rs"));
    include!(concat!(env!("OUT_DIR"), "/shoal.v1.Control.rs"));
    include!(concat!(env!("OUT_DIR"), "/shoal.v1.Streams.rs"));
}

/// Largest message of a session. A full assignment of a large cluster (10,000 tasks on a network)
/// has about 2 MB.
pub const SESSION_MESSAGE_MAX: usize = 16 << 20;
/// Largest message of the join service. A node's description with its checks has a few KB.
pub const JOIN_MESSAGE_MAX: usize = 256 << 10;
/// Largest body that one manager sends to another, and largest answer. An entry of the log has up
/// to 4 MiB before it is written as JSON, a piece of a snapshot 1 MiB.
pub const PEER_BODY_MAX: usize = 16 << 20;
/// The same with what is around it.
const PEER_MESSAGE_MAX: usize = PEER_BODY_MAX + 1024;
