//! The manager's side: listens, checks who is there, calls the handlers.

mod connections;
mod managers;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::tls::ServerTls;
use shoal_model::fault::FaultKind;
use shoal_model::spec::node::NodeRole;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

pub use self::connections::Connections;
pub use self::managers::ManagerHandler;
pub use self::streams::{StreamHandler, nobody_waits};
use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::message::{
    CertificateReply, GetRootCa, Hello, IssueCertificate, ManagerMessage, NodeMessage,
    OLDEST_VERSION, PROTOCOL_VERSION, RenewCertificate, RootCaReply,
};
use crate::peers::CALL_DEADLINE_MAX;
use crate::rpc::dispatcher_server::{Dispatcher, DispatcherServer};
use crate::rpc::join_server::{Join, JoinServer};
use crate::session::ServerSession;
use crate::standing::wall;
use crate::status::{self, REQUEST_DEADLINE, from_fault};
use crate::transport::{self, PeerInfo, ServerStream};
use crate::watched::{Watch, Watched};
use crate::{JOIN_MESSAGE_MAX, SESSION_MESSAGE_MAX};

/// Connections at the same time: ten for each node of the largest cluster that is planned for.
const CONNECTIONS_MAX: usize = 10_000;
/// TLS handshakes at the same time; further ones wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 256;
/// How long a node may take from opening the stream to its hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// HTTP/2 pings find connections that are dead while nothing is sent. Sessions have heartbeats of
/// their own, which must win: they tell silence from a connection that the peer closed.
const PING_PERIOD: Duration = Duration::from_secs(5);
/// Unanswered for this long, a ping ends the connection.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// Requests and sessions at the same time on one connection; a node needs one or two.
const STREAMS_MAX: u32 = 16;
/// The same for a manager's connection: each request of its users that another one answers is one.
const MANAGER_STREAMS_MAX: u32 = 256;
/// Pause after a failed accept (no file descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long sessions may take to end at shutdown.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Answers joining and renewing nodes.
#[async_trait]
pub trait JoinHandler: Send + Sync + 'static {
    /// The cluster's root certificate. Anybody may ask.
    async fn root_ca(&self) -> Result<RootCaReply, RemoteFault>;

    /// A certificate for who has a join token. Anybody may ask; `remote` is where from.
    async fn issue_certificate(
        &self,
        remote: SocketAddr,
        request: IssueCertificate,
    ) -> Result<CertificateReply, RemoteFault>;

    /// A fresh certificate for `peer`.
    async fn renew_certificate(
        &self,
        peer: PeerIdentity,
        request: RenewCertificate,
    ) -> Result<CertificateReply, RemoteFault>;
}

/// Runs the sessions of nodes.
#[async_trait]
pub trait SessionHandler: Send + Sync + 'static {
    /// Runs one session to its end: accept, refuse or end it, then read messages until there are no
    /// more. Dropping the session ends it.
    async fn session(&self, session: ServerSession);
}

/// The handlers of a server.
#[derive(Clone)]
pub struct Handlers {
    /// Joining and renewing.
    pub join: Arc<dyn JoinHandler>,
    /// Sessions.
    pub sessions: Arc<dyn SessionHandler>,
    /// Other managers.
    pub managers: Arc<dyn ManagerHandler>,
    /// Streams that nodes open.
    pub streams: Arc<dyn StreamHandler>,
}

/// A running server. Dropping it stops the server at once.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    sessions: Sessions,
    connections: Connections,
    accepting: AbortOnDrop,
    serving: AbortOnDrop,
    _shutting_out: AbortOnDrop,
    /// Dropping it closes every connection: the RPC library runs them as tasks of its own.
    _open: watch::Sender<()>,
}

type Sessions = Arc<Mutex<JoinSet<()>>>;

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Whose connections are open.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// Stops: no new connection, sessions get `Bye`, then everything is closed.
    pub async fn shutdown(mut self) {
        self.accepting.0.abort();
        self.stop.send_replace(true);
        // Ends when every connection has sent what it had; who does not end is cut off below.
        // Ignored because: a server that did not end in time or panicked is gone either way.
        let _ = tokio::time::timeout(STOP_DEADLINE, &mut self.serving.0).await;
        let mut sessions = {
            let mut shared = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *shared)
        };
        let ended = async { while sessions.join_next().await.is_some() {} };
        // Ignored because: who has not ended by now is aborted below.
        let _ = tokio::time::timeout(STOP_DEADLINE, ended).await;
        sessions.shutdown().await;
    }
}

/// Binds the listening address.
///
/// # Errors
/// [`WireError::Listen`] names the address.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, WireError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| WireError::Listen { addr, source: Arc::new(source) })
}

/// Serves on `listener`. `tls` may change while running: new connections take the newest, so a
/// renewed certificate is used at once.
///
/// # Errors
/// [`WireError::Listen`] when the listener is unusable.
pub fn serve(
    listener: TcpListener,
    tls: watch::Receiver<ServerTls>,
    handlers: Handlers,
) -> Result<Server, WireError> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let local_addr = listener
        .local_addr()
        .map_err(|e| WireError::Listen { addr: unknown, source: Arc::new(e) })?;
    let (stop, stopping) = watch::channel(false);
    let sessions = Sessions::default();
    let join = JoinServer::new(JoinService { handler: handlers.join })
        .max_decoding_message_size(JOIN_MESSAGE_MAX)
        .max_encoding_message_size(JOIN_MESSAGE_MAX);
    let dispatcher = DispatcherServer::new(DispatcherService {
        handler: handlers.sessions,
        sessions: Arc::clone(&sessions),
        stopping: stopping.clone(),
    })
    .max_decoding_message_size(SESSION_MESSAGE_MAX)
    .max_encoding_message_size(SESSION_MESSAGE_MAX);
    let (raft, control) = managers::doors(&handlers.managers);
    let opened = streams::door(handlers.streams);
    let run = |streams: u32, deadline: Duration| {
        let (ready, connections) = mpsc::channel(HANDSHAKES_MAX);
        let mut stopping = stopping.clone();
        let server = tonic::transport::Server::builder()
            .timeout(deadline)
            .max_concurrent_streams(streams)
            .http2_keepalive_interval(Some(PING_PERIOD))
            .http2_keepalive_timeout(Some(PING_DEADLINE))
            .add_service(join.clone())
            .add_service(dispatcher.clone())
            .add_service(raft.clone())
            .add_service(control.clone())
            .add_service(opened.clone())
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
                // Ignored because: a server that is gone altogether stops too.
                drop(stopping.wait_for(|stop| *stop).await);
            });
        (ready, server)
    };
    let (nodes, for_nodes) = run(STREAMS_MAX, REQUEST_DEADLINE);
    let (managers, for_managers) = run(MANAGER_STREAMS_MAX, CALL_DEADLINE_MAX);
    let ready = Ready { nodes, managers };
    let serving = tokio::spawn(async move {
        let (nodes, managers) = tokio::join!(for_nodes, for_managers);
        for error in [nodes.err(), managers.err()].into_iter().flatten() {
            // The incoming streams have no errors of their own, so this is the end of the runtime.
            warn!(%error, "peer server ended");
        }
    });
    let (open, closed) = watch::channel(());
    let connections = Connections::default();
    let ends = Ends { closed, connections: connections.clone(), tls: tls.clone() };
    let shutting_out =
        AbortOnDrop(tokio::spawn(connections::shut_out(tls.clone(), connections.clone())));
    let accepting = AbortOnDrop(tokio::spawn(accept(listener, tls, ready, ends)));
    let serving = AbortOnDrop(serving);
    Ok(Server {
        local_addr,
        stop,
        sessions,
        connections,
        accepting,
        serving,
        _shutting_out: shutting_out,
        _open: open,
    })
}

/// Where connections go once it is known whose they are.
#[derive(Clone)]
struct Ready {
    nodes: mpsc::Sender<io::Result<Held>>,
    managers: mpsc::Sender<io::Result<Held>>,
}

impl Ready {
    async fn take(&self, connection: Held) {
        let role = connection.connect_info().proven.map(|it| it.peer().role);
        let server = if role == Some(NodeRole::Manager) { &self.managers } else { &self.nodes };
        // Ignored because: the server has stopped, and with it the connection.
        let _ = server.send(Ok(connection)).await;
    }
}

/// Takes connections, opens TLS on each beside the others, and hands them on.
async fn accept(listener: TcpListener, tls: watch::Receiver<ServerTls>, ready: Ready, ends: Ends) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= HANDSHAKES_MAX {
            handshakes.join_next().await;
        }
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accept a connection of a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(%remote, limit = CONNECTIONS_MAX, "refused a peer: too many connections");
            continue;
        };
        let tls = tls.borrow().clone();
        let ready = ready.clone();
        let ends = ends.clone();
        handshakes.spawn(async move {
            match open(stream, remote, &tls).await {
                Ok(stream) => {
                    let closed = ends.of(&stream, &tls);
                    ready.take(Watched::new(stream, Place { closed, _place: place })).await;
                }
                // The peer has been told by a TLS alert; there is nobody else to tell.
                Err(error) => info!(
                    %remote,
                    error = shoal_model::fault::chain(&error),
                    "refused a connection"
                ),
            }
        });
    }
}

/// What ends a connection from this side.
#[derive(Clone)]
struct Ends {
    closed: watch::Receiver<()>,
    connections: Connections,
    tls: watch::Receiver<ServerTls>,
}

impl Ends {
    /// Is over when the server is gone, or the peer is to be. `tls` let it in.
    fn of(
        mut self,
        stream: &ServerStream,
        tls: &ServerTls,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let entry = stream.connect_info().proven.map(|it| self.connections.enter(it));
        // Whoever looked at all connections since then has not seen this one.
        let current = self.tls.borrow().clone();
        if let Some(entry) = entry.as_ref().filter(|_| !current.same_roots(tls)) {
            entry.standing.see_roots(&current);
        }
        Box::pin(async move {
            let ended = async {
                match &entry {
                    Some(entry) => entry.standing.end.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Ignored because: both ends of the wait mean that the server is gone.
                _ = self.closed.changed() => {}
                () = ended => {}
            }
        })
    }
}

async fn open(
    stream: TcpStream,
    remote: SocketAddr,
    tls: &ServerTls,
) -> Result<ServerStream, WireError> {
    // Ignored because: the connection works without it, only slower.
    let _ = stream.set_nodelay(true);
    transport::accept(stream, remote, tls).await
}

/// A connection with its place among the allowed ones, which ends with the server.
type Held = Watched<ServerStream, Place>;

struct Place {
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Connected for Held {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.stream().connect_info()
    }
}

impl Watch for Place {
    fn look(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<()>>,
        _: bool,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        result
    }
}

fn peer_info<T>(request: &Request<T>) -> Result<PeerInfo, Status> {
    let info = request.extensions().get::<PeerInfo>().cloned();
    info.ok_or_else(|| Status::internal("the connection carries no peer"))
}

/// The certificate's owner, or a refusal.
fn member(info: &PeerInfo) -> Result<PeerIdentity, Status> {
    let peer = known(info)?;
    let expired = peer.check_not_expired(wall());
    let valid = expired.and_then(|()| peer.check_not_former());
    valid.map_err(|error| from_fault(RemoteFault::of(&error)))?;
    Ok(peer)
}

/// The same also if the certificate has expired, or its root was replaced: enough to ask for the
/// next one.
fn known(info: &PeerInfo) -> Result<PeerIdentity, Status> {
    info.proven.as_ref().map(|it| it.peer()).ok_or_else(|| {
        let mut fault = RemoteFault::new(
            FaultKind::Unauthorized,
            "this call needs a certificate of the cluster, the connection has none",
        );
        fault.id = "SH-WIR-015".to_owned();
        fault.remedy = "join the cluster first".to_owned();
        from_fault(fault)
    })
}

fn check_version(version: u32, info: &PeerInfo) -> Result<(), Status> {
    if version >= OLDEST_VERSION {
        return Ok(());
    }
    let addr = info.remote.to_string();
    Err(status::from_error(&WireError::Version { addr, theirs: version }))
}

struct JoinService {
    handler: Arc<dyn JoinHandler>,
}

#[async_trait]
impl Join for JoinService {
    async fn get_root_ca(
        &self,
        request: Request<GetRootCa>,
    ) -> Result<Response<RootCaReply>, Status> {
        let info = peer_info(&request)?;
        check_version(request.get_ref().version, &info)?;
        self.handler.root_ca().await.map(Response::new).map_err(from_fault)
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificate>,
    ) -> Result<Response<CertificateReply>, Status> {
        let info = peer_info(&request)?;
        check_version(request.get_ref().version, &info)?;
        let reply = self.handler.issue_certificate(info.remote, request.into_inner()).await;
        reply.map(Response::new).map_err(from_fault)
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificate>,
    ) -> Result<Response<CertificateReply>, Status> {
        let info = peer_info(&request)?;
        let peer = known(&info)?;
        check_version(request.get_ref().version, &info)?;
        let reply = self.handler.renew_certificate(peer, request.into_inner()).await;
        reply.map(Response::new).map_err(from_fault)
    }
}

struct DispatcherService {
    handler: Arc<dyn SessionHandler>,
    sessions: Sessions,
    stopping: watch::Receiver<bool>,
}

type Outgoing = std::pin::Pin<Box<dyn Stream<Item = Result<ManagerMessage, Status>> + Send>>;

#[async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = Outgoing;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Outgoing>, Status> {
        let info = peer_info(&request)?;
        let peer = member(&info)?;
        let mut stream = request.into_inner();
        let hello = first_message(&mut stream, &info).await?;
        check_version(hello.version, &info)?;
        let oldest = hello.oldest.unwrap_or(hello.version);
        if oldest > PROTOCOL_VERSION {
            let addr = info.remote.to_string();
            return Err(status::from_error(&WireError::TooNew { addr, oldest }));
        }
        if hello.node_id != peer.node_id {
            return Err(status::from_error(&WireError::OtherId {
                addr: info.remote.to_string(),
                said: hello.node_id,
                proven: peer.node_id,
            }));
        }
        if let Some(standing) = &info.proven {
            standing.carry_session();
        }
        let stopping = self.stopping.clone();
        let (session, outgoing) = ServerSession::new(hello, peer, info.remote, stream, stopping);
        let handler = Arc::clone(&self.handler);
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        while sessions.try_join_next().is_some() {}
        sessions.spawn(async move { handler.session(session).await });
        Ok(Response::new(outgoing))
    }
}

async fn first_message(
    stream: &mut Streaming<NodeMessage>,
    info: &PeerInfo,
) -> Result<Hello, Status> {
    let addr = info.remote.to_string();
    let read = async {
        let message = stream.message().await;
        message.map_err(|status| status::to_error(status, &addr, SESSION_MESSAGE_MAX))
    };
    let first = status::within("hello", &addr, HELLO_DEADLINE, read).await;
    match first.map_err(|e| status::from_error(&e))? {
        Some(NodeMessage::Hello(hello)) => Ok(*hello),
        _ => {
            let detail = "the first message of a session must be 'hello'".to_owned();
            Err(status::from_error(&WireError::Malformed { addr, detail }))
        }
    }
}
