//! Which containers have which places on networks, and which of these the manager gave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use shoal_model::id::{ContainerId, NetworkId, TaskId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::lock;
use crate::desired::{Attached, Place, spans_nodes};

/// How long a place that the manager gave may wait for its container to take it. A start takes
/// moments; after this the place counts as given up, whoever asked for it.
const GIVEN_MAX: Duration = Duration::from_secs(60);

/// The containers with places on networks.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    table: Mutex<Table>,
    /// Counts what may make the manager's idea of them differ.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    by_container: BTreeMap<ContainerId, Attached>,
    /// Places that the manager gave and no container has taken yet, and since when.
    given: BTreeMap<TaskId, Instant>,
}

/// The places on the swarm's networks that hand-made containers hold.
#[derive(Debug)]
pub(crate) struct Held {
    /// The tasks that stand for them.
    pub tasks: BTreeSet<TaskId>,
    /// How many have one that is not known here.
    unknown: usize,
}

impl Held {
    /// Whether a container has a place whose task is not known here.
    pub(crate) fn has_unknown(&self) -> bool {
        self.unknown > 0
    }
}

impl Attachments {
    /// Looks at all of them.
    pub(crate) fn with<R>(&self, look: impl FnOnce(&BTreeMap<ContainerId, Attached>) -> R) -> R {
        look(&lock(&self.table).by_container)
    }

    pub(crate) fn get(&self, container: &ContainerId) -> Option<Attached> {
        lock(&self.table).by_container.get(container).cloned()
    }

    pub(crate) fn insert(&self, attached: Attached) {
        let mut table = lock(&self.table);
        for id in attached.places.iter().filter_map(|place| place.task_id.as_ref()) {
            table.given.remove(id);
        }
        table.by_container.insert(attached.container_id.clone(), attached);
    }

    pub(crate) fn remove(&self, container: &ContainerId) -> Option<Attached> {
        lock(&self.table).by_container.remove(container)
    }

    /// Marks a container whose process has ended; its places if that is news.
    pub(crate) fn mark_ended(&self, container: &ContainerId) -> Vec<Place> {
        let mut table = lock(&self.table);
        match table.by_container.get_mut(container) {
            Some(attached) if !attached.ended => {
                attached.ended = true;
                attached.places.clone()
            }
            _ => Vec::new(),
        }
    }

    /// The manager gave a place.
    pub(crate) fn given(&self, id: TaskId) {
        lock(&self.table).given.insert(id, Instant::now());
    }

    /// A place is not wanted any more.
    pub(crate) fn given_up(&self, id: &TaskId) {
        lock(&self.table).given.remove(id);
    }

    /// The manager may have places of this node that it does not hold, or soon will.
    pub(crate) fn restate(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Follows [`Self::restate`].
    pub(crate) fn follow(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Every place of a hand-made container that this node holds. A place whose task is not known
    /// (its record came from an earlier daemon) is looked up in `remembered`.
    pub(crate) fn held(&self, remembered: &BTreeMap<(ContainerId, NetworkId), TaskId>) -> Held {
        let mut table = lock(&self.table);
        table.given.retain(|_, since| since.elapsed() < GIVEN_MAX);
        let given: Vec<TaskId> = table.given.keys().cloned().collect();
        for attached in table.by_container.values_mut().filter(|a| a.task_id.is_none()) {
            for place in attached.places.iter_mut().filter(|place| place.task_id.is_none()) {
                let key = (attached.container_id.clone(), place.network_id.clone());
                place.task_id = remembered.get(&key).cloned();
            }
        }
        let own = || table.by_container.values().filter(|a| a.task_id.is_none());
        let places = || own().flat_map(|attached| attached.places.iter());
        let tasks = places().filter_map(|place| place.task_id.clone()).chain(given).collect();
        let swarm = |place: &&Place| spans_nodes(&place.network_id);
        let unknown = places().filter(swarm).filter(|place| place.task_id.is_none()).count();
        Held { tasks, unknown }
    }
}

#[cfg(test)]
mod tests {
    use shoal_network::desired::SandboxSpec;

    use super::*;

    const NETWORK: &str = "network00000000000000000n";

    fn attached(container: &str, place: Option<&str>, task: Option<&str>) -> Attached {
        Attached {
            container_id: ContainerId::new(container),
            name: container.to_owned(),
            sandbox: SandboxSpec::default(),
            places: vec![Place {
                network_id: NetworkId::new(NETWORK),
                addresses: Vec::new(),
                aliases: Vec::new(),
                task_id: place.map(TaskId::new),
            }],
            published: Vec::new(),
            task_id: task.map(TaskId::new),
            ended: false,
            tap_owner: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_set_has_what_is_held_and_what_was_just_given() {
        let attachments = Attachments::default();
        let none = BTreeMap::new();
        attachments.insert(attached("hand", Some("t1"), None));
        attachments.insert(attached("service", Some("t2"), Some("t2")));
        attachments.given(TaskId::new("t3"));
        let ids = |held: Held| held.tasks.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ids(attachments.held(&none)), ["t1", "t3"]);
        // Whoever asked for it has gone: nobody takes it.
        tokio::time::advance(GIVEN_MAX).await;
        assert_eq!(ids(attachments.held(&none)), ["t1"]);
        attachments.remove(&ContainerId::new("hand"));
        assert!(attachments.held(&none).tasks.is_empty());
    }

    #[tokio::test]
    async fn a_place_of_an_earlier_daemon_is_found_again() {
        let attachments = Attachments::default();
        attachments.insert(attached("hand", None, None));
        assert!(attachments.held(&BTreeMap::new()).has_unknown());
        let key = (ContainerId::new("hand"), NetworkId::new(NETWORK));
        let remembered = BTreeMap::from([(key, TaskId::new("t1"))]);
        let held = attachments.held(&remembered);
        assert!(!held.has_unknown() && held.tasks.len() == 1, "{held:?}");
        let place = attachments.get(&ContainerId::new("hand")).map(|a| a.places[0].clone());
        assert_eq!(place.and_then(|p| p.task_id), Some(TaskId::new("t1")));
    }
}
