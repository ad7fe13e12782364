//! A stream whose reads and failures somebody looks at; everything passes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Who looks at the reads of a stream.
pub(crate) trait Watch {
    /// A read has given `result`; `some` says that bytes came. What this gives is what the reader
    /// sees.
    fn look(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        some: bool,
    ) -> Poll<io::Result<()>>;

    /// A write has failed.
    fn write_failed(&mut self, _error: &io::Error) {}
}

/// A stream and who looks at it.
#[derive(Debug)]
pub(crate) struct Watched<S, W> {
    stream: S,
    pub(crate) watch: W,
}

impl<S, W> Watched<S, W> {
    /// From now on `watch` looks at the reads of `stream`.
    pub(crate) fn new(stream: S, watch: W) -> Self {
        Self { stream, watch }
    }

    /// The stream below.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S, W: Watch> Watched<S, W> {
    fn see<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            self.watch.write_failed(error);
        }
        result
    }
}

impl<S: AsyncRead + Unpin, W: Watch + Unpin> AsyncRead for Watched<S, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let some = buf.filled().len() > before;
        self.watch.look(cx, result, some)
    }
}

impl<S: AsyncWrite + Unpin, W: Watch + Unpin> AsyncWrite for Watched<S, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.see(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.see(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
