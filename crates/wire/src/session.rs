//! The two ends of a session stream. Heartbeats are sent and watched in here.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use shoal_identity::peer::PeerIdentity;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::SESSION_MESSAGE_MAX;
use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::message::{Bye, ByeReason, Heartbeat, Hello, ManagerMessage, NodeMessage, Welcome};
use crate::status;

/// How long a full queue may stay full.
pub const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Heartbeats that may be missed before the peer counts as gone.
pub const MISSED_MAX: u32 = 3;
/// Messages that may wait to be sent or to be read: a burst of statuses or log lines. Beyond it the
/// sender waits, which is what slows the source down.
const QUEUE_MAX: usize = 256;
/// Bounds of the heartbeat period that a manager may ask for.
const PERIOD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// How long whoever handles a session may take for its next message. Every wait in handlers is
/// shorter: one that takes longer has lost its way, and its session ends.
const DELIVER_DEADLINE: Duration = Duration::from_secs(120);
/// How long the last message may take to leave.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// What is queued for sending.
#[derive(Debug)]
enum Out<M> {
    Message(M),
    Refuse(Box<Status>),
    End,
}

/// A message that can be a heartbeat.
pub(crate) trait Beat: Send + Sized + 'static {
    fn beat(number: u64) -> Self;
    fn is_beat(&self) -> bool;
    /// What a server says when it stops; clients have nothing to say.
    fn farewell() -> Option<Self>;
}

impl Beat for NodeMessage {
    fn beat(number: u64) -> Self {
        Self::Heartbeat(Heartbeat { number })
    }
    fn is_beat(&self) -> bool {
        matches!(self, Self::Heartbeat(_))
    }
    fn farewell() -> Option<Self> {
        None
    }
}

impl Beat for ManagerMessage {
    fn beat(number: u64) -> Self {
        Self::Heartbeat(Heartbeat { number })
    }
    fn is_beat(&self) -> bool {
        matches!(self, Self::Heartbeat(_))
    }
    fn farewell() -> Option<Self> {
        let message = "the manager stops".to_owned();
        Some(Self::Bye(Bye { reason: ByeReason::Stopping, message, leader: None }))
    }
}

/// Sends messages of one session. Cheap to clone.
#[derive(Debug)]
pub struct SessionSender<M> {
    queue: mpsc::Sender<Out<M>>,
    addr: String,
}

impl<M> Clone for SessionSender<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), addr: self.addr.clone() }
    }
}

impl<M: Send + 'static> SessionSender<M> {
    /// Queues `message`; returns when there is room.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the session is over, [`WireError::Stuck`] when the peer takes
    /// nothing for [`SEND_DEADLINE`].
    pub async fn send(&self, message: M) -> Result<(), WireError> {
        let addr = || self.addr.clone();
        match self.queue.send_timeout(Out::Message(message), SEND_DEADLINE).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                Err(WireError::Closed { addr: addr(), source: None })
            }
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(WireError::Stuck { addr: addr(), after: SEND_DEADLINE })
            }
        }
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

/// Both directions of one session, on either side.
#[derive(Debug)]
struct Link<I, O> {
    sender: SessionSender<O>,
    incoming: Option<mpsc::Receiver<Result<I, WireError>>>,
    /// Dropping it ends the outgoing stream, whoever still holds a sender.
    _open: oneshot::Sender<()>,
    /// Reader and heartbeat; they end with the session.
    tasks: JoinSet<()>,
}

type OutStream<O> = Pin<Box<dyn Stream<Item = Result<O, Status>> + Send>>;

impl<I: Beat, O: Beat> Link<I, O> {
    /// The link, not yet reading, and the stream of what it sends.
    fn new(addr: &str) -> (Self, OutStream<O>) {
        let (queue, outgoing) = mpsc::channel(QUEUE_MAX);
        let (open, closed) = oneshot::channel();
        let outgoing = ReceiverStream::new(outgoing)
            .flat_map(|out| {
                // A refusal ends the stream like an end does, hence two items.
                stream::iter(match out {
                    Out::Message(message) => vec![Some(Ok(message))],
                    Out::Refuse(status) => vec![Some(Err(*status)), None],
                    Out::End => vec![None],
                })
            })
            .take_while(|item| std::future::ready(item.is_some()))
            .filter_map(std::future::ready)
            .take_until(closed);
        let sender = SessionSender { queue, addr: addr.to_owned() };
        let link = Self { sender, incoming: None, _open: open, tasks: JoinSet::new() };
        (link, Box::pin(outgoing))
    }

    /// Reads from now on, and beats.
    fn run(
        &mut self,
        stream: Streaming<I>,
        period: Duration,
        stopping: Option<watch::Receiver<bool>>,
    ) {
        let period = period.clamp(PERIOD.0, PERIOD.1);
        let (deliver, incoming) = mpsc::channel(QUEUE_MAX);
        self.incoming = Some(incoming);
        let addr = self.sender.addr.clone();
        self.tasks.spawn(read(stream, deliver, period * MISSED_MAX, addr));
        self.tasks.spawn(beat(self.sender.queue.clone(), period, stopping));
    }

    async fn next(&mut self) -> Result<I, WireError> {
        let closed = || WireError::Closed { addr: self.sender.addr.clone(), source: None };
        match &mut self.incoming {
            Some(incoming) => incoming.recv().await.unwrap_or_else(|| Err(closed())),
            None => Err(closed()),
        }
    }

    /// Sends `last` and waits until it has left.
    async fn finish(self, last: Out<O>) {
        for out in [last, Out::End] {
            // Ignored because: the session is over either way.
            let _ = self.sender.queue.send_timeout(out, FAREWELL_DEADLINE).await;
        }
        // Ignored because: as above.
        let _ = tokio::time::timeout(FAREWELL_DEADLINE, self.sender.queue.closed()).await;
    }
}

/// Hands on what arrives. Time that the receiver needs does not count as the peer's silence.
async fn read<I: Beat>(
    mut stream: Streaming<I>,
    deliver: mpsc::Sender<Result<I, WireError>>,
    silence: Duration,
    addr: String,
) {
    loop {
        let item = match tokio::time::timeout(silence, stream.message()).await {
            Ok(Ok(Some(message))) if message.is_beat() => continue,
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(WireError::Closed { addr: addr.clone(), source: None }),
            Ok(Err(status)) => Err(status::to_error(status, &addr, SESSION_MESSAGE_MAX)),
            Err(_) => Err(WireError::Silent { addr: addr.clone(), silent: silence }),
        };
        let over = item.is_err();
        let delivered = deliver.send_timeout(item, DELIVER_DEADLINE).await;
        if delivered.is_err() || over {
            return;
        }
    }
}

/// Beats until the session ends; says farewell when the server stops.
async fn beat<O: Beat>(
    queue: mpsc::Sender<Out<O>>,
    period: Duration,
    stopping: Option<watch::Receiver<bool>>,
) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stop = async {
        match stopping {
            // Ignored because: a server that is gone altogether stops too.
            Some(mut stopping) => drop(stopping.wait_for(|stop| *stop).await),
            None => std::future::pending().await,
        }
    };
    tokio::pin!(stop);
    for number in 1.. {
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = ticks.tick() => {}
        }
        match queue.try_send(Out::Message(O::beat(number))) {
            // A full queue shows as life by itself once the peer reads on.
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
    for out in O::farewell().map(Out::Message).into_iter().chain([Out::End]) {
        // Ignored because: the session is over either way.
        let _ = queue.send_timeout(out, FAREWELL_DEADLINE).await;
    }
}

/// The manager's end of a session.
#[derive(Debug)]
pub struct ServerSession {
    hello: Hello,
    peer: PeerIdentity,
    remote: SocketAddr,
    link: Link<NodeMessage, ManagerMessage>,
    stream: Option<Streaming<NodeMessage>>,
    stopping: watch::Receiver<bool>,
}

impl ServerSession {
    pub(crate) fn new(
        hello: Hello,
        peer: PeerIdentity,
        remote: SocketAddr,
        stream: Streaming<NodeMessage>,
        stopping: watch::Receiver<bool>,
    ) -> (Self, OutStream<ManagerMessage>) {
        let (link, outgoing) = Link::new(&format!("{} ({remote})", peer.node_id));
        (Self { hello, peer, remote, link, stream: Some(stream), stopping }, outgoing)
    }

    /// The node's first message; its id is proven by its certificate.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Whom the certificate names.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Where it connects from.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Accepts the session: heartbeats begin.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the node is gone already.
    pub async fn accept(&mut self, welcome: Welcome) -> Result<(), WireError> {
        let period = Duration::from_millis(welcome.heartbeat_period_ms);
        self.link.sender.send(ManagerMessage::Welcome(welcome)).await?;
        if let Some(stream) = self.stream.take() {
            self.link.run(stream, period, Some(self.stopping.clone()));
        }
        Ok(())
    }

    /// Refuses the session instead of accepting it; the node reads `fault`.
    pub async fn refuse(self, fault: RemoteFault) {
        self.link.finish(Out::Refuse(Box::new(status::from_fault(fault)))).await;
    }

    /// Ends the session with a reason.
    pub async fn end(self, bye: Bye) {
        self.link.finish(Out::Message(ManagerMessage::Bye(bye))).await;
    }

    /// A handle that sends to the node.
    #[must_use]
    pub fn sender(&self) -> SessionSender<ManagerMessage> {
        self.link.sender.clone()
    }

    /// The node's next message, without heartbeats. Cancel safe.
    ///
    /// # Errors
    /// How the session ended: [`WireError::Silent`], [`WireError::Closed`]…
    pub async fn next(&mut self) -> Result<NodeMessage, WireError> {
        self.link.next().await
    }
}

/// The node's end of a session. Dropping it ends the session.
#[derive(Debug)]
pub struct ClientSession {
    welcome: Welcome,
    link: Link<ManagerMessage, NodeMessage>,
}

/// A session that has said hello and has no answer yet.
pub(crate) struct Opening(Link<ManagerMessage, NodeMessage>);

impl Opening {
    /// Queues `hello`; gives the stream for the call.
    pub(crate) fn new(
        addr: &str,
        hello: Hello,
    ) -> Result<(Self, impl Stream<Item = NodeMessage> + Send + use<>), WireError> {
        let (link, outgoing) = Link::new(addr);
        let hello = Out::Message(NodeMessage::Hello(Box::new(hello)));
        let closed = |_| WireError::Closed { addr: addr.to_owned(), source: None };
        link.sender.queue.try_send(hello).map_err(closed)?;
        // A client has nothing to refuse, so there are no errors in its stream.
        Ok((Self(link), outgoing.filter_map(|item| std::future::ready(item.ok()))))
    }

    /// The session, once the manager has answered.
    pub(crate) fn welcomed(
        mut self,
        welcome: Welcome,
        stream: Streaming<ManagerMessage>,
    ) -> ClientSession {
        self.0.run(stream, Duration::from_millis(welcome.heartbeat_period_ms), None);
        ClientSession { welcome, link: self.0 }
    }
}

impl ClientSession {
    /// The manager's first message.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// A handle that sends to the manager.
    #[must_use]
    pub fn sender(&self) -> SessionSender<NodeMessage> {
        self.link.sender.clone()
    }

    /// The manager's next message, without heartbeats. Cancel safe.
    ///
    /// # Errors
    /// How the session ended: [`WireError::Silent`], [`WireError::Closed`]…
    pub async fn next(&mut self) -> Result<ManagerMessage, WireError> {
        self.link.next().await
    }

    /// Ends the session after what is queued (a last status, a `Leave`) has left.
    pub async fn close(self) {
        self.link.finish(Out::End).await;
    }
}
