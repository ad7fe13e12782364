//! A cluster's authority and a server on loopback whose handlers the tests steer.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

pub mod proxy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::tls::ServerTls;
use shoal_identity::token::{JoinToken, generate_tokens};
use shoal_model::id::{ClusterId, NodeId, SessionId};
use shoal_model::object::JoinTokens;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{
    CertificateReply, Hello, IssueCertificate, PROTOCOL_VERSION, RenewCertificate, RootCaReply,
    Welcome,
};
use shoal_wire::peers::Lane;
use shoal_wire::server::{
    Handlers, JoinHandler, ManagerHandler, Server, SessionHandler, StreamHandler, listen, serve,
};
use shoal_wire::session::ServerSession;
use shoal_wire::stream::Tunnel;
use tokio::sync::{mpsc, watch};

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_secs(since.as_secs().try_into().unwrap())
}

pub struct Cluster {
    pub id: ClusterId,
    pub root: RootAuthority,
    pub tokens: JoinTokens,
}

impl Cluster {
    pub fn new(id: &str) -> Arc<Self> {
        let (root, _) = RootAuthority::create(now()).unwrap();
        let tokens = generate_tokens(&root.digest());
        Arc::new(Self { id: id.into(), root, tokens })
    }

    /// An identity that is valid for `validity` from `from` on.
    pub fn member_at(
        &self,
        node: &str,
        role: NodeRole,
        from: Timestamp,
        validity: Duration,
    ) -> NodeIdentity {
        let pair = KeyAndCsr::generate().unwrap();
        let node_id = NodeId::new(node);
        let chain =
            self.root.issue(&pair.csr_pem, &node_id, role, &self.id, from, validity).unwrap();
        NodeIdentity::new(chain, pair.key_pem, self.root.cert_pem().to_owned()).unwrap()
    }

    pub fn member(&self, node: &str, role: NodeRole) -> NodeIdentity {
        self.member_at(node, role, now(), NODE_VALIDITY)
    }

    pub fn worker_token(&self) -> JoinToken {
        JoinToken::parse(&self.tokens.worker).unwrap()
    }
}

/// Gives certificates to who has a token; hands every session to the test.
pub struct TestHandler {
    cluster: Arc<Cluster>,
    sessions: mpsc::Sender<ServerSession>,
    heard: watch::Sender<String>,
    here: watch::Sender<usize>,
    tunnels: mpsc::Sender<(NodeId, Tunnel)>,
}

#[async_trait]
impl JoinHandler for TestHandler {
    async fn root_ca(&self) -> Result<RootCaReply, RemoteFault> {
        let root_pem = self.cluster.root.cert_pem().to_owned();
        Ok(RootCaReply { version: PROTOCOL_VERSION, root_pem })
    }

    async fn issue_certificate(
        &self,
        _remote: SocketAddr,
        request: IssueCertificate,
    ) -> Result<CertificateReply, RemoteFault> {
        let token = JoinToken::parse(&request.token).map_err(|e| RemoteFault::of(&e))?;
        let role = token.role_in(&self.cluster.tokens).map_err(|e| RemoteFault::of(&e))?;
        self.certificate("joined".into(), role, &request.csr_pem)
    }

    async fn renew_certificate(
        &self,
        peer: PeerIdentity,
        request: RenewCertificate,
    ) -> Result<CertificateReply, RemoteFault> {
        self.certificate(peer.node_id, peer.role, &request.csr_pem)
    }
}

impl TestHandler {
    fn certificate(
        &self,
        node_id: NodeId,
        role: NodeRole,
        csr: &str,
    ) -> Result<CertificateReply, RemoteFault> {
        let cluster_id = self.cluster.id.clone();
        let cert_pem = self
            .cluster
            .root
            .issue(csr, &node_id, role, &cluster_id, now(), NODE_VALIDITY)
            .map_err(|e| RemoteFault::of(&e))?;
        let managers = Vec::new();
        Ok(CertificateReply {
            version: PROTOCOL_VERSION,
            node_id,
            role,
            cluster_id,
            cert_pem,
            managers,
            raft_id: None,
        })
    }
}

#[async_trait]
impl SessionHandler for TestHandler {
    async fn session(&self, session: ServerSession) {
        self.sessions.send(session).await.unwrap();
    }
}

/// Hands every stream to the test, but for the number 0.
#[async_trait]
impl StreamHandler for TestHandler {
    async fn stream(
        &self,
        from: PeerIdentity,
        number: u64,
        tunnel: Tunnel,
    ) -> Result<(), RemoteFault> {
        if number == 0 {
            return Err(shoal_wire::server::nobody_waits());
        }
        self.tunnels.try_send((from.node_id, tunnel)).unwrap();
        Ok(())
    }
}

/// Does what the body says, or says the body again.
#[async_trait]
impl ManagerHandler for TestHandler {
    async fn raft(
        &self,
        from: PeerIdentity,
        lane: Lane,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        self.answer(&from, Some(lane), body).await
    }

    async fn control(
        &self,
        from: PeerIdentity,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        self.answer(&from, None, body).await
    }
}

#[derive(serde::Deserialize)]
struct Order {
    #[serde(rename = "do")]
    what: String,
    #[serde(default)]
    number: usize,
}

impl TestHandler {
    async fn answer(
        &self,
        from: &PeerIdentity,
        lane: Option<Lane>,
        body: Box<RawValue>,
    ) -> Result<Box<RawValue>, RemoteFault> {
        let Ok(order) = serde_json::from_str::<Order>(body.get()) else { return Ok(body) };
        self.heard.send_replace(order.what.clone());
        let who = serde_json::json!({
            "from": from.node_id,
            "lane": lane,
            "until": from.not_after.secs(),
        });
        match order.what.as_str() {
            "hang" => std::future::pending().await,
            // Until that many are here.
            "meet" => {
                let mut here = self.here.subscribe();
                self.here.send_modify(|here| *here += 1);
                here.wait_for(|here| *here >= order.number).await.unwrap();
            }
            "big" => return Ok(RawValue::from_string("1".repeat(order.number)).unwrap()),
            _ => {}
        }
        Ok(RawValue::from_string(who.to_string()).unwrap())
    }
}

pub struct TestServer {
    pub server: Server,
    pub addr: String,
    pub sessions: mpsc::Receiver<ServerSession>,
    pub cluster: Arc<Cluster>,
    pub tls: watch::Sender<ServerTls>,
    /// The last order of another manager.
    pub heard: watch::Receiver<String>,
    /// Streams that nodes have opened, and who.
    pub tunnels: mpsc::Receiver<(NodeId, Tunnel)>,
}

/// A manager of `cluster` that shows `identity`.
pub async fn start_as(cluster: &Arc<Cluster>, identity: &NodeIdentity) -> TestServer {
    start_at("127.0.0.1:0", cluster, identity).await
}

/// The same at an address.
pub async fn start_at(addr: &str, cluster: &Arc<Cluster>, identity: &NodeIdentity) -> TestServer {
    let (deliver, sessions) = mpsc::channel(8);
    let (heard, orders) = watch::channel(String::new());
    let here = watch::Sender::new(0);
    let cluster = Arc::clone(cluster);
    let (tunnels, opened) = mpsc::channel(8);
    let handler = Arc::new(TestHandler {
        cluster: Arc::clone(&cluster),
        sessions: deliver,
        heard,
        here,
        tunnels,
    });
    let (tls, config) = watch::channel(identity.server_tls().unwrap());
    let listener = listen(addr.parse().unwrap()).await.unwrap();
    let handlers = Handlers {
        join: handler.clone(),
        sessions: handler.clone(),
        managers: handler.clone(),
        streams: handler,
    };
    let server = serve(listener, config, handlers).unwrap();
    let addr = server.local_addr().to_string();
    TestServer { server, addr, sessions, cluster, tls, heard: orders, tunnels: opened }
}

pub async fn start(cluster: &Arc<Cluster>) -> TestServer {
    start_as(cluster, &cluster.member("manager1", NodeRole::Manager)).await
}

pub fn hello(node: &str) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        oldest: None,
        node_id: node.into(),
        description: Default::default(),
        advertise_addr: None,
        data_path_addr: None,
        revision: None,
        previous_session: None,
    }
}

pub fn welcome(period_ms: u64) -> Welcome {
    Welcome {
        version: PROTOCOL_VERSION,
        session: SessionId::new("s1"),
        heartbeat_period_ms: period_ms,
        managers: Vec::new(),
        now: None,
    }
}

/// Fails the test instead of hanging.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect(what)
}
