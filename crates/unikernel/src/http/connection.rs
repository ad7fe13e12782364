//! One connection: requests in, answers out, until either side has enough.

use alloc::vec::Vec;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Range;

use super::body::{Body, BodyError};
use super::date::{self, DATE_BYTES};
use super::head::{Framing, Scan, read, scan};
use super::io::{Io, Stopped};
use super::{Broken, Handler, Limits, Reply, SECOND_NS, Status, Stream, Version};

/// What a connection reads at once in bytes, and what its buffer begins with.
const READ_BYTES: usize = 2048;
/// Answers to pipelined requests are gathered up to this size in bytes.
const GATHER_BYTES: usize = 16 * 1024;
/// How much of a body that nobody wanted is read so that the connection can go on, in bytes.
const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// After an answer that ends the connection: how long it is still read so that the answer is not
/// lost by a reset (RFC 9112, section 9.6).
const LINGER_NS: u64 = 2 * SECOND_NS;
/// A share of the connections, in quarters, from which on idle ones must be shorter.
const CROWDED_QUARTERS: usize = 3;
/// How long a connection may be idle then.
const CROWDED_IDLE_NS: u64 = 2 * SECOND_NS;

/// What all connections of a server share.
#[derive(Debug, Default)]
pub struct Shared {
    second: Cell<Option<u64>>,
    text: Cell<[u8; DATE_BYTES]>,
    /// Connections at present.
    pub active: Cell<usize>,
    /// Those of them with a request under way.
    pub busy: Cell<usize>,
    /// The server stops: connections end after the request that they are at.
    pub stopping: Cell<bool>,
}

impl Shared {
    /// Remembers what time it is.
    fn tell_time(&self, seconds: u64) {
        if self.second.replace(Some(seconds)) != Some(seconds) {
            self.text.set(date::format(seconds));
        }
    }

    /// The time that was told last, for the field `Date`.
    pub(crate) fn date(&self) -> [u8; DATE_BYTES] {
        self.text.get()
    }
}

/// A connection under way.
pub struct Connection<'a, S: Stream> {
    io: Io<S>,
    shared: &'a Shared,
    limits: &'a Limits,
    /// What was read and not yet used, from `at` on.
    input: Vec<u8>,
    at: usize,
    output: Vec<u8>,
    is_busy: bool,
}

impl<S: Stream> Drop for Connection<'_, S> {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}

/// How reading a head ended.
enum Next {
    /// It is at this place in the unread input.
    Head(Range<usize>),
    /// Nothing more to come, or to wait for.
    End,
    /// A last answer is due.
    Refuse(Status),
}

impl<'a, S: Stream> Connection<'a, S> {
    /// Takes over a connection that was just accepted.
    pub fn new(stream: S, shared: &'a Shared, limits: &'a Limits) -> Self {
        Self {
            io: Io::new(stream),
            shared,
            limits,
            input: Vec::new(),
            at: 0,
            output: Vec::new(),
            is_busy: false,
        }
    }

    /// Serves it to its end.
    pub async fn run<H: Handler<S>>(mut self, handler: &H) {
        // Ignored because: a connection that broke has nobody to be told.
        let _ = self.requests(handler).await;
    }

    async fn requests<H: Handler<S>>(&mut self, handler: &H) -> Result<(), Broken> {
        loop {
            match self.next_head().await? {
                Next::End => {
                    self.flush().await?;
                    return Ok(());
                }
                Next::Refuse(status) => return self.refuse(status).await,
                Next::Head(place) => {
                    self.set_busy(true);
                    if !self.request(handler, place).await? || self.shared.stopping.get() {
                        self.flush().await?;
                        return self.linger().await;
                    }
                }
            }
            if self.output.len() > GATHER_BYTES {
                self.flush().await?;
            }
        }
    }

    /// Whether a request is under way: the server waits for those when it stops.
    fn set_busy(&mut self, busy: bool) {
        let change = usize::from(busy).wrapping_sub(usize::from(self.is_busy));
        self.shared.busy.set(self.shared.busy.get().wrapping_add(change));
        self.is_busy = busy;
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        if !self.output.is_empty() {
            self.io.write_all(&self.output, self.limits).await?;
            self.output.clear();
        }
        Ok(())
    }

    /// Reads until there is a whole head, or what cannot become one.
    async fn next_head(&mut self) -> Result<Next, Broken> {
        let mut looked_at = 0;
        let mut deadline_ns = None;
        loop {
            let unread = &self.input[self.at..];
            if unread.len() > looked_at {
                match scan(unread, looked_at, self.limits) {
                    Scan::Head(place) => return Ok(Next::Head(place)),
                    Scan::Bad(status) => return Ok(Next::Refuse(status)),
                    Scan::Incomplete => looked_at = unread.len(),
                }
            }
            // Whatever is answered goes out before anything is waited for.
            self.flush().await?;
            self.set_busy(false);
            let now_ns = self.io.stream.now_ns();
            let is_idle = looked_at == 0;
            if is_idle && self.shared.stopping.get() {
                return Ok(Next::End);
            }
            let deadline = match deadline_ns {
                Some(deadline) => deadline,
                None if is_idle => now_ns.saturating_add(self.idle_ns()),
                None => *deadline_ns.insert(now_ns.saturating_add(self.limits.head_ns)),
            };
            self.input.drain(..self.at);
            self.at = 0;
            let filled = self.input.len();
            self.input.resize(filled + READ_BYTES, 0);
            let read = self.io.read(&mut self.input[filled..], deadline).await;
            self.input.truncate(filled + read.unwrap_or(0));
            match read {
                Ok(0) | Err(Stopped::Broken) => return Ok(Next::End),
                Ok(_) => {}
                Err(Stopped::TimedOut) if is_idle => return Ok(Next::End),
                Err(Stopped::TimedOut) => return Ok(Next::Refuse(Status::REQUEST_TIMEOUT)),
            }
        }
    }

    /// How long this connection may be idle now.
    fn idle_ns(&self) -> u64 {
        let crowded = self.limits.connections_max / 4 * CROWDED_QUARTERS;
        if self.shared.active.get() > crowded {
            self.limits.idle_ns.min(CROWDED_IDLE_NS)
        } else {
            self.limits.idle_ns
        }
    }

    /// Has the request at the beginning of the input answered; false: the connection is to end.
    async fn request<H: Handler<S>>(
        &mut self,
        handler: &H,
        place: Range<usize>,
    ) -> Result<bool, Broken> {
        self.shared.tell_time(self.io.stream.wall_seconds());
        let (peer, local) = (self.io.stream.peer(), self.io.stream.local());
        let unread = &self.input[self.at..];
        let size = place.end;
        let request = match read(&unread[place], self.limits, peer, local) {
            Ok(request) => request,
            Err(status) => {
                self.refuse(status).await?;
                return Err(Broken);
            }
        };
        let has_body = request.framing != Framing::None;
        let ahead = if has_body { unread[size..].to_vec() } else { Vec::new() };
        let mut body =
            Body::new(&mut self.io, self.limits, request.framing, ahead, request.expects_continue);
        if has_body && !self.output.is_empty() {
            // Answers before this one must not wait for a body.
            body.io.write_all(&self.output, self.limits).await?;
            self.output.clear();
        }
        let mut reply = Reply {
            out: &mut self.output,
            shared: self.shared,
            limits: self.limits,
            version: request.version,
            is_head: request.method == "HEAD",
            keep_alive: request.keep_alive && !self.shared.stopping.get(),
            started: false,
            finished: false,
            stream: PhantomData,
        };
        if body.wants_continue {
            // Unless the handler asks for the body, the client may send it or not: nobody knows
            // where the next request begins.
            reply.close();
        }
        let keeps = reply.keep_alive;
        handler.handle(&request, &mut body, &mut reply).await?;
        if !reply.started {
            reply
                .text(&mut body, Status::INTERNAL_ERROR, b"the request was not answered\n")
                .await?;
        }
        if !reply.finished {
            return Err(Broken);
        }
        let keep_alive = reply.keep_alive && keeps;
        let rest = if body.is_done() { Ok(()) } else { drain(&mut body).await };
        let next = body.into_ahead();
        if has_body {
            self.input = next;
            self.at = 0;
        } else {
            self.at += size;
        }
        Ok(keep_alive && rest.is_ok())
    }

    /// Answers what is not a request, and ends.
    async fn refuse(&mut self, status: Status) -> Result<(), Broken> {
        self.shared.tell_time(self.io.stream.wall_seconds());
        let mut body = Body::new(&mut self.io, self.limits, Framing::None, Vec::new(), false);
        let mut reply = Reply {
            out: &mut self.output,
            shared: self.shared,
            limits: self.limits,
            version: Version::Http11,
            is_head: false,
            keep_alive: false,
            started: false,
            finished: false,
            stream: PhantomData,
        };
        reply.text(&mut body, status, status.phrase.as_bytes()).await?;
        self.flush().await?;
        self.linger().await
    }

    /// Ends the connection so that the peer gets all that was written.
    async fn linger(&mut self) -> Result<(), Broken> {
        let deadline_ns = self.io.stream.now_ns().saturating_add(LINGER_NS);
        {
            let mut shutdown = core::pin::pin!(self.io.stream.shutdown());
            let mut sleep = self.io.stream.sleep_until(deadline_ns);
            core::future::poll_fn(|context| {
                use core::future::Future;
                let ended = shutdown.as_mut().poll(context).is_ready();
                if ended || core::pin::Pin::new(&mut sleep).poll(context).is_ready() {
                    return core::task::Poll::Ready(());
                }
                core::task::Poll::Pending
            })
            .await;
        }
        let mut forgotten = [0; READ_BYTES / 2];
        let mut count = 0;
        while count < DRAIN_BYTES_MAX {
            match self.io.read(&mut forgotten, deadline_ns).await? {
                0 => break,
                more => count += more,
            }
        }
        Ok(())
    }
}

/// Reads what nobody wanted of a body.
async fn drain<S: Stream>(body: &mut Body<'_, S>) -> Result<(), BodyError> {
    if body.wants_continue {
        return Err(BodyError::Broken(Broken));
    }
    let mut forgotten = [0; READ_BYTES / 2];
    let mut count = 0;
    loop {
        match body.read(&mut forgotten).await? {
            0 => return Ok(()),
            more => count += more,
        }
        if count > DRAIN_BYTES_MAX {
            return Err(BodyError::TooLong);
        }
    }
}
