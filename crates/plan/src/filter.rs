//! Why a node cannot take a task: one filter after the other, and the sum of it in words.

use std::collections::BTreeMap;

use shoal_model::check::{Need, blockers};
use shoal_model::net::Port;
use shoal_model::object::{Node, NodeState, Task};
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::{PortConfig, PublishMode};
use shoal_model::spec::task::Resources;

use crate::schedule::Load;
use crate::{constraint, generic};

/// Why a node was passed over, in the order in which the filters run: a later one means that the
/// node came nearer to being suitable, so it tells the reader more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    NotAvailable,
    Constraints,
    Platform,
    MaxReplicas,
    HostPort(Port),
    Cpu,
    Memory,
    /// Which kind of generic resource.
    Generic(String),
    /// A failed check: its name, and the whole line about it.
    Missing {
        what: String,
        line: String,
    },
}

/// Whether `node` can take `task`.
pub(crate) fn fits(node: &Node, load: &Load, task: &Task) -> Result<(), Refusal> {
    let ready = node.status.state == NodeState::Ready;
    if !ready || node.spec.availability != Availability::Active {
        return Err(Refusal::NotAvailable);
    }
    let placement = task.spec.placement.as_ref();
    if !constraint::constraints_hold(node, placement) {
        return Err(Refusal::Constraints);
    }
    if !constraint::platform_fits(node, placement) {
        return Err(Refusal::Platform);
    }
    let max = placement.and_then(|p| p.max_replicas).unwrap_or(0);
    if max > 0 && load.other_places(task) >= max {
        return Err(Refusal::MaxReplicas);
    }
    if let Some(port) = host_ports(task).find(|port| load.port_in_use(*port, task)) {
        return Err(Refusal::HostPort(port));
    }
    enough(node, load, task)?;
    checks_pass(node, task)
}

/// The fixed host ports that a task opens.
pub(crate) fn host_ports(task: &Task) -> impl Iterator<Item = Port> + '_ {
    let host = |p: &&PortConfig| p.mode() == PublishMode::Host;
    task.endpoint_ports.iter().filter(host).filter_map(PortConfig::published)
}

/// What a task reserves: billionths of a CPU, bytes.
pub(crate) fn reserved(task: &Task) -> (i64, i64) {
    let asked = task.spec.resources.as_ref().and_then(|r| r.reservations.as_ref());
    let amount = |of: fn(&Resources) -> Option<i64>| asked.and_then(of).unwrap_or(0);
    (amount(|r| r.nano_cpus), amount(|r| r.memory_bytes))
}

fn enough(node: &Node, load: &Load, task: &Task) -> Result<(), Refusal> {
    let (cpu, memory) = reserved(task);
    let has = &node.description.resources;
    // A node that does not say what it has is not judged by it.
    let short = |asked: i64, used: i64, has: Option<i64>| {
        asked > 0 && has.is_some_and(|has| asked.saturating_add(used) > has)
    };
    if short(cpu, load.cpu, has.nano_cpus) {
        return Err(Refusal::Cpu);
    }
    if short(memory, load.memory, has.memory_bytes) {
        return Err(Refusal::Memory);
    }
    generic::choose(node, &load.generic, task).map(drop).map_err(Refusal::Generic)
}

fn checks_pass(node: &Node, task: &Task) -> Result<(), Refusal> {
    let limited = task.spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| {
        [l.nano_cpus, l.memory_bytes, l.pids].iter().flatten().any(|amount| *amount > 0)
    });
    let needs = [
        (Need::Containers, true),
        (Need::Overlay, !task.networks.is_empty()),
        (Need::Limits, limited),
    ];
    for (need, _) in needs.iter().filter(|(_, needed)| *needed) {
        if let Some(line) = blockers(&node.description.checks, *need) {
            let what = line.split(':').next().unwrap_or("a feature missing").to_owned();
            let line = format!("node '{}': {line}", node.description.hostname);
            return Err(Refusal::Missing { what, line });
        }
    }
    Ok(())
}

/// What `service ps` shows for a task that no node can take: the most telling cause in the first
/// characters (clients cut the text), then how many nodes each filter passed over, in Docker's
/// words and order. Every node is counted once.
pub(crate) fn explain(refusals: &[Refusal]) -> String {
    let mut groups: BTreeMap<Refusal, (usize, Option<&str>)> = BTreeMap::new();
    for refusal in refusals {
        let (group, line) = match refusal {
            Refusal::Missing { what, line } => {
                let group = Refusal::Missing { what: what.clone(), line: String::new() };
                (group, Some(line.as_str()))
            }
            other => (other.clone(), None),
        };
        let entry = groups.entry(group).or_insert((0, line));
        entry.0 += 1;
    }
    let Some((main, (count, _))) = groups.last_key_value() else {
        return "no node: the cluster has no node that could run this task".to_owned();
    };
    let head = phrase(main, *count);
    let mut filters: Vec<(&str, usize)> = Vec::new();
    for (group, (count, _)) in groups.iter().rev() {
        let words = filter_words(group);
        match filters.iter_mut().find(|(known, _)| *known == words) {
            Some((_, sum)) => *sum += count,
            None => filters.push((words, *count)),
        }
    }
    // Most nodes first; of as many, the nearer cause.
    filters.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let counted = |(words, count): &(&str, usize)| match *words {
        UNAVAILABLE => phrase(&Refusal::NotAvailable, *count),
        words => format!("{words} on {count} node{}", plural(*count)),
    };
    let all: Vec<String> = filters.iter().map(counted).collect();
    let mut text = format!("{head}: no suitable node ({})", all.join("; "));
    for line in groups.values().rev().filter_map(|(_, line)| *line) {
        text.push_str("; ");
        text.push_str(line);
    }
    text
}

const UNAVAILABLE: &str = "not available for new tasks";

/// What Docker says of the filter that refused.
fn filter_words(refusal: &Refusal) -> &str {
    match refusal {
        Refusal::NotAvailable => UNAVAILABLE,
        Refusal::Constraints => "scheduling constraints not satisfied",
        Refusal::Platform => "unsupported platform",
        Refusal::MaxReplicas => "max replicas per node limit exceed",
        Refusal::HostPort(_) => "host-mode port already in use",
        Refusal::Cpu | Refusal::Memory | Refusal::Generic(_) => "insufficient resources",
        Refusal::Missing { what, .. } => what,
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn phrase(refusal: &Refusal, count: usize) -> String {
    let s = plural(count);
    match refusal {
        Refusal::NotAvailable => format!("{count} node{s} not available for new tasks"),
        Refusal::Constraints => format!("constraints not satisfied on {count} node{s}"),
        Refusal::Platform => format!("unsupported platform on {count} node{s}"),
        Refusal::MaxReplicas => format!("max replicas per node limit reached on {count} node{s}"),
        Refusal::HostPort(port) => format!("port {port} in use on {count} node{s} (host mode)"),
        Refusal::Cpu => format!("insufficient CPU on {count} node{s}"),
        Refusal::Memory => format!("insufficient memory on {count} node{s}"),
        Refusal::Generic(kind) => format!("insufficient {kind} on {count} node{s}"),
        Refusal::Missing { what, .. } => format!("{what} on {count} node{s}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_cause_comes_first() {
        let text = explain(&[Refusal::NotAvailable, Refusal::Memory, Refusal::Memory]);
        assert_eq!(
            text,
            "insufficient memory on 2 nodes: no suitable node (insufficient resources on 2 nodes; \
             1 node not available for new tasks)"
        );
    }

    #[test]
    fn nodes_are_counted_by_reason_in_dockers_words_and_order() {
        let (away, labels) = (Refusal::NotAvailable, Refusal::Constraints);
        let text = explain(&[away.clone(), labels.clone(), away.clone()]);
        let (head, all) = text.split_once(": ").unwrap_or_default();
        assert_eq!(head, "constraints not satisfied on 1 node");
        assert_eq!(
            all,
            "no suitable node (2 nodes not available for new tasks; scheduling constraints not \
             satisfied on 1 node)"
        );
        let text = explain(&[Refusal::Cpu, away, labels, Refusal::Memory]);
        let all = text.split_once('(').unwrap_or_default().1;
        assert!(all.starts_with("insufficient resources on 2 nodes; scheduling"), "{text}");
    }

    #[test]
    fn a_missing_feature_is_named_with_its_whole_line() {
        let line = "node 'h1': vxlan device missing: not supported; load vxlan [SH-DOC-003]";
        let missing = Refusal::Missing { what: "vxlan device missing".into(), line: line.into() };
        let text = explain(&[missing]);
        assert!(text.starts_with("vxlan device missing on 1 node"), "{text}");
        assert!(text.ends_with(line), "{text}");
    }
}
