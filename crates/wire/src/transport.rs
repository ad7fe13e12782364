//! Connections: TCP, then TLS, each with its deadline and its own error.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::tls;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::error::WireError;
use crate::status::within;
use crate::watched::{Watch, Watched};

/// How long name resolution may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// How long one TCP connection attempt may take: two retransmitted SYNs.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);
/// How long a TLS handshake may take, on both sides. A slower one is not a busy peer but a broken
/// or hostile one.
pub(crate) const TLS_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// How long a connected client may wait with its first byte.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection without certificate may live: joining takes less.
const ANONYMOUS_DEADLINE: Duration = Duration::from_secs(30);

/// Opens a TCP connection to `addr`, `host:port`.
pub(crate) async fn connect_tcp(addr: &str) -> Result<TcpStream, WireError> {
    if addr
        .rsplit_once(':')
        .is_none_or(|(host, port)| host.is_empty() || !matches!(port.parse::<u16>(), Ok(1..)))
    {
        return Err(WireError::Address { addr: addr.to_owned() });
    }
    let resolve = async {
        let resolved = tokio::net::lookup_host(addr).await;
        resolved.map_err(|source| WireError::Resolve { addr: addr.to_owned(), source })
    };
    let addresses = within("name resolution", addr, RESOLVE_DEADLINE, resolve).await?;
    let mut last = WireError::Resolve {
        addr: addr.to_owned(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    };
    for address in addresses.take(ADDRESSES_MAX) {
        let text = address.to_string();
        let open = async {
            let stream = TcpStream::connect(address).await;
            stream.map_err(|source| WireError::Connect { addr: address, source })
        };
        match within("TCP connection", &text, CONNECT_DEADLINE, open).await {
            Ok(stream) => {
                // Ignored because: the connection works without it, only slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Opens TLS on top.
pub(crate) async fn connect_tls(
    addr: &str,
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<ClientStream, WireError> {
    // Certificates name nodes, not hosts; the library wants a name all the same.
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    let refused = RefusalSlot::default();
    let handshake = async {
        let connected = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        connected.map_err(|source| tls_error(addr, source))
    };
    let inner = within("TLS handshake", addr, TLS_DEADLINE, handshake).await?;
    Ok(Watched::new(inner, refused))
}

fn tls_error(addr: &str, source: io::Error) -> WireError {
    let addr = addr.to_owned();
    let inner = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    if let Some(source) = inner.and_then(tls::refusal_in) {
        return WireError::PeerCertificate { addr, source };
    }
    if let Some(reason) = inner.and_then(refusal_of_ours) {
        return WireError::OwnCertificate { addr, reason };
    }
    WireError::Tls { addr, source }
}

/// The peer's words, if it refused our certificate.
fn refusal_of_ours(error: &rustls::Error) -> Option<String> {
    use rustls::AlertDescription as A;
    let rustls::Error::AlertReceived(alert) = error else { return None };
    let reason = match alert {
        A::UnknownCA => "it was issued by another cluster",
        A::CertificateExpired => "by the manager's clock it has expired or is not valid yet",
        A::CertificateRevoked => "it was revoked",
        A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown => {
            "it is not a node's certificate"
        }
        A::CertificateRequired | A::AccessDenied => "a certificate is required",
        _ => return None,
    };
    Some(reason.to_owned())
}

/// Why the peer refused our certificate. In TLS 1.3 that arrives after the handshake, as the error
/// of a read, and the layers above lose it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalSlot(Arc<Mutex<Option<String>>>);

impl RefusalSlot {
    /// The better error, if the peer has refused our certificate.
    pub(crate) fn improve(&self, error: WireError, addr: &str) -> WireError {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*slot, error) {
            (Some(reason), WireError::Closed { .. }) => {
                WireError::OwnCertificate { addr: addr.to_owned(), reason: reason.clone() }
            }
            (_, error) => error,
        }
    }
}

impl Watch for RefusalSlot {
    fn look(
        &mut self,
        _: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        _: bool,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = &result {
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            if let Some(reason) = inner.and_then(refusal_of_ours) {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            }
        }
        result
    }
}

/// A client's connection.
pub(crate) type ClientStream = Watched<tokio_rustls::client::TlsStream<TcpStream>, RefusalSlot>;

/// Who is at the other end of a server's connection.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    /// Where from.
    pub(crate) remote: SocketAddr,
    /// Proven by a certificate of the cluster; `None` if it showed none.
    pub(crate) identity: Option<PeerIdentity>,
}

/// A server's connection.
pub(crate) type ServerStream = Watched<tokio_rustls::server::TlsStream<TcpStream>, Guest>;

/// Whoever has connected to a server, and for how long it may stay silent.
pub(crate) struct Guest {
    info: PeerInfo,
    /// When to give up: on the first byte of a member, on an anonymous connection as a whole.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Opens TLS on `stream` and reads who is there.
pub(crate) async fn accept(
    stream: TcpStream,
    remote: SocketAddr,
    config: Arc<rustls::ServerConfig>,
) -> Result<ServerStream, WireError> {
    let addr = remote.to_string();
    let handshake = async {
        let accepted = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
        accepted.map_err(|source| tls_error(&addr, source))
    };
    let inner = within("TLS handshake", &addr, TLS_DEADLINE, handshake).await?;
    let certs = inner.get_ref().1.peer_certificates().filter(|c| !c.is_empty());
    let identity = certs
        .map(PeerIdentity::from_certs)
        .transpose()
        .map_err(|source| WireError::PeerCertificate { addr, source })?;
    let limit = if identity.is_some() { FIRST_BYTE_DEADLINE } else { ANONYMOUS_DEADLINE };
    let deadline = Some(Box::pin(tokio::time::sleep(limit)));
    Ok(Watched::new(inner, Guest { info: PeerInfo { remote, identity }, deadline }))
}

impl Connected for ServerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.watch.info.clone()
    }
}

impl Watch for Guest {
    fn look(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        some: bool,
    ) -> Poll<io::Result<()>> {
        if matches!(result, Poll::Ready(Ok(()))) && some && self.info.identity.is_some() {
            self.deadline = None;
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        result
    }
}
