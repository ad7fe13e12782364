//! TCP (RFC 9293): connections found by a hash of their addresses, nothing searched.
//!
//! A segment costs the same with ten connections and with ten thousand. What a round produced
//! leaves together at its end: data carries the acknowledgement, several received segments are
//! acknowledged once, and with offload up to 62 KB travel as one piece.
//!
//! Bounds: half-open connections per listener (the oldest makes room), complete ones that wait to
//! be accepted (further SYNs are dropped, the peer repeats them), closed ones that are remembered,
//! and all buffers together, by the heap: when they take too much, windows become small.

mod connection;
mod receiver;
mod rtt;
mod segment;
mod sender;
mod table;
mod time_wait;

pub(crate) use connection::{Connection, State};
pub(crate) use segment::Segment;
pub(crate) use table::Table;
