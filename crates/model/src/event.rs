//! Events, in the shape of `GET /events`.

use serde::{Deserialize, Serialize};

use crate::spec::StringMap;
use crate::time::Timestamp;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `container`, `image`, `network`, `volume`, `service`, `node`, `task`, `daemon`…
    pub kind: String,
    /// `create`, `start`, `die`, `update`…
    pub action: String,
    /// The object's id.
    pub id: String,
    /// Facts about it; `name` among them.
    pub attributes: StringMap,
    /// Whether it concerns this node or the cluster.
    pub scope: Scope,
    /// When.
    pub time: Timestamp,
}

/// Whom an event concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This node.
    Local,
    /// The cluster.
    Swarm,
}
