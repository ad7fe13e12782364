//! What an operator says about a node.

use serde::{Deserialize, Serialize};

use super::{Extra, StringMap};
use crate::spec::service::null_as_default;
use crate::word::{Word, words};

/// `NodeSpec` of the Engine API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSpec {
    /// A name beside the host name; usually empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels for placement.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: StringMap,
    /// Worker or manager.
    pub role: NodeRole,
    /// Whether it gets tasks.
    pub availability: Availability,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a node does in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and holds the cluster's state.
    Manager,
}

impl NodeRole {
    /// The name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether a node gets tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Availability {
    /// Gets tasks.
    #[default]
    Active,
    /// Keeps the tasks it has, gets no new ones.
    Pause,
    /// Its tasks move elsewhere.
    Drain,
    /// A later version's word, or a wrong one.
    Other(Word),
}

words!(Availability {
    Active => "active",
    Pause => "pause",
    Drain => "drain",
});
