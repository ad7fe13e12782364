//! Connections to other managers: one for each manager and [`Lane`], and one for requests, each
//! opened by the first call that needs it, and anew by the first call after it has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use serde_json::value::RawValue;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::id::NodeId;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::PEER_BODY_MAX;
use crate::client::{Client, connect_to};
use crate::error::{Evidence, WireError};
pub use crate::message::Lane;
use crate::status::within;

/// Longest that a call may take, whatever its caller allows.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(60);
/// How long it may take until a connection to one address stands. Shorter than the retries of a
/// kernel, so that an address that was out of reach is found soon after it is back.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses of one manager that are tried.
const ADDRESSES_MAX: usize = 4;

/// Connections to other managers. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct PeerPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: watch::Receiver<NodeIdentity>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

/// A manager that is known.
#[derive(Debug, Default)]
struct Peer {
    addresses: Vec<String>,
    lines: BTreeMap<Line, Opened>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Raft(Lane),
    Control,
}

/// A connection that stands, has failed, or is being opened: many calls may wait for it.
type Opening = Shared<BoxFuture<'static, Result<Client, WireError>>>;

#[derive(Debug)]
struct Opened {
    /// As whom.
    identity: NodeIdentity,
    opening: Opening,
}

impl Opened {
    /// Whether another one is needed.
    fn is_spent(&self, identity: &NodeIdentity) -> bool {
        let over = match self.opening.peek() {
            None => false,
            Some(Ok(client)) => client.is_over(),
            Some(Err(_)) => true,
        };
        over || self.identity != *identity
    }
}

impl PeerPool {
    /// No connection yet, and no address. Connections are opened as whoever `identity` says at that
    /// moment; after a renewal the next call opens a new one.
    #[must_use]
    pub fn new(identity: watch::Receiver<NodeIdentity>) -> Self {
        Self(Arc::new(Inner { identity, peers: Mutex::default() }))
    }

    /// Where each manager is; several addresses are tried in order. Connections to managers that
    /// are not named, or whose addresses differ, take no new calls; those under way end by
    /// themselves.
    pub fn set_directory(&self, addresses: BTreeMap<NodeId, Vec<String>>) {
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *peers);
        *peers = addresses
            .into_iter()
            .map(|(node, addresses)| match before.remove(&node) {
                Some(peer) if peer.addresses == addresses => (node, peer),
                _ => (node, Peer { addresses, lines: BTreeMap::new() }),
            })
            .collect();
    }

    /// Sends a message of consensus to `to` and gives its answer, after `limit` at the latest (and
    /// after [`CALL_DEADLINE_MAX`]). The connection for it may outlast a call that was too short to
    /// open it.
    ///
    /// # Errors
    /// [`WireError::evidence`] says what a failure means for the peer: whether nobody listens, the
    /// connection ended, or no answer came in time. [`WireError::NotThatNode`] when another manager
    /// answers at the address, [`WireError::TooLarge`] when `body` is above [`PEER_BODY_MAX`],
    /// [`WireError::Remote`] with the peer's own refusal.
    pub async fn raft(
        &self,
        to: &NodeId,
        lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, WireError> {
        check_size(to, &body)?;
        let send = |client: Client| async move { client.raft(lane, body).await };
        self.call(to, Line::Raft(lane), limit, send).await
    }

    /// Keeps the connection to `to` for `lane` and returns once there is none: when it has ended,
    /// or at once if none can be made. [`WireError::evidence`] says what that means for the peer.
    /// Its process's death is known here within milliseconds; that its host is gone, when the
    /// connection is found dead.
    pub async fn lost(&self, to: &NodeId, lane: Lane) -> WireError {
        let mut identity = self.0.identity.clone();
        loop {
            identity.mark_unchanged();
            let opening = match self.line(to, Line::Raft(lane)) {
                Ok(opening) => opening,
                Err(error) => return error,
            };
            let ended = async {
                match opening.await {
                    Ok(client) => client.ended().await,
                    Err(error) => error,
                }
            };
            tokio::select! {
                biased;
                // The next one is opened with this node's new certificate. That of before is given
                // up: the peer ends it some day, which is no word of its death.
                Ok(()) = identity.changed() => {}
                error = ended => return error,
            }
        }
    }

    /// Sends a request to the manager `to` and gives its answer, after `limit` at the latest.
    ///
    /// # Errors
    /// As [`PeerPool::raft`].
    pub async fn control(
        &self,
        to: &NodeId,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, WireError> {
        check_size(to, &body)?;
        let send = |client: Client| async move { client.control(body).await };
        self.call(to, Line::Control, limit, send).await
    }

    async fn call<F>(
        &self,
        to: &NodeId,
        line: Line,
        limit: Duration,
        send: impl FnOnce(Client) -> F,
    ) -> Result<Box<RawValue>, WireError>
    where
        F: Future<Output = Result<Box<RawValue>, WireError>>,
    {
        let limit = limit.min(CALL_DEADLINE_MAX);
        let deadline = Instant::now() + limit;
        let late = |step, addr: &str| WireError::Timeout { step, addr: addr.into(), after: limit };
        let opening = self.line(to, line)?;
        let client = tokio::time::timeout_at(deadline, opening)
            .await
            .map_err(|_| late("connection", to.as_str()))??;
        let addr = client.addr().to_owned();
        tokio::time::timeout_at(deadline, send(client))
            .await
            .map_err(|_| late("answer of the manager", &addr))?
    }

    /// The connection for a call, which may still be being opened.
    fn line(&self, to: &NodeId, line: Line) -> Result<Opening, WireError> {
        let identity = self.0.identity.borrow();
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers
            .get_mut(to)
            .filter(|peer| !peer.addresses.is_empty())
            .ok_or_else(|| WireError::NoAddress { node: to.clone() })?;
        if let Some(opened) = peer.lines.get(&line)
            && !opened.is_spent(&identity)
        {
            return Ok(opened.opening.clone());
        }
        let opening = begin(to.clone(), peer.addresses.clone(), identity.clone());
        let opened = Opened { identity: identity.clone(), opening: opening.clone() };
        peer.lines.insert(line, opened);
        Ok(opening)
    }
}

fn check_size(to: &NodeId, body: &RawValue) -> Result<(), WireError> {
    if body.get().len() <= PEER_BODY_MAX {
        return Ok(());
    }
    Err(WireError::TooLarge { addr: to.to_string(), limit: PEER_BODY_MAX })
}

/// A task that ends with who waits for it.
struct Task(JoinHandle<Result<Client, WireError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a connection as a task of its own: callers with little patience come and go.
fn begin(to: NodeId, addresses: Vec<String>, identity: NodeIdentity) -> Opening {
    let node = to.clone();
    let mut task = Task(tokio::spawn(async move { open(&to, addresses, &identity).await }));
    let ended = async move {
        let opened = (&mut task.0).await;
        opened.unwrap_or_else(|error| {
            let detail = format!("opening the connection broke off: {error}");
            Err(WireError::Malformed { addr: node.to_string(), detail })
        })
    };
    ended.boxed().shared()
}

/// Tries one address after the other. The error is the one that says least about the peer: it is
/// dead only if nobody listens at any of its addresses.
async fn open(
    to: &NodeId,
    addresses: Vec<String>,
    identity: &NodeIdentity,
) -> Result<Client, WireError> {
    let mut worst = WireError::NoAddress { node: to.clone() };
    let mut refused_only = true;
    for addr in addresses.iter().take(ADDRESSES_MAX) {
        let opening = connect_to(addr, identity, to);
        match within("connection", addr, OPEN_DEADLINE, opening).await {
            Ok(client) => return Ok(client),
            Err(error) if refused_only => {
                refused_only = error.evidence() == Evidence::Refused;
                worst = error;
            }
            Err(_) => {}
        }
    }
    Err(worst)
}
