//! Generic resources: what of a node is given to tasks, and what a task gets of it.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::object::{Node, Task};
use shoal_model::spec::generic::GenericResource;

/// What tasks have of a node: numbers, and names.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    counted: BTreeMap<String, i64>,
    named: BTreeMap<String, BTreeSet<String>>,
}

impl Taken {
    /// Counts what a task has. It keeps it until it has ended, whatever is wanted of it: a device
    /// must not be used by two.
    pub fn add(&mut self, task: &Task) {
        for given in &task.assigned_generic_resources {
            match given {
                GenericResource::Named(one) => {
                    self.named.entry(one.kind.clone()).or_default().insert(one.value.clone());
                }
                GenericResource::Discrete(some) => {
                    let sum = self.counted.entry(some.kind.clone()).or_default();
                    *sum = sum.saturating_add(some.value);
                }
            }
        }
    }
}

/// What a task asks for, by kind.
fn asked(task: &Task) -> BTreeMap<String, i64> {
    let reservations = task.spec.resources.as_ref().and_then(|r| r.reservations.as_ref());
    let listed = reservations.and_then(|r| r.generic_resources.as_deref()).unwrap_or(&[]);
    let mut asked: BTreeMap<String, i64> = BTreeMap::new();
    for resource in listed.iter().filter_map(GenericResource::read) {
        if let GenericResource::Discrete(some) = resource {
            let sum = asked.entry(some.kind).or_default();
            *sum = sum.saturating_add(some.value.max(0));
        }
    }
    asked.retain(|_, count| *count > 0);
    asked
}

/// What `task` gets on `node`, where others have `taken` what they have.
///
/// # Errors
/// The first kind of which there is not enough.
pub(crate) fn choose(
    node: &Node,
    taken: &Taken,
    task: &Task,
) -> Result<Vec<GenericResource>, String> {
    let mut chosen = Vec::new();
    let asked = asked(task);
    if asked.is_empty() {
        return Ok(chosen);
    }
    let listed = node.description.resources.generic_resources.as_deref().unwrap_or(&[]);
    let has: Vec<GenericResource> = listed.iter().filter_map(GenericResource::read).collect();
    for (kind, count) in asked {
        let mut of_kind = has.iter().filter(|resource| resource.kind() == kind).peekable();
        if let Some(GenericResource::Discrete(all)) = of_kind.peek() {
            let used = taken.counted.get(&kind).copied().unwrap_or(0);
            if all.value.saturating_sub(used) < count {
                return Err(kind);
            }
            chosen.push(GenericResource::discrete(&kind, count));
            continue;
        }
        let used = taken.named.get(&kind);
        let is_free = |resource: &&GenericResource| match resource {
            GenericResource::Named(one) => !used.is_some_and(|used| used.contains(&one.value)),
            GenericResource::Discrete(_) => false,
        };
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        let free: Vec<_> = of_kind.filter(is_free).take(wanted).cloned().collect();
        if free.len() < wanted {
            return Err(kind);
        }
        chosen.extend(free);
    }
    Ok(chosen)
}
