//! The node's side: joins, connects, renews, opens sessions.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use shoal_identity::authority::digest_of_pem;
use shoal_identity::error::IdentityError;
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::tls::{Shown, pinned_client_config};
use shoal_identity::token::JoinToken;
use shoal_model::fault::FaultKind;
use shoal_model::id::NodeId;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

use crate::error::WireError;
use crate::fault::RemoteFault;
use crate::message::{
    Bye, ByeReason, CertificateReply, ControlCall, GetRootCa, Hello, IssueCertificate, Lane,
    ManagerMessage, NodeFacts, OLDEST_VERSION, PROTOCOL_VERSION, PeerReply, RaftCall,
    RenewCertificate, Welcome,
};
use crate::rpc::control_client::ControlClient;
use crate::rpc::dispatcher_client::DispatcherClient;
use crate::rpc::join_client::JoinClient;
use crate::rpc::raft_client::RaftClient;
use crate::rpc::streams_client::StreamsClient;
use crate::session::{ClientSession, Opening};
use crate::status::{self, within};
use crate::stream::{Opened, Piece, STREAM_MESSAGE_MAX, Tunnel, queue};
use crate::transport::{ClientStream, Fate, connect_tcp, connect_tls, manager_at, shown_by};
use crate::{JOIN_MESSAGE_MAX, PEER_BODY_MAX, PEER_MESSAGE_MAX, SESSION_MESSAGE_MAX};

/// Longest that a whole join may take. Docker's client waits 20 s.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(15);
/// Longest that one request may take: above the server's own limit, whose answer says more.
const REQUEST_DEADLINE: Duration = Duration::from_secs(12);
/// Longest that the answer to a hello may take.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 pings find a dead connection while nothing is sent. Sessions have heartbeats of their
/// own, which must win: they tell silence from a connection that the peer closed.
const PING_PERIOD: Duration = Duration::from_secs(5);
/// Unanswered for this long, a ping ends the connection.
const PING_DEADLINE: Duration = Duration::from_secs(5);
/// The same between managers, who have no heartbeats on these connections: one that is dead must be
/// opened anew soon after its peer is back.
const MANAGER_PINGS: Pings =
    Pings { every: Duration::from_secs(2), deadline: Duration::from_secs(4) };

/// When a connection is asked whether it still is one, and how long it may take to answer.
#[derive(Clone, Copy)]
struct Pings {
    every: Duration,
    deadline: Duration,
}

/// What a successful join gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Certificate, id, role, cluster, managers.
    pub reply: CertificateReply,
    /// PEM of the root certificate, proven by the token's digest.
    pub root_pem: String,
}

/// Joins the cluster of the manager at `addr` (`host:port`): proves the manager by the digest in
/// `token`, this node by its secret. Takes at most [`JOIN_DEADLINE`].
///
/// # Errors
/// [`WireError`] names the failing step; a refused token arrives as [`WireError::Remote`].
pub async fn join(
    addr: &str,
    token: &JoinToken,
    csr_pem: &str,
    facts: NodeFacts,
) -> Result<Joined, WireError> {
    let steps = async {
        let config = pinned_client_config(token.digest()).map_err(WireError::Identity)?;
        let client = connect_with(addr, config).await?;
        let root_pem = client.root_pem(token).await?;
        let request = IssueCertificate {
            version: PROTOCOL_VERSION,
            csr_pem: csr_pem.to_owned(),
            token: token.to_string(),
            facts,
        };
        let reply = client.issue(request).await?;
        Ok(Joined { reply, root_pem })
    };
    within("join", addr, JOIN_DEADLINE, steps).await
}

/// Connects to the manager at `addr` (`host:port`) as `identity`.
///
/// # Errors
/// [`WireError`] names the failing step. That the manager refuses this node's certificate may show
/// only at the first call.
pub async fn connect(addr: &str, identity: &NodeIdentity) -> Result<Client, WireError> {
    connect_with(addr, identity.client_config().map_err(WireError::Identity)?).await
}

/// Connects to the manager at `addr` with TLS settings of the caller's choice.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    addr: &str,
    config: Arc<rustls::ClientConfig>,
) -> Result<Client, WireError> {
    let stream = connect_tcp(addr).await?;
    let stream = connect_tls(addr, stream, config).await?;
    speak(addr, stream, Pings { every: PING_PERIOD, deadline: PING_DEADLINE }).await
}

/// Connects to the manager `expected` at `addr` as `identity`.
///
/// # Errors
/// [`WireError::NotThatNode`] when another manager answers there; otherwise as [`connect`].
pub async fn connect_to(
    addr: &str,
    identity: &NodeIdentity,
    expected: &NodeId,
) -> Result<Client, WireError> {
    let config = identity.client_config().map_err(WireError::Identity)?;
    let stream = connect_tcp(addr).await?;
    let stream = connect_tls(addr, stream, config).await?;
    let found = manager_at(addr, &stream)?;
    if found != *expected {
        let (addr, expected) = (addr.to_owned(), expected.clone());
        return Err(WireError::NotThatNode { addr, expected, found });
    }
    speak(addr, stream, MANAGER_PINGS).await
}

async fn speak(addr: &str, stream: ClientStream, pings: Pings) -> Result<Client, WireError> {
    let (fate, shown) = (stream.watch.fate(), Arc::new(shown_by(addr, &stream)?));
    let closed = |error: tonic::transport::Error| WireError::Closed {
        addr: addr.to_owned(),
        source: Some(Arc::new(error)),
    };
    // The name is only a label: the connection is there already.
    let endpoint = Endpoint::from_static("http://manager")
        .http2_keep_alive_interval(pings.every)
        .keep_alive_timeout(pings.deadline)
        .keep_alive_while_idle(true);
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    let handshake = async { endpoint.connect_with_connector(connector).await.map_err(closed) };
    let channel = within("HTTP/2 handshake", addr, WELCOME_DEADLINE, handshake).await?;
    let silence = pings.every + pings.deadline;
    Ok(Client { channel, addr: addr.into(), fate, silence, shown })
}

/// A connection to a manager. Cheap to clone; does not reconnect by itself.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    addr: Arc<str>,
    fate: Fate,
    /// After how long without an answer to pings the connection ends.
    silence: Duration,
    shown: Arc<Shown>,
}

impl Client {
    /// Where it is connected to, as given.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The certificate that the manager has shown.
    #[must_use]
    pub fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown)
    }

    /// A fresh certificate.
    ///
    /// # Errors
    /// [`WireError`] names the failing step.
    pub async fn renew(&self, request: RenewCertificate) -> Result<CertificateReply, WireError> {
        let call = async {
            self.join_client().renew_certificate(request).await.map_err(|s| self.error(s))
        };
        let reply = within("certificate renewal", &self.addr, REQUEST_DEADLINE, call).await?;
        let reply = reply.into_inner();
        self.check_version(reply.version)?;
        Ok(reply)
    }

    async fn root_pem(&self, token: &JoinToken) -> Result<String, WireError> {
        let request = GetRootCa { version: PROTOCOL_VERSION };
        let call =
            async { self.join_client().get_root_ca(request).await.map_err(|s| self.error(s)) };
        let reply = within("request of the root", &self.addr, REQUEST_DEADLINE, call).await?;
        let reply = reply.into_inner();
        self.check_version(reply.version)?;
        let refuse = |source| WireError::PeerCertificate { addr: self.addr.to_string(), source };
        let digest = digest_of_pem(&reply.root_pem).map_err(refuse)?;
        if digest != *token.digest() {
            return Err(refuse(IdentityError::WrongRoot {
                expected: token.digest().to_string(),
                presented: digest.to_string(),
            }));
        }
        Ok(reply.root_pem)
    }

    async fn issue(&self, request: IssueCertificate) -> Result<CertificateReply, WireError> {
        let call = async {
            self.join_client().issue_certificate(request).await.map_err(|s| self.error(s))
        };
        let reply = within("certificate request", &self.addr, REQUEST_DEADLINE, call).await?;
        let reply = reply.into_inner();
        self.check_version(reply.version)?;
        Ok(reply)
    }

    /// Opens the session of this node: says `hello`, waits for the welcome.
    ///
    /// # Errors
    /// [`WireError::Remote`] when the manager refuses, [`WireError::NotLeader`] when another one
    /// leads, [`WireError::Version`] when it speaks another version.
    pub async fn session(&self, hello: Hello) -> Result<ClientSession, WireError> {
        let (opening, outgoing) = Opening::new(&self.addr, hello)?;
        let call = async {
            let mut client = DispatcherClient::new(self.channel.clone())
                .max_decoding_message_size(SESSION_MESSAGE_MAX);
            let response = client.session(Request::new(outgoing)).await;
            let mut stream = response.map_err(|s| self.error(s))?.into_inner();
            let first = stream.message().await.map_err(|s| self.error(s))?;
            Ok((first, stream))
        };
        let (first, stream) = within("session", &self.addr, WELCOME_DEADLINE, call).await?;
        let welcome = self.welcome(first)?;
        Ok(opening.welcomed(welcome, stream))
    }

    /// Opens the stream `number`, which the manager has asked for. The connection is the stream's
    /// from then on.
    ///
    /// # Errors
    /// [`WireError::Remote`] when the manager does not wait for it (any more).
    pub async fn stream(self, number: u64) -> Result<Tunnel, WireError> {
        let (sender, outgoing) = queue();
        // The queue is empty, and `outgoing` holds its other end.
        let first = Piece::open(Opened { v: PROTOCOL_VERSION, number });
        if sender.try_send(first).is_err() {
            return Err(WireError::Closed { addr: self.addr.to_string(), source: None });
        }
        let call = async {
            let mut client = StreamsClient::new(self.channel.clone())
                .max_decoding_message_size(STREAM_MESSAGE_MAX);
            let response = client.open(Request::new(outgoing)).await;
            Ok(response.map_err(|s| self.error(s))?.into_inner())
        };
        let incoming = within("stream", &self.addr, WELCOME_DEADLINE, call).await?;
        let addr = Arc::clone(&self.addr);
        Ok(Tunnel::new(incoming, sender, &addr, Some(self)))
    }

    fn welcome(&self, first: Option<ManagerMessage>) -> Result<Welcome, WireError> {
        let addr = || self.addr.to_string();
        match first {
            Some(ManagerMessage::Welcome(welcome)) => {
                self.check_version(welcome.version)?;
                Ok(welcome)
            }
            Some(ManagerMessage::Bye(bye)) if bye.reason == ByeReason::NotLeader => {
                let Bye { leader, message, .. } = bye;
                Err(WireError::NotLeader { addr: addr(), leader, message })
            }
            Some(ManagerMessage::Bye(bye)) => Err(WireError::Remote(fault_of(bye))),
            Some(_) => Err(WireError::Malformed {
                addr: addr(),
                detail: "the first message of a session must be 'welcome'".to_owned(),
            }),
            None => Err(WireError::Closed { addr: addr(), source: None }),
        }
    }

    fn check_version(&self, theirs: u32) -> Result<(), WireError> {
        if theirs >= OLDEST_VERSION {
            Ok(())
        } else {
            Err(WireError::Version { addr: self.addr.to_string(), theirs })
        }
    }

    fn join_client(&self) -> JoinClient<Channel> {
        // What is sent is bounded by the server, whose refusal arrives; a bound of our own would
        // only reset the stream.
        JoinClient::new(self.channel.clone()).max_decoding_message_size(JOIN_MESSAGE_MAX)
    }

    fn error(&self, status: Status) -> WireError {
        let error = status::to_error(status, &self.addr, SESSION_MESSAGE_MAX);
        self.fate.improve(error, &self.addr, self.silence)
    }

    /// Whether the connection has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.fate.is_over()
    }

    /// Returns once the connection has ended, with what that says about the peer.
    pub(crate) async fn ended(&self) -> WireError {
        self.fate.over().await;
        let closed = WireError::Closed { addr: self.addr.to_string(), source: None };
        self.fate.improve(closed, &self.addr, self.silence)
    }

    /// A message of consensus. Who calls bounds the wait.
    pub(crate) async fn raft(
        &self,
        lane: Lane,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, WireError> {
        let call = RaftCall { v: PROTOCOL_VERSION, lane, body };
        let mut client = RaftClient::new(self.channel.clone())
            .max_encoding_message_size(PEER_MESSAGE_MAX)
            .max_decoding_message_size(PEER_MESSAGE_MAX);
        self.peer_reply(client.call(call).await)
    }

    /// A request of a manager. Who calls bounds the wait.
    pub(crate) async fn control(&self, body: Box<RawValue>) -> Result<Box<RawValue>, WireError> {
        let call = ControlCall { v: PROTOCOL_VERSION, body };
        let mut client = ControlClient::new(self.channel.clone())
            .max_encoding_message_size(PEER_MESSAGE_MAX)
            .max_decoding_message_size(PEER_MESSAGE_MAX);
        self.peer_reply(client.call(call).await)
    }

    fn peer_reply(
        &self,
        reply: Result<Response<PeerReply>, Status>,
    ) -> Result<Box<RawValue>, WireError> {
        let addr = || self.addr.to_string();
        let reply = reply.map_err(|status| {
            let error = status::to_error(status, &self.addr, PEER_BODY_MAX);
            match self.fate.improve(error, &self.addr, self.silence) {
                // The connection stands: only this call has ended. That is no sign of death.
                WireError::Closed { addr, source: Some(source) } if !self.fate.is_over() => {
                    let detail = format!("the call ended without an answer: {source}");
                    WireError::Malformed { addr, detail }
                }
                error => error,
            }
        })?;
        let reply = reply.into_inner();
        self.check_version(reply.v)?;
        if reply.body.get().len() > PEER_BODY_MAX {
            return Err(WireError::TooLarge { addr: addr(), limit: PEER_BODY_MAX });
        }
        Ok(reply.body)
    }
}

fn fault_of(bye: Bye) -> RemoteFault {
    let kind = match bye.reason {
        ByeReason::Stopping | ByeReason::NotLeader | ByeReason::Replaced | ByeReason::Unknown => {
            FaultKind::Unavailable
        }
        ByeReason::Removed => FaultKind::NotFound,
        ByeReason::Refused => FaultKind::Invalid,
    };
    RemoteFault::new(kind, bye.message)
}
