//! What the server needs of a connection, and deadlines on it.

use core::future::{Future, poll_fn};
use core::net::SocketAddrV4;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::{Limits, SECOND_NS};

/// The connection is of no more use: the peer went away, broke the rules or was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection broke")]
pub struct Broken;

/// A connection.
pub trait Stream {
    /// Ends at a moment of the clock.
    type Sleep: Future<Output = ()> + Unpin;

    /// Reads at least one byte into `to`; 0: the peer has finished.
    fn poll_read(&self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Broken>>;
    /// Takes at least one byte of `data` for sending.
    fn poll_write(&self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>>;
    /// Sends no more; ends when the peer has everything.
    fn shutdown(&self) -> impl Future<Output = Result<(), Broken>>;
    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Seconds since 1970.
    fn wall_seconds(&self) -> u64;
    /// Ends when `moment_ns` has come, by [`Stream::now_ns`].
    fn sleep_until(&self, moment_ns: u64) -> Self::Sleep;
    /// The client's address.
    fn peer(&self) -> SocketAddrV4;
    /// The own address.
    fn local(&self) -> SocketAddrV4;
}

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Broken,
    TimedOut,
}

impl From<Stopped> for Broken {
    fn from(_: Stopped) -> Self {
        Self
    }
}

/// A stream with deadlines. The one timer stays set from request to request as long as it is early
/// enough: most deadlines never come.
pub(crate) struct Io<S: Stream> {
    pub(crate) stream: S,
    sleep: Option<(u64, S::Sleep)>,
}

impl<S: Stream> Io<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, sleep: None }
    }

    /// Sees to it that the task wakes at `deadline_ns` or before; false: it is over.
    fn watch(&mut self, context: &mut Context<'_>, deadline_ns: u64) -> bool {
        loop {
            if self.stream.now_ns() >= deadline_ns {
                return false;
            }
            match &mut self.sleep {
                Some((moment, sleep)) if *moment <= deadline_ns => {
                    if Pin::new(sleep).poll(context).is_pending() {
                        return true;
                    }
                    self.sleep = None;
                }
                _ => {
                    self.sleep = Some((deadline_ns, self.stream.sleep_until(deadline_ns)));
                }
            }
        }
    }

    /// Reads at least one byte; 0: the peer has finished.
    pub(crate) async fn read(&mut self, to: &mut [u8], deadline_ns: u64) -> Result<usize, Stopped> {
        poll_fn(|context| match self.stream.poll_read(context, to) {
            Poll::Ready(read) => Poll::Ready(read.map_err(|Broken| Stopped::Broken)),
            Poll::Pending if self.watch(context, deadline_ns) => Poll::Pending,
            Poll::Pending => Poll::Ready(Err(Stopped::TimedOut)),
        })
        .await
    }

    /// Writes everything, at no less than the least rate.
    pub(crate) async fn write_all(&mut self, data: &[u8], limits: &Limits) -> Result<(), Broken> {
        let mut written = 0;
        let mut start_ns = None;
        poll_fn(|context| {
            while written < data.len() {
                match self.stream.poll_write(context, &data[written..]) {
                    Poll::Ready(Ok(count)) => written += count,
                    Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                    Poll::Pending => {
                        // The clock is only read when the peer is slow.
                        let start_ns = *start_ns.get_or_insert_with(|| self.stream.now_ns());
                        let deadline_ns = due_ns(start_ns, written as u64, limits);
                        if self.watch(context, deadline_ns) {
                            return Poll::Pending;
                        }
                        return Poll::Ready(Err(Broken));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

/// When the next byte must have moved at the least rate.
pub(crate) fn due_ns(start_ns: u64, moved: u64, limits: &Limits) -> u64 {
    let earned_ns = moved.saturating_mul(SECOND_NS) / limits.bytes_per_second_min.max(1);
    start_ns.saturating_add(limits.grace_ns).saturating_add(earned_ns)
}
