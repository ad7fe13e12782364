//! The server on the library's own sockets.

use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::net::SocketAddrV4;
use core::pin::pin;
use core::task::{Context, Poll};

use super::{Broken, Connection, Handler, Limits, SECOND_NS, Shared, Stream};
use crate::net::{TcpListener, TcpStream};
use crate::{executor, time};

/// How long connections may finish their requests when the instance is asked to stop.
const STOP_NS: u64 = 5 * SECOND_NS;
/// How often it is looked whether there is room for a connection, or none left.
const LOOK: time::Duration = time::Duration::from_millis(10);

/// HTTP over TCP without TLS.
#[derive(Debug)]
pub struct Plain(pub TcpStream);

impl Stream for Plain {
    type Sleep = time::Sleep;

    fn poll_read(&self, context: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Broken>> {
        self.0.poll_read(context, to).map_err(|_| Broken)
    }

    fn poll_write(&self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.0.poll_write(context, data).map_err(|_| Broken)
    }

    async fn shutdown(&self) -> Result<(), Broken> {
        self.0.shutdown().await.map_err(|_| Broken)
    }

    fn now_ns(&self) -> u64 {
        executor::now_ns()
    }

    fn wall_seconds(&self) -> u64 {
        time::wall_clock().as_secs()
    }

    fn sleep_until(&self, moment_ns: u64) -> Self::Sleep {
        time::sleep_until(time::Instant::at(moment_ns))
    }

    fn peer(&self) -> SocketAddrV4 {
        self.0.peer()
    }

    fn local(&self) -> SocketAddrV4 {
        self.0.local()
    }
}

/// Serves connections until the instance is asked to stop; then lets requests that are under way
/// finish.
pub async fn serve<H>(listener: TcpListener, handler: H, limits: Limits)
where
    H: Handler<Plain> + 'static,
{
    let shared = Rc::new(Shared::default());
    let handler = Rc::new(handler);
    let mut stop = pin!(crate::stop_requested());
    loop {
        if shared.active.get() >= limits.connections_max {
            time::sleep(LOOK).await;
            continue;
        }
        let mut accept = pin!(listener.accept());
        let accepted = poll_fn(|context| {
            if stop.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            accept.as_mut().poll(context).map(Some)
        });
        let Some(stream) = accepted.await else { break };
        let (shared, handler) = (Rc::clone(&shared), Rc::clone(&handler));
        shared.active.set(shared.active.get() + 1);
        crate::spawn(async move {
            Connection::new(Plain(stream), &shared, &limits).run(&*handler).await;
            shared.active.set(shared.active.get() - 1);
        });
    }
    shared.stopping.set(true);
    drop(listener);
    let deadline_ns = executor::now_ns().saturating_add(STOP_NS);
    while shared.busy.get() > 0 && executor::now_ns() < deadline_ns {
        time::sleep(LOOK).await;
    }
}
