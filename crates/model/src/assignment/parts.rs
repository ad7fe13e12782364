//! Updates that are too large for one message.

use std::sync::Arc;

use super::list::{KEY_WEIGHT, Keyed, ListChange};
use super::table::NetworkInfo;
use super::update::{AssignmentUpdate, TableChange};
use crate::size::json_len;

/// What a task counts that cannot be measured; there is none.
const TASK_WEIGHT: usize = 16 << 10;

impl AssignmentUpdate {
    /// The same update as messages of at most `bytes_max` bytes each, in order; what is larger by
    /// itself goes alone. All but the last say that more follows.
    #[must_use]
    pub fn parts(self, bytes_max: usize) -> Vec<Self> {
        if self.weight() <= bytes_max {
            return vec![self];
        }
        let mut packer = Packer::new(&self, bytes_max);
        packer.first().tasks_removed = self.tasks_removed;
        packer.first().networks_removed = self.networks_removed;
        packer.first().own = self.own;
        packer.first().payloads.secrets_removed = self.payloads.secrets_removed;
        packer.first().payloads.configs_removed = self.payloads.configs_removed;
        for task in self.tasks_set {
            packer.room(task_weight(&task)).tasks_set.push(task);
        }
        for change in self.networks_set {
            packer.table(Arc::unwrap_or_clone(change));
        }
        let ports = Arc::unwrap_or_clone(self.ingress_ports);
        packer.list(ports, |part| Arc::make_mut(&mut part.ingress_ports));
        for set in self.payloads.set.split(bytes_max) {
            packer.room(set.bytes().saturating_mul(2)).payloads.set.extend(set);
        }
        packer.parts
    }

    /// Roughly its bytes in a message; rather too many than too few.
    fn weight(&self) -> usize {
        let tables = self.networks_set.iter().map(|change| {
            let lists = [change.peers.weight(), change.endpoints.weight()];
            4 * KEY_WEIGHT + lists.iter().sum::<usize>() + change.services.weight()
        });
        let tasks = self.tasks_set.iter().map(task_weight);
        let removed = self.tasks_removed.len() + self.networks_removed.len();
        tasks.sum::<usize>()
            + tables.sum::<usize>()
            + removed * KEY_WEIGHT
            + self.ingress_ports.weight()
            + self.payloads.set.bytes().saturating_mul(2)
    }
}

fn task_weight(task: &Arc<crate::object::Task>) -> usize {
    json_len(task).unwrap_or(TASK_WEIGHT)
}

/// Fills one part after the other.
struct Packer {
    bytes_max: usize,
    parts: Vec<AssignmentUpdate>,
    /// Of the last part.
    used: usize,
}

impl Packer {
    fn new(whole: &AssignmentUpdate, bytes_max: usize) -> Self {
        let first = AssignmentUpdate {
            base: whole.base,
            revision: whole.revision,
            ..AssignmentUpdate::default()
        };
        let removed = whole.tasks_removed.len() + whole.networks_removed.len();
        Self { bytes_max, parts: vec![first], used: removed * KEY_WEIGHT }
    }

    fn first(&mut self) -> &mut AssignmentUpdate {
        &mut self.parts[0]
    }

    /// The part that has room for so many bytes.
    fn room(&mut self, bytes: usize) -> &mut AssignmentUpdate {
        let last = self.parts.len() - 1;
        if self.used > 0 && self.used + bytes > self.bytes_max {
            let revision = self.parts[last].revision;
            self.parts[last].more = true;
            let next =
                AssignmentUpdate { base: Some(revision), revision, ..AssignmentUpdate::default() };
            self.parts.push(next);
            self.used = 0;
        }
        self.used += bytes;
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    fn table(&mut self, change: TableChange) {
        let TableChange { network, peers, endpoints, services } = change;
        // A network without entries is a network.
        table_of(self.room(4 * KEY_WEIGHT), &network);
        self.list(peers, |part| &mut table_of(part, &network).peers);
        self.list(endpoints, |part| &mut table_of(part, &network).endpoints);
        self.list(services, |part| &mut table_of(part, &network).services);
    }

    fn list<T: Keyed>(
        &mut self,
        change: ListChange<T>,
        place: impl Fn(&mut AssignmentUpdate) -> &mut ListChange<T>,
    ) {
        for key in change.removed {
            place(self.room(KEY_WEIGHT)).removed.insert(key);
        }
        for change in change.set {
            for piece in T::pieces(change) {
                place(self.room(T::weight(&piece))).set.push(piece);
            }
        }
    }
}

/// The change of a network in a part, the last one that it has.
fn table_of<'p>(part: &'p mut AssignmentUpdate, network: &NetworkInfo) -> &'p mut TableChange {
    if part.networks_set.last().is_none_or(|change| change.network.id != network.id) {
        part.networks_set.push(Arc::new(TableChange {
            network: network.clone(),
            peers: ListChange::default(),
            endpoints: ListChange::default(),
            services: ListChange::default(),
        }));
    }
    let last = part.networks_set.len() - 1;
    Arc::make_mut(&mut part.networks_set[last])
}
