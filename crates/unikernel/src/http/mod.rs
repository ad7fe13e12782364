//! An HTTP/1.1 server (RFC 9110, RFC 9112): keep-alive, pipelining, bounded, strict.
//!
//! An application implements [`Handler`] and calls [`serve`]. Each connection is a task: it reads
//! a head ([`Request`]), lets the handler answer ([`Reply`]) and goes on. Answers to requests that
//! came together leave together. In steady state a request costs no allocation.
//!
//! What would be read differently by a proxy in front is refused, never repaired: bare line feeds,
//! folded lines, blanks before a colon, two lengths, a length beside a transfer coding. Slow
//! clients lose their connection: heads have a deadline, bodies and answers a least rate
//! ([`Limits`]).
//!
//! Everything but [`serve`] works on any [`Stream`], and is tested on pipes in memory.

mod body;
mod connection;
pub mod date;
mod head;
mod io;
mod reply;
mod server;
mod status;
#[cfg(test)]
mod tests;

pub use body::{Body, BodyError};
pub use connection::{Connection, Shared};
pub use head::{Request, Version, parse};
pub use io::{Broken, Stream};
pub use reply::{Chunks, Head, Reply};
pub use server::{Plain, serve};
pub use status::Status;

use core::future::Future;

/// Answers requests.
pub trait Handler<S: Stream> {
    /// Answers one request through `reply`; a handler that does not is answered for with 500.
    ///
    /// # Errors
    /// [`Broken`], as `reply` and `body` report it: the connection ends then.
    fn handle(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_, S>,
        reply: &mut Reply<'_, S>,
    ) -> impl Future<Output = Result<(), Broken>>;
}

/// What one client may take. Each bound is there because its lack is a known attack.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest head in bytes: request line and fields. More: 431, or 414 if it is the line.
    pub head_bytes_max: usize,
    /// Most fields of a head, 128 at most. More: 431.
    pub fields_max: usize,
    /// Longest body in bytes. More: 413.
    pub body_bytes_max: u64,
    /// How long a connection may be idle between requests.
    pub idle_ns: u64,
    /// How long a head may take from its first byte.
    pub head_ns: u64,
    /// How long a body or an answer may take at first; then [`Limits::bytes_per_second_min`] holds.
    pub grace_ns: u64,
    /// Least rate of bodies and answers on average, after the grace.
    pub bytes_per_second_min: u64,
    /// Connections at once; more wait in the listener's backlog.
    pub connections_max: usize,
}

/// One second.
pub(crate) const SECOND_NS: u64 = 1_000_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            // What Apache and nginx take by default.
            head_bytes_max: 8 * 1024,
            fields_max: 100,
            body_bytes_max: 1024 * 1024,
            idle_ns: 60 * SECOND_NS,
            head_ns: 10 * SECOND_NS,
            grace_ns: 10 * SECOND_NS,
            bytes_per_second_min: 500,
            connections_max: 4096,
        }
    }
}
