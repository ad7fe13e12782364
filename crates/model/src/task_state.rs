//! The life of a task. States only ever grow; a replacement is a new task in the same slot.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a task is in its life, in order. Names as in Docker's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created, nothing decided.
    New,
    /// Has its addresses; waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node's agent knows it.
    Accepted,
    /// Image and network are being prepared.
    Preparing,
    /// Prepared; waits until it may start. The hold point of updates and restart delays.
    Ready,
    /// Its process is being started, or it is not healthy yet.
    Starting,
    /// Up, healthy, in DNS and load balancing.
    Running,
    /// Ended by itself with exit status 0.
    Complete,
    /// Ended because it was told to.
    Shutdown,
    /// Ended by itself with a failure.
    Failed,
    /// The node refused it or could not prepare it.
    Rejected,
    /// Marked for removal together with its history.
    Remove,
    /// Its node was away for so long that nobody knows.
    Orphaned,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Whether nothing of the task runs any more, and never will.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// The name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
