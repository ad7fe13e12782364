//! Whose connections are open, so that those of a node that is no member any more can be ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_identity::tls::ServerTls;
use shoal_model::id::NodeId;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::standing::{Standing, wall};

/// Between looks at the time, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The open connections of nodes that have proven who they are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    /// As many as there are connections, which are bounded.
    nodes: BTreeMap<NodeId, BTreeMap<u64, Arc<Standing>>>,
    last: u64,
    /// Says that a node has its last connection no more.
    gone: watch::Sender<()>,
}

impl Connections {
    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends every connection of `node`, whatever is under way on it; how many there were. It may
    /// come again: who it is let in as is asked at each call.
    pub fn end(&self, node: &NodeId) -> usize {
        self.with(|open| {
            let of = open.nodes.get(node);
            of.into_iter().flat_map(BTreeMap::values).for_each(|it| it.end.notify_one());
            of.map_or(0, BTreeMap::len)
        })
    }

    /// Waits until `node` has no connection.
    pub async fn none_left(&self, node: &NodeId) {
        let mut gone = self.with(|open| open.gone.subscribe());
        // Not by `wait_for`: it looks under a lock that who sends waits for, holding this one's.
        while self.with(|open| open.nodes.contains_key(node)) {
            if gone.changed().await.is_err() {
                return;
            }
        }
    }

    fn all(&self) -> Vec<Arc<Standing>> {
        self.with(|open| open.nodes.values().flat_map(BTreeMap::values).cloned().collect())
    }

    /// Notes a connection.
    pub(super) fn enter(&self, standing: Arc<Standing>) -> Entry {
        let node = standing.peer().node_id;
        let number = self.with(|open| {
            open.last += 1;
            let of = open.nodes.entry(node.clone()).or_default();
            of.insert(open.last, Arc::clone(&standing));
            open.last
        });
        Entry { connections: self.clone(), node, number, standing }
    }
}

/// A connection that is open, for as long as this lives.
#[derive(Debug)]
pub(super) struct Entry {
    connections: Connections,
    node: NodeId,
    number: u64,
    pub(super) standing: Arc<Standing>,
}

/// Ends connections whose certificates have expired or are of a root that was replaced, for as long
/// as `tls` may change: who was let in with them need not have come again since.
pub(super) async fn shut_out(mut tls: watch::Receiver<ServerTls>, connections: Connections) {
    let mut known = tls.borrow_and_update().clone();
    loop {
        match timeout(LOOK_EVERY, tls.changed()).await {
            Err(_) => {
                let now = wall();
                connections.all().iter().for_each(|it| it.see_time(now));
            }
            Ok(Ok(())) => {
                let next = tls.borrow_and_update().clone();
                if !next.same_roots(&known) {
                    let (tls, open) = (next.clone(), connections.all());
                    // Signatures are checked: not on a thread that others wait for.
                    let look = move || open.iter().for_each(|it| it.see_roots(&tls));
                    if let Err(error) = tokio::task::spawn_blocking(look).await {
                        tracing::error!(cause = %error, "a look at open connections broke off");
                    }
                }
                known = next;
            }
            Ok(Err(_)) => return,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.with(|open| {
            let Some(of) = open.nodes.get_mut(&self.node) else { return };
            of.remove(&self.number);
            if of.is_empty() {
                open.nodes.remove(&self.node);
                open.gone.send_replace(());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
    use shoal_identity::node_identity::NodeIdentity;
    use shoal_identity::peer::PeerIdentity;
    use shoal_identity::tls::Shown;
    use shoal_model::spec::node::NodeRole;

    use super::*;

    fn standing(node: &NodeId) -> Arc<Standing> {
        let (root, _) = RootAuthority::create(wall()).unwrap();
        let key = KeyAndCsr::generate().unwrap();
        let (role, cluster) = (NodeRole::Worker, "c1".into());
        let chain = root.issue(&key.csr_pem, node, role, &cluster, wall(), NODE_VALIDITY).unwrap();
        let pem = root.cert_pem().to_owned();
        let identity = NodeIdentity::new(chain, key.key_pem, pem).unwrap();
        let peer = PeerIdentity::from_pem(&identity.cert_pem).unwrap();
        Arc::new(Standing::new(peer, Shown::of_pem(&identity.cert_pem).unwrap()))
    }

    #[tokio::test]
    async fn only_the_connections_of_that_node_end() {
        let connections = Connections::default();
        let (one, other) = (NodeId::new("one"), NodeId::new("other"));
        let entries = [&one, &one, &other].map(|id| connections.enter(standing(id)));
        assert_eq!(connections.end(&one), 2);
        entries[0].standing.end.notified().await;
        entries[1].standing.end.notified().await;
        let [first, second, last] = entries;
        drop((first, second));
        assert_eq!(connections.end(&one), 0);
        assert_eq!(connections.end(&other), 1);
        drop(last);
        connections.with(|open| assert!(open.nodes.is_empty()));
    }

    #[tokio::test]
    async fn the_last_connections_end_is_told() {
        let connections = Connections::default();
        let node = NodeId::new("one");
        connections.none_left(&node).await;
        let (first, second) =
            (connections.enter(standing(&node)), connections.enter(standing(&node)));
        let waits = tokio::spawn({
            let (connections, node) = (connections.clone(), node.clone());
            async move { connections.none_left(&node).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(second);
        waits.await.unwrap();
    }
}
