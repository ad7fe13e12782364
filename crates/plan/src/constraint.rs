//! Placement constraints and platforms: which nodes a service may run on at all.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::object::Node;
use shoal_model::spec::node::NodeRole;
use shoal_model::spec::task::{Placement, Platform};

/// A constraint, taken apart: `node.labels.zone != b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    equal: bool,
    value: String,
}

impl Constraint {
    /// Reads a constraint.
    ///
    /// # Errors
    /// What is wrong with it, in Docker's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let at = |op| text.find(op).map(|i| (i, op == "=="));
        let found = match (at("=="), at("!=")) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let (index, equal) =
            found.ok_or("constraint expected one operator from ==, !=".to_owned())?;
        let key = text.get(..index).unwrap_or_default().trim();
        let value = text.get(index + 2..).unwrap_or_default().trim();
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let key_ok = key.chars().all(|c| word(c) || c == '/')
            && key.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.len() > 1;
        if !key_ok {
            return Err(format!("key '{key}' is invalid"));
        }
        let value_ok = !value.is_empty()
            && value.chars().all(|c| word(c) || c.is_whitespace() || ":*()?+[]\\^$|/".contains(c));
        if !value_ok {
            return Err(format!("value '{value}' is invalid"));
        }
        if !is_known(key) {
            return Err(format!("key '{key}' is invalid: no node has such a property"));
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }

    /// Whether `node` satisfies it.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        self.holds(node) == self.equal
    }

    fn holds(&self, node: &Node) -> bool {
        let description = &node.description;
        let same = |actual: &str| actual.eq_ignore_ascii_case(&self.value);
        let key = self.key.to_ascii_lowercase();
        match key.as_str() {
            "node.id" => node.id.as_str() == self.value,
            "node.hostname" => same(&description.hostname),
            "node.role" => same(role(node).as_str()),
            "node.platform.os" => same(&description.platform.os),
            "node.platform.arch" => arch(&description.platform.architecture) == arch(&self.value),
            "node.ip" => self.holds_address(&node.status.addr),
            _ => same(self.label(node).unwrap_or_default()),
        }
    }

    fn label<'n>(&self, node: &'n Node) -> Option<&'n str> {
        let labels = |prefix: &str| self.key.get(prefix.len()..);
        let lower = self.key.to_ascii_lowercase();
        let found = if lower.starts_with(NODE_LABELS) {
            node.spec.labels.get(labels(NODE_LABELS)?)
        } else {
            node.description.engine_labels.get(labels(ENGINE_LABELS)?)
        };
        found.map(String::as_str)
    }

    fn holds_address(&self, addr: &str) -> bool {
        let Ok(address) = addr.parse::<IpAddr>() else { return false };
        match (self.value.parse::<IpNet>(), self.value.parse::<IpAddr>()) {
            (Ok(net), _) => net.contains(&address),
            (_, Ok(single)) => single == address,
            _ => false,
        }
    }
}

const NODE_LABELS: &str = "node.labels.";
const ENGINE_LABELS: &str = "engine.labels.";

fn is_known(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let fixed = [
        "node.id",
        "node.hostname",
        "node.ip",
        "node.role",
        "node.platform.os",
        "node.platform.arch",
    ];
    fixed.contains(&key.as_str())
        || key.strip_prefix(NODE_LABELS).is_some_and(|rest| !rest.is_empty())
        || key.strip_prefix(ENGINE_LABELS).is_some_and(|rest| !rest.is_empty())
}

fn role(node: &Node) -> NodeRole {
    if node.manager.is_some() { NodeRole::Manager } else { node.spec.role }
}

/// One name for each architecture: images and kernels disagree.
fn arch(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        _ => lower,
    }
}

/// Whether `node` satisfies every constraint. One that cannot be read suits no node.
#[must_use]
pub fn constraints_hold(node: &Node, placement: Option<&Placement>) -> bool {
    let constraints = placement.and_then(|p| p.constraints.as_deref()).unwrap_or(&[]);
    constraints.iter().all(|text| Constraint::parse(text).is_ok_and(|c| c.matches(node)))
}

/// Whether the image exists for the node's platform; an empty list means any.
#[must_use]
pub fn platform_fits(node: &Node, placement: Option<&Placement>) -> bool {
    let platforms = placement.and_then(|p| p.platforms.as_deref()).unwrap_or(&[]);
    let own = &node.description.platform;
    let fits = |wanted: &Platform| {
        let os = wanted.os.is_empty() || wanted.os.eq_ignore_ascii_case(&own.os);
        let machine =
            wanted.architecture.is_empty() || arch(&wanted.architecture) == arch(&own.architecture);
        os && machine
    };
    platforms.is_empty() || platforms.iter().any(fits)
}

/// Whether `node` is one that the service means.
pub(crate) fn node_suits(node: &Node, placement: Option<&Placement>) -> bool {
    constraints_hold(node, placement) && platform_fits(node, placement)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn constraints_need_an_operator_and_a_known_key() {
        for good in ["node.role==manager", "node.labels.a.b != x", "node.ip == 10.0.0.0/8"] {
            assert!(Constraint::parse(good).is_ok(), "{good}");
        }
        for bad in ["node.role=manager", "==x", "node.id==", "node.size==1", "node.labels.==x"] {
            assert!(Constraint::parse(bad).is_err(), "{bad}");
        }
        let said = Constraint::parse("node.role>3").unwrap_err();
        assert_eq!(said, "constraint expected one operator from ==, !=");
    }
}
