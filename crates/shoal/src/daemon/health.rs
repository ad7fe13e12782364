//! What of this node is damaged or owed: for `docker info` and `shoal doctor`.

use shoal_agent::agent::Agent;
use shoal_engine::engine::Engine;
use shoal_image::store::ImageStore;
use shoal_node::node::{Node, Standing};

/// The parts that can be damaged.
#[derive(Clone)]
pub struct Health {
    pub engine: Engine,
    pub images: ImageStore,
    pub agent: Agent,
    pub node: Node,
}

impl Health {
    /// One text for each thing that is damaged, or owed and tried again.
    pub fn warnings(&self) -> Vec<String> {
        let mut found = self.engine.warnings();
        found.extend(self.agent.damaged());
        if let Standing::Broken { error } = self.node.standing() {
            found.push(format!("this node's part in its swarm is broken: {error}"));
        }
        found
    }

    /// These and the damage of the image store, which has its own place in `info`.
    pub fn all(&self) -> Vec<String> {
        let mut found = self.warnings();
        found.extend(self.images.damaged());
        found
    }
}
