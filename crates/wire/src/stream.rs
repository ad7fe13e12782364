//! Streams: bytes both ways between a manager and a node, over a connection of their own.
//!
//! Nodes only dial out. So a manager that wants to reach a node asks for it in the node's session
//! ([`crate::message::OpenStream`]), and the node opens the stream with the number that it was
//! given. What the bytes mean is not known here.
//!
//! On the wire a piece is one byte that says what it is, then its body. Kinds that a version does
//! not know are skipped. Either side ends what it sends by itself; a stream that breaks off without
//! such an end is an error for its reader, never an end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::client::Client;
use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::status;

/// Bytes in one piece at most.
const PIECE_MAX: usize = 64 << 10;
/// Largest piece on the wire, with what is around it.
pub(crate) const STREAM_MESSAGE_MAX: usize = PIECE_MAX + 1024;
/// Pieces that wait to be sent: with the window of the connection, what one side may be ahead.
const QUEUE_MAX: usize = 4;
/// How long the last bytes of a stream may take to be read. Dropping the connection earlier would
/// lose them.
const LINGER: Duration = Duration::from_secs(10);
/// How long a full queue is waited for when a stream is refused.
const REFUSE_DEADLINE: Duration = Duration::from_secs(1);

/// The first piece of a stream: [`Opened`] as JSON.
const OPEN: u8 = 1;
/// Bytes.
const DATA: u8 = 2;
/// The sender sends no more bytes.
const END: u8 = 3;
/// The sender gives up: a [`RemoteFault`] as JSON.
const FAILED: u8 = 4;

/// What a node says first on a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Opened {
    /// The node's [`crate::message::PROTOCOL_VERSION`].
    pub v: u32,
    /// The number that it was given.
    pub number: u64,
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    kind: u8,
    body: Bytes,
}

impl Piece {
    /// The first one.
    pub(crate) fn open(opened: Opened) -> Self {
        // Cannot fail: two numbers.
        let body = serde_json::to_vec(&opened).unwrap_or_default();
        Self { kind: OPEN, body: body.into() }
    }

    /// What the first one says.
    pub(crate) fn opened(&self) -> Option<Opened> {
        (self.kind == OPEN).then(|| serde_json::from_slice(&self.body).ok()).flatten()
    }
}

/// Pieces as the bodies of messages.
#[derive(Debug, Default)]
pub(crate) struct PieceCodec;

impl Codec for PieceCodec {
    type Encode = Piece;
    type Decode = Piece;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for PieceCodec {
    type Item = Piece;
    type Error = Status;

    fn encode(&mut self, piece: Piece, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(piece.body.len() + 1);
        buffer.put_u8(piece.kind);
        buffer.put(piece.body);
        Ok(())
    }
}

impl Decoder for PieceCodec {
    type Item = Piece;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Piece>, Status> {
        if !buffer.has_remaining() {
            return Err(Status::invalid_argument("a piece of a stream is empty"));
        }
        let kind = buffer.get_u8();
        let body = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(Piece { kind, body }))
    }
}

/// What one side of a stream sends.
pub(crate) type Outgoing = ReceiverStream<Piece>;

/// One end of a stream. Shutting it down ends what this side sends; dropping it before breaks the
/// stream off.
pub struct Tunnel {
    incoming: BoxStream<'static, Result<Piece, Status>>,
    /// What was read off the wire and not taken yet.
    rest: Bytes,
    /// Whether the peer has ended what it sends.
    heard_end: bool,
    outgoing: PollSender<Piece>,
    /// Whether this side has ended what it sends.
    said_end: bool,
    addr: Arc<str>,
    /// The end that has opened the connection keeps it.
    connection: Option<Client>,
    /// Ends when the stream is to break off.
    lost: Option<BoxFuture<'static, io::Error>>,
    broken_off: bool,
    /// Dropped with this end.
    _kept: Option<Box<dyn Send>>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("addr", &self.addr).finish_non_exhaustive()
    }
}

/// A queue for what one side sends.
pub(crate) fn queue() -> (mpsc::Sender<Piece>, Outgoing) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (sender, ReceiverStream::new(receiver))
}

impl Tunnel {
    pub(crate) fn new(
        incoming: impl Stream<Item = Result<Piece, Status>> + Send + 'static,
        outgoing: mpsc::Sender<Piece>,
        addr: &str,
        connection: Option<Client>,
    ) -> Self {
        Self {
            incoming: incoming.boxed(),
            rest: Bytes::new(),
            heard_end: false,
            outgoing: PollSender::new(outgoing),
            said_end: false,
            addr: addr.into(),
            connection,
            lost: None,
            broken_off: false,
            _kept: None,
        }
    }

    /// Breaks off as soon as `lost` ends, and says that to who reads or writes.
    #[must_use]
    pub fn until(mut self, lost: impl Future<Output = io::Error> + Send + 'static) -> Self {
        self.lost = Some(Box::pin(lost));
        self
    }

    /// Keeps something for as long as this end: a place among those that there are, say.
    #[must_use]
    pub fn keeping(mut self, kept: impl Send + 'static) -> Self {
        self._kept = Some(Box::new(kept));
        self
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.broken_off {
            return Err(self.broken(None));
        }
        if let Some(lost) = &mut self.lost
            && let Poll::Ready(error) = lost.as_mut().poll(cx)
        {
            self.broken_off = true;
            self.lost = None;
            return Err(error);
        }
        Ok(())
    }

    /// Gives the stream up: the peer's next read fails with `fault`.
    pub async fn refuse(mut self, fault: &RemoteFault) {
        // Cannot fail: four texts always serialise.
        let body = serde_json::to_vec(fault).unwrap_or_default();
        let piece = Piece { kind: FAILED, body: body.into() };
        if let Some(outgoing) = self.outgoing.get_ref() {
            // Ignored because: a peer that takes nothing finds the stream broken off.
            let _ = tokio::time::timeout(REFUSE_DEADLINE, outgoing.send(piece)).await;
        }
        self.said_end = true;
    }

    fn broken(&self, why: Option<Status>) -> io::Error {
        match why.map(|status| status::to_error(status, &self.addr, STREAM_MESSAGE_MAX)) {
            Some(WireError::Remote(fault)) => io::Error::other(fault),
            Some(error @ (WireError::TooLarge { .. } | WireError::Malformed { .. })) => {
                io::Error::other(error)
            }
            // What the layers below say of it helps nobody who reads this line.
            _ => io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended"),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, piece: Piece) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream has ended");
        ready!(self.outgoing.poll_reserve(cx)).map_err(gone)?;
        Poll::Ready(self.outgoing.send_item(piece).map_err(gone))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.check(cx)?;
        loop {
            if !me.rest.is_empty() {
                let count = me.rest.len().min(buf.remaining());
                buf.put_slice(&me.rest.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if me.heard_end {
                return Poll::Ready(Ok(()));
            }
            let piece = match ready!(me.incoming.as_mut().poll_next(cx)) {
                Some(Ok(piece)) => piece,
                Some(Err(status)) => return Poll::Ready(Err(me.broken(Some(status)))),
                None => return Poll::Ready(Err(me.broken(None))),
            };
            match piece.kind {
                DATA => me.rest = piece.body,
                END => me.heard_end = true,
                FAILED => {
                    let fault: RemoteFault =
                        serde_json::from_slice(&piece.body).unwrap_or_default();
                    return Poll::Ready(Err(io::Error::other(fault)));
                }
                // Of a later version.
                _ => {}
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        me.check(cx)?;
        let piece = buf.get(..PIECE_MAX).unwrap_or(buf);
        if piece.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream has ended");
        // Copied only when there is room for it.
        ready!(me.outgoing.poll_reserve(cx)).map_err(gone)?;
        let body = Bytes::copy_from_slice(piece);
        me.outgoing.send_item(Piece { kind: DATA, body }).map_err(gone)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was taken is sent as soon as the peer takes it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.said_end {
            return Poll::Ready(Ok(()));
        }
        ready!(me.poll_send(cx, Piece { kind: END, body: Bytes::new() }))?;
        me.said_end = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !self.said_end {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        // The last bytes are still on their way. The peer ends the stream when it has them.
        let mut incoming = std::mem::replace(&mut self.incoming, futures::stream::empty().boxed());
        runtime.spawn(async move {
            let read = async { while let Some(Ok(_)) = incoming.next().await {} };
            // Ignored because: whoever has not read them by now does not want them.
            let _ = tokio::time::timeout(LINGER, read).await;
            drop(connection);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn piece(kind: u8, body: &'static [u8]) -> Result<Piece, Status> {
        Ok(Piece { kind, body: Bytes::from_static(body) })
    }

    fn reading(pieces: Vec<Result<Piece, Status>>) -> (Tunnel, Outgoing) {
        let (sender, sent) = queue();
        (Tunnel::new(stream::iter(pieces), sender, "node", None), sent)
    }

    #[tokio::test]
    async fn unknown_kinds_are_skipped_and_an_end_is_an_end() {
        let pieces = vec![
            piece(DATA, b"a"),
            piece(200, b"later"),
            piece(DATA, b""),
            piece(DATA, b"b"),
            piece(END, b""),
            piece(DATA, b"after the end"),
        ];
        let (mut tunnel, _sent) = reading(pieces);
        let mut read = String::new();
        tunnel.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "ab");
    }

    #[tokio::test]
    async fn without_an_end_it_has_broken_off() {
        let (mut tunnel, _sent) = reading(vec![piece(DATA, b"a")]);
        let mut read = Vec::new();
        let error = tunnel.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((read, error.kind()), (b"a".to_vec(), io::ErrorKind::UnexpectedEof));
        let refusal = br#"{"kind":"unavailable","text":"no room"}"#;
        let (mut tunnel, _sent) = reading(vec![piece(FAILED, refusal)]);
        let error = tunnel.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }

    #[tokio::test]
    async fn what_is_written_is_cut_into_pieces_and_waits_for_its_reader() {
        let (mut tunnel, mut sent) = reading(Vec::new());
        let all = vec![7; PIECE_MAX + 1];
        tunnel.write_all(&all).await.unwrap();
        tunnel.shutdown().await.unwrap();
        tunnel.shutdown().await.unwrap();
        drop(tunnel);
        let mut sizes = Vec::new();
        while let Some(piece) = sent.next().await {
            sizes.push((piece.kind, piece.body.len()));
        }
        assert_eq!(sizes, [(DATA, PIECE_MAX), (DATA, 1), (END, 0)]);
        let (mut tunnel, _sent) = reading(Vec::new());
        tunnel.write_all(&vec![7; PIECE_MAX * QUEUE_MAX]).await.unwrap();
        let more = futures::poll!(std::pin::pin!(tunnel.write_all(b"x")));
        assert!(more.is_pending(), "more was taken than may wait");
    }

    #[tokio::test]
    async fn it_breaks_off_when_it_is_told_to() {
        let (sender, _sent) = queue();
        let tunnel = Tunnel::new(stream::pending(), sender, "node", None);
        let (lose, lost) = tokio::sync::oneshot::channel::<()>();
        let lost = async {
            lost.await.unwrap();
            io::Error::new(io::ErrorKind::ConnectionReset, "node 'a' is down")
        };
        let mut tunnel = tunnel.until(lost);
        tunnel.write_all(b"x").await.unwrap();
        lose.send(()).unwrap();
        let error = tunnel.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "node 'a' is down");
        assert!(tunnel.write_all(b"x").await.is_err());
    }
}
