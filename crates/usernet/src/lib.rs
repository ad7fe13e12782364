//! Network access without privileges, for a guest that speaks Ethernet.
//!
//! One side is a file descriptor of frames: one end of a pair of `SOCK_SEQPACKET` sockets, each
//! message a 12-byte `virtio_net_hdr_v1` and an Ethernet frame, exactly what a TAP with
//! `IFF_VNET_HDR` reads and writes. The other side are ordinary sockets of the host. So nobody ever
//! sets up a TAP by hand: no root, no namespace, no bridge.
//!
//! The guest sees a small network with static addresses ([`config::Config`]): a gateway that
//! answers ARP and ping and stands for the host's loopback, and a name server that is the host's
//! own. A connection that the guest opens is first opened on the host, so that a refusal is a
//! refusal; published ports of the host lead to the guest, which sees the client's own address.
//!
//! Each TCP connection is a small stack of its own, found by its addresses in a table: nothing is
//! searched, nothing grows with the number of the others. Everything is bounded; whatever is
//! dropped is counted ([`counters::Counters`]).
//!
//! It must not need privileges, a runtime, or more than one thread, and must not trust a frame.
//!
//! Begin reading at [`network::Network`].

#![forbid(unsafe_code)]

pub mod config;
pub mod counters;
pub mod error;
pub mod link;
pub mod network;
pub mod publish;

mod frame;
mod host;
mod outbox;
mod router;
mod stack;
mod tcp;
mod translate;
mod udp;

/// What a fuzzer calls: takes a message of a guest apart and answers it. Any bytes will do.
pub fn fuzz(message: &[u8]) {
    frame::fuzz(message);
}
