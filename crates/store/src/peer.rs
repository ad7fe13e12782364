//! Other members of the group.

use serde::{Deserialize, Serialize};

/// A member of the group of managers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The node's id; empty in stores that were made before there could be several managers.
    #[serde(default)]
    pub node: String,
    /// Its number in the group; never used twice.
    pub raft_id: u64,
}

/// What the consensus library keeps of a member beside its number: which node it is. Addresses
/// are looked up by the node's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberNode {
    pub(crate) node: String,
}
