//! What of this node is damaged or owed: for `docker info` and `shoal doctor`.

use shoal_agent::agent::Agent;
use shoal_engine::engine::Engine;
use shoal_image::store::ImageStore;
use shoal_model::check::{CheckResult, Need, Verdict};
use shoal_node::node::{Node, Standing};

/// Page of the check below.
const ID: &str = "SH-DOC-030";

/// The parts that can be damaged.
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

    /// The same as a check of the doctor's.
    pub fn check(&self) -> CheckResult {
        let mut found = self.warnings();
        // The image store's own damage has a line of its own in `info`.
        found.extend(self.images.damaged());
        let whole = found.is_empty();
        CheckResult {
            id: ID.to_owned(),
            name: "state of this node".to_owned(),
            verdict: if whole { Verdict::Ok } else { Verdict::Warn },
            detail: if whole { "nothing is damaged or owed".to_owned() } else { found.join("; ") },
            remedy: if whole {
                String::new()
            } else {
                "see the daemon's log; what depends on damaged files does not run".to_owned()
            },
            needed_for: Need::Nothing,
        }
    }
}
