//! The server: listens, gives each connection its own task, and ends all of them in order.

pub mod changes;
pub mod cluster_events;
pub mod connections;
pub mod dispatch;
pub mod fault;
pub mod listen;
pub mod router;
pub mod sessions;
pub mod tls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backend::ApiState;
use crate::http::answer;
use crate::server::connections::{Connections, Place};
use crate::server::fault::ServeError;
use crate::server::listen::{Accepted, Listener};

/// How long a connection may stay open without a request. Clients keep idle ones for minutes; a
/// shorter time makes them meet a closed one.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Most header lines of a request; docker sends about ten.
pub(crate) const HEADERS_MAX: usize = 128;
/// Longest head of a request. Filters and registry credentials travel in it.
pub(crate) const HEAD_BYTES_MAX: usize = 512 << 10;
/// How long running requests may take once the daemon stops; streams are cut after it.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Pause after a failed accept (out of descriptors), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Serves every listener until `stop`, then ends connections: idle ones at once, running requests
/// within two seconds.
///
/// # Errors
/// [`ServeError`] if there is nothing to listen on.
pub async fn serve(
    listeners: Vec<Listener>,
    state: Arc<ApiState>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    if listeners.is_empty() {
        return Err(ServeError::NoListener);
    }
    let routes = Arc::new(crate::routes::table());
    state.sessions.spawn(cluster_events::forward(state.clone()));
    let mut accepting = JoinSet::new();
    let hall =
        Hall { state: state.clone(), routes, stop, connections: Connections::within_limits() };
    for listener in listeners {
        accepting.spawn(accept_all(listener, hall.clone()));
    }
    while accepting.join_next().await.is_some() {}
    tokio::join!(state.changes.shutdown(DRAIN_MAX), state.sessions.shutdown(DRAIN_MAX));
    Ok(())
}

/// What every connection needs.
#[derive(Clone)]
struct Hall {
    state: Arc<ApiState>,
    routes: Arc<router::Router>,
    stop: CancellationToken,
    connections: Connections,
}

async fn accept_all(listener: Listener, hall: Hall) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = hall.stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(accepted) => match hall.connections.admit() {
                    Some(place) => {
                        connections.spawn(one_connection(accepted, place, hall.clone()));
                    }
                    None => tracing::warn!(
                        %listener, limit = hall.connections.max(),
                        "a client is refused: as many are served as may be"
                    ),
                },
                Err(error) => {
                    tracing::warn!(%error, listener = %listener, "accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    // Ignored because: what is still running after the drain time is cut by dropping the set.
    let _ =
        tokio::time::timeout(DRAIN_MAX, async { while connections.join_next().await.is_some() {} })
            .await;
}

async fn one_connection(accepted: Accepted, place: Arc<Place>, hall: Hall) {
    match accepted {
        Accepted::Unix(stream) => speak_http(stream, place, hall).await,
        Accepted::Tcp(stream) => speak_http(stream, place, hall).await,
        Accepted::Tls(stream, acceptor) => {
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                // Whoever has its place now needs its descriptor, too.
                () = place.must_leave() => return,
            };
            match shaken {
                Ok(Ok(stream)) => speak_http(stream, place, hall).await,
                Ok(Err(error)) => tracing::info!(%error, "TLS handshake refused"),
                Err(_) => tracing::info!("TLS handshake took too long"),
            }
        }
    }
}

async fn speak_http<S>(stream: S, place: Arc<Place>, hall: Hall)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Hall { state, routes, stop, .. } = hall;
    let occupied = place.clone();
    let service = service_fn(move |request| {
        let (state, routes, busy) = (state.clone(), routes.clone(), occupied.busy());
        async move {
            let reply = dispatch::answer(state, routes, request).await;
            Ok::<_, Infallible>(reply.map(|body| answer::until_sent(body, busy)))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = place.must_leave() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // A client that goes away in the middle is not our failure; it is said for the curious.
        tracing::debug!(error = %shoal_model::fault::chain(&error), "connection ended");
    }
}
