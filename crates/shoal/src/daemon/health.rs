//! What of this node is damaged or owed: for `docker info` and `GET /shoal/doctor`.

use shoal_agent::agent::Agent;
use shoal_engine::engine::Engine;
use shoal_image::store::ImageStore;
use shoal_manager::control::Control;
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
        let mut found = self.images.damaged();
        found.extend(self.engine.warnings());
        found.extend(self.agent.damaged());
        if let Standing::Broken { error } = self.node.standing() {
            found.push(format!("this node's part in its swarm is broken: {error}"));
        }
        found.extend(self.agent.warnings());
        found.extend(self.node.warnings());
        found.extend(self.node.control().iter().flat_map(Control::warnings));
        found
    }
}
