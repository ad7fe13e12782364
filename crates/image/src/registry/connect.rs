//! Connections to registries: TCP, TLS, and one HTTP exchange on them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::lookup;

/// Look-up, TCP and TLS together. Offline must be noticed fast: an unreachable registry holds up a
/// task's start.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a registry may think before its answer begins.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// A body to send.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection for one exchange.
pub(super) struct Connection(Box<dyn Stream>);

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Refused {
    /// Not even TCP.
    Network(io::Error),
    /// TCP, but no TLS: perhaps the registry speaks plain HTTP.
    Tls(io::Error),
}

impl Refused {
    pub(super) fn into_inner(self) -> io::Error {
        match self {
            Self::Network(error) | Self::Tls(error) => error,
        }
    }
}

/// Connects; `tls` for HTTPS. Ends within [`CONNECT_DEADLINE`].
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Connection, Refused> {
    let late = |what: &str| {
        let text = format!("{what} did not end within {} s", CONNECT_DEADLINE.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    let tcp = timeout(CONNECT_DEADLINE, tcp(host, port))
        .await
        .map_err(|_| Refused::Network(late("the connection attempt")))?
        .map_err(Refused::Network)?;
    let Some(config) = tls else { return Ok(Connection(Box::new(tcp))) };
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|e| Refused::Tls(io::Error::other(e)))?;
    let handshake = TlsConnector::from(Arc::clone(config)).connect(name, tcp);
    let stream = timeout(CONNECT_DEADLINE, handshake)
        .await
        .map_err(|_| Refused::Tls(late("the TLS handshake")))?
        .map_err(Refused::Tls)?;
    Ok(Connection(Box::new(stream)))
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = None;
    for address in lookup::addresses(host, port).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                last = Some(io::Error::new(error.kind(), format!("dial {address}: {error}")));
            }
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("the name has no address")))
}

/// An answer whose body is still on the wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub response: Response<Incoming>,
    pub connection: Guard,
}

/// Ends the task that drives a connection.
#[derive(Debug)]
pub(super) struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Sends one request and waits for the head of the answer.
    pub(super) async fn exchange(self, request: Request<Body>) -> io::Result<Answer> {
        let (mut sender, driver) =
            http1::handshake(TokioIo::new(self.0)).await.map_err(io::Error::other)?;
        // Its failure reaches us through the response or its body.
        let connection = Guard(tokio::spawn(driver).abort_handle());
        let response = timeout(ANSWER_DEADLINE, sender.send_request(request))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 60 s"))?
            .map_err(io::Error::other)?;
        Ok(Answer { response, connection })
    }
}
