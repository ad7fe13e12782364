//! Streams to nodes, for what their containers and clients of managers say to each other.
//!
//! Nodes only dial out, and have their session with the manager that leads. So a manager that wants
//! to reach a node asks the leader (perhaps itself) to tell the node so; the node then opens a
//! stream to the manager that asked. The bytes go that way alone: not through the session, and not
//! through the leader.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shoal_identity::peer::PeerIdentity;
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;
use shoal_model::object::NodeState;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{ManagerMessage, OpenStream};
use shoal_wire::server::{StreamHandler, nobody_waits};
use shoal_wire::stream::Tunnel;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::control::{Control, missing};
use crate::error::ControlError;
use crate::forward::Caller;
use crate::requests::{ControlReply, ControlRequest};
use crate::shared::{Shared, managers};
use crate::tenure::Tenure;

/// How long a node may take to open a stream, from the client's question on.
pub const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Streams that one manager waits for at the same time.
const AWAITED_MAX: usize = 1024;

/// The streams that this manager waits for.
#[derive(Default)]
pub(crate) struct Awaited(Mutex<BTreeMap<u64, Awaiting>>);

struct Awaiting {
    node: NodeId,
    give: oneshot::Sender<Tunnel>,
}

/// A place among the streams that are waited for, given back when nobody waits any more.
struct Place<'a> {
    awaited: &'a Awaited,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.awaited.with(|all| all.remove(&self.number));
    }
}

impl Awaited {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Awaiting>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn enter(&self, node: &NodeId) -> Result<(Place<'_>, oneshot::Receiver<Tunnel>), ControlError> {
        let (give, given) = oneshot::channel();
        // Drawn, so that no node opens a stream that it was not asked for.
        let number = rand::random();
        self.with(|all| {
            if all.len() >= AWAITED_MAX {
                let message = format!(
                    "{AWAITED_MAX} streams to nodes are being opened; try again in a moment"
                );
                return Err(ControlError::Precondition { message });
            }
            all.insert(number, Awaiting { node: node.clone(), give });
            Ok(())
        })?;
        Ok((Place { awaited: self, number }, given))
    }

    /// Who waits for the stream `number` of `node`.
    fn take(&self, node: &NodeId, number: u64) -> Option<oneshot::Sender<Tunnel>> {
        self.with(|all| {
            let own = all.get(&number).is_some_and(|awaiting| awaiting.node == *node);
            if own { all.remove(&number).map(|awaiting| awaiting.give) } else { None }
        })
    }
}

impl Control {
    /// A stream to `node`, whose agent serves it, within [`OPEN_WITHIN`]. It breaks off when the
    /// cluster calls the node down.
    ///
    /// # Errors
    /// [`ControlError::NodeAway`] with the node's name when it does not answer,
    /// [`ControlError::NotFound`] when it is no member; and why the leader could not be asked.
    pub async fn open_stream(&self, node: &NodeId) -> Result<Tunnel, ControlError> {
        let by = Instant::now() + OPEN_WITHIN;
        let shared = &self.shared;
        let (place, given) = shared.awaited.enter(node)?;
        let caller = Caller { node: shared.own.clone(), user: None };
        let request = ControlRequest::OpenStream { node: node.clone(), number: place.number };
        self.call(caller, request, by).await?;
        match timeout_at(by, given).await {
            Ok(Ok(tunnel)) => Ok(tunnel.until(lost(Arc::clone(shared), node.clone()))),
            Ok(Err(_)) | Err(_) => {
                let why = format!("no answer within {} s", OPEN_WITHIN.as_secs());
                Err(away(&shared.state(), node, why))
            }
        }
    }
}

/// Ends when the cluster gives the node up: its host may be without power, and says nothing.
async fn lost(shared: Arc<Shared>, node: NodeId) -> io::Error {
    let mut revision = shared.store.watch();
    loop {
        revision.mark_unchanged();
        let state = shared.state();
        let up = |state: &ClusterState| {
            state.nodes.get(&node).is_some_and(|known| known.status.state != NodeState::Down)
        };
        let closed = up(&state) && revision.changed().await.is_err();
        if closed || !up(&state) {
            let text = format!("node '{}' is down", state.node_name(&node));
            return io::Error::new(io::ErrorKind::ConnectionReset, text);
        }
    }
}

impl Tenure {
    /// Has `node` open the stream `number` to the manager `from`.
    pub(crate) async fn tell_to_open(
        &self,
        from: &NodeId,
        node: &NodeId,
        number: u64,
        by: Instant,
    ) -> Result<ControlReply, ControlError> {
        let state = self.shared.state();
        if !state.nodes.contains_key(node) {
            return Err(missing("node", node));
        }
        let mut known = managers(&state).into_iter();
        let manager = known.find(|manager| manager.node_id == *from);
        let manager = manager.ok_or_else(|| missing("manager", from))?;
        let away = |why: &str| away(&state, node, why.to_owned());
        let sender = self.sessions.sender(node);
        let sender = sender.ok_or_else(|| away("it has no session with the manager that leads"))?;
        let message = ManagerMessage::OpenStream(OpenStream { number, manager });
        match timeout_at(by, sender.send(message)).await {
            Ok(Ok(())) => Ok(ControlReply::Done {}),
            Ok(Err(_)) | Err(_) => Err(away("its session takes no message")),
        }
    }
}

fn away(state: &ClusterState, node: &NodeId, why: String) -> ControlError {
    ControlError::NodeAway { name: state.node_name(node), why }
}

/// Takes the streams that nodes open.
pub(crate) struct StreamDoor(pub Arc<Shared>);

#[async_trait]
impl StreamHandler for StreamDoor {
    async fn stream(
        &self,
        from: PeerIdentity,
        number: u64,
        tunnel: Tunnel,
    ) -> Result<(), RemoteFault> {
        // Whoever was removed keeps a certificate that is valid for months.
        let node = from.node_id;
        if !self.0.state().nodes.contains_key(&node) {
            return Err(RemoteFault::of(&ControlError::Removed { node }));
        }
        let give = self.0.awaited.take(&node, number).ok_or_else(nobody_waits)?;
        give.send(tunnel).map_err(|_| nobody_waits())
    }
}
