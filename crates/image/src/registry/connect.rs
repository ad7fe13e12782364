//! Connections to registries: addresses, TCP, TLS; open ones are used again.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::{Service, ServiceExt};

use super::lookup;

/// Look-up, TCP and TLS together. Offline must be noticed fast: an unreachable registry holds up a
/// task's start.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a registry may think before its answer begins.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How long a connection may be idle and be used again: less than servers wait before they close.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections kept: as many as layers are downloaded at once.
const IDLE_CONNECTIONS_MAX: usize = 3;

/// A body to send.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

type AnyError = Box<dyn Error + Send + Sync>;

/// The way to one registry, and the connections that are open on it.
#[derive(Clone)]
pub(super) struct Door {
    connector: Connector,
    client: Client<Connector, Body>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Not even TCP.
    Network(io::Error),
    /// TCP, but no TLS: perhaps the registry speaks plain HTTP.
    Tls(io::Error),
    /// A connection that was open ended before the answer began; the request may be sent again if
    /// that does no harm.
    Ended(io::Error),
    /// The exchange broke off.
    Broken(io::Error),
}

impl Failed {
    fn of(error: &ClientError) -> Self {
        let connecting = error.is_connect();
        let causes = || std::iter::successors(error.source(), |&cause| cause.source());
        let ended = |cause: &(dyn Error + 'static)| {
            let cause = cause.downcast_ref::<hyper::Error>();
            cause.is_some_and(|cause| cause.is_incomplete_message() || cause.is_canceled())
        };
        match error.source() {
            Some(cause) if connecting => Self::connecting(cause),
            Some(cause) if causes().any(ended) => Self::Ended(flat(cause)),
            cause => Self::Broken(flat(cause.unwrap_or(error))),
        }
    }

    fn connecting(cause: &(dyn Error + 'static)) -> Self {
        match cause.downcast_ref::<Unreachable>() {
            Some(Unreachable(error)) => Self::Network(flat(error)),
            None => Self::Tls(flat(cause)),
        }
    }
}

/// An error as one of input and output, with all its causes in its text: the library lends its
/// errors, it does not give them away.
fn flat(error: &(dyn Error + 'static)) -> io::Error {
    let mut texts: Vec<String> = Vec::new();
    let mut kind = io::ErrorKind::Other;
    for cause in std::iter::successors(Some(error), |&cause| cause.source()) {
        let text = cause.to_string();
        // Wrappers of the library repeat what they wrap.
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            kind = error.kind();
        }
    }
    io::Error::new(kind, texts.join(": "))
}

impl Door {
    pub(super) fn new(config: Arc<ClientConfig>) -> Self {
        let connector = Connector(config);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector.clone());
        Self { connector, client }
    }

    /// Tries whether a connection to `url` can be made, and closes it.
    pub(super) async fn knock(&self, url: Uri) -> Result<(), Failed> {
        let knocked = self.connector.clone().oneshot(url).await;
        knocked.map(|_| ()).map_err(|error| Failed::connecting(error.as_ref()))
    }

    /// Sends one request and waits for the head of the answer. Whoever drops the answer before its
    /// end closes the connection.
    pub(super) async fn exchange(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failed> {
        match timeout(ANSWER_DEADLINE, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| Failed::of(&error)),
            Err(_) => Err(Failed::Broken(late("no answer", ANSWER_DEADLINE))),
        }
    }
}

fn late(what: &str, deadline: Duration) -> io::Error {
    let text = format!("{what} within {} s", deadline.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Connects with TLS where the URL says so, within [`CONNECT_DEADLINE`].
#[derive(Clone)]
struct Connector(Arc<ClientConfig>);

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = AnyError;
    type Future = BoxFuture<'static, Result<Self::Response, AnyError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let dialled = Arc::new(AtomicBool::new(false));
        let dial = Dial(Arc::clone(&dialled));
        let connecting = HttpsConnector::from((dial, Arc::clone(&self.0))).call(url);
        Box::pin(async move {
            match timeout(CONNECT_DEADLINE, connecting).await {
                Ok(done) => done,
                // A server that is silent to a TLS hello may speak plain HTTP.
                Err(_) if dialled.load(Ordering::Relaxed) => {
                    Err(late("no TLS handshake", CONNECT_DEADLINE).into())
                }
                Err(_) => {
                    let error = late("no connection", CONNECT_DEADLINE);
                    Err(Unreachable(error).into())
                }
            }
        })
    }
}

/// No TCP connection.
#[derive(Debug)]
struct Unreachable(io::Error);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Unreachable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// Connects with TCP, and notes when it has. Looks names up itself (see [`lookup`]) and says which
/// address refused.
#[derive(Clone)]
struct Dial(Arc<AtomicBool>);

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = Unreachable;
    type Future = BoxFuture<'static, Result<Self::Response, Unreachable>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let dialled = Arc::clone(&self.0);
        Box::pin(async move {
            let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
            let port = url.port_u16().unwrap_or(default);
            let host = url.host().unwrap_or_default();
            let stream = tcp(host, port).await.map_err(Unreachable)?;
            dialled.store(true, Ordering::Relaxed);
            Ok(TokioIo::new(stream))
        })
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = None;
    for address in lookup::addresses(host, port).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => {
                last = Some(io::Error::new(error.kind(), format!("dial {address}: {error}")));
            }
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("the name has no address")))
}
