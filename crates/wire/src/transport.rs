//! Connections: TCP, then TLS, each with its deadline and its own error.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::tls::{self, ServerTls, Shown};
use shoal_model::id::NodeId;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use crate::error::WireError;
use crate::standing::Standing;
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
        resolved.map_err(|source| WireError::Resolve {
            addr: addr.to_owned(),
            source: Arc::new(source),
        })
    };
    let addresses = within("name resolution", addr, RESOLVE_DEADLINE, resolve).await?;
    let mut last = WireError::Resolve {
        addr: addr.to_owned(),
        source: Arc::new(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
    };
    for address in addresses.take(ADDRESSES_MAX) {
        let text = address.to_string();
        let open = async {
            let stream = TcpStream::connect(address).await;
            stream.map_err(|source| WireError::Connect { addr: address, source: Arc::new(source) })
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
    let handshake = async {
        let connected = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        connected.map_err(|source| tls_error(addr, source))
    };
    let inner = within("TLS handshake", addr, TLS_DEADLINE, handshake).await?;
    Ok(Watched::new(inner, Observer(Fate::default())))
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
    WireError::Tls { addr, source: Arc::new(source) }
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

/// What became of a client's connection, as the socket tells it: the layers above lose that. Cheap
/// to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(watch::Sender<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Why the peer refused our certificate. In TLS 1.3 that arrives after the handshake, as the
    /// error of a read.
    refusal: Option<String>,
    /// The peer's kernel said that there is nothing more: the peer closed, or died.
    ended: bool,
    /// There is no connection any more, for whatever reason.
    over: bool,
}

impl Fate {
    /// Whether nothing can be sent any more.
    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().over
    }

    /// Returns once nothing can be sent any more.
    pub(crate) async fn over(&self) {
        // Ignored because: this is the other end.
        let _ = self.0.subscribe().wait_for(|known| known.over).await;
    }

    fn note(&self, what: impl FnOnce(&mut Known)) {
        self.0.send_modify(what);
    }

    /// The better error: why the peer refused our certificate, whether it closed the connection or
    /// fell silent.
    pub(crate) fn improve(&self, error: WireError, addr: &str, silence: Duration) -> WireError {
        let WireError::Closed { source, .. } = error else { return error };
        let addr = addr.to_owned();
        let (refusal, ended, over) = {
            let known = self.0.borrow();
            (known.refusal.clone(), known.ended, known.over)
        };
        if let Some(reason) = refusal {
            return WireError::OwnCertificate { addr, reason };
        }
        if ended {
            self.note(|known| known.over = true);
            return WireError::Closed { addr, source };
        }
        if over || source.as_deref().is_some_and(is_unanswered_ping) {
            self.note(|known| known.over = true);
            return WireError::Silent { addr, silent: silence };
        }
        WireError::Closed { addr, source }
    }
}

fn is_unanswered_ping(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Looks at a client's connection while there is one.
#[derive(Debug)]
pub(crate) struct Observer(Fate);

impl Observer {
    pub(crate) fn fate(&self) -> Fate {
        self.0.clone()
    }

    fn failed(&self, error: &io::Error) {
        use io::ErrorKind as K;
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let refusal = inner.and_then(refusal_of_ours);
        // Anything else (no way to the host, no answer to what was sent) is silence.
        let ended = matches!(
            error.kind(),
            K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe
        );
        self.0.note(|known| {
            known.ended |= ended;
            if refusal.is_some() {
                known.refusal = refusal;
            }
        });
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.note(|known| known.over = true);
    }
}

impl Watch for Observer {
    fn look(
        &mut self,
        _: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        some: bool,
    ) -> Poll<io::Result<()>> {
        match &result {
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Ready(Ok(())) if !some => self.0.note(|known| known.ended = true),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        result
    }

    fn write_failed(&mut self, error: &io::Error) {
        self.failed(error);
    }
}

/// A client's connection.
pub(crate) type ClientStream = Watched<tokio_rustls::client::TlsStream<TcpStream>, Observer>;

/// The manager that `stream` leads to, by its certificate.
pub(crate) fn manager_at(addr: &str, stream: &ClientStream) -> Result<NodeId, WireError> {
    let certs = stream.stream().get_ref().1.peer_certificates().unwrap_or_default();
    let refuse = |source| WireError::PeerCertificate { addr: addr.to_owned(), source };
    PeerIdentity::from_certs(certs).map(|peer| peer.node_id).map_err(refuse)
}

/// What the manager that `stream` leads to has shown.
pub(crate) fn shown_by(addr: &str, stream: &ClientStream) -> Result<Shown, WireError> {
    let certs = stream.stream().get_ref().1.peer_certificates().unwrap_or_default();
    let refuse = |source| WireError::PeerCertificate { addr: addr.to_owned(), source };
    Shown::new(certs).map_err(refuse)
}

/// Who is at the other end of a server's connection.
#[derive(Clone, Debug)]
pub(crate) struct PeerInfo {
    /// Where from.
    pub(crate) remote: SocketAddr,
    /// Proven by a certificate of the cluster; `None` if it showed none.
    pub(crate) proven: Option<Arc<Standing>>,
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
    tls: &ServerTls,
) -> Result<ServerStream, WireError> {
    let addr = remote.to_string();
    let handshake = async {
        let accepted = tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream).await;
        accepted.map_err(|source| tls_error(&addr, source))
    };
    let inner = within("TLS handshake", &addr, TLS_DEADLINE, handshake).await?;
    let certs = inner.get_ref().1.peer_certificates().filter(|c| !c.is_empty());
    let proven = certs
        .map(|certs| Ok(Arc::new(Standing::new(tls.peer(certs)?, Shown::new(certs)?))))
        .transpose()
        .map_err(|source| WireError::PeerCertificate { addr, source })?;
    let limit = if proven.is_some() { FIRST_BYTE_DEADLINE } else { ANONYMOUS_DEADLINE };
    let deadline = Some(Box::pin(tokio::time::sleep(limit)));
    Ok(Watched::new(inner, Guest { info: PeerInfo { remote, proven }, deadline }))
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
        if matches!(result, Poll::Ready(Ok(()))) && some && self.info.proven.is_some() {
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
