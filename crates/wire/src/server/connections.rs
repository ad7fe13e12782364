//! Whose connections are open, so that those of a node that is no member any more can be ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_model::id::NodeId;
use tokio::sync::{Notify, watch};

/// The open connections of nodes that have proven who they are. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    /// As many as there are connections, which are bounded.
    nodes: BTreeMap<NodeId, BTreeMap<u64, Arc<Notify>>>,
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
            of.into_iter().flat_map(BTreeMap::values).for_each(|end| end.notify_one());
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

    /// Notes a connection of `node`.
    pub(super) fn enter(&self, node: NodeId) -> Entry {
        let end = Arc::new(Notify::new());
        let number = self.with(|open| {
            open.last += 1;
            let of = open.nodes.entry(node.clone()).or_default();
            of.insert(open.last, Arc::clone(&end));
            open.last
        });
        Entry { connections: self.clone(), node, number, end }
    }
}

/// A connection that is open, for as long as this lives.
#[derive(Debug)]
pub(super) struct Entry {
    connections: Connections,
    node: NodeId,
    number: u64,
    /// Says that it is to end.
    pub(super) end: Arc<Notify>,
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

    use super::*;

    #[tokio::test]
    async fn only_the_connections_of_that_node_end() {
        let connections = Connections::default();
        let (one, other) = (NodeId::new("one"), NodeId::new("other"));
        let entries = [&one, &one, &other].map(|id| connections.enter(id.clone()));
        assert_eq!(connections.end(&one), 2);
        entries[0].end.notified().await;
        entries[1].end.notified().await;
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
        let (first, second) = (connections.enter(node.clone()), connections.enter(node.clone()));
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
