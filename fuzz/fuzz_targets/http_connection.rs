//! Whole connections: pipelined requests with bodies, cut into reads at any place. Where the cuts
//! are must not change what is answered, and every answer must be complete.
#![no_main]

use std::cell::{Cell, RefCell};
use std::future::{Future, Ready, ready};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use unikernel::http::{
    Body, BodyError, Broken, Connection, Handler, Limits, Reply, Request, Shared, Status, Stream,
};

/// A client that has sent everything and reads everything.
struct Pipe<'a> {
    left: Cell<&'a [u8]>,
    /// Bytes of each read.
    step: usize,
    written: &'a RefCell<Vec<u8>>,
}

impl Stream for Pipe<'_> {
    type Sleep = Ready<()>;

    fn poll_read(&self, _: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Broken>> {
        let count = self.left.get().len().min(to.len()).min(self.step);
        let (now, later) = self.left.get().split_at(count);
        to[..count].copy_from_slice(now);
        self.left.set(later);
        Poll::Ready(Ok(count))
    }

    fn poll_write(&self, _: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.written.borrow_mut().extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    async fn shutdown(&self) -> Result<(), Broken> {
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        1
    }

    fn wall_seconds(&self) -> u64 {
        0
    }

    fn sleep_until(&self, _: u64) -> Ready<()> {
        ready(())
    }

    fn peer(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)
    }

    fn local(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80)
    }
}

/// Reads bodies where the path says so, and answers with what it understood.
struct Echo;

impl<S: Stream> Handler<S> for Echo {
    async fn handle(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_, S>,
        reply: &mut Reply<'_, S>,
    ) -> Result<(), Broken> {
        let fields = request.fields().count();
        if request.path().len() % 2 == 0 {
            let text = format!("{fields} {}", request.target);
            return reply.text(body, Status::OK, text.as_bytes()).await;
        }
        match body.read_all().await {
            Ok(all) => {
                let mut chunks = reply.start(Status::OK).chunks();
                chunks.write(body, &all).await?;
                chunks.finish(body).await
            }
            Err(BodyError::Broken(broken)) => Err(broken),
            Err(BodyError::Malformed) => reply.text(body, Status::BAD_REQUEST, b"").await,
            Err(BodyError::TooLong) => reply.text(body, Status::CONTENT_TOO_LARGE, b"").await,
        }
    }
}

fn run(input: &[u8], step: usize) -> Vec<u8> {
    let limits = Limits { head_bytes_max: 1024, body_bytes_max: 4096, ..Limits::default() };
    let shared = Shared::default();
    let written = RefCell::default();
    {
        let pipe = Pipe { left: Cell::new(input), step, written: &written };
        let mut running = pin!(Connection::new(pipe, &shared, &limits).run(&Echo));
        let mut context = Context::from_waker(Waker::noop());
        assert!(running.as_mut().poll(&mut context).is_ready(), "nothing is left to wait for");
    }
    assert_eq!(shared.busy.get(), 0);
    written.into_inner()
}

/// Without the invitations to send a body: whether there are some depends on what had arrived.
fn answers(written: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(written);
    text.replace("HTTP/1.1 100 Continue\r\n\r\n", "").into_bytes()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, input)) = bytes.split_first() else { return };
    let whole = run(input, usize::MAX);
    assert!(whole.is_empty() || whole.starts_with(b"HTTP/1.1 "));
    // Who asks to be invited and sends at once is answered in either way.
    if input.to_ascii_lowercase().windows(6).any(|word| word == b"expect") {
        return;
    }
    let cut = run(input, usize::from(*first) + 1);
    assert_eq!(
        String::from_utf8_lossy(&answers(&whole)),
        String::from_utf8_lossy(&answers(&cut)),
        "cut into {} bytes",
        usize::from(*first) + 1
    );
});
